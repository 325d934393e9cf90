"""The figures that commands leave and hand to MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuner.results import Comparison, RunSummary


def draw(summary: RunSummary) -> tuple[Path, ...]:
    """Draws the study's figures into .tuner/<study>/figures and returns the files."""
    from dashboards.pareto import write_pareto

    return tuple(write_pareto(summary, Path(".tuner") / summary.study / "figures"))


def draw_comparison(comparison: Comparison) -> tuple[Path, ...]:
    """Draws the ways to prune side by side and writes their table, as `draw` does."""
    from dashboards.comparison import comparison_picture
    from dashboards.picture import write
    from tuner.comparison_summary import TABLE, to_json

    folder = Path(".tuner") / comparison.study / "figures"
    files = write(comparison_picture(comparison), folder)
    table = folder / TABLE
    table.write_text(to_json(comparison), encoding="utf-8")
    return (*files, table)
