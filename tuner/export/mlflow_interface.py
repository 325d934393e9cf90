"""What MLflow's interface shows of a search: names of runs, the saved view of the trials, links."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from urllib.parse import quote

from pipeline.methods import KNOBS
from tuner.export.mlflow_content import BY_TAG, KIND, REGRESSIONS, STUDY
from tuner.reporting.values import RunSummary, Trial
from tuner.reporting.wording import searched_for

REPORT = "report.html"
# Without it the interface of MLflow 3 shows every experiment as if it were about prompts.
WORKFLOW = "workflowType=machine_learning"

_VIEW_METRICS = ("flops_ratio", "accuracy", "regressions", "logprob_change", "held_out_accuracy")
# Files that the run's description links to, beside pages, whose links are named after their files.
_LINKED = {REGRESSIONS: "regressions, question by question", BY_TAG: "what pruning changed by tag"}


def view_id(study_hash: str) -> str:
    """Of the saved view, as it stands in addresses."""
    return f"adatp-{study_hash[:8]}"


def view_state(study_hash: str) -> dict[str, Any]:
    """A view of the runs page: the trials, most accurate first, and two charts beside them.

    It has the form in which MLflow 3.17 stores its own views. Missing fields have their defaults, and an
    interface with other fields ignores unknown ones.
    """
    trials, others = "adatp-trials", "adatp-others"
    parallel = {
        "type": "PARALLEL",
        "uuid": "adatp-parallel",
        "displayName": "Knobs, FLOPs ratio (lower is better) and accuracy (higher is better)",
        "selectedParams": list(KNOBS),
        "selectedMetrics": ["flops_ratio", "accuracy"],  # the last one colours the lines
        "showAllRuns": False,
    }
    scatter = {
        "type": "SCATTER",
        "uuid": "adatp-scatter",
        "displayName": "Accuracy against FLOPs ratio",
        "xaxis": {"key": "flops_ratio", "type": "METRIC"},
        "yaxis": {"key": "accuracy", "type": "METRIC"},
    }
    every = {"metricSectionId": trials, "runsCountToCompare": 300, "deleted": False, "isGenerated": False}
    section = {"isReordered": False, "deleted": False, "isGenerated": False}
    # With the interface's names. It keeps widths only for columns that are in the order.
    metrics = [f"metrics.`{name}`" for name in _VIEW_METRICS]
    knobs = [f"params.`{name}`" for name in KNOBS]
    widths = {"attributes.`Run Name`": 255} | dict.fromkeys(knobs, 92) | dict.fromkeys(metrics, 105)
    return {
        "searchFilter": f"tags.`{KIND}` = 'trial' AND tags.`{STUDY}` = '{study_hash}'",
        "orderByKey": "metrics.`accuracy`",
        "orderByAsc": False,
        "selectedColumns": [*metrics, *knobs, "tags.`within_budget`"],
        "columnOrder": [*widths, "tags.`within_budget`", "runDateAndNestInfo", "duration"],
        "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [parallel | every, scatter | every],
        "compareRunSections": [
            {"uuid": trials, "name": "Trials", "display": True, "columns": 1, "cardHeight": 440} | section,
            # One bar chart per metric, which the interface adds by itself: folded.
            {"uuid": others, "name": "Model metrics", "display": False} | section | {"isGenerated": True},
        ],
    }


def search_name(summary: RunSummary) -> str:
    """The name of a search's run."""
    name = f"{summary.study} {summary.study_hash[:8]}: "
    name += searched_for(summary.goal, summary.budget, summary.max_drop)
    name += f", seed {summary.seed}" if summary.seed else ""
    return name if summary.sampler == "tpe" else f"{name}, {summary.sampler}"


def trial_name(summary: RunSummary, trial: Trial) -> str:
    """A name that sorts by number and shows the trial's result in lists and legends."""
    role = ""
    if summary.best is not None and summary.best.number == trial.number:
        role = " (best)"
    elif summary.defaults is not None and summary.defaults.number == trial.number:
        role = " (defaults)"
    elif trial in summary.outside:
        role = " (outside)"
    outcome = trial.outcome
    return f"trial {trial.number:03d}{role}: {100 * outcome.accuracy:.1f} % at {outcome.flops_ratio:.3f}"


def links_of(experiment: str, run: str, summary: RunSummary, artifacts: Collection[str]) -> tuple[str, ...]:
    """Markdown links into the interface; relative, so that they work under any host name."""
    trials = f"#/experiments/{experiment}/runs?{WORKFLOW}&viewStateShareKey={view_id(summary.study_hash)}"
    links = [
        f"[trials in a table]({trials})",
        f"[trials as parallel coordinates]({trials}&compareRunsMode=CHART)",
    ]
    # The report first.
    pages = sorted(
        (artifact for artifact in artifacts if artifact.endswith(".html")),
        key=lambda artifact: (artifact != REPORT, artifact),
    )
    titles = {page: page.removesuffix(".html").replace("-", " ") for page in pages}
    for name, title in (titles | {name: _LINKED[name] for name in _LINKED if name in artifacts}).items():
        links.append(f"[{title}](#/experiments/{experiment}/runs/{run}/artifacts/{quote(name)}?{WORKFLOW})")
    return tuple(links)
