"""The figures that `tuner run` and `tuner sync` leave and hand to MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuner.results import RunSummary


def draw(summary: RunSummary) -> tuple[Path, ...]:
    """Draws the study's figures into .tuner/<study>/figures and returns the files."""
    from dashboards.pareto import write_pareto

    return write_pareto(summary, Path(".tuner") / summary.study / "figures")
