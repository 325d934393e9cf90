"""Two knobs at a time: the accuracy that the surrogate predicts, and where the budget is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dashboards.picture.picture import BLACK, GREY, VERMILION, Picture
from dashboards.sensitivity.axes import axis_number, cell, finish, knob_label, panel_axis, ticks_of
from dashboards.sensitivity.map_marks import color_scale, drawn_map
from dashboards.sensitivity.wording import accuracy_label, compute_label, number
from tuner.search.space import TOLERANCE
from tuner.sensitivity.maps import place_of
from tuner.sensitivity.results import PairMap, Sensitivity

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

# Black on a wider white: seen on dark and on bright cells.
_BUDGET_LINE = (("#ffffff", 5.5), (BLACK, 2.5))


@dataclass(frozen=True)
class MapRow:
    """One cell of a pairwise map: its exact FLOPs ratio, and the predicted accuracy where there is one."""

    first: str
    second: str
    first_value: float
    second_value: float
    accuracy: float | None
    flops_ratio: float
    within_budget: bool


def map_rows(found: Sensitivity) -> tuple[MapRow, ...]:
    """Every cell of the maps."""
    return tuple(
        MapRow(
            map_.first,
            map_.second,
            first,
            second,
            map_.accuracy[i][j],
            map_.flops_ratio[i][j],
            map_.flops_ratio[i][j] <= found.budget + TOLERANCE,
        )
        for map_ in found.maps
        for i, first in enumerate(map_.first_values)
        for j, second in enumerate(map_.second_values)
    )


def maps_picture(found: Sensitivity) -> Picture:
    """Maps side by side on one colour scale, with lines of equal FLOPs and marks over the budget."""
    rows = map_rows(found)
    return Picture(
        name="sensitivity-maps",
        title=f"Two knobs at a time: predicted {accuracy_label(found)} and the budget",
        description=_maps_text(found, rows),
        table=rows,
        plotly=_plotly(found),
    )


def _maps_text(found: Sensitivity, rows: Sequence[MapRow]) -> str:
    output = next((output for output in found.outputs if output.name == "accuracy"), None)
    budget = f"the budget of {100 * found.budget:g} %"
    text = (
        f"Predicted {accuracy_label(found)} on the tune videos when two knobs move away from the reference "
        "together"
        + ("" if output is None else f" (cross-validated R² {output.r2:.2f})")
        + f". FLOPs are exact; cells over {budget} are marked with strokes."
    )
    for map_ in found.maps:
        fits = {row.within_budget for row in rows if (row.first, row.second) == (map_.first, map_.second)}
        if len(fits) == 1:
            where = "within" if True in fits else "over"
            text += f" The map of {map_.first} and {map_.second} lies entirely {where} the budget."
    blank = sum(row.accuracy is None for row in rows)
    if blank:
        over = compute_label(found)
        text += f" {blank} of {len(rows)} cells are blank, because the design does not cover them" + (
            "." if over is None else f": its runs use {over}."
        )
    fitting = [(row.accuracy, row) for row in rows if row.within_budget and row.accuracy is not None]
    if fitting:
        value, best = max(fitting, key=lambda trial: trial[0])
        text += (
            f" The highest value within the budget is {100 * value:.1f} %, at {best.first} "
            f"{number(best.first_value)} and {best.second} {number(best.second_value)}."
        )
    return text


def _plotly(found: Sensitivity) -> PlotlyFigure:
    import plotly.graph_objects as go

    figure = go.Figure()
    wide, scale = len(found.maps), color_scale(found)
    budget = f"budget {100 * found.budget:g} %"
    for place, map_ in enumerate(found.maps):
        drawn = drawn_map(map_, found.budget, scale)
        axis, x = axis_number(place), cell(place, wide, 0.27)
        axes: dict[str, Any] = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
        figure.add_trace(
            go.Heatmap(
                x=drawn.x,
                y=drawn.y,
                z=drawn.accuracy,
                text=[
                    [_map_hover(map_, found, i, j) for i in range(len(drawn.x))] for j in range(len(drawn.y))
                ],
                **axes,
                coloraxis="coloraxis",
                hovertemplate="%{text}<extra></extra>",
            )
        )
        lines = [
            *((level, color, 1.0, "dot") for level, color in drawn.lines),
            *((100 * found.budget, *line, "solid") for line in _BUDGET_LINE if drawn.budget_at),
        ]
        for level, color, width, dash in lines:
            figure.add_trace(
                go.Contour(
                    x=drawn.x,
                    y=drawn.y,
                    z=drawn.flops,
                    **axes,
                    contours={
                        "coloring": "none",
                        "start": level,
                        "end": level,
                        "size": 1,
                        "showlabels": dash == "dot",
                        "labelfont": {"color": color, "size": 11},
                        "labelformat": ".0f",
                    },
                    line={"color": color, "width": width, "dash": dash},
                    showscale=False,
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
        figure.add_trace(
            go.Scatter(
                x=[mark.x for mark in drawn.over],
                y=[mark.y for mark in drawn.over],
                **axes,
                mode="markers",
                marker={
                    "symbol": "line-ne",
                    "size": 7,
                    "line": {"color": [mark.color for mark in drawn.over], "width": 1},
                },
                showlegend=False,
                hoverinfo="skip",
            )
        )
        if drawn.budget_at is not None:
            figure.add_annotation(
                x=drawn.budget_at[0],
                y=drawn.budget_at[1],
                xref=axes["xaxis"],
                yref=axes["yaxis"],
                text=f"<b>{budget}</b>",
                showarrow=False,
                font={"size": 11, "color": BLACK},
                bgcolor="#ffffff",
                borderpad=2,
            )
        figure.add_trace(
            go.Scatter(
                x=drawn.reference[:1],
                y=drawn.reference[1:],
                **axes,
                mode="markers",
                marker={
                    "color": VERMILION,
                    "symbol": "diamond",
                    "size": 14,
                    "line": {"color": "#ffffff", "width": 2},
                },
                name="reference",
                cliponaxis=False,
                legendgroup="reference",
                showlegend=place == 0,
                hovertemplate=f"reference: {map_.first} {number(map_.reference[0])}, "
                f"{map_.second} {number(map_.reference[1])}<extra></extra>",
            )
        )
        figure.update_layout(
            {
                f"xaxis{axis}": panel_axis(f"y{axis}", x, **_map_axis(map_.first, map_.first_values)),
                f"yaxis{axis}": panel_axis(f"x{axis}", [0, 1], **_map_axis(map_.second, map_.second_values)),
            }
        )
    _map_legend(figure, found)
    finish(figure, height=490, left=80)
    figure.update_layout(
        coloraxis={
            "colorscale": "Cividis",
            "colorbar": {
                "title": {"text": f"{accuracy_label(found)}<br>(higher is better)"},
                "ticksuffix": " %",
            },
        }
    )
    return figure


def _map_axis(knob: str, values: Sequence[float]) -> dict[str, Any]:
    """Title, range and ticks; the range ends at the centres of the outer cells, as the lines of FLOPs do."""
    axis: dict[str, Any] = {
        "title": knob_label(knob),
        "range": [place_of(knob, values[0]), place_of(knob, values[-1])],
        "showgrid": False,
        # Keeps the lowest labels of both axes apart.
        "ticks": "outside",
        "tickcolor": GREY,
    }
    ticks = ticks_of(knob, values[0], values[-1], most=5)
    if ticks is not None:
        axis |= {"tickvals": ticks[0], "ticktext": ticks[1]}
    return axis


def _map_hover(one: PairMap, found: Sensitivity, i: int, j: int) -> str:
    accuracy, flops = one.accuracy[i][j], one.flops_ratio[i][j]
    return (
        f"<b>{one.first} {number(one.first_values[i])}, {one.second} {number(one.second_values[j])}</b><br>"
        + ("not predicted" if accuracy is None else f"predicted {100 * accuracy:.1f} %")
        + f"<br>FLOPs {100 * flops:.1f} %, "
        + ("within the budget" if flops <= found.budget + TOLERANCE else "over the budget")
    )


def _map_legend(figure: PlotlyFigure, found: Sensitivity) -> None:
    """Legend entries of the lines and marks that any map has."""
    import plotly.graph_objects as go

    drawn = [drawn_map(map_, found.budget, None) for map_ in found.maps]
    entries: list[tuple[bool, str, dict[str, Any]]] = [
        (
            any(drawing.budget_at for drawing in drawn),
            f"budget: {100 * found.budget:g} % of FLOPs",
            {"mode": "lines", "line": {"color": BLACK, "width": 2.5}},
        ),
        (
            any(drawing.over for drawing in drawn),
            "over the budget",
            {
                "mode": "markers",
                "marker": {"symbol": "line-ne", "size": 9, "line": {"color": BLACK, "width": 1.2}},
            },
        ),
        (
            any(drawing.lines for drawing in drawn),
            "other FLOPs, %",
            {"mode": "lines", "line": {"color": GREY, "width": 1.2, "dash": "dot"}},
        ),
    ]
    for there, name, look in entries:
        if there:
            figure.add_trace(go.Scatter(x=[None], y=[None], name=name, **look))
