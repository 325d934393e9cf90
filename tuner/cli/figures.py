"""The figures that commands leave and hand to MLflow, and the report that holds them: gathered here alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashboards.picture import Picture
    from tuner.results import Comparison, RunSummary
    from tuner.sensitivity.results import Sensitivity


def pictures(
    summary: RunSummary, *, sensitivity: Sensitivity | None = None, comparison: Comparison | None = None
) -> tuple[Picture, ...]:
    """A study's figures in the order of the report; those without data are left out."""
    return (_pareto(summary),)


def report(
    summary: RunSummary, *, sensitivity: Sensitivity | None = None, comparison: Comparison | None = None
) -> str:
    """The report's page."""
    from dashboards.report import report_html

    drawn = pictures(summary, sensitivity=sensitivity, comparison=comparison)
    return report_html(summary, drawn, sensitivity=sensitivity, comparison=comparison)


def draw(summary: RunSummary) -> tuple[Path, ...]:
    """Draws the study's figures and its report into .tuner/<study>/figures and returns the files."""
    from dashboards.pareto import write_pareto

    folder = Path(".tuner") / summary.study / "figures"
    files = tuple(write_pareto(summary, folder))
    page = folder / "report.html"
    page.write_text(report(summary), encoding="utf-8")
    return (page, *files)


def _pareto(summary: RunSummary) -> Picture:
    from dashboards.pareto import _caption, draw_html, draw_png, pareto_points
    from dashboards.picture import Picture

    points = pareto_points(summary)
    plotly = draw_html(points, summary).update_layout(title=None, margin={"t": 24})
    return Picture(
        "pareto",
        f"Accuracy against compute, {len(summary.trials)} trials",
        _caption(points, summary),
        points,
        plotly=plotly,
        still=draw_png(points, summary),
    )
