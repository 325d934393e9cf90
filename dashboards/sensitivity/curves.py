"""How far each knob may drift: accuracy and FLOPs along one knob, all others at the reference.

Accuracy is drawn as the change from the reference in points, paired on the same questions: safe ranges are
judged by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dashboards.picture.picture import BLACK, BLUE, VERMILION, Picture
from dashboards.sensitivity.axes import (
    COLUMNS,
    axis_number,
    cell,
    finish,
    knob_label,
    panel_axis,
    panel_heading,
    ticks_of,
)
from dashboards.sensitivity.wording import accuracy_label, ends_of, number, range_text, split_label
from tuner.sensitivity.maps import place_of
from tuner.sensitivity.results import Curve, CurvePoint, Sensitivity
from tuner.statistics.values import Interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

_BAND = "rgba(86, 180, 233, 0.28)"
_SAFE = "rgba(0, 158, 115, 0.13)"


@dataclass(frozen=True)
class CurveRow:
    """One knob at `value`, or from `value` to `until`; the others are at the reference."""

    knob: str
    exact: bool
    chosen: float
    tag: str | None
    kind: str | None
    questions: int
    value: float
    until: float
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    difference: float
    difference_low: float | None
    difference_high: float | None
    flops_ratio: float
    regressions: int
    gained: int
    logprob_change: float
    safe: bool
    in_safe_range: bool


def curve_rows(curves: Iterable[Curve]) -> tuple[CurveRow, ...]:
    """Every point of the curves, in order."""
    return tuple(_curve_row(curve, point) for curve in curves for point in curve.points)


def _curve_row(curve: Curve, point: CurvePoint) -> CurveRow:
    accuracy, difference = ends_of(point.accuracy), ends_of(point.difference)
    return CurveRow(
        knob=curve.knob,
        exact=curve.exact,
        chosen=curve.chosen,
        tag=None if curve.tag is None else curve.tag[0],
        kind=None if curve.tag is None else curve.tag[1],
        questions=curve.questions,
        value=point.value,
        until=point.until,
        accuracy=accuracy[0],
        accuracy_low=accuracy[1],
        accuracy_high=accuracy[2],
        difference=difference[0],
        difference_low=difference[1],
        difference_high=difference[2],
        flops_ratio=point.flops_ratio,
        regressions=point.regressions,
        gained=point.gained,
        logprob_change=point.logprob_change,
        safe=point.safe,
        in_safe_range=inside(point, curve.safe),
    )


def inside(point: CurvePoint, safe: Interval | None) -> bool:
    """Whether the point overlaps the safe range."""
    return safe is not None and point.until >= safe.low and point.value <= safe.high


def curves_picture(found: Sensitivity) -> Picture:
    """A panel per knob with its safe range, and a thin panel below with the FLOPs."""
    rows = curve_rows(found.curves)
    return Picture(
        name="sensitivity-curves",
        title="How far each knob may drift from the chosen configuration",
        description=_curves_text(found),
        table=rows,
        plotly=_plotly(found),
    )


def _curves_text(found: Sensitivity) -> str:
    ranges = ", ".join(f"{curve.knob} {range_text(curve.safe)}" for curve in found.curves)
    exact = [curve.knob for curve in found.curves if curve.exact]
    return (
        f"Change of {accuracy_label(found)} when one knob moves and the others stay, on "
        f"{split_label(found)} ({found.curves[0].questions} questions; bands are 95 % intervals). A value is "
        f"safe if a one-sided 95 % bound excludes a loss of more than {100 * found.margin:.1f} points. Safe "
        f"ranges: {ranges}."
        + (f" Curves of {' and '.join(exact)} are exact: they show every step." if exact else "")
    )


def _plotly(found: Sensitivity) -> PlotlyFigure:
    import plotly.graph_objects as go

    wide, deep = min(COLUMNS, len(found.curves)), -(-len(found.curves) // COLUMNS)
    figure = go.Figure()
    for place, curve in enumerate(found.curves):
        x, y = cell(place % wide, wide, 0.11), cell(deep - 1 - place // wide, deep, 0.25)
        strip = y[0] + 0.24 * (y[1] - y[0])
        main, thin = axis_number(2 * place), axis_number(2 * place + 1)
        rows = curve_rows([curve])
        first = place == 0
        limits = (min(row.value for row in rows), max(row.until for row in rows))
        ends = (place_of(curve.knob, limits[0]), place_of(curve.knob, limits[1]))
        add_curve(figure, rows, main, f"change of {accuracy_label(found)}", first)
        unsafe = [row for row in rows if not row.safe]
        figure.add_trace(
            go.Scatter(
                x=[place_of(point.knob, point.value) for point in unsafe],
                y=[100 * point.difference for point in unsafe],
                xaxis=f"x{main}",
                yaxis=f"y{main}",
                mode="markers",
                marker={
                    "color": VERMILION,
                    "symbol": "x-thin",
                    "size": 8,
                    "line": {"color": VERMILION, "width": 1.5},
                },
                name="not shown to be safe",
                legendgroup="unsafe",
                showlegend=first,
                hoverinfo="skip",
            )
        )
        figure.add_trace(
            go.Scatter(
                x=[place_of(curve.knob, curve.chosen)],
                y=[0],
                xaxis=f"x{main}",
                yaxis=f"y{main}",
                mode="markers",
                marker={
                    "color": "#ffffff",
                    "symbol": "diamond",
                    "size": 12,
                    "line": {"color": BLACK, "width": 2},
                },
                name="chosen value",
                legendgroup="chosen",
                showlegend=first,
                hovertemplate=f"chosen {curve.knob} {number(curve.chosen)}<extra></extra>",
            )
        )
        figure.add_trace(
            go.Scatter(
                **vertices(rows, "flops_ratio"),
                xaxis=f"x{thin}",
                yaxis=f"y{thin}",
                mode="lines",
                line={"color": BLACK, "width": 1.6},
                name="FLOPs",
                showlegend=False,
                text=[
                    number(end)
                    for row in rows
                    for end in ((row.value, row.until) if row.exact else (row.value,))
                ],
                hovertemplate=f"{curve.knob} %{{text}}: FLOPs %{{y:.1f}} %<extra></extra>",
            )
        )
        for axis, height, color, label, dash in (
            (main, -100 * found.margin, VERMILION, f"margin: {100 * found.margin:.1f} points lost", "dash"),
            (thin, 100 * found.budget, VERMILION, f"budget: {100 * found.budget:g} % of FLOPs", "dot"),
        ):
            figure.add_trace(
                go.Scatter(
                    x=list(ends),
                    y=[height, height],
                    xaxis=f"x{axis}",
                    yaxis=f"y{axis}",
                    mode="lines",
                    line={"color": color, "width": 1.4, "dash": dash},
                    name=label,
                    legendgroup=label,
                    showlegend=first,
                    hoverinfo="skip",
                )
            )
        if curve.safe is not None:
            figure.add_shape(
                type="rect",
                xref=f"x{main}",
                yref=f"y{main} domain",
                x0=place_of(curve.knob, curve.safe.low),
                x1=place_of(curve.knob, curve.safe.high),
                y0=0,
                y1=1,
                fillcolor=_SAFE,
                line_width=0,
                layer="below",
            )
        room = 0.02 * (ends[1] - ends[0])
        across: dict[str, Any] = {"range": [ends[0] - room, ends[1] + room]}
        ticks = ticks_of(curve.knob, *limits)
        if ticks is not None:
            across |= {"tickvals": ticks[0], "ticktext": ticks[1]}
        figure.update_layout(
            {
                f"xaxis{main}": panel_axis(f"y{main}", x, matches=f"x{thin}", showticklabels=False, **across),
                f"yaxis{main}": panel_axis(f"x{main}", [strip + 0.02, y[1]], title="points"),
                f"xaxis{thin}": panel_axis(f"y{thin}", x, title=knob_label(curve.knob), **across),
                f"yaxis{thin}": panel_axis(
                    f"x{thin}", [y[0], strip], title="FLOPs", ticksuffix=" %", nticks=3, rangemode="normal"
                ),
            }
        )
        figure.add_annotation(**panel_heading(_title(curve), x[0], y[1]))
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"color": "rgba(0, 158, 115, 0.3)", "symbol": "square", "size": 14},
            name="safe range",
        )
    )
    finish(figure, height=130 + 350 * deep, left=70)
    return figure


def add_curve(figure: PlotlyFigure, rows: Sequence[CurveRow], axis: str, name: str, legend: bool) -> None:
    """A curve and its band: steps where it is exact, otherwise straight lines between measured points."""
    import plotly.graph_objects as go

    low, high = vertices(rows, "difference_low"), vertices(rows, "difference_high")
    axes = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
    figure.add_trace(
        go.Scatter(
            x=[*high["x"], *reversed(low["x"])],
            y=[*high["y"], *reversed(low["y"])],
            **axes,
            mode="none",
            fill="toself",
            fillcolor=_BAND,
            name="95 % interval",
            legendgroup="band",
            showlegend=legend,
            hoverinfo="skip",
        )
    )
    exact = rows[0].exact
    text = [_curve_hover(row) for row in rows for _ in range(2 if exact else 1)]
    figure.add_trace(
        go.Scatter(
            **vertices(rows, "difference"),
            **axes,
            mode="lines" if exact else "lines+markers",
            line={"color": BLUE, "width": 2},
            marker={"size": 6},
            name=f"{name} (higher is better)",
            legendgroup="curve",
            showlegend=legend,
            text=text,
            hovertemplate="%{text}<extra></extra>",
        )
    )


def _curve_hover(row: CurveRow) -> str:
    here = number(row.value)
    if row.until > row.value:
        here += f" to {number(row.until)}"
    ends = (
        f" ({100 * row.difference_low:+.1f} to {100 * row.difference_high:+.1f})"
        if row.difference_low is not None and row.difference_high is not None
        else ""
    )
    return (
        f"<b>{row.knob} {here}</b><br>{100 * row.difference:+.1f} points{ends}, "
        f"{'safe' if row.safe else 'not shown to be safe'}<br>accuracy {100 * row.accuracy:.1f} %<br>"
        f"FLOPs {100 * row.flops_ratio:.1f} %<br>against unpruned: {row.regressions} regressions, "
        f"{row.gained} gained"
    )


def _title(curve: Curve) -> str:
    """The heading above a knob's panel."""
    safe = "no safe range shown" if curve.safe is None else f"safe {range_text(curve.safe)}"
    return f"<b>{curve.knob}</b>: chosen {number(curve.chosen)}, {safe}"


def vertices(rows: Sequence[CurveRow], name: str) -> dict[str, list[float]]:
    """Both ends of every step, or every point, in per cent; without an interval its ends are the value."""
    drawn: dict[str, list[float]] = {"x": [], "y": []}
    for row in rows:
        height = getattr(row, name)
        for value in (row.value, row.until) if row.exact else (row.value,):
            drawn["x"].append(place_of(row.knob, value))
            drawn["y"].append(100 * (row.difference if height is None else height))
    return drawn
