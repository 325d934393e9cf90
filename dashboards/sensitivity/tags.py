"""The curves again, for each kind of question alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from dashboards.picture.picture import BLACK, GREY, Picture
from dashboards.sensitivity.axes import axis_number, cell, finish, panel_axis, panel_heading, ticks_of
from dashboards.sensitivity.curves import add_curve, curve_rows, inside, vertices
from dashboards.sensitivity.wording import accuracy_label, number, with_interval
from tuner.sensitivity.maps import place_of
from tuner.sensitivity.results import Curve, Sensitivity

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

# Values of a tag that are drawn, those with most questions; the table has all of them.
_MOST_VALUES = 6


def tag_pictures(found: Sensitivity) -> list[Picture]:
    """A picture for each tag of the study: a row of panels per value, a column per knob."""
    pictures: list[Picture] = []
    names: set[str] = set()
    for key in dict.fromkeys(curve.tag[0] for curve in found.by_tag if curve.tag is not None):
        curves = [
            curve for curve in found.by_tag if curve.tag is not None and curve.tag[0] == key and curve.points
        ]
        kinds = _kinds(curves)
        if not kinds:
            continue
        name = stem = "sensitivity-by-" + (re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-") or "tag")
        while name in names:  # keys that differ only in punctuation
            name = f"{stem}-{len(names) + 1}"
        names.add(name)
        shown = kinds[:_MOST_VALUES]
        pictures.append(
            Picture(
                name=name,
                title=f"How far each knob may drift, by {key}",
                description=_tags_text(found, curves, kinds),
                table=curve_rows(curves),
                plotly=_plotly(found, curves, shown),
            )
        )
    return pictures


def _kinds(curves: Iterable[Curve]) -> list[tuple[str, int]]:
    """A tag's values and their numbers of questions, most first."""
    counts = {curve.tag[1]: curve.questions for curve in curves if curve.tag is not None}
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _tags_text(found: Sensitivity, curves: Sequence[Curve], kinds: Sequence[tuple[str, int]]) -> str:
    text = (
        f"Change of {accuracy_label(found)} from the reference for each kind of question alone; all "
        "questions in grey; bands are 95 % intervals. So many comparisons on the same answers are a hint "
        "where to look, not a finding."
    )
    safe = {curve.knob: curve.safe for curve in found.curves}
    worst: tuple[float, str] | None = None
    for curve in curves:
        for point in curve.points:
            if curve.tag is not None and inside(point, safe.get(curve.knob)):
                change = point.difference.value
                if worst is None or change < worst[0]:
                    where = f"{curve.tag[1]} at {curve.knob} {number(point.value)}"
                    worst = (change, f"{where}: {with_interval(point.difference, 100, '+.1f')} points")
    if worst is not None and worst[0] < 0:
        text += f" Largest loss within the ranges that are safe for all questions together: {worst[1]}."
    if len(kinds) > _MOST_VALUES:
        text += f" Drawn are the {_MOST_VALUES} of {len(kinds)} kinds with most questions; the table has all."
    return text


def _plotly(found: Sensitivity, curves: Sequence[Curve], kinds: Sequence[tuple[str, int]]) -> PlotlyFigure:
    import plotly.graph_objects as go

    figure = go.Figure()
    knobs = list(dict.fromkeys(curve.knob for curve in curves))
    overall = {curve.knob: curve for curve in found.curves}
    for down, (kind, questions) in enumerate(kinds):
        for along, knob in enumerate(knobs):
            curve = next(
                (curve for curve in curves if curve.knob == knob and curve.tag and curve.tag[1] == kind), None
            )
            if curve is None:
                continue
            axis = axis_number(down * len(knobs) + along)
            top = axis_number(along)
            x, y = cell(along, len(knobs), 0.2), cell(len(kinds) - 1 - down, len(kinds), 0.16)
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
            add_curve(figure, curve_rows([curve]), axis, "questions of this kind", legend)
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
                    f"xaxis{axis}": panel_axis(
                        f"y{axis}",
                        x,
                        title=knob if last else None,
                        showticklabels=last,
                        matches=f"x{top}" if down else None,
                        **across,
                    ),
                    f"yaxis{axis}": panel_axis(f"x{axis}", y, matches=f"y{top}" if down else None, nticks=4),
                }
            )
            if along == 0:
                figure.add_annotation(
                    **panel_heading(f"<b>{escape(kind)}</b>, {questions} questions", x[0], y[1])
                )
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="lines",
            line={"color": BLACK, "width": 1, "dash": "dot"},
            name="chosen value; vertical axes in points, the same scale within a column",
        )
    )
    finish(figure, height=150 + 150 * len(kinds), left=50)
    return figure
