"""The Pareto front: accuracy against compute for every trial, and what the chosen one does on unseen videos.

Drawn once for each measure of compute; `tuner.reporting.trial_table` is what it is drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dashboards.pareto.marks import (
    AXES,
    PREFILL,
    SPLITS,
    Axis,
    Series,
    arms,
    best_name,
    columns,
    cost_of,
    front_of,
    labels_of,
    left_of_lines,
    levels,
    limits_of,
    series_of,
    shows_budget,
    y_title,
)
from dashboards.picture.picture import BLACK, BLUE, FONT, GREY, LABEL_GROUND, Picture, write
from pipeline.methods import KNOBS, AdaTP, choices
from tuner.reporting.summary import up_to
from tuner.reporting.trial_table import ParetoPoint, pareto_points
from tuner.reporting.values import Comparison, RunSummary
from tuner.study import CHOICES

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure
    from plotly.graph_objects import Figure as PlotlyFigure

_MUTED = "#5b6068"


def pareto_picture(summary: RunSummary, comparison: Comparison | None = None) -> Picture:
    """The front, with peers where `tuner compare` ran."""
    points = pareto_points(summary, comparison)
    return Picture(
        name="pareto",
        title=f"Accuracy against compute, {len(summary.trials)} trials",
        description=_description(points, summary),
        table=points,
        plotly=_plotly(points, summary),
        still=_still(points, summary),
    )


def write_pareto(summary: RunSummary, folder: Path, comparison: Comparison | None = None) -> tuple[Path, ...]:
    """Writes pareto.html (self-contained), pareto.png and pareto.csv; the same each time it is called."""
    return write(pareto_picture(summary, comparison), folder)


# The page


def _plotly(points: Sequence[ParetoPoint], summary: RunSummary) -> PlotlyFigure:
    """The interactive figure; hovering shows a configuration's knobs, buttons choose the measure."""
    import plotly.graph_objects as go

    axes = [axis for axis in AXES if axis is PREFILL or any(front_of(points, axis))]
    drawn = {axis: _traces(points, summary, axis) for axis in axes}
    layouts = {axis: _layout(points, summary, axis) for axis in axes}
    figure = go.Figure([go.Scatter(one) for one in drawn[PREFILL]])
    buttons = [
        {
            "label": axis.button,
            "method": "update",
            "args": [
                {key: [one.get(key) for one in drawn[axis]] for key in ("x", "y", "text", "error_y")},
                {
                    "xaxis.title.text": layouts[axis]["xaxis"]["title"]["text"],
                    "xaxis.range": layouts[axis]["xaxis"]["range"],
                    "shapes": layouts[axis]["shapes"],
                    "annotations": layouts[axis]["annotations"],
                },
            ],
        }
        for axis in axes
    ]
    figure.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 14, "color": BLACK},
        legend={"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"},
        hoverlabel={"align": "left", "font": {"family": FONT, "size": 13}},
        margin={"l": 90, "r": 30, "t": 24, "b": 140},
        **layouts[PREFILL],
    )
    if len(buttons) > 1:
        figure.update_layout(
            updatemenus=[
                {
                    "buttons": buttons,
                }
            ]
        )
    return figure


def _traces(points: Sequence[ParetoPoint], summary: RunSummary, axis: Axis) -> list[dict[str, Any]]:
    front = front_of(points, axis)
    traces: list[dict[str, Any]] = [
        {
            "x": [cost_of(one, axis) for one in front],
            "y": [100 * (one.accuracy or 0.0) for one in front],
            "mode": "lines",
            "line": {"color": BLUE, "width": 2, "shape": "hv"},
            "name": "Pareto front",
            "hoverinfo": "skip",
        }
    ]
    for series in series_of(points, summary, axis):
        marker = series.marker
        traces.append(
            {
                "x": series.x,
                "y": series.y,
                "mode": "markers",
                "marker": {
                    "color": marker.fill,
                    "size": marker.size,
                    "symbol": marker.plotly,
                    "opacity": marker.opacity,
                    "line": {"color": marker.edge, "width": 1.4},
                },
                "name": marker.label,
                "text": [_hover(one, summary) for one in series.points],
                "hovertemplate": "%{text}<extra></extra>",
                "error_y": _errors(series),
            }
        )
    return traces


def _errors(series: Series) -> dict[str, Any]:
    if not series.intervals:
        return {"visible": False}
    above, below = arms(series)
    return {
        "visible": True,
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "color": series.marker.fill,
        "thickness": series.marker.bar,
        "width": series.marker.size / 2,
    }


def _layout(points: Sequence[ParetoPoint], summary: RunSummary, axis: Axis) -> dict[str, Any]:
    """Axes, lines and labels for one measure."""
    limits = limits_of(points, summary, axis)
    shapes: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    budget = 100 * summary.budget
    if shows_budget(summary, axis):
        shapes.append(
            {
                "type": "rect",
                "x0": budget,
                "x1": limits.high_x,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "fillcolor": GREY,
                "opacity": 0.10,
                "line": {"width": 0},
                "layer": "below",
            }
        )
    for at, text, dash in columns(summary, axis, limits):
        shapes.append(
            {
                "type": "line",
                "x0": at,
                "x1": at,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": GREY, "width": 1.6, "dash": dash},
            }
        )
        annotations.append(
            {
                "x": at,
                "y": 0.06,
                "yref": "paper",
                "text": text,
                "showarrow": False,
                "xanchor": "right" if left_of_lines(points, at, limits) else "left",
                "yanchor": "bottom",
                "font": {"size": 12, "color": _MUTED},
            }
        )
    for level in levels(points, summary):
        shapes.append(
            {
                "type": "line",
                "x0": 0,
                "x1": 1,
                "xref": "paper",
                "y0": level.at,
                "y1": level.at,
                "line": {"color": BLACK, "width": 1.2, "dash": level.dash},
            }
        )
        annotations.append(
            {
                "x": 0.005,
                "xref": "paper",
                "y": level.at,
                "text": level.text,
                "showarrow": False,
                "xanchor": "left",
                "yanchor": "bottom" if level.above else "top",
                "bgcolor": LABEL_GROUND,
                "borderpad": 0,
                "font": {"size": 12, "color": BLACK},
            }
        )
    annotations += [
        {
            "x": label.x,
            "y": label.y,
            "ax": label.text_x,
            "ay": label.text_y,
            "axref": "x",
            "ayref": "y",
            "text": escape(label.text),
            "showarrow": True,
            "arrowhead": 0,
            "arrowwidth": 1,
            "arrowcolor": "#b9bdc4",
            "standoff": 6,
            "xanchor": "left",
            "bgcolor": LABEL_GROUND,
            "borderpad": 0,
            "font": {"size": 12, "color": BLACK},
        }
        for label in labels_of(points, summary, axis)
    ]
    return {
        "xaxis": {
            "title": {"text": axis.title},
            "range": [limits.low_x, limits.high_x],
            "ticksuffix": " %",
            "zeroline": False,
        },
        "yaxis": {
            "title": {"text": "<br>".join(y_title(summary)), "font": {"size": 13}},
            "range": [limits.low_y, limits.high_y],
            "ticksuffix": " %",
            "zeroline": False,
        },
        "shapes": shapes,
        "annotations": annotations,
    }


# The picture


def _still(points: Sequence[ParetoPoint], summary: RunSummary) -> MatplotlibFigure:
    """The same figure as a still against prefill FLOPs, 1600 x 1000 pixels when saved."""
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
            color=_MUTED,
            ha="right" if left_of_lines(points, at, limits) else "left",
        )
    for level in levels(points, summary):
        axes.axhline(level.at, color=BLACK, linewidth=1.1, linestyle=styles[level.dash])
        axes.annotate(
            level.text,
            (limits.low_x, level.at),
            xytext=(8, 5 if level.above else -14),
            textcoords="offset points",
            color=BLACK,
            fontsize=9.5,
            bbox={"facecolor": "#ffffff", "alpha": 0.7, "edgecolor": "none", "pad": 0.6},
        )
    front = front_of(points, PREFILL)
    axes.step(
        [100 * one.flops_ratio for one in front],
        [100 * (one.accuracy or 0.0) for one in front],
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
        flat = marker.matplotlib in "|x"  # without a face, and so without an edge
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


# Words


def _description(points: Sequence[ParetoPoint], summary: RunSummary) -> str:
    text = (
        "Each small point is a trial on the videos that the search uses; those on the front are drawn full. "
        "The filled large points with intervals are measured on held-out videos, which had no part in "
        "choosing; where two meet, the smaller one lies on the larger. The unpruned model costs 100 %."
    )
    for one in points:
        if one.kind == "best" and one.split == "held_out" and one.accuracy is not None:
            what = best_name(summary)
            if summary.goal == "budget":
                what += f" of {100 * summary.budget:g} %"
            text += (
                f" {what[0].upper()}{what[1:]}: trial {one.trial}, {100 * one.accuracy:.1f} % on held-out "
                f"videos at {100 * one.flops_ratio:.1f} % of the prefill FLOPs, {one.regressions} "
                "regressions."
            )
    if summary.serving is not None:
        pays = f"{up_to(summary.serving.break_even)} by FLOPs"
        if summary.serving.measured is not None:
            pays += f" and {up_to(summary.serving.measured.break_even)} by seconds"
        text += f" Break-even, on a server that keeps each video's prefix: pruning pays for {pays}."
    return text


def _hover(point: ParetoPoint, summary: RunSummary) -> str:
    name = {
        "best": f", {best_name(summary)}",
        "defaults": ", AdaTP's defaults",
        "refused": "closest proposal",
    }
    head = escape(point.name or "") if point.trial is None else f"trial {point.trial}"
    lines = [f"<b>{head}{name.get(point.kind, '')}</b>, {SPLITS[point.split]}"]
    if point.kind == "stopped":
        lines.append(
            f"stopped after {point.pruned_after} videos: beaten by trial {point.pruned_by} and others like it"
        )
    if point.accuracy is not None:
        accuracy = f"accuracy {100 * point.accuracy:.1f} %"
        if point.accuracy_low is not None and point.accuracy_high is not None:
            accuracy += f" ({100 * point.accuracy_low:.1f} to {100 * point.accuracy_high:.1f})"
        lines.append(accuracy)
    lines.append(f"prefill FLOPs {100 * point.flops_ratio:.1f} %")
    if point.flops_ratio_end_to_end is not None:
        lines.append(f"end to end {100 * point.flops_ratio_end_to_end:.1f} %")
    if point.regressions is not None:
        lines.append(f"{point.regressions} regressions")
    for knob in KNOBS:
        value = getattr(point, knob)
        if value is not None:
            lines.append(f"{knob} {value:.4g}")
    for choice in CHOICES:
        made = getattr(point, choice)
        if made is not None and (choice in summary.choices or made != choices(AdaTP)[choice].default):
            lines.append(f"{choice} {made}")
    return "<br>".join(lines)
