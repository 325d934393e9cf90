"""A sensitivity study as pictures: what matters, how far each knob may drift, two at a time, for whom.

Each picture's table is computed first (`index_rows`, `curve_rows`, `map_rows`) and drawn from. Accuracy
changes are drawn in points from the reference, paired on the same questions: safe ranges are judged by them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

from dashboards.picture import BLACK, BLUE, FONT, GREEN, GREY, SKY, VERMILION, Picture
from tuner.results import Interval, Measured
from tuner.sensitivity.results import Curve, CurvePoint, Output, OutputName, Sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure
    from plotly.graph_objects import Figure as PlotlyFigure

# Of a tag's values the ones with most questions are drawn; all are in the table.
TAG_VALUES = 6

_COLUMNS = 2
_BAND = "rgba(86, 180, 233, 0.28)"
_SAFE = "rgba(0, 158, 115, 0.13)"
_TEXT = "#5b6068"
_MAP_COLORS = ("Cividis", "cividis")


@dataclass(frozen=True)
class IndexRow:
    """An input's share in one output's variance; without an input: an output whose surrogate is too poor."""

    output: OutputName
    runs: int
    r2: float
    good: bool
    more_runs: int | None
    input: str | None = None
    first: float | None = None
    first_low: float | None = None
    first_high: float | None = None
    total: float | None = None
    total_low: float | None = None
    total_high: float | None = None
    ped_anova: float | None = None


@dataclass(frozen=True)
class CurveRow:
    """One knob at one value, or from `value` until `until`, the others as in the reference."""

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


@dataclass(frozen=True)
class MapRow:
    """The surrogate's accuracy and the exact FLOPs ratio at one cell of a pairwise map."""

    first: str
    second: str
    first_value: float
    second_value: float
    accuracy: float
    flops_ratio: float
    within_budget: bool


def sensitivity_pictures(found: Sensitivity) -> tuple[Picture, ...]:
    """Indices, curves with safe ranges, pairwise maps, curves by tag; what was not studied is left out."""
    pictures = []
    if found.outputs:
        pictures.append(_indices(found))
    if found.curves:
        pictures.append(_curves(found))
    if found.maps:
        pictures.append(_maps(found))
    pictures += _tags(found)
    return tuple(pictures)


def index_rows(found: Sensitivity) -> tuple[IndexRow, ...]:
    """Every output's inputs, the most important first; one row for an output that has no indices."""
    rows: list[IndexRow] = []
    for output in found.outputs:
        common = (output.name, found.design_runs, output.r2, output.good, output.more_runs)
        rows += [
            IndexRow(
                *common, one.input, *_measured(one.first), *_measured(one.total), ped_anova=one.ped_anova
            )
            for one in sorted(output.indices, key=lambda one: -one.total.value)
        ] or [IndexRow(*common)]
    return tuple(rows)


def curve_rows(curves: Iterable[Curve]) -> tuple[CurveRow, ...]:
    """Every point of the curves, in their order."""
    return tuple(_curve_row(curve, point) for curve in curves for point in curve.points)


def map_rows(found: Sensitivity) -> tuple[MapRow, ...]:
    """Every cell of the maps."""
    return tuple(
        MapRow(
            one.first,
            one.second,
            first,
            second,
            one.accuracy[i][j],
            one.flops_ratio[i][j],
            one.flops_ratio[i][j] <= found.budget,
        )
        for one in found.maps
        for i, first in enumerate(one.first_values)
        for j, second in enumerate(one.second_values)
    )


# Indices

_KINDS = (
    # attribute, label, color, plotly and matplotlib marker, shift along the input's row
    ("total", "total: with its interactions (95 % interval)", VERMILION, "diamond", "D", 0.22),
    ("first", "first order: alone (95 % interval)", BLUE, "circle", "o", 0.0),
    ("ped_anova", "PED-ANOVA: share in being among the best quarter", GREY, "square-open", "s", -0.22),
)


def _indices(found: Sensitivity) -> Picture:
    rows = index_rows(found)
    good = [one for one in found.outputs if one.indices]
    return Picture(
        name="sensitivity-indices",
        title="What matters: share of the variance that each input explains",
        description=_indices_text(found),
        table=rows,
        plotly=_indices_plotly(found, rows) if good else None,
        body=None if good else _indices_body(found),
        still=_indices_still(found, rows) if good else None,
    )


def _indices_text(found: Sensitivity) -> str:
    sentences: list[str] = []
    for output in found.outputs:
        ranked = sorted(output.indices, key=lambda one: -one.total.value)
        if ranked and not sentences:
            values = ", ".join(f"{one.input} {_with_interval(one.total, 1, '.2f')}" for one in ranked)
            sentences.append(
                f"Total indices for {_output(output.name, found)}, with 95 % intervals, over "
                f"{found.design_runs} runs on the tune videos: {values}."
            )
        elif ranked:
            sentences.append(
                f"For {_output(output.name, found)} {ranked[0].input} matters most "
                f"({ranked[0].total.value:.2f})."
            )
    if sentences:
        sentences.append(
            "Total indices may add up to more than 1: an interaction counts for each input in it. R² is what "
            "the surrogate predicts of left-out runs."
        )
    poor = [one for one in found.outputs if not one.indices]
    if poor:
        sentences.append(
            "No indices, because the surrogate predicts left-out runs too badly or there are too few: "
            + "; ".join(f"{_output(one.name, found)} ({_poor(one)})" for one in poor)
            + "."
        )
    return " ".join(sentences)


def _poor(output: Output) -> str:
    if output.more_runs is None:
        return f"R² {output.r2:.2f}; nothing suggests that more runs would help"
    return f"R² {output.r2:.2f}; about {output.more_runs} more runs would probably do"


def _indices_body(found: Sensitivity) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(_output(one.name, found))}</th><td>{escape(_poor(one))}</td></tr>"
        for one in found.outputs
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _panels(rows: Sequence[IndexRow]) -> list[list[IndexRow]]:
    """Rows of one output each, those with indices; inputs in the order of the first output's."""
    shown = [list(group) for _, group in groupby((one for one in rows if one.input), lambda one: one.output)]
    order = [one.input for one in shown[0]]
    for group in shown:
        group.sort(key=lambda one: order.index(one.input) if one.input in order else len(order))
    return shown


def _indices_plotly(found: Sensitivity, rows: Sequence[IndexRow]) -> PlotlyFigure:
    import plotly.graph_objects as go

    panels = _panels(rows)
    deep = -(-len(panels) // _COLUMNS)
    figure = go.Figure()
    for place, panel in enumerate(panels):
        x, y = (
            _cell(place % _COLUMNS, min(_COLUMNS, len(panels)), 0.04),
            _cell(deep - 1 - place // 2, deep, 0.2),
        )
        axis = _axis(place)
        heights = list(range(len(panel) - 1, -1, -1))
        for name, label, color, symbol, _, shift in _KINDS:
            at, low, high = _values(panel, name)
            figure.add_trace(
                go.Scatter(
                    x=at,
                    y=[one + shift for one in heights],
                    xaxis=f"x{axis}",
                    yaxis=f"y{axis}",
                    mode="markers",
                    marker={
                        "color": color,
                        "symbol": symbol,
                        "size": 10,
                        "line": {"color": color, "width": 1.6},
                    },
                    error_x={"symmetric": False, "array": high, "arrayminus": low, "color": color, "width": 4}
                    if name != "ped_anova"
                    else None,
                    name=label,
                    legendgroup=name,
                    showlegend=place == 0,
                    text=[_index_hover(one) for one in panel],
                    hovertemplate="%{text}<extra></extra>",
                )
            )
        figure.update_layout(
            {
                f"xaxis{axis}": _plotly_axis(
                    f"y{axis}",
                    x,
                    title="share of the variance explained",
                    range=[-0.03, 1.03],
                    tickformat=".0%",
                ),
                f"yaxis{axis}": _plotly_axis(
                    f"x{axis}",
                    y,
                    tickvals=heights,
                    # The order is the first panel's, so its names serve the whole row.
                    ticktext=[_input(one.input or "") if place % _COLUMNS == 0 else "" for one in panel],
                    range=[-0.6, len(panel) - 0.4],
                ),
            }
        )
        figure.add_annotation(**_heading(_panel_title(panel[0], found), x[0], y[1]))
    _finish(figure, height=120 + deep * (90 + 52 * max(len(one) for one in panels)), left=190)
    return figure


def _indices_still(found: Sensitivity, rows: Sequence[IndexRow]) -> MatplotlibFigure:
    panels = _panels(rows)
    wide, deep = min(_COLUMNS, len(panels)), -(-len(panels) // _COLUMNS)
    figure = _figure(10, 1.2 + deep * (0.9 + 0.5 * max(len(one) for one in panels)))
    grid = figure.subplots(deep, wide, squeeze=False).ravel()
    for place, axes in enumerate(grid):
        if place >= len(panels):
            axes.set_axis_off()
            continue
        panel = panels[place]
        heights = list(range(len(panel) - 1, -1, -1))
        for name, label, color, _, marker, shift in _KINDS:
            at, low, high = _values(panel, name)
            axes.errorbar(
                at,
                [one + shift for one in heights],
                xerr=None if name == "ped_anova" else [low, high],
                fmt=marker,
                color=color,
                markerfacecolor="white" if name == "ped_anova" else color,
                capsize=3,
                label=label if place == 0 else None,
            )
        names = [_input(one.input or "") if place % wide == 0 else "" for one in panel]
        axes.set_yticks(heights, labels=names)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("share of the variance explained")
        axes.xaxis.set_major_formatter(_percent())
        _clean(axes, _panel_title(panel[0], found))
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    return figure


def _panel_title(row: IndexRow, found: Sensitivity) -> str:
    return f"{_output(row.output, found)}: R² {row.r2:.2f}, {row.runs} runs"


def _values(rows: Sequence[IndexRow], name: str) -> tuple[list[float | None], list[float], list[float]]:
    """The values and how far their intervals reach below and above them."""
    at = [getattr(one, name) for one in rows]
    if name == "ped_anova":
        return at, [], []
    ends = [(getattr(one, f"{name}_low"), getattr(one, f"{name}_high")) for one in rows]
    low = [0.0 if end[0] is None else value - end[0] for value, end in zip(at, ends, strict=True)]
    high = [0.0 if end[1] is None else end[1] - value for value, end in zip(at, ends, strict=True)]
    return at, low, high


def _index_hover(row: IndexRow) -> str:
    text = f"<b>{row.input}</b>"
    for name, words in (("total", "total"), ("first", "first order")):
        at, low, high = (getattr(row, name + end) for end in ("", "_low", "_high"))
        text += f"<br>{words} {at:.2f}" + ("" if low is None else f" ({low:.2f} to {high:.2f})")
    return text + ("" if row.ped_anova is None else f"<br>PED-ANOVA {row.ped_anova:.2f}")


# Curves


def _curves(found: Sensitivity) -> Picture:
    rows = curve_rows(found.curves)
    return Picture(
        name="sensitivity-curves",
        title="How far each knob may drift from the chosen configuration",
        description=_curves_text(found),
        table=rows,
        plotly=_curves_plotly(found),
        still=_curves_still(found),
    )


def _curves_text(found: Sensitivity) -> str:
    ranges = ", ".join(f"{one.knob} {_range(one.safe)}" for one in found.curves)
    exact = [one.knob for one in found.curves if one.exact]
    return (
        f"Change of {_accuracy(found)} when one knob moves and the others stay, on "
        f"{_part(found)} ({found.curves[0].questions} questions; the band is a 95 % interval). "
        f"Safe, shown by a one-sided 95 % bound to lose at most {100 * found.margin:.1f} points: {ranges}."
        + (f" {' and '.join(exact)}: every step there is, not samples." if exact else "")
    )


def _range(safe: Interval | None) -> str:
    return "nothing shown" if safe is None else f"{_number(safe.low)} to {_number(safe.high)}"


def _curve_title(curve: Curve) -> str:
    safe = "no safe range shown" if curve.safe is None else f"safe {_range(curve.safe)}"
    return f"<b>{curve.knob}</b>: chosen {_number(curve.chosen)}, {safe}"


def _curves_plotly(found: Sensitivity) -> PlotlyFigure:
    import plotly.graph_objects as go

    wide, deep = min(_COLUMNS, len(found.curves)), -(-len(found.curves) // _COLUMNS)
    figure = go.Figure()
    for place, curve in enumerate(found.curves):
        x, y = _cell(place % wide, wide, 0.11), _cell(deep - 1 - place // wide, deep, 0.19)
        strip = y[0] + 0.24 * (y[1] - y[0])
        main, thin = _axis(2 * place), _axis(2 * place + 1)
        rows = curve_rows([curve])
        first = place == 0
        limits = (min(one.value for one in rows), max(one.until for one in rows))
        ends = (_place(curve.knob, limits[0]), _place(curve.knob, limits[1]))
        _plotly_curve(figure, rows, main, f"change of {_accuracy(found)}", first)
        unsafe = [one for one in rows if not one.safe]
        figure.add_trace(
            go.Scatter(
                x=[_place(one.knob, one.value) for one in unsafe],
                y=[100 * one.difference for one in unsafe],
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
                x=[_place(curve.knob, curve.chosen)],
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
                hovertemplate=f"chosen {curve.knob} {_number(curve.chosen)}<extra></extra>",
            )
        )
        figure.add_trace(
            go.Scatter(
                **_vertices(rows, "flops_ratio"),
                xaxis=f"x{thin}",
                yaxis=f"y{thin}",
                mode="lines",
                line={"color": BLACK, "width": 1.6},
                name="FLOPs",
                showlegend=False,
                text=[
                    _number(end)
                    for one in rows
                    for end in ((one.value, one.until) if one.exact else (one.value,))
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
                x0=_place(curve.knob, curve.safe.low),
                x1=_place(curve.knob, curve.safe.high),
                y0=0,
                y1=1,
                fillcolor=_SAFE,
                line_width=0,
                layer="below",
            )
        room = 0.02 * (ends[1] - ends[0])
        across: dict[str, Any] = {"range": [ends[0] - room, ends[1] + room]}
        ticks = _ticks(curve.knob, *limits)
        if ticks is not None:
            across |= {"tickvals": ticks[0], "ticktext": ticks[1]}
        figure.update_layout(
            {
                f"xaxis{main}": _plotly_axis(
                    f"y{main}", x, matches=f"x{thin}", showticklabels=False, **across
                ),
                f"yaxis{main}": _plotly_axis(f"x{main}", [strip + 0.02, y[1]], title="points"),
                f"xaxis{thin}": _plotly_axis(f"y{thin}", x, title=_knob(curve.knob), **across),
                f"yaxis{thin}": _plotly_axis(
                    f"x{thin}", [y[0], strip], title="FLOPs", ticksuffix=" %", nticks=3, rangemode="normal"
                ),
            }
        )
        figure.add_annotation(**_heading(_curve_title(curve), x[0], y[1]))
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"color": "rgba(0, 158, 115, 0.3)", "symbol": "square", "size": 14},
            name="safe range",
        )
    )
    _finish(figure, height=130 + 330 * deep, left=70)
    return figure


def _plotly_curve(figure: PlotlyFigure, rows: Sequence[CurveRow], axis: str, name: str, legend: bool) -> None:
    """A curve and its band; steps where it is exact, else straight lines between what was measured."""
    import plotly.graph_objects as go

    low, high = _vertices(rows, "difference_low"), _vertices(rows, "difference_high")
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
    text = [_curve_hover(one) for one in rows for _ in range(2 if exact else 1)]
    figure.add_trace(
        go.Scatter(
            **_vertices(rows, "difference"),
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


def _curves_still(found: Sensitivity) -> MatplotlibFigure:
    wide, deep = min(_COLUMNS, len(found.curves)), -(-len(found.curves) // _COLUMNS)
    figure = _figure(6 * wide, 0.9 + 3.4 * deep)
    grid = figure.subplots(
        2 * deep, wide, squeeze=False, gridspec_kw={"height_ratios": [3, 1] * deep, "hspace": 0.06}
    )
    for place in range(wide * deep):
        row, column = divmod(place, wide)
        main, thin = grid[2 * row][column], grid[2 * row + 1][column]
        if place >= len(found.curves):
            main.set_axis_off()
            thin.set_axis_off()
            continue
        curve, first = found.curves[place], place == 0
        rows = curve_rows([curve])
        _still_curve(main, rows, f"change of {_accuracy(found)} (higher is better)" if first else None)
        unsafe = [one for one in rows if not one.safe]
        main.plot(
            [_place(one.knob, one.value) for one in unsafe],
            [100 * one.difference for one in unsafe],
            "x",
            color=VERMILION,
            markersize=4,
            label="not shown to be safe" if first else None,
        )
        main.axhline(
            -100 * found.margin,
            color=VERMILION,
            linestyle="--",
            linewidth=1.2,
            label=f"margin: {100 * found.margin:.1f} points lost" if first else None,
        )
        main.plot(
            [_place(curve.knob, curve.chosen)],
            [0],
            "D",
            color="white",
            markeredgecolor=BLACK,
            label="chosen" if first else None,
        )
        if curve.safe is not None:
            main.axvspan(
                _place(curve.knob, curve.safe.low),
                _place(curve.knob, curve.safe.high),
                color=GREEN,
                alpha=0.13,
                linewidth=0,
                label="safe range" if first else None,
            )
        line = _vertices(rows, "flops_ratio")
        thin.plot(line["x"], line["y"], color=BLACK, linewidth=1.4)
        thin.axhline(
            100 * found.budget,
            color=VERMILION,
            linestyle=":",
            linewidth=1.4,
            label=f"budget: {100 * found.budget:g} % of FLOPs" if first else None,
        )
        thin.sharex(main)
        main.tick_params(labelbottom=False)
        main.set_ylabel("points")
        thin.set_ylabel("FLOPs")
        thin.yaxis.set_major_formatter(_percent(100))
        _knob_axis(thin, curve.knob, rows)
        _clean(main, re.sub("<[^>]*>", "", _curve_title(curve)))
        _clean(thin, "")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _still_curve(axes: Axes, rows: Sequence[CurveRow], name: str | None) -> None:
    low, high, line = (_vertices(rows, one) for one in ("difference_low", "difference_high", "difference"))
    axes.fill_between(line["x"], low["y"], high["y"], color=SKY, alpha=0.3, linewidth=0)
    axes.plot(
        line["x"],
        line["y"],
        color=BLUE,
        linewidth=1.8,
        marker=None if rows[0].exact else "o",
        markersize=4,
        label=name,
    )


# Similarities crowd near 1, and there tau_s acts: it is drawn by the logarithm of its distance from 1.
_NEAREST = 1e-4
_SIMILARITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)


def _place(knob: str, value: float) -> float:
    """Where a knob's value is drawn."""
    return -math.log10(max(1 - value, _NEAREST)) if knob == "tau_s" else value


def _ticks(knob: str, low: float, high: float, most: int = 8) -> tuple[list[float], list[str]] | None:
    """Places and texts where they are not the axis's own: of values from `low` to `high`."""
    if knob != "tau_s":
        return None
    within = [one for one in _SIMILARITIES if low <= one <= high]
    within = within[:: -(-len(within) // most)] if within else [low]
    return [_place(knob, one) for one in within], [_number(one) for one in within]


def _knob(knob: str) -> str:
    return "tau_s (scale: logarithm of 1 - tau_s)" if knob == "tau_s" else knob


def _vertices(rows: Sequence[CurveRow], name: str) -> dict[str, list[float]]:
    """In per cent: both ends of every step, or every point. A value without an interval is its own."""
    drawn: dict[str, list[float]] = {"x": [], "y": []}
    for one in rows:
        height = getattr(one, name)
        for value in (one.value, one.until) if one.exact else (one.value,):
            drawn["x"].append(_place(one.knob, value))
            drawn["y"].append(100 * (one.difference if height is None else height))
    return drawn


def _curve_hover(row: CurveRow) -> str:
    here = _number(row.value)
    if row.until > row.value:
        here += f" to {_number(row.until)}"
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


# Maps


def _maps(found: Sensitivity) -> Picture:
    rows = map_rows(found)
    return Picture(
        name="sensitivity-maps",
        title=f"Two inputs at a time: {_accuracy(found)} as the surrogate predicts it",
        description=_maps_text(found, rows),
        table=rows,
        plotly=_maps_plotly(found),
        still=_maps_still(found),
    )


def _maps_text(found: Sensitivity, rows: Sequence[MapRow]) -> str:
    output = next((one for one in found.outputs if one.name == "accuracy"), None)
    text = (
        f"Predicted {_accuracy(found)} on the tune videos, the other inputs as in the reference"
        + ("" if output is None else f" (cross-validated R² {output.r2:.2f})")
        + "; FLOPs are exact."
    )
    fitting = [one for one in rows if one.within_budget]
    if fitting:
        best = max(fitting, key=lambda one: one.accuracy)
        text += (
            f" The highest value within the budget of {100 * found.budget:g} % is "
            f"{100 * best.accuracy:.1f} %, at {_at(best.first, best.first_value)} and "
            f"{_at(best.second, best.second_value)}."
        )
    if len(fitting) == len(rows):
        text += " All of it is within the budget."
    return text


def _maps_plotly(found: Sensitivity) -> PlotlyFigure:
    import plotly.graph_objects as go

    figure = go.Figure()
    wide = len(found.maps)
    for place, one in enumerate(found.maps):
        axis, x = _axis(place), _cell(place, wide, 0.27)
        first, second = _scaled(one.first, one.first_values), _scaled(one.second, one.second_values)
        axes = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
        accuracy, ratio = _turned(one.accuracy), _turned(one.flops_ratio)
        figure.add_trace(
            go.Heatmap(
                x=first,
                y=second,
                z=accuracy,
                customdata=ratio,
                **axes,
                coloraxis="coloraxis",
                hovertemplate=f"{one.first} %{{x:.4g}}<br>{one.second} %{{y:.4g}}<br>"
                "predicted %{z:.1f} %<br>FLOPs %{customdata:.1f} %<extra></extra>",
            )
        )
        for level, dash, width in _levels(ratio, 100 * found.budget):
            figure.add_trace(
                go.Contour(
                    x=first,
                    y=second,
                    z=ratio,
                    **axes,
                    contours={
                        "coloring": "none",
                        "start": level,
                        "end": level,
                        "size": 1,
                        "showlabels": dash == "dot",
                        "labelfont": {"color": "#ffffff", "size": 11},
                        "labelformat": ".0f",
                    },
                    line={"color": _line_color(width), "width": width, "dash": dash},
                    showscale=False,
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
        if one.reference is not None:
            figure.add_trace(
                go.Scatter(
                    x=_scaled(one.first, one.reference[:1]),
                    y=_scaled(one.second, one.reference[1:]),
                    **axes,
                    mode="markers",
                    marker={
                        "color": VERMILION,
                        "symbol": "diamond",
                        "size": 13,
                        "line": {"color": "#ffffff", "width": 2},
                    },
                    name="the reference",
                    legendgroup="reference",
                    showlegend=place == 0,
                    hovertemplate="the reference<extra></extra>",
                )
            )
        figure.update_layout(
            {
                f"xaxis{axis}": _plotly_axis(
                    f"y{axis}", x, title=_input(one.first, unit=True), showgrid=False
                ),
                f"yaxis{axis}": _plotly_axis(
                    f"x{axis}", [0, 1], title=_input(one.second, unit=True), showgrid=False
                ),
            }
        )
    for name, dash, width in (
        (f"budget: {100 * found.budget:g} % of FLOPs", "solid", 2.5),
        ("other FLOPs, %", "dot", 1.2),
    ):
        figure.add_trace(
            go.Scatter(
                x=[None],
                y=[None],
                mode="lines",
                line={"color": BLACK if dash == "solid" else GREY, "dash": dash, "width": width},
                name=name,
            )
        )
    _finish(figure, height=470, left=70)
    figure.update_layout(
        coloraxis={
            "colorscale": _MAP_COLORS[0],
            "colorbar": {"title": {"text": f"{_accuracy(found)}<br>(higher is better)"}, "ticksuffix": " %"},
        }
    )
    return figure


def _maps_still(found: Sensitivity) -> MatplotlibFigure:
    figure = _figure(max(5.0, 4.6 * len(found.maps)), 4.6)
    heights = [100 * value for one in found.maps for row in one.accuracy for value in row]
    mesh = None
    for axes, one in zip(figure.subplots(1, len(found.maps), squeeze=False)[0], found.maps, strict=True):
        first, second = _scaled(one.first, one.first_values), _scaled(one.second, one.second_values)
        ratio = _turned(one.flops_ratio)
        mesh = axes.pcolormesh(
            first,
            second,
            _turned(one.accuracy),
            shading="nearest",
            cmap=_MAP_COLORS[1],
            vmin=min(heights),
            vmax=max(heights),
            rasterized=True,
        )
        for level, dash, width in _levels(ratio, 100 * found.budget):
            lines = axes.contour(
                first,
                second,
                ratio,
                levels=[level],
                colors=_line_color(width),
                linewidths=width,
                linestyles="-" if dash == "solid" else ":",
            )
            if dash == "dot":
                axes.clabel(lines, fmt="%.0f %%", fontsize=8)
        if one.reference is not None:
            axes.plot(
                _scaled(one.first, one.reference[:1]),
                _scaled(one.second, one.reference[1:]),
                "D",
                color=VERMILION,
                markeredgecolor="white",
                markersize=9,
            )
        axes.set_xlabel(_input(one.first, unit=True))
        axes.set_ylabel(_input(one.second, unit=True))
    if mesh is not None:
        figure.colorbar(
            mesh,
            ax=figure.axes,
            label=f"predicted {_accuracy(found)} (higher is better)",
            format=_percent(100),
        )
    figure.suptitle(
        f"diamond: the reference; dotted lines: FLOPs, % of unpruned; black line: the budget of "
        f"{100 * found.budget:g} %",
        fontsize=9.5,
        color=_TEXT,
    )
    return figure


def _levels(ratio: Sequence[Sequence[float]], budget: float) -> list[tuple[float, str, float]]:
    """FLOPs lines worth drawing: the budget where it is crossed, and round values that are."""
    low, high = min(map(min, ratio)), max(map(max, ratio))
    step = next((one for one in (1.0, 2.0, 5.0, 10.0, 20.0) if (high - low) / one <= 5), 50.0)
    round_ones = [step * k for k in range(int(low // step) + 1, int(high // step) + 1)]
    levels = [(one, "dot", 1.2) for one in round_ones if low < one < high and abs(one - budget) > step / 4]
    return levels + ([(budget, "solid", 5.0), (budget, "solid", 2.5)] if low < budget < high else [])


def _line_color(width: float) -> str:
    """The budget's line is black on a wider white one: seen on dark and on bright cells."""
    return BLACK if width == 2.5 else "#ffffff"


def _turned(values: Sequence[Sequence[float]]) -> list[list[float]]:
    """[first][second] fractions as the [second][first] per cents that drawings take."""
    return [[100 * value for value in column] for column in zip(*values, strict=True)]


# By tag


def _tags(found: Sensitivity) -> list[Picture]:
    pictures: list[Picture] = []
    names: set[str] = set()
    for key in dict.fromkeys(one.tag[0] for one in found.by_tag if one.tag is not None):
        curves = [one for one in found.by_tag if one.tag is not None and one.tag[0] == key and one.points]
        kinds = _kinds(curves)
        if not kinds:
            continue
        name = stem = "sensitivity-by-" + (re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-") or "tag")
        while name in names:  # keys that differ only in signs
            name = f"{stem}-{len(names) + 1}"
        names.add(name)
        shown = kinds[:TAG_VALUES]
        pictures.append(
            Picture(
                name=name,
                title=f"For whom: the same curves by {key}",
                description=_tags_text(found, curves, kinds),
                table=curve_rows(curves),
                plotly=_tags_plotly(found, curves, shown),
                still=_tags_still(found, curves, shown),
            )
        )
    return pictures


def _kinds(curves: Iterable[Curve]) -> list[tuple[str, int]]:
    """A tag's values and their questions, most first."""
    counts = {one.tag[1]: one.questions for one in curves if one.tag is not None}
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def _tags_text(found: Sensitivity, curves: Sequence[Curve], kinds: Sequence[tuple[str, int]]) -> str:
    text = (
        f"Change of {_accuracy(found)} for each kind of question alone, from that kind's own value in the "
        "chosen configuration; all questions in grey, bands are 95 % intervals. These are many looks at the "
        "same answers: a hint where to look, not a finding."
    )
    safe = {one.knob: one.safe for one in found.curves}
    worst: tuple[float, str] | None = None
    for curve in curves:
        for point in curve.points:
            if curve.tag is not None and _inside(point, safe.get(curve.knob)):
                change = point.difference.value
                if worst is None or change < worst[0]:
                    where = f"{curve.tag[1]} at {curve.knob} {_number(point.value)}"
                    worst = (change, f"{where}: {_with_interval(point.difference, 100, '+.1f')} points")
    if worst is not None and worst[0] < 0:
        text += f" Worst inside the ranges that are safe for all questions together: {worst[1]}."
    if len(kinds) > TAG_VALUES:
        text += f" Drawn: the {TAG_VALUES} of {len(kinds)} kinds with most questions; the table has all."
    return text


def _tags_plotly(
    found: Sensitivity, curves: Sequence[Curve], kinds: Sequence[tuple[str, int]]
) -> PlotlyFigure:
    import plotly.graph_objects as go

    figure = go.Figure()
    knobs = list(dict.fromkeys(one.knob for one in curves))
    overall = {one.knob: one for one in found.curves}
    for down, (kind, questions) in enumerate(kinds):
        for along, knob in enumerate(knobs):
            curve = next((one for one in curves if one.knob == knob and one.tag and one.tag[1] == kind), None)
            if curve is None:
                continue
            axis = _axis(down * len(knobs) + along)
            top = _axis(along)
            x, y = _cell(along, len(knobs), 0.2), _cell(len(kinds) - 1 - down, len(kinds), 0.16)
            legend = down == along == 0
            if knob in overall:
                figure.add_trace(
                    go.Scatter(
                        **_vertices(curve_rows([overall[knob]]), "difference"),
                        xaxis=f"x{axis}",
                        yaxis=f"y{axis}",
                        mode="lines",
                        line={"color": GREY, "width": 1.4},
                        name="all questions",
                        legendgroup="all",
                        showlegend=legend,
                        hoverinfo="skip",
                    )
                )
            _plotly_curve(figure, curve_rows([curve]), axis, "questions of this kind", legend)
            figure.add_shape(
                type="line",
                xref=f"x{axis}",
                yref=f"y{axis} domain",
                x0=_place(knob, curve.chosen),
                x1=_place(knob, curve.chosen),
                y0=0,
                y1=1,
                line={"color": BLACK, "width": 1, "dash": "dot"},
            )
            last = down == len(kinds) - 1
            ticks = _ticks(knob, min(p.value for p in curve.points), max(p.until for p in curve.points), 4)
            across = {"nticks": 4} if ticks is None else {"tickvals": ticks[0], "ticktext": ticks[1]}
            figure.update_layout(
                {
                    f"xaxis{axis}": _plotly_axis(
                        f"y{axis}",
                        x,
                        title=knob if last else None,
                        showticklabels=last,
                        matches=f"x{top}" if down else None,
                        **across,
                    ),
                    f"yaxis{axis}": _plotly_axis(
                        f"x{axis}", y, matches=f"y{top}" if down else None, nticks=4
                    ),
                }
            )
            if along == 0:
                figure.add_annotation(**_heading(f"<b>{escape(kind)}</b>, {questions} questions", x[0], y[1]))
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="lines",
            line={"color": BLACK, "width": 1, "dash": "dot"},
            name="chosen value; heights in points, alike within a column",
        )
    )
    _finish(figure, height=150 + 150 * len(kinds), left=50)
    return figure


def _tags_still(
    found: Sensitivity, curves: Sequence[Curve], kinds: Sequence[tuple[str, int]]
) -> MatplotlibFigure:
    knobs = list(dict.fromkeys(one.knob for one in curves))
    overall = {one.knob: one for one in found.curves}
    figure = _figure(2.4 * len(knobs), 0.8 + 1.5 * len(kinds))
    grid = figure.subplots(len(kinds), len(knobs), squeeze=False, sharex="col", sharey="col")
    for down, (kind, questions) in enumerate(kinds):
        for along, knob in enumerate(knobs):
            axes = grid[down][along]
            _clean(axes, f"{kind}, {questions} questions" if along == 0 else "")
            curve = next((one for one in curves if one.knob == knob and one.tag and one.tag[1] == kind), None)
            if curve is None:
                continue
            legend = down == along == 0
            if knob in overall:
                line = _vertices(curve_rows([overall[knob]]), "difference")
                axes.plot(
                    line["x"], line["y"], color=GREY, linewidth=1, label="all questions" if legend else None
                )
            _still_curve(axes, curve_rows([curve]), "questions of this kind (95 % band)" if legend else None)
            axes.axvline(
                _place(knob, curve.chosen),
                color=BLACK,
                linewidth=0.8,
                linestyle=":",
                label="chosen" if legend else None,
            )
            if down == len(kinds) - 1:
                _knob_axis(axes, knob, curve_rows([curve]), most=4)
            if along == 0:
                axes.set_ylabel("points")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


# What the drawings share


def _curve_row(curve: Curve, point: CurvePoint) -> CurveRow:
    return CurveRow(
        curve.knob,
        curve.exact,
        curve.chosen,
        *(curve.tag or (None, None)),
        curve.questions,
        point.value,
        point.until,
        *_measured(point.accuracy),
        *_measured(point.difference),
        flops_ratio=point.flops_ratio,
        regressions=point.regressions,
        gained=point.gained,
        logprob_change=point.logprob_change,
        safe=point.safe,
        in_safe_range=_inside(point, curve.safe),
    )


def _inside(point: CurvePoint, safe: Interval | None) -> bool:
    return safe is not None and point.until >= safe.low and point.value <= safe.high


def _measured(one: Measured) -> tuple[float, float | None, float | None]:
    interval = one.interval
    return (one.value, None, None) if interval is None else (one.value, interval.low, interval.high)


def _with_interval(one: Measured, scale: float, form: str) -> str:
    text = f"{scale * one.value:{form}}"
    if one.interval is not None:
        text += f" ({scale * one.interval.low:{form}} to {scale * one.interval.high:{form}})"
    return text


def _number(value: float) -> str:
    # The step right above 0 begins at the smallest number there is.
    return f"{0.0 if abs(value) < 1e-9 else value:.4g}"


def _accuracy(found: Sensitivity) -> str:
    return "accuracy" if found.labelled else "agreement with the unpruned model"


def _part(found: Sensitivity) -> str:
    return "held-out videos" if found.part == "held_out" else "tune videos"


def _output(name: OutputName, found: Sensitivity) -> str:
    words = {
        "accuracy": _accuracy(found),
        "logprob": "log-probability of the right answer",
        "regressions": "regressions",
        "seconds": "seconds per answer",
    }
    return words[name]


def _input(name: str, unit: bool = False) -> str:
    """An input's name, and what its values are where that is not the knob's own value."""
    if name == "gamma_cap":
        return "gamma_cap, share of the way from p to 1" if unit else "gamma_cap (from p to 1)"
    if name == "compute":
        return "compute: FLOPs, % of unpruned" if unit else "compute (FLOPs)"
    return name


def _at(name: str, value: float) -> str:
    return f"compute {100 * value:.1f} %" if name == "compute" else f"{name} {_number(value)}"


def _scaled(name: str, values: Sequence[float]) -> list[float]:
    return [100 * one for one in values] if name == "compute" else list(values)


def _axis(place: int) -> str:
    """Plotly's number of the axis at this place: the first has none."""
    return "" if place == 0 else str(place + 1)


def _cell(place: int, cells: int, gap: float) -> list[float]:
    """Where one of so many equal cells begins and ends on [0, 1]; `gap`: as a share of a cell."""
    size = 1 / (cells + gap * (cells - 1))
    return [place * size * (1 + gap), min(1.0, place * size * (1 + gap) + size)]


def _plotly_axis(
    anchor: str, domain: Sequence[float], title: str | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "anchor": anchor,
        "domain": list(domain),
        "title": {"text": title, "font": {"size": 12}, "standoff": 6} if title else None,
        "zeroline": False,
        "gridcolor": "#e4e6ea",
        "tickfont": {"size": 11},
        **more,
    }


def _heading(text: str, x: float, y: float) -> dict[str, Any]:
    return {
        "text": text,
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 13},
    }


def _finish(figure: PlotlyFigure, height: int, left: int) -> None:
    figure.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 13, "color": BLACK},
        height=height,
        legend={"orientation": "h", "x": 0, "y": -70 / (height - 110), "yanchor": "top"},
        hoverlabel={"align": "left", "font": {"family": FONT, "size": 13}},
        margin={"l": left, "r": 20, "t": 40, "b": 110},
    )


def _figure(width: float, height: float) -> MatplotlibFigure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _percent(of: float = 1.0) -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value * 100 / of:g} %")


def _knob_axis(axes: Axes, knob: str, rows: Sequence[CurveRow], most: int = 8) -> None:
    axes.set_xlabel(_knob(knob) if most > 4 else knob)
    ticks = _ticks(knob, min(one.value for one in rows), max(one.until for one in rows), most)
    if ticks is not None:
        axes.set_xticks(ticks[0], labels=ticks[1])


def _clean(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
