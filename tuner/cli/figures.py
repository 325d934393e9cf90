"""The figures that commands leave and hand to MLflow, and the report that holds them: gathered here alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashboards.picture import Picture
    from tuner.history import History
    from tuner.inspection import Inspection
    from tuner.results import Comparison, RunSummary
    from tuner.sensitivity.results import Sensitivity
    from tuner.study import Study


@dataclass(frozen=True)
class Evidence:
    """What stands beside a search's summary; None: not there (yet)."""

    history: History | None = None
    inspection: Inspection | None = None
    comparison: Comparison | None = None
    sensitivity: Sensitivity | None = None


def gather(study: Study, summary: RunSummary, database: str | None = None) -> Evidence:
    """What is recorded beside this summary of the study."""
    from tuner.comparison import load_comparison
    from tuner.history import load_history
    from tuner.inspection import load_inspection
    from tuner.sensitivity.saved import load_sensitivity

    best = summary.best
    sensitivity = load_sensitivity(summary.study, summary.budget, summary.study_hash)
    if sensitivity is not None and best is not None and sensitivity.reference != best.configuration:
        sensitivity = None  # of what was best before more trials
    return Evidence(
        history=load_history(summary.study, budget=summary.budget, seed=summary.seed, database=database),
        inspection=None
        if best is None
        else load_inspection(summary.study, summary.study_hash, best.configuration),
        comparison=load_comparison(study, summary.budget, database),
        sensitivity=sensitivity,
    )


def pictures(summary: RunSummary, evidence: Evidence) -> tuple[Picture, ...]:
    """A study's figures in the order of the report; those without data are left out."""
    from dashboards.sensitivity import sensitivity_pictures

    from dashboards.bias import bias_picture
    from dashboards.cards import cards_picture
    from dashboards.comparison import comparison_picture
    from dashboards.health import health_picture
    from dashboards.history import history_picture
    from dashboards.pareto import pareto_picture

    drawn: list[Picture | None] = [pareto_picture(summary, evidence.comparison)]
    if evidence.comparison is not None:
        drawn.append(comparison_picture(evidence.comparison))
    if evidence.sensitivity is not None:
        drawn += sensitivity_pictures(evidence.sensitivity)
    if evidence.inspection is not None:
        drawn += [cards_picture(evidence.inspection), bias_picture(evidence.inspection)]
    if evidence.history is not None:
        drawn.append(history_picture(evidence.history))
    drawn.append(health_picture(summary, evidence.history))
    return tuple(one for one in drawn if one is not None)


def report(summary: RunSummary, evidence: Evidence) -> str:
    """The report's page."""
    from dashboards.report import report_html

    return report_html(
        summary,
        pictures(summary, evidence),
        sensitivity=evidence.sensitivity,
        comparison=evidence.comparison,
    )


def draw(study: Study, summary: RunSummary, database: str | None = None) -> tuple[Path, ...]:
    """Draws the study's figures and its report into .tuner/<study>/figures and returns the files."""
    from dashboards.picture import write
    from dashboards.report import report_html

    evidence = gather(study, summary, database)
    folder = _folder(summary.study)
    drawn = pictures(summary, evidence)
    # The others are in the report, interactive as well.
    files = [file for one in drawn for file in write(one, folder, page=one.name == "pareto")]
    page = folder / "report.html"
    page.write_text(
        report_html(summary, drawn, sensitivity=evidence.sensitivity, comparison=evidence.comparison),
        encoding="utf-8",
    )
    return (page, *files)


def draw_comparison(study: Study, comparison: Comparison, database: str | None = None) -> tuple[Path, ...]:
    """Draws the ways to prune side by side and writes their table; and all that `draw` does, where there was
    a search.
    """
    from dashboards.comparison import comparison_picture
    from dashboards.picture import write
    from tuner.comparison_summary import TABLE, to_json

    folder = _folder(comparison.study)
    files = write(comparison_picture(comparison), folder, page=False)
    table = folder / TABLE
    table.write_text(to_json(comparison), encoding="utf-8")
    return _with_report(study, comparison.budget, database, (*files, table))


def draw_sensitivity(study: Study, found: Sensitivity, database: str | None = None) -> tuple[Path, ...]:
    """Draws a sensitivity study; and all that `draw` does, where there was a search."""
    from dashboards.sensitivity import sensitivity_pictures

    from dashboards.picture import write

    drawn = sensitivity_pictures(found)
    files = tuple(file for one in drawn for file in write(one, _folder(found.study), page=False))
    return _with_report(study, found.budget, database, files)


def _with_report(
    study: Study, budget: float, database: str | None, files: tuple[Path, ...]
) -> tuple[Path, ...]:
    """These files, and the figures and the report of the latest search with this budget."""
    from tuner.errors import UserError
    from tuner.reporting import load_summary

    try:
        summary = load_summary(study, budget=budget, database=database)
    except UserError:  # no search so far
        return files
    return tuple(dict.fromkeys((*draw(study, summary, database), *files)))


def _folder(study: str) -> Path:
    return Path(".tuner") / study / "figures"
