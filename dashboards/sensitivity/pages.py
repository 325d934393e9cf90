"""A sensitivity study drawn by plotly, for pages: hovering shows the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from dashboards.picture.picture import BLACK, BLUE, FONT, GREY, VERMILION
from dashboards.sensitivity.maps import BUDGET_LINE, MAP_COLORS, color_scale, drawn_map
from dashboards.sensitivity.tables import (
    COLUMNS,
    INDEX_KINDS,
    CurveRow,
    IndexRow,
    accuracy_label,
    curve_rows,
    curve_title,
    index_range,
    index_values,
    input_label,
    knob_label,
    number,
    panel_title,
    panels_of,
    ticks_of,
    vertices,
)
from tuner.search.space import TOLERANCE
from tuner.sensitivity.maps import place_of
from tuner.sensitivity.results import Curve, PairMap, Sensitivity

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

_BAND = "rgba(86, 180, 233, 0.28)"
_SAFE = "rgba(0, 158, 115, 0.13)"


def indices_page(found: Sensitivity, rows: Sequence[IndexRow]) -> PlotlyFigure:
    """A panel per output that has indices: first-order, total and PED-ANOVA side by side for each input."""
    import plotly.graph_objects as go

    panels = panels_of(rows)
    deep = -(-len(panels) // COLUMNS)
    figure = go.Figure()
    for place, panel in enumerate(panels):
        x, y = (
            _cell(place % COLUMNS, min(COLUMNS, len(panels)), 0.04),
            _cell(deep - 1 - place // 2, deep, 0.2),
        )
        axis = _axis(place)
        heights = list(range(len(panel) - 1, -1, -1))
        for name, label, color, symbol, _, shift in INDEX_KINDS:
            at, low, high = index_values(panel, name)
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
                    range=list(index_range(rows)),
                    tickformat=".0%",
                ),
                f"yaxis{axis}": _plotly_axis(
                    f"x{axis}",
                    y,
                    tickvals=heights,
                    # The order is the first panel's, so its names serve the whole row.
                    ticktext=[input_label(one.input or "") if place % COLUMNS == 0 else "" for one in panel],
                    range=[-0.6, len(panel) - 0.4],
                ),
            }
        )
        figure.add_annotation(**_heading(panel_title(panel[0], found), x[0], y[1]))
    _finish(figure, height=120 + deep * (90 + 52 * max(len(one) for one in panels)), left=190)
    return figure


def _index_hover(row: IndexRow) -> str:
    text = f"<b>{row.input}</b>"
    for name, words in (("total", "total"), ("first", "first order")):
        at, low, high = (getattr(row, name + end) for end in ("", "_low", "_high"))
        text += f"<br>{words} {at:.2f}" + ("" if low is None else f" ({low:.2f} to {high:.2f})")
    return text + ("" if row.ped_anova is None else f"<br>PED-ANOVA {row.ped_anova:.2f}")


def curves_page(found: Sensitivity) -> PlotlyFigure:
    """A panel per knob, and a thin one below it with the FLOPs."""
    import plotly.graph_objects as go

    wide, deep = min(COLUMNS, len(found.curves)), -(-len(found.curves) // COLUMNS)
    figure = go.Figure()
    for place, curve in enumerate(found.curves):
        x, y = _cell(place % wide, wide, 0.11), _cell(deep - 1 - place // wide, deep, 0.19)
        strip = y[0] + 0.24 * (y[1] - y[0])
        main, thin = _axis(2 * place), _axis(2 * place + 1)
        rows = curve_rows([curve])
        first = place == 0
        limits = (min(one.value for one in rows), max(one.until for one in rows))
        ends = (place_of(curve.knob, limits[0]), place_of(curve.knob, limits[1]))
        _plotly_curve(figure, rows, main, f"change of {accuracy_label(found)}", first)
        unsafe = [one for one in rows if not one.safe]
        figure.add_trace(
            go.Scatter(
                x=[place_of(one.knob, one.value) for one in unsafe],
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
                f"xaxis{main}": _plotly_axis(
                    f"y{main}", x, matches=f"x{thin}", showticklabels=False, **across
                ),
                f"yaxis{main}": _plotly_axis(f"x{main}", [strip + 0.02, y[1]], title="points"),
                f"xaxis{thin}": _plotly_axis(f"y{thin}", x, title=knob_label(curve.knob), **across),
                f"yaxis{thin}": _plotly_axis(
                    f"x{thin}", [y[0], strip], title="FLOPs", ticksuffix=" %", nticks=3, rangemode="normal"
                ),
            }
        )
        figure.add_annotation(**_heading(curve_title(curve), x[0], y[1]))
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
    text = [_curve_hover(one) for one in rows for _ in range(2 if exact else 1)]
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


def maps_page(found: Sensitivity) -> PlotlyFigure:
    """Maps side by side on one color scale, with lines of equal FLOPs and what is over the budget."""
    import plotly.graph_objects as go

    figure = go.Figure()
    wide, scale = len(found.maps), color_scale(found)
    budget = f"budget {100 * found.budget:g} %"
    for place, one in enumerate(found.maps):
        drawn = drawn_map(one, found.budget, scale)
        axis, x = _axis(place), _cell(place, wide, 0.27)
        axes: dict[str, Any] = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
        figure.add_trace(
            go.Heatmap(
                x=drawn.x,
                y=drawn.y,
                z=drawn.accuracy,
                text=[
                    [_map_hover(one, found, i, j) for i in range(len(drawn.x))] for j in range(len(drawn.y))
                ],
                **axes,
                coloraxis="coloraxis",
                hovertemplate="%{text}<extra></extra>",
            )
        )
        lines = [
            *((level, color, 1.0, "dot") for level, color in drawn.lines),
            *((100 * found.budget, *line, "solid") for line in BUDGET_LINE if drawn.budget_at),
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
                name="the reference",
                cliponaxis=False,
                legendgroup="reference",
                showlegend=place == 0,
                hovertemplate=f"the reference: {one.first} {number(one.reference[0])}, "
                f"{one.second} {number(one.reference[1])}<extra></extra>",
            )
        )
        figure.update_layout(
            {
                f"xaxis{axis}": _plotly_axis(f"y{axis}", x, **_map_axis(one.first, one.first_values)),
                f"yaxis{axis}": _plotly_axis(f"x{axis}", [0, 1], **_map_axis(one.second, one.second_values)),
            }
        )
    _map_legend(figure, found)
    _finish(figure, height=490, left=80)
    figure.update_layout(
        coloraxis={
            "colorscale": MAP_COLORS[0],
            "colorbar": {
                "title": {"text": f"{accuracy_label(found)}<br>(higher is better)"},
                "ticksuffix": " %",
            },
        }
    )
    return figure


def _map_axis(knob: str, values: Sequence[float]) -> dict[str, Any]:
    """From the first value to the last: of the cells there half is seen, as all of the FLOPs' lines is."""
    axis: dict[str, Any] = {
        "title": knob_label(knob),
        "range": [place_of(knob, values[0]), place_of(knob, values[-1])],
        "showgrid": False,
        # Room, so that the lowest labels of both axes do not touch.
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
    """What the lines and marks of all maps are; those that none has are left out."""
    import plotly.graph_objects as go

    drawn = [drawn_map(one, found.budget, None) for one in found.maps]
    entries: list[tuple[bool, str, dict[str, Any]]] = [
        (
            any(one.budget_at for one in drawn),
            f"budget: {100 * found.budget:g} % of FLOPs",
            {"mode": "lines", "line": {"color": BLACK, "width": 2.5}},
        ),
        (
            any(one.over for one in drawn),
            "over the budget",
            {
                "mode": "markers",
                "marker": {"symbol": "line-ne", "size": 9, "line": {"color": BLACK, "width": 1.2}},
            },
        ),
        (
            any(one.lines for one in drawn),
            "other FLOPs, %",
            {"mode": "lines", "line": {"color": GREY, "width": 1.2, "dash": "dot"}},
        ),
    ]
    for there, name, look in entries:
        if there:
            figure.add_trace(go.Scatter(x=[None], y=[None], name=name, **look))


def tags_page(found: Sensitivity, curves: Sequence[Curve], kinds: Sequence[tuple[str, int]]) -> PlotlyFigure:
    """A row per kind of question, a column per knob; a column has one scale."""
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
                        **vertices(curve_rows([overall[knob]]), "difference"),
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
                x0=place_of(knob, curve.chosen),
                x1=place_of(knob, curve.chosen),
                y0=0,
                y1=1,
                line={"color": BLACK, "width": 1, "dash": "dot"},
            )
            last = down == len(kinds) - 1
            ticks = ticks_of(knob, min(p.value for p in curve.points), max(p.until for p in curve.points), 4)
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
