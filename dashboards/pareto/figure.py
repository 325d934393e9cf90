"""The Pareto front: accuracy against compute for every trial, and the chosen trial on held-out videos.

Both drawings, the page and the still, show `tuner.reporting.trial_table`.
"""

from __future__ import annotations

from collections.abc import Sequence

from dashboards.pareto.marks import best_name
from dashboards.pareto.page import interactive
from dashboards.pareto.still import still
from dashboards.picture.picture import Picture
from tuner.reporting.summary import up_to
from tuner.reporting.trial_table import ParetoPoint, pareto_points
from tuner.reporting.values import Comparison, RunSummary


def pareto_picture(summary: RunSummary, comparison: Comparison | None = None) -> Picture:
    """The front; with the other methods where `tuner compare` ran."""
    points = pareto_points(summary, comparison)
    return Picture(
        name="pareto",
        title=f"Accuracy against compute, {len(summary.trials)} trials",
        description=_description(points, summary),
        table=points,
        plotly=interactive(points, summary),
        still=still(points, summary),
    )


def _description(points: Sequence[ParetoPoint], summary: RunSummary) -> str:
    text = (
        "Small points are trials on the tune videos; those on the front are in full colour. Large points "
        "with 95 % intervals are measured on held-out videos, which had no part in the choice; their FLOPs "
        "are those of the held-out videos, so a trial's two points need not lie above each other. The "
        "unpruned model costs 100 %."
    )
    for point in points:
        if point.kind == "best" and point.split == "held_out" and point.accuracy is not None:
            what = best_name(summary)
            if summary.goal == "budget":
                what += f" of {100 * summary.budget:g} %"
            text += (
                f" {what[0].upper()}{what[1:]}: trial {point.trial}, {100 * point.accuracy:.1f} % on "
                f"held-out videos at {100 * point.flops_ratio:.1f} % of the prefill FLOPs, "
                f"{point.regressions} regressions."
            )
    if summary.serving is not None:
        pays = f"{up_to(summary.serving.break_even)} by FLOPs"
        if summary.serving.measured is not None:
            pays += f" and {up_to(summary.serving.measured.break_even)} by seconds"
        text += f" On a server that keeps each video's prefix, pruning pays for {pays}."
    return text
