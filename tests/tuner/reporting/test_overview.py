"""The short answer: every kind of end fits 25 lines of 80 columns and names commands that can be pasted."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.methods import AdaTP
from tests.summaries import make_held_out, make_serving, make_setting, make_summary, make_tags, make_tested
from tuner.cli.main import app
from tuner.reporting.overview import MOST_LINES, Naming, Standing, exported, overview
from tuner.reporting.values import InfeasibleProposal, RunSummary
from tuner.statistics.values import Guessing, Noise
from tuner.study.values import Configuration

pytestmark = pytest.mark.quick

BELOW = (("report", ".tuner/demo/figures/report.html"), ("records", "sqlite:///.tuner/demo/tuner.db"))
RUNNING = Standing(12, 40, "process 12345 of a-host-with-a-name since 10:30")
UNMEASURED: dict[str, Any] = {"best_held_out": None, "defaults_held_out": None, "verdict": "untested"}
NOTHING: dict[str, Any] = UNMEASURED | {"best": None, "defaults": None, "serving": None}


def _not_shown(difference: float, bound: float, margin: float, **changes: Any) -> RunSummary:
    tested = (make_tested(4, difference, bound, margin=margin),)
    return make_summary(verdict="not_shown", max_drop=f"{margin:g}", margin=margin, tested=tested, **changes)


def _crowded() -> RunSummary:
    """As much as an answer can have beside its verdict."""
    summary = _not_shown(
        -0.005,
        -0.031,
        0.02,
        quarantined={"q7": "killed"},
        skipped_videos=("a.mp4", "b.mp4"),
        choices=("score_query",),
    )
    assert summary.best_held_out is not None
    held_out = replace(make_held_out(summary.best_held_out.configuration, 0.935), by_tag=make_tags(6))
    assert summary.best is not None
    method = replace(summary.best.configuration.build(), deduplicate="drop")
    best = replace(summary.best, configuration=Configuration.from_method(method))
    return replace(summary, best=best, best_held_out=held_out, sampler="random", seed=7)


ENDS: dict[str, tuple[RunSummary, Standing | None, str]] = {
    "shown": (make_summary(), None, "YES: it loses 5.0 points, at most 6.8; you allow 8."),
    "not shown": (
        _not_shown(-0.05, -0.07, 0.06),
        None,
        "NOT SHOWN: it loses 5.0 points and may lose up to 7.0; you allow 6.",
    ),
    "too few videos": (
        _crowded(),
        RUNNING,
        "NOT SHOWN: it loses 0.5 points and may lose up to 3.1; you allow 2.",
    ),
    "lost": (_not_shown(-0.124, -0.15, 0.02), None, "NO: it loses 12.4 points and may lose up to 15.0"),
    "gained": (
        make_summary(tested=(make_tested(4, 0.002, -0.011, margin=0.08),)),
        None,
        "YES: it gains 0.2 points and may lose up to 1.1; you allow 8.",
    ),
    "equal": (
        make_summary(tested=(make_tested(4, 0.0, -0.017, margin=0.03),), margin=0.03),
        None,
        "YES: it loses 0.0 points, at most 1.7; you allow 3.",
    ),
    "cheapest": (make_summary(goal="max_drop", budget=1.0, max_drop="1%"), None, "YES: it loses 5.0 points"),
    "running": (make_summary(**UNMEASURED), RUNNING, "NOT YET: 12 of 40 trials are done; it is being run by"),
    "baseline": (
        make_summary(0, **NOTHING),
        replace(RUNNING, done=0, unpruned_missing=300),
        "NOT YET: 0 of 40 trials are done, 300 unpruned answers are missing; it is being run by",
    ),
    "interrupted": (
        make_summary(**UNMEASURED),
        Standing(12, 40),
        "nobody is running it: the command below goes on",
    ),
    "more asked for": (make_summary(), Standing(24, 40), "Nobody is running it: 24 of 40 trials are done."),
    "killed at the end": (make_summary(**UNMEASURED), Standing(40, 40), "is not measured on held-out videos"),
    "nothing fits": (
        make_summary(
            3,
            budget=0.05,
            closest=InfeasibleProposal(Configuration.from_method(AdaTP(p=0.4)), 0.12),
            **NOTHING,
        ),
        None,
        "NOTHING FITS: No configuration within the budget 0.05 was found. The closest needs 0.1200",
    ),
    "no labels": (
        make_summary(setting=make_setting(labelled=False)),
        None,
        "YES: it loses 5.0 points of agreement, at most 6.8; you allow 8.",
    ),
    "noise": (
        make_summary(
            setting=make_setting(labelled=False),
            margin=0.001,
            noise=Noise(questions=600, videos=80, flips=2, logprob_mean=0.0, logprob_max=0.0),
        ),
        None,
        "NOT KNOWN: the margin is within the noise floor",
    ),
    "free answers": (
        make_summary(best_held_out=replace(make_held_out(Configuration.from_method(AdaTP())), by_tag=())),
        None,
        "YES: it loses 5.0 points",
    ),
    "guesses": (
        make_summary(guessing=Guessing(600, 80, 150, 0.25, None)),
        None,
        "NO: The unpruned model answers 25.0 % of 600 questions right; guessing gives 25 %.",
    ),
    "nothing held out": (
        make_summary(held_out_videos=0, tested=(), **UNMEASURED),
        None,
        "NOT KNOWN: the study holds no videos out",
    ),
    "no margin": (
        make_summary(verdict="untested", tested=(), margin=None, max_drop=""),
        None,
        "NOT KNOWN: no drop was allowed",
    ),
    "unmeasured": (make_summary(serving=None, defaults=None, defaults_held_out=None), None, "YES:"),
}


def _lines(summary: RunSummary, standing: Standing | None = None, **options: Any) -> list[str]:
    naming = options.pop("naming", Naming("demo"))
    return [line.plain for line in overview(summary, naming, standing=standing, **options)]


def _commands(lines: list[str]) -> list[list[str]]:
    found = [shlex.split(line.removeprefix("NEXT"), comments=True) for line in lines if " tuner " in line]
    return [words for words in found if words[0] == "tuner"]


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("end", ENDS)
def test_every_end_fits_a_screen(end: str, width: int) -> None:
    summary, standing, said = ENDS[end]
    lines = _lines(summary, standing, below=BELOW, width=width)
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= width
    assert said in " ".join(" ".join(lines).split())


def _parses(words: list[str]) -> bool:
    """Whether the command line knows the command and its options; with --help nothing is run."""
    return CliRunner().invoke(app, [*words, "--help"]).exit_code == 0


@pytest.mark.parametrize("end", ENDS)
def test_every_command_parses(end: str) -> None:
    summary, standing, _ = ENDS[end]
    naming = Naming("./my study", {"--database": "sqlite:///my records.db"})
    commands = _commands(_lines(summary, standing, naming=naming))
    assert commands or end == "nothing held out"
    for words in commands:
        assert words[words.index("--study") + 1] == "./my study"
        if words[1] != "check":
            assert words[words.index("--database") + 1] == "sqlite:///my records.db"
        assert _parses(words[1:])


def test_a_command_that_is_wrong_does_not_parse() -> None:
    assert not _parses(["show", "--stdy", "demo"])
    assert not _parses(["shw", "--study", "demo"])


def test_the_table_says_what_is_saved_and_what_it_costs() -> None:
    rows = {line[:21].strip(): line[21:].split() for line in _lines(make_summary())}
    assert rows["accuracy, held-out"] == ["94.0", "%", "89.0", "%", "-5.0", "85.0", "%", "-9.0"]
    assert rows["FLOPs, end to end"] == ["100", "%", "40", "%", "-60", "%", "40", "%", "-60", "%"]
    assert rows["FLOPs, LLM prefill"][:5] == ["100", "%", "30", "%", "-70"]
    assert rows["time, first question"] == ["1.01", "s", "560", "ms", "-45", "%", "-"]
    assert rows["answers lost / gained"] == ["36", "/", "4", "of", "600", "60", "/", "4"]
    text = "\n".join(_lines(make_summary()))
    assert "weakest kinds   type kind2 -2.0, type kind1 -1.0\n" in text
    assert "pays for        up to 12.5 questions per video, where prefixes are kept\n" in text
    assert "(no effect)" in text
    dearer = replace(make_serving().baseline, question=99.0)
    always = make_summary(serving=make_serving(baseline=dearer))
    assert "pays for" not in "\n".join(_lines(always))


def test_without_labels_answers_change_and_before_the_end_tune_videos_speak() -> None:
    unlabelled = _lines(make_summary(setting=make_setting(labelled=False)))
    assert any(line.startswith("agreement, held-out") for line in unlabelled)
    assert any(line.split()[:3] == ["answers", "changed", "36"] for line in unlabelled)
    unmeasured = _lines(make_summary(**UNMEASURED), RUNNING)
    assert any(line.startswith("accuracy, tune ") for line in unmeasured)
    assert not any("held-out" in line or "export" in line for line in unmeasured)


def test_what_is_accepted_or_meant_stands_in_the_command() -> None:
    failed = _commands(_lines(_not_shown(-0.124, -0.15, 0.02)))
    assert failed[0][-1] == "--accept-regressions"
    named = _commands(_lines(make_summary(), latest=False))
    assert named[0][named[0].index("--budget") :] == ["--budget", "0.3", "--seed", "0"]
    more = _commands(_lines(make_summary(), Standing(24, 40)))
    assert [words[1] for words in more[:2]] == ["export", "run"]
    assert more[1][-2:] == ["--trials", "40"]
    interrupted = make_summary(
        goal="max_drop", budget=1.0, max_drop="0.05", seed=0, sampler="random", **UNMEASURED
    )
    assert _commands(_lines(interrupted, Standing(3, 60)))[0] == (
        "tuner run --study demo --max-drop 0.05 --trials 60 --sampler random".split()
    )
    nothing = _commands(_lines(make_summary(3, budget=0.05, smallest_reachable=0.0812, **NOTHING)))
    assert nothing[0] == "tuner run --study demo --budget 0.09".split()


def test_export_adds_the_file_the_verdict_and_how_to_load_it() -> None:
    lines = [line.plain for line in exported(make_summary(), Path("out/best.json"))]
    assert lines == [
        "wrote           out/best.json: trial 4 of demo, budget 0.3",
        "MAY I SHIP IT?  YES: it loses 5.0 points, at most 6.8; you allow 8.",
        "load it         from pipeline import load; model = load('out/best.json')",
    ]


def test_brackets_in_a_name_are_text() -> None:
    lines = _lines(replace(make_summary(), study="[bold]odd[/bold]"))
    assert lines[0].startswith("[bold]odd[/bold], budget 0.3")
