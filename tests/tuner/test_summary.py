"""The tables say what the summary holds, fit a terminal, and give the next line to type."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.break_even import Serving
from pipeline.methods import AdaTP
from tests.summaries import make_serving, make_setting, make_summary
from tuner.recording import Recorded
from tuner.results import AnswerCost, Configuration, Measured, Refusal
from tuner.summary import Row, comparison, duration, headline, knob_rows, percent, remarks, render

pytestmark = pytest.mark.quick

NOTHING_FITS = {"best": None, "best_held_out": None, "defaults": None, "defaults_held_out": None}


def _text(summary, width=80, **options):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(summary, **options))
    return console.file.getvalue()


def test_the_comparison_holds_held_out_numbers_with_intervals():
    rows = {row.name.strip(): row for row in comparison(make_summary())}
    assert rows["held-out accuracy"].unpruned == "94.0 [92.0, 95.8]"
    assert rows["held-out accuracy"].best == "89.0 [86.0, 91.5]"
    assert rows["change"].best == "-5.0 [-7.0, -3.0]"
    assert rows["regressions"].defaults == "60"
    assert rows["gained"].defaults == "4"
    assert rows["FLOPs ratio"].best == "0.2970"
    assert rows["end to end"].best == "0.4024"
    assert rows["seconds an answer"] == Row("seconds an answer", "0.03", "0.021", "0.021")
    assert rows["MiB added"] == Row("  MiB added", "6.5", "5.2", "5.2")


def test_the_five_knobs_are_there_with_what_they_mean():
    rows = knob_rows(make_summary())
    assert [row.name for row in rows] == ["tau_s", "tau_t", "alpha_boost", "gamma_cap", "p"]
    assert all(row.meaning for row in rows)
    assert rows[4].defaults == "0.82"


def _said_of_serving(**changes):
    return " ".join(remarks(make_summary(serving=make_serving(**changes))))


def test_when_pruning_pays_is_one_sentence():
    assert (
        "On a server that keeps each video's prefix pruning pays for up to 12.5 questions per video (FLOPs), "
        "up to 10 questions per video (seconds on Example CPU, 1 thread); "
        "beyond that keep the unpruned prefix."
    ) in _said_of_serving()
    assert "keeps 12 MiB per video unpruned, 1 MiB pruned." in _said_of_serving()
    assert "over ours, question v1-q2: 1.0000 unpruned, 0.8000 pruned." in _said_of_serving()


def test_pruning_that_always_or_never_pays_is_said_so():
    cheap, dear = Serving(0, 0, 10, 0, 1), Serving(0, 0, 20, 0, 9)
    always = _said_of_serving(baseline=dear, best=cheap, measured=None)
    assert "pays for any number of questions per video (FLOPs)." in always
    never = _said_of_serving(baseline=cheap, best=dear, measured=None)
    assert "pays for no question (FLOPs); keep the unpruned prefix." in never
    assert "MiB per video" not in never


def test_memory_too_small_to_tell_is_said_so_and_unknown_memory_is_a_dash():
    small = make_summary(baseline_cost=AnswerCost(0.1, 3000.0, 2**20))
    assert {row.name: row.unpruned for row in comparison(small)}["  MiB added"] == "< 1"
    unknown = make_summary(baseline_cost=AnswerCost(0.1))
    assert {row.name: row.unpruned for row in comparison(unknown)}["  MiB added"] == "-"


def test_without_labels_accuracy_is_called_agreement():
    rows = comparison(make_summary(setting=make_setting(labelled=False)))
    assert rows[0].name == "held-out agreement"


@pytest.mark.parametrize("binds", ["alpha_boost", "gamma_cap", "none"])
def test_what_binds_is_said(binds):
    said = next(line for line in remarks(make_summary(binds=binds)) if "no effect" in line)
    assert said.startswith("No segment" if binds == "none" else f"{binds} decides")


def test_the_next_command_is_given_until_there_is_a_file():
    assert "tuner export --study demo --output best.json" in _text(make_summary())
    assert "tuner export --study ./my/study --output" in _text(make_summary(), study="./my/study")
    exported = _text(make_summary(), exported=Path("out/best.json"))
    assert "Exported to out/best.json." in exported
    assert "To export" not in exported


def test_mlflow_ui_is_told_for_a_local_database_only():
    local = Recorded("abc", "http://127.0.0.1:5000/#/experiments/1/runs/abc")
    assert "type `mlflow ui` and open http://127.0.0.1:5000" in " ".join(
        remarks(make_summary(), recorded=local)
    )
    server = Recorded("abc", "http://tracking:5000/#/experiments/1/runs/abc")
    assert "mlflow ui" not in " ".join(remarks(make_summary(), recorded=server))


def test_a_study_in_which_nothing_fits_says_so_and_what_would():
    closest = Refusal(Configuration.from_method(AdaTP(p=0.4)), 0.12)
    said = _text(make_summary(3, budget=0.05, closest=closest, **NOTHING_FITS), width=300)
    assert "No configuration within the budget 0.05" in said
    assert "closest needs 0.1200 (tau_s 0.95, tau_t 0.5, alpha_boost 1.1, gamma_cap 0.95, p 0.4)" in said
    assert "smallest FLOPs ratio any configuration can reach is 0.0810" in said


def test_skipped_videos_are_named():
    assert "cannot be read: a.mp4, b.mp4." in _text(make_summary(skipped_videos=("a.mp4", "b.mp4")))


def test_eighty_columns_are_enough_for_every_number():
    lines = _text(make_summary()).splitlines()
    assert max(map(len, lines)) <= 80
    for row in comparison(make_summary()):
        assert any(
            all(cell in line for cell in (row.name, row.unpruned, row.best, row.defaults)) for line in lines
        )


def test_a_study_without_a_held_out_result_yet_still_renders():
    assert "trial" in _text(make_summary(best_held_out=None, defaults_held_out=None))


def test_brackets_in_a_name_are_printed_as_they_are():
    summary = replace(make_summary(), study="[bold]odd[/bold]")
    assert "[bold]odd[/bold]" in _text(summary, exported=Path("[red]x.json"))


def test_the_headline_leaves_out_what_did_not_happen():
    summary = make_summary(refused=0, shared_answers=0, seconds=0.2)
    assert headline(summary) == "demo: budget 0.3, 24 trials"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (193, "3 min 13 s"), (7260, "2 h 1 min")]
)
def test_durations_are_said_as_a_person_would(seconds, said):
    assert duration(seconds) == said


def test_what_was_not_measured_is_a_dash():
    assert percent(None) == percent(Measured(float("nan"))) == "-"
