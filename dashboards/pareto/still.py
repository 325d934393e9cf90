"""The Pareto front as an image against prefill FLOPs, for README files and MLflow's preview."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dashboards.pareto.marks import (
    MUTED,
    PREFILL,
    arms,
    columns,
    front_of,
    labels_of,
    left_of_lines,
    levels,
    limits_of,
    series_of,
    shows_budget,
    y_title,
)
from dashboards.picture.picture import BLACK, BLUE, GREY
from tuner.reporting.trial_table import ParetoPoint
from tuner.reporting.values import RunSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure


def still(points: Sequence[ParetoPoint], summary: RunSummary) -> MatplotlibFigure:
    """The image, 1600 x 1000 pixels when saved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(10, 6.25), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    limits = limits_of(points, summary, PREFILL)
    axes.set_xlim(limits.low_x, limits.high_x)
    axes.set_ylim(limits.low_y, limits.high_y)
    styles = {"solid": "-", "dot": ":", "dash": "--"}
    if shows_budget(summary, PREFILL):
        axes.axvspan(100 * summary.budget, limits.high_x, color=GREY, alpha=0.10, linewidth=0)
    for at, text, dash in columns(summary, PREFILL, limits):
        axes.axvline(at, color=GREY, linewidth=1.4, linestyle=styles[dash])
        axes.annotate(
            text,
            (at, limits.low_y),
            xytext=(0, 18),
            textcoords="offset points",
            color=MUTED,
            ha="right" if left_of_lines(points, at, limits) else "left",
        )
    for level in levels(points, summary):
        axes.axhline(level.at, color=BLACK, linewidth=1.1, linestyle=styles[level.dash])
        axes.annotate(
            level.text,
            # Below a line on the left lie the cheapest trials.
            (limits.low_x if level.above else limits.high_x, level.at),
            xytext=(8, 5) if level.above else (-8, -14),
            ha="left" if level.above else "right",
            textcoords="offset points",
            color=BLACK,
            fontsize=9.5,
            bbox={"facecolor": "#ffffff", "alpha": 0.7, "edgecolor": "none", "pad": 0.6},
        )
    front = front_of(points, PREFILL)
    axes.step(
        [100 * point.flops_ratio for point in front],
        [100 * (point.accuracy or 0.0) for point in front],
        where="post",
        color=BLUE,
        linewidth=1.8,
        label="Pareto front",
    )
    for series in series_of(points, summary, PREFILL):
        marker = series.marker
        if not series.points:
            continue
        # Every point has prefill FLOPs.
        x = [at for at in series.x if at is not None]
        if series.intervals:
            above, below = arms(series)
            axes.errorbar(
                x,
                series.y,
                yerr=[below, above],
                marker=marker.matplotlib,
                markersize=marker.size * 0.75,
                color=marker.fill,
                markeredgecolor=marker.edge,
                ecolor=marker.fill,
                elinewidth=0.9 * marker.bar,
                capsize=0.35 * marker.size,
                linestyle="none",
                label=marker.label,
                zorder=4,
            )
            continue
        flat = marker.matplotlib in "|x"  # these have no face, and so no edge
        axes.scatter(
            x,
            series.y,
            s=marker.size**2 * 0.55,
            marker=marker.matplotlib,
            color=marker.edge if flat else marker.fill,
            edgecolors=None if flat else marker.edge,
            alpha=marker.opacity,
            linewidths=1.0,
            label=marker.label,
            zorder=3,
        )
    for label in labels_of(points, summary, PREFILL):
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(label.text_x, label.text_y),
            textcoords="data",
            fontsize=8.5,
            va="center",
            zorder=5,
            bbox={"facecolor": "#ffffff", "alpha": 0.8, "edgecolor": "none", "pad": 0.6},
            arrowprops={"arrowstyle": "-", "color": "#b9bdc4", "linewidth": 0.8, "shrinkB": 4},
        )
    axes.set_title(
        f"{summary.study}: accuracy against compute, {len(summary.trials)} trials", loc="left", fontsize=13
    )
    axes.set_xlabel(PREFILL.title)
    axes.set_ylabel("\n".join(y_title(summary)))
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.grid(color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9.5)
    return figure
