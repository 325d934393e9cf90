"""What is said of a search and of its model in several places, in the same words."""

from __future__ import annotations

from pipeline.families import FAMILIES, POOLED
from pipeline.trace import Grid
from tuner.records.values import Goal


def searched_for(goal: Goal, budget: float, max_drop: str) -> str:
    """What a search is for, in three words."""
    return f"budget {budget:g}" if goal == "budget" else f"cheapest within {max_drop}"


def pooled(pooling: str, checkpoint_pooling: str | None, cells: int) -> str:
    """How patches are pooled to so many visual tokens a frame, and where the checkpoint says otherwise."""
    grid = Grid.of(cells)
    line = f"{FAMILIES[POOLED[0]][0]}, {pooling} pooling to {grid.rows} x {grid.columns}"
    if checkpoint_pooling != pooling:
        line += f" (the checkpoint's config says {checkpoint_pooling})"
    return line + "."
