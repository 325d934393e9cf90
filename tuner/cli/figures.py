"""The figures that `tuner run`, `tuner sync` and `tuner sensitivity` leave and hand to MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuner.results import RunSummary
    from tuner.sensitivity.results import Sensitivity


def draw(summary: RunSummary) -> tuple[Path, ...]:
    """Draws the study's figures into .tuner/<study>/figures and returns the files."""
    from dashboards.pareto import write_pareto

    return tuple(write_pareto(summary, Path(".tuner") / summary.study / "figures"))


def draw_sensitivity(found: Sensitivity) -> tuple[Path, ...]:
    """Draws the pictures of a sensitivity study into .tuner/<study>/figures and returns the files."""
    from dashboards.sensitivity import sensitivity_pictures

    from dashboards.picture import write

    folder = Path(".tuner") / found.study / "figures"
    return tuple(file for one in sensitivity_pictures(found) for file in write(one, folder))
