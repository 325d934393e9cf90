"""A study's figures and its report: what goes into them, and the files in .tuner/<study>/figures.

Each search has a folder of its own there (`folder_of`), so that a search with another goal removes nothing.

Figures are drawn anew by each command: that takes seconds, and always shows what is recorded now. Equal
results give equal files, so MLflow receives only what changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashboards.picture.picture import Picture
    from tuner.reporting.history import History
    from tuner.reporting.inspection import Inspection
    from tuner.reporting.values import Comparison, RunSummary
    from tuner.sensitivity.results import Sensitivity
    from tuner.study import Study

# Names of all figures and of the report, to remove those of an earlier drawing.
_NAMES = (
    "report",
    "pareto",
    "comparison",
    "comparison-*",
    "sensitivity-*",
    "cards",
    "bias",
    "history",
    "health",
)

_REPORT = "report.html"


@dataclass(frozen=True)
class Details:
    """What the report shows besides the summary of a search; None: not recorded."""

    history: History | None = None
    inspection: Inspection | None = None
    comparison: Comparison | None = None
    sensitivity: Sensitivity | None = None


def gather(
    study: Study,
    summary: RunSummary,
    database: str | None = None,
    *,
    comparison: Comparison | None = None,
) -> Details:
    """Reads what is recorded for this summary; `comparison` is used instead of the recorded one."""
    from tuner.reporting.history import load_history
    from tuner.reporting.inspection import load_inspection
    from tuner.runs.compare import load_comparison
    from tuner.sensitivity.saved import load_sensitivity

    best = summary.best
    sensitivity = load_sensitivity(summary.study, summary.budget, database)
    if sensitivity is not None and not _is_current(sensitivity, summary):
        sensitivity = None
    return Details(
        history=load_history(study, budget=summary.budget, seed=summary.seed, database=database),
        inspection=None if best is None else load_inspection(summary.study, best.configuration, database),
        comparison=comparison or load_comparison(study, summary.budget, database),
        sensitivity=sensitivity,
    )


def _is_current(found: Sensitivity, summary: RunSummary) -> bool:
    """Whether a saved sensitivity study describes the search's present best configuration and questions.

    More trials, another study.yaml or a quarantine may have changed either since.
    """
    if summary.best is None:
        return found.trial is None
    if found.reference != summary.best.configuration:
        return False
    held_out = summary.best_held_out
    if found.split != "held_out" or held_out is None:
        return True
    return all(curve.questions == held_out.outcome.questions for curve in found.curves)


def pictures(summary: RunSummary, details: Details) -> tuple[Picture, ...]:
    """The figures that have data, in the order of the report."""
    from dashboards.inspection.bias import bias_picture
    from dashboards.inspection.cards import cards_picture
    from dashboards.pareto.figure import pareto_picture
    from dashboards.search.comparison import comparison_picture, end_to_end_picture
    from dashboards.search.health import health_picture
    from dashboards.search.history import history_picture
    from dashboards.sensitivity.figure import sensitivity_pictures

    drawn: list[Picture | None] = [pareto_picture(summary, details.comparison)]
    if details.comparison is not None:
        drawn += [comparison_picture(details.comparison), end_to_end_picture(details.comparison)]
    if details.sensitivity is not None:
        drawn += sensitivity_pictures(details.sensitivity)
    if details.inspection is not None:
        drawn += [cards_picture(details.inspection), bias_picture(details.inspection)]
    if details.history is not None:
        drawn.append(history_picture(details.history))
    drawn.append(health_picture(summary, details.history))
    return tuple(picture for picture in drawn if picture is not None)


def report(summary: RunSummary, details: Details) -> str:
    """The report as one HTML page."""
    return _report(summary, details, pictures(summary, details))


def draw(
    study: Study,
    summary: RunSummary,
    database: str | None = None,
    *,
    comparison: Comparison | None = None,
    folder: Path | None = None,
) -> tuple[Path, ...]:
    """Draws the study's figures and its report, and returns the files for MLflow, the report first.

    comparison: used instead of the recorded one; folder: instead of the search's own. Figures of an
    earlier drawing are removed, since some may have no data any more.
    """
    from dashboards.picture.picture import write, write_library

    details = gather(study, summary, database, comparison=comparison)
    drawn = pictures(summary, details)
    folder = folder or folder_of(summary)
    for name in _NAMES:
        for kind in ("html", "png", "csv"):
            for file in folder.glob(f"{name}.{kind}"):
                file.unlink(missing_ok=True)
    write_library(folder)
    page = folder / _REPORT
    page.write_text(_report(summary, details, drawn), encoding="utf-8")
    files = [page]
    for picture in drawn:
        # MLflow shows only pages that need no other file; the report holds all figures, so one such page is
        # enough.
        files += write(picture, folder, "held" if picture.name == "pareto" else "shared")
    return tuple(files)


def report_of(summary: RunSummary) -> Path | None:
    """Where `draw` left the study's report; None if it is not there."""
    page = folder_of(summary) / _REPORT
    return page if page.is_file() else None


def draw_comparison(study: Study, comparison: Comparison, database: str | None = None) -> tuple[Path, ...]:
    """Draws the comparison and writes its table; after a search, also all that `draw` does."""
    from dashboards.picture.picture import write
    from tuner.reporting.comparison_table import TABLE, to_json
    from tuner.reporting.from_records import find_summary

    summary = find_summary(study, budget=comparison.budget, database=database)
    if summary is None:
        from dashboards.search.comparison import comparison_picture, end_to_end_picture

        folder = _without_search(comparison.study, comparison.budget)
        drawn = (comparison_picture(comparison), end_to_end_picture(comparison))
        files = tuple(file for picture in drawn if picture is not None for file in write(picture, folder))
    else:
        folder = folder_of(summary)
        files = draw(study, summary, database, comparison=comparison)
    table = folder / TABLE
    table.write_text(to_json(comparison), encoding="utf-8")
    return (*files, table)


def draw_sensitivity(study: Study, found: Sensitivity, database: str | None = None) -> tuple[Path, ...]:
    """Draws a saved sensitivity study; after a search, also all that `draw` does."""
    from dashboards.picture.picture import write
    from tuner.reporting.from_records import find_summary

    summary = find_summary(study, budget=found.budget, database=database)
    if summary is None:
        from dashboards.sensitivity.figure import sensitivity_pictures

        folder = _without_search(found.study, found.budget)
        return tuple(file for picture in sensitivity_pictures(found) for file in write(picture, folder))
    return draw(study, summary, database)


def _report(summary: RunSummary, details: Details, drawn: tuple[Picture, ...]) -> str:
    from dashboards.report.page import report_html

    return report_html(summary, drawn, sensitivity=details.sensitivity, comparison=details.comparison)


def folder_of(summary: RunSummary) -> Path:
    """The search's folder of figures: named by its goal and its seed."""
    if summary.goal == "max_drop":
        # A drop may be written as "1%".
        goal = f"cheapest-{re.sub(r'[^0-9.]+', '-percent', summary.max_drop)}"
    else:
        goal = f"budget-{summary.budget:g}"
    return Path(".tuner") / summary.study / "figures" / f"{goal}-seed-{summary.seed}"


def _without_search(study: str, budget: float) -> Path:
    """The folder for a comparison or sensitivity study of a budget that no search has."""
    return Path(".tuner") / study / "figures" / f"budget-{budget:g}"
