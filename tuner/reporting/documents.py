"""What `--json` prints at the end of `tuner run`, `compare` and `sensitivity`, for other programs.

One JSON document each, with a version: fields are added without raising it, and changed or removed only with
a higher one. Ratios and accuracies are fractions, differences fractions too, times seconds; what was not
measured is null. docs/production.md describes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tuner.reporting.overview import verdict
from tuner.reporting.summary import accuracy_name
from tuner.reporting.values import Compared, Comparison, HeldOut, Recorded, RunSummary, Trial
from tuner.sensitivity.results import Sensitivity
from tuner.statistics.values import Measured
from tuner.study.values import Configuration

VERSION = 1
"""Of all three documents."""


def run_document(summary: RunSummary, report: Path | None, recorded: Recorded | None) -> str:
    """The end of `tuner run`."""
    held_out, test = summary.best_held_out, summary.test_of_best
    measured = None if summary.serving is None else summary.serving.measured
    word, sentence = verdict(summary)
    return _document(
        "run",
        summary.study,
        summary.study_hash,
        search={
            "goal": summary.goal,
            "budget": summary.budget,
            "seed": summary.seed,
            "sampler": summary.sampler,
            "max_drop": summary.max_drop,
        },
        labelled=accuracy_name(summary) == "accuracy",
        trials={
            "complete": len(summary.trials),
            "pruned": len(summary.pruned),
            "above_budget": len(summary.above),
            "infeasible": summary.infeasible,
        },
        verdict={
            "ship": word == "YES",
            "state": word.lower().replace(" ", "_"),
            "sentence": sentence,
            "margin": summary.margin,
            "difference": None if test is None else test.difference,
            "lower_bound": None if test is None else test.bound,
            "look": summary.look,
        },
        baseline={split: _measured(outcome) for split, outcome in summary.baseline.items()},
        best=None if summary.best is None else _trial(summary.best, held_out) | {"binds": summary.binds},
        defaults=None if summary.defaults is None else _trial(summary.defaults, summary.defaults_held_out),
        over_defaults=None if summary.over_defaults is None else _measured(summary.over_defaults),
        first_question_seconds=None
        if measured is None
        else dict(zip(("unpruned", "best"), measured.first_question, strict=True)),
        smallest_reachable=summary.smallest_reachable,
        skipped_videos=list(summary.skipped_videos),
        quarantined=dict(summary.quarantined),
        seconds=summary.seconds,
        **_places(report, recorded),
    )


def comparison_document(
    comparison: Comparison, files: Sequence[Path] = (), recorded: Recorded | None = None
) -> str:
    """The end of `tuner compare`."""
    found = comparison.end_to_end
    return _document(
        "compare",
        comparison.study,
        comparison.study_hash,
        budget=comparison.budget,
        labelled=comparison.labelled,
        baseline=_measured(comparison.baseline),
        rows=[
            _compared(row)
            | {
                "seconds": None if row.timed is None else row.timed.seconds,
                "seconds_ratio": None if row.timed is None else row.timed.ratio,
            }
            for row in comparison.rows
        ],
        unreachable=dict(comparison.unreachable),
        end_to_end=None
        if found is None
        else {
            "flops_ratio": found.flops_ratio,
            "rows": [_compared(row) for row in found.rows],
            "unreachable": dict(found.unreachable),
        },
        **_places(_report(files), recorded),
    )


def sensitivity_document(
    found: Sensitivity, files: Sequence[Path] = (), recorded: Recorded | None = None
) -> str:
    """The end of `tuner sensitivity`: all numbers, under the names of `tuner.sensitivity.results`."""
    values = {name: value for name, value in asdict(found).items() if name not in ("study", "study_hash")}
    values["reference"] = _configuration(found.reference)
    return _document(
        "sensitivity", found.study, found.study_hash, **values, **_places(_report(files), recorded)
    )


def _document(command: str, study: str, study_hash: str, **content: Any) -> str:
    head = {"schema": VERSION, "command": command, "study": study, "study_hash": study_hash}
    return json.dumps(_finite(head | content), indent=2, ensure_ascii=False, allow_nan=False)


def _places(report: Path | None, recorded: Recorded | None) -> dict[str, Any]:
    return {
        "report": None if report is None else str(report),
        "mlflow": None if recorded is None else {"run": recorded.run, "page": recorded.page},
    }


def _report(files: Sequence[Path]) -> Path | None:
    return next((file for file in files if file.name == "report.html"), None)


def _trial(trial: Trial, held_out: HeldOut | None) -> dict[str, Any]:
    outcome = trial.outcome
    return {
        "trial": trial.number,
        "configuration": _configuration(trial.configuration),
        "tune": {
            "questions": outcome.questions,
            "accuracy": outcome.accuracy,
            "flops_ratio": outcome.flops_ratio,
            "flops_ratio_end_to_end": outcome.flops_ratio_end_to_end,
        },
        "held_out": None if held_out is None else _held_out(held_out),
    }


def _compared(row: Compared) -> dict[str, Any]:
    return {
        "name": row.name,
        "about": row.about,
        "configuration": _configuration(row.held_out.configuration),
        "held_out": _held_out(row.held_out),
    }


def _configuration(configuration: Configuration) -> dict[str, Any]:
    return {"method": configuration.method, "parameters": dict(configuration.parameters)}


def _held_out(held_out: HeldOut) -> dict[str, Any]:
    outcome = held_out.outcome
    return {
        "questions": outcome.questions,
        "videos": outcome.videos,
        "accuracy": _measured(held_out.accuracy),
        "difference": _measured(held_out.difference),
        "regressions": outcome.regressions,
        "gained": outcome.gained,
        "flops_ratio": outcome.flops_ratio,
        "flops_ratio_end_to_end": outcome.flops_ratio_end_to_end,
        "by_tag": [
            {
                "key": row.key,
                "value": row.value,
                "questions": row.questions,
                "difference": _measured(row.difference),
                "regressions": row.lost,
                "gained": row.gained,
            }
            for row in held_out.by_tag
        ],
    }


def _measured(measured: Measured) -> dict[str, float | None]:
    interval = measured.interval
    return {
        "value": measured.value,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
    }


def _finite(value: Any) -> Any:
    """The same with null for what is no number: JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
