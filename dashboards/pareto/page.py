"""The Pareto front for the browser: one drawing for each measure of compute, chosen by a button."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from dashboards.pareto.marks import (
    AXES,
    MUTED,
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
from dashboards.picture.picture import BLACK, BLUE, FONT, GREY, LABEL_GROUND
from pipeline.methods import KNOBS, AdaTP, choices
from tuner.reporting.summary import accuracy_name
from tuner.reporting.trial_table import ParetoPoint
from tuner.reporting.values import RunSummary
from tuner.study import CHOICES

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure


def interactive(points: Sequence[ParetoPoint], summary: RunSummary) -> PlotlyFigure:
    """The interactive drawing: hovering shows a configuration, buttons choose the measure of compute."""
    import plotly.graph_objects as go

    axes = [axis for axis in AXES if axis is PREFILL or any(front_of(points, axis))]
    drawn = {axis: _traces(points, summary, axis) for axis in axes}
    layouts = {axis: _layout(points, summary, axis) for axis in axes}
    figure = go.Figure([go.Scatter(trace) for trace in drawn[PREFILL]])
    buttons = [
        {
            "label": axis.button,
            "method": "update",
            "args": [
                {key: [trace.get(key) for trace in drawn[axis]] for key in ("x", "y", "text", "error_y")},
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
        margin={"l": 90, "r": 30, "t": 40, "b": 140},
        # On a phone: smaller letters, and the legend's entries below one another.
        meta={
            "narrow": {
                "font": {"size": 11},
                "margin": {"l": 56, "r": 8, "t": 40, "b": 250},
                "legend": {"y": -0.24, "font": {"size": 11}},
                "xaxis": {"title": {"font": {"size": 11}}},
                "yaxis": {"title": {"font": {"size": 11}}},
            }
        },
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
            "x": [cost_of(point, axis) for point in front],
            "y": [100 * (point.accuracy or 0.0) for point in front],
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
                "text": [_hover(point, summary) for point in series.points],
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
    """Axes, lines and labels for one measure of compute."""
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
                "font": {"size": 12, "color": MUTED},
            }
        )
    lines = levels(points, summary)
    # Both unpruned accuracies are named above the upper line: below a line, on a phone, a name hides points.
    unpruned = [
        f"{level.text}{' (dotted)' if level.dash == 'dot' else ''}" for level in lines if level.dash != "dash"
    ]
    for place, level in enumerate(lines):
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
        if place and level.dash != "dash":
            continue
        annotations.append(
            {
                "x": 0.005,
                "xref": "paper",
                "y": level.at,
                "text": level.text if level.dash == "dash" else "<br>".join(unpruned),
                "align": "left",
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


def _hover(point: ParetoPoint, summary: RunSummary) -> str:
    name = {
        "best": f", {best_name(summary)}",
        "defaults": ", AdaTP's defaults",
        "infeasible": "closest infeasible proposal",
    }
    head = escape(point.name or "") if point.trial is None else f"trial {point.trial}"
    lines = [f"<b>{head}{name.get(point.kind, '')}</b>, {SPLITS[point.split]}"]
    if point.kind == "pruned":
        lines.append(
            f"pruned after {point.pruned_after} videos: trial {point.pruned_by} and others are better"
        )
    if point.accuracy is not None:
        accuracy = f"{accuracy_name(summary)} {100 * point.accuracy:.1f} %"
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
