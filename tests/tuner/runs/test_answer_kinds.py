"""A label-free study and one of free answers, each from `run` to `verify`: tiny model, real video files."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from dashboards.folder import draw
from pipeline.runtime import Runtime
from tests.checkpoints import scenes, write_checkpoints
from tests.videos import write_video
from tuner.cli.verify import in_markdown
from tuner.export import best_file, mlflow_content
from tuner.reporting import comparison_table, sensitivity_table, summary
from tuner.reporting.from_records import load_summary
from tuner.reporting.overview import Naming, overview
from tuner.reporting.values import Comparison, RunSummary
from tuner.runs import compare as compare_module
from tuner.runs.compare import compare
from tuner.runs.run import RunOptions, Session, run
from tuner.runs.sensitivity import sensitivity
from tuner.runs.verify import Verification, verify
from tuner.sensitivity.results import Sensitivity
from tuner.sensitivity.surrogate import analyse
from tuner.study import Study, load_study

KINDS = ("label-free", "free answers")
# Random weights do no better than guessing.
OPTIONS = RunOptions(budget=0.5, trials=2)

# Words that only labels give a meaning, with what stands around them.
_OF_LABELS = r".{0,40}\b(?:accura\w+|right answers?|answers? right|have right)\b.{0,40}"


@dataclass(frozen=True)
class Walked:
    """What each command came to."""

    study: Study
    summary: RunSummary
    comparison: Comparison
    sensitivity: Sensitivity
    verified: Verification
    report: str
    best: best_file.Best


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Checkpoints and four videos for both studies; the model is loaded once."""
    folder = tmp_path_factory.mktemp("parts")
    write_checkpoints(folder)
    (folder / "videos").mkdir()
    for index in range(4):
        write_video(folder / "videos" / f"v{index}.mp4", scenes(16, scene_length=4, seed=index))
    loaded: list[Runtime] = []
    load = Runtime.load

    def load_once(*given: object, **options: object) -> Runtime:
        if not loaded:
            loaded.append(load(*given, **options))  # type: ignore[arg-type]
        return loaded[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "load", load_once)
        # Times and pictures have tests of their own, and take the most time.
        patch.setattr(Session, "measure_serving", lambda *_: None)
        patch.setattr(Session, "inspect", lambda *_: None)
        patch.setattr(compare_module, "_time", lambda *_: None)
        yield folder


@pytest.fixture(scope="module", params=KINDS)
def walked(request: pytest.FixtureRequest, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Walked:
    folder = tmp_path_factory.mktemp("walked")
    lines = []
    for index in range(4):
        for place in ("top", "bottom"):
            asked = {"question": f"what color is the {place} of the ring ?", "video": f"v{index}.mp4"}
            given = (
                {"options": ["red", "green", "blue"]} if request.param == "label-free" else {"answer": "red"}
            )
            tags = {"tags": {"place": place}}
            lines.append(json.dumps({"id": f"v{index}-{place}", **asked, **given, **tags}))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "study.yaml").write_text(
        f"name: tiny\nmodel: {parts}/model\ntext_encoder: {parts}/siglip\nvideos: {parts}/videos\n"
        "allow_outside: true\n"
        "frames: 8\nscoring: words\nmax_new_tokens: 4\nsplit:\n  held_out: 0.5\n"
    )
    with contextlib.chdir(folder):
        study = load_study(folder)
        run(study, OPTIONS)
        compared = compare(study, OPTIONS)
        found = sensitivity(study, OPTIONS, analyse=analyse, runs=20)
        told = load_summary(study)
        page, *_ = draw(study, told, comparison=compared)
        best = best_file.describe(told, folder, accept_regressions=True, accept_weak_baseline=True)
        best_file.write(best, Path("best.json"))
        verified = verify(Path("best.json"), study, RunOptions())
        report = page.read_text()
    return Walked(study, told, compared, found, verified, report, best)


def printed(what: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(what)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def said(walked: Walked) -> dict[str, str]:
    """All that is told in words, by what tells it."""
    report = re.sub(r"<(script|style)\b.*?</\1>|<[^>]+>", " ", walked.report, flags=re.DOTALL)
    return {
        "run": "\n".join(map(str, overview(walked.summary, Naming("tiny", {}), width=80))),
        "show": printed(summary.render(walked.summary, study="tiny")),
        "compare": "\n".join(map(str, comparison_table.render(walked.comparison, 80))),
        "sensitivity": "\n".join(map(str, sensitivity_table.render(walked.sensitivity, 80))),
        "verify": "\n".join(finding.name + finding.found for finding in walked.verified.findings)
        + in_markdown(walked.verified),
        "MLflow": mlflow_content.search_content(walked.summary, (), ended=True).tags["mlflow.note.content"],
        "report": report,
    }


def test_every_command_comes_to_its_end(walked: Walked) -> None:
    assert walked.summary.best is not None
    assert walked.summary.best_held_out is not None
    assert len(walked.comparison.rows) > 5
    assert len(walked.sensitivity.curves) == 5
    assert walked.verified.complete
    assert walked.verified.changed == ()
    assert walked.best.labelled is walked.study.labelled
    assert "May I ship it?" in walked.report


def test_without_labels_everything_is_about_agreement(walked: Walked) -> None:
    if walked.study.labelled:
        assert "accuracy, held-out" in said(walked)["run"]
        return
    told = said(walked)
    # The report also holds tables for programs, whose columns keep their names.
    found = {where: re.findall(_OF_LABELS, text) for where, text in told.items() if where != "report"}
    assert {where: words for where, words in found.items() if words} == {}
    assert [where for where, text in told.items() if "agreement" not in text] == []


def test_without_labels_no_interval_promises_a_gain(walked: Walked) -> None:
    if walked.study.labelled:
        return
    held_out = [walked.summary.best_held_out, *(row.held_out for row in walked.comparison.rows)]
    changes = [series_.difference for series_ in held_out if series_ is not None]
    changes += [tag.difference for series_ in held_out if series_ is not None for tag in series_.by_tag]
    assert all(change.interval.high <= 0 for change in changes if change.interval is not None)
    assert any(change.interval is not None for change in changes)
    for baseline in (walked.summary.baseline["held_out"], walked.comparison.baseline):
        assert (baseline.value, baseline.interval) == (1.0, None)
