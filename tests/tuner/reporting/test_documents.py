"""The documents of `--json`: their keys are what other programs rely on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.sensitivities import make_sensitivity
from tests.summaries import make_comparison, make_end_to_end, make_setting, make_summary
from tuner.reporting.documents import VERSION, comparison_document, run_document, sensitivity_document
from tuner.reporting.values import Recorded
from tuner.sensitivity.results import Sensitivity
from tuner.statistics.values import Measured

pytestmark = pytest.mark.quick

REPORT = Path(".tuner/demo/figures/report.html")
RECORDED = Recorded("abc", "http://127.0.0.1:5000/#/x")


def _strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_run_tells_verdict_configuration_and_evidence() -> None:
    summary = make_summary()
    found = _strict(run_document(summary, REPORT, RECORDED))
    assert list(found) == [
        *("schema", "command", "study", "study_hash", "search", "labelled", "trials", "verdict"),
        *("baseline", "best"),
        *("defaults", "over_defaults", "first_question_seconds", "smallest_reachable", "skipped_videos"),
        *("quarantined", "seconds", "report", "mlflow"),
    ]
    assert (found["schema"], found["command"]) == (VERSION, "run") == (1, "run")
    assert found["labelled"] is True
    label_free = make_summary(setting=make_setting(labelled=False))
    assert _strict(run_document(label_free, None, None))["labelled"] is False
    assert found["search"] == {
        "goal": "budget",
        "budget": 0.3,
        "seed": 0,
        "sampler": "tpe",
        "max_drop": "0.08",
    }
    assert found["verdict"] == {
        "ship": True,
        "state": "yes",
        "sentence": "it loses 5.0 points, at most 6.8; you allow 8.",
        "margin": 0.08,
        "difference": -0.05,
        "lower_bound": -0.068,
        "look": 1,
    }
    assert summary.best is not None
    best = found["best"]
    assert best["trial"] == summary.best.number
    assert best["configuration"] == {
        "method": "adatp",
        "parameters": dict(summary.best.configuration.parameters),
    }
    assert best["held_out"]["difference"] == pytest.approx({"value": -0.05, "low": -0.07, "high": -0.03})
    assert [row["value"] for row in best["held_out"]["by_tag"]] == ["kind0", "kind1", "kind2"]
    assert found["first_question_seconds"] == {"unpruned": pytest.approx(1.01), "best": pytest.approx(0.56)}
    assert (found["report"], found["mlflow"]["run"]) == (str(REPORT), "abc")


def test_what_was_not_measured_is_null() -> None:
    summary = make_summary(
        best=None, best_held_out=None, defaults=None, serving=None, baseline={"tune": Measured(float("nan"))}
    )
    found = _strict(run_document(summary, None, None))
    assert (found["best"], found["defaults"], found["report"], found["mlflow"]) == (None,) * 4
    assert found["baseline"] == {"tune": {"value": None, "low": None, "high": None}}
    assert (found["verdict"]["ship"], found["verdict"]["state"]) == (False, "nothing_fits")


def test_a_comparison_tells_its_rows() -> None:
    comparison = make_comparison(3)
    found = _strict(comparison_document(comparison, (REPORT, Path("x.csv")), RECORDED))
    assert list(found) == [
        *("schema", "command", "study", "study_hash", "budget", "labelled", "baseline", "rows"),
        *("unreachable", "end_to_end", "report", "mlflow"),
    ]
    assert [row["name"] for row in found["rows"]] == [row.name for row in comparison.rows]
    assert list(found["rows"][0]) == [
        *("name", "about", "configuration", "held_out", "seconds", "seconds_ratio"),
    ]
    assert found["rows"][0]["held_out"]["regressions"] == comparison.rows[0].held_out.outcome.regressions
    assert found["report"] == str(REPORT)
    assert found["end_to_end"] is None


def test_a_comparison_tells_its_rows_at_equal_end_to_end_flops() -> None:
    summary = make_summary()
    comparison = make_comparison(3, own=summary, end_to_end=make_end_to_end(summary))
    found = _strict(comparison_document(comparison))["end_to_end"]
    assert list(found) == ["flops_ratio", "rows", "unreachable"]
    assert found["flops_ratio"] == summary.best_held_out.outcome.flops_ratio_end_to_end
    assert [row["name"] for row in found["rows"]] == ["AdaTP, tuned", "Fewer frames", "Random tokens"]
    assert list(found["rows"][0]) == ["name", "about", "configuration", "held_out"]
    assert found["unreachable"] == {"PyramidDrop": 0.61}


def test_sensitivity_tells_everything_it_found() -> None:
    # As it is recorded: the made-up values come from numpy.
    recorded = json.dumps(asdict(make_sensitivity()), default=bool)
    study = TypeAdapter(Sensitivity).validate_json(recorded)
    found = _strict(sensitivity_document(study))
    assert (found["schema"], found["command"], found["study"]) == (1, "sensitivity", study.study)
    assert found["reference"]["parameters"] == dict(study.reference.parameters)
    assert [curve["knob"] for curve in found["curves"]] == [curve.knob for curve in study.curves]
    assert found["sentences"] == list(study.sentences)
    assert found["report"] is None
