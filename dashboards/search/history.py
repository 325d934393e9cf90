"""How the search went: its hypervolume by model time, and the trials that were pruned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from dashboards.picture.picture import BLACK, BLUE, FONT, ORANGE, VERMILION, Picture
from tuner.reporting.history import History, HistoryRow
from tuner.reporting.summary import duration

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

State = Literal["complete", "above", "pruned"]

_STATES: dict[State, tuple[str, str, str]] = {
    "complete": ("completed trial", BLUE, "circle"),
    "above": ("completed trial above the budget", ORANGE, "square"),
    "pruned": ("pruned trial", VERMILION, "x"),
}
_AREA = "hypervolume, % of the<br>area below the budget<br>(higher is better)"
_JUDGED = "tune videos answered<br>({videos} in total)"
_TIME = "model time of the trials, minutes"
_NUMBER = "finished trials"


def history_picture(history: History) -> Picture:
    """Hypervolume by model time or by trials, how far each trial came, and which trial pruned it."""
    return Picture(
        name="history",
        title=f"How the search went, {len(history.rows)} trials",
        description=_description(history),
        table=history.rows,
        plotly=_plotly(history),
    )


def _state(row: HistoryRow) -> State:
    if row.pruned_by is not None:
        return "pruned"
    return "above" if row.purpose == "above" else "complete"


def _areas(history: History) -> list[float]:
    """Hypervolume in per cent of the area between 0 and the budget, and between 0 and 100 % accuracy."""
    return [100 * row.hypervolume_so_far / history.budget for row in history.rows]


def _minutes(rows: Sequence[HistoryRow]) -> list[float]:
    return [row.seconds_so_far / 60 for row in rows]


def _description(history: History) -> str:
    rows, pruned = history.rows, history.pruned
    if not rows:
        return "No trial has finished yet."
    areas = _areas(history)
    text = (
        f"After {duration(rows[-1].seconds_so_far)} of model time, the trials within "
        f"{100 * history.budget:g} % of the prefill FLOPs dominate {areas[-1]:.1f} % of the area below it "
        "(hypervolume: FLOPs times accuracy)"
    )
    near = next(row for row, area in zip(rows, areas, strict=True) if area >= 0.98 * areas[-1])
    text += f"; 98 % of this was reached after {duration(near.seconds_so_far)}." if areas[-1] else "."
    if not pruned:
        return text + " No trial was pruned."
    mean = sum(row.videos for row in pruned) / len(pruned)
    by = Counter(row.pruned_by for row in pruned).most_common(3)
    text += (
        f" {len(pruned)} of {len(rows)} trials were pruned, on average after {mean:.0f} of "
        f"{history.videos} videos, because completed trials at no higher cost were better with high "
        "confidence: most often "
    )
    return text + ", ".join(f"trial {number} ({times})" for number, times in by) + "."


def _hover(row: HistoryRow, history: History) -> str:
    lines = [f"<b>trial {row.number}</b>" + ("" if row.own else ", from another search")]
    if row.accuracy is not None:
        above = ", above the budget" if row.purpose == "above" else ""
        lines.append(f"completed{above}: accuracy {100 * row.accuracy:.1f} %")
    else:
        lines.append(
            f"pruned after {row.videos} of {history.videos} videos: "
            f"trial {row.pruned_by} and others are better"
        )
    lines.append(f"prefill FLOPs {100 * row.ratio:.1f} %")
    lines.append(f"{row.answers} new answers, {duration(row.seconds)} of model time")
    return "<br>".join(lines)


def _by_state(history: History) -> list[tuple[State, list[int]]]:
    """Indices of the rows in each state; states without a trial are left out."""
    places: dict[State, list[int]] = {state: [] for state in _STATES}
    for place, row in enumerate(history.rows):
        places[_state(row)].append(place)
    return [(state, chosen) for state, chosen in places.items() if chosen]


def _stems(at: Sequence[float], heights: Sequence[float]) -> tuple[list[float | None], list[float | None]]:
    """Vertical lines from the axis, as one trace with gaps."""
    x: list[float | None] = []
    y: list[float | None] = []
    for place, height in zip(at, heights, strict=True):
        x += [place, place, None]
        y += [0.0, height, None]
    return x, y


def _plotly(history: History) -> PlotlyFigure:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.55, 0.45])
    axes = (_minutes(history.rows), [float(place + 1) for place in range(len(history.rows))])
    traces = [_traces(history, at) for at in axes]
    for panel, trace in traces[0]:
        figure.add_trace(trace, row=panel, col=1)
    figure.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 14, "color": BLACK},
        legend={"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"},
        hoverlabel={"align": "left", "font": {"family": FONT, "size": 13}},
        margin={"l": 110, "r": 30, "t": 24, "b": 90},
        updatemenus=[
            {
                "buttons": [
                    {
                        "label": label,
                        "method": "update",
                        "args": [{"x": [trace["x"] for _, trace in drawn]}, {"xaxis2.title.text": title}],
                    }
                    for label, title, drawn in (
                        ("model time", _TIME, traces[0]),
                        ("trials", _NUMBER, traces[1]),
                    )
                ],
            }
        ],
    )
    figure.update_yaxes(
        title={"text": _AREA, "font": {"size": 13}}, ticksuffix=" %", rangemode="tozero", row=1, col=1
    )
    figure.update_yaxes(
        title={"text": _JUDGED.format(videos=history.videos), "font": {"size": 13}},
        range=[0, 1.08 * history.videos],
        row=2,
        col=1,
    )
    figure.update_xaxes(title={"text": _TIME}, row=2, col=1)
    figure.update_xaxes(rangemode="tozero", zeroline=False)
    return figure


def _traces(history: History, at: Sequence[float]) -> list[tuple[int, dict[str, Any]]]:
    """(panel, trace) with the trials at these positions on the x axis."""
    traces: list[tuple[int, dict[str, Any]]] = [
        (
            1,
            {
                "type": "scatter",
                "x": [0.0, *at],
                "y": [0.0, *_areas(history)],
                "mode": "lines",
                "line": {"color": BLACK, "width": 2, "shape": "hv"},
                "name": "hypervolume",
                "hovertemplate": "%{y:.2f} %<extra></extra>",
            },
        )
    ]
    for state, places in _by_state(history):
        label, color, symbol = _STATES[state]
        chosen = [history.rows[place] for place in places]
        heights = [float(row.videos) for row in chosen]
        x, y = _stems([at[place] for place in places], heights)
        stems = {"type": "scatter", "x": x, "y": y, "mode": "lines", "hoverinfo": "skip", "showlegend": False}
        traces.append((2, stems | {"line": {"color": color, "width": 1}, "opacity": 0.45}))
        traces.append(
            (
                2,
                {
                    "type": "scatter",
                    "x": [at[place] for place in places],
                    "y": heights,
                    "mode": "markers",
                    "marker": {"color": color, "size": 7, "symbol": symbol},
                    "name": label,
                    "text": [_hover(row, history) for row in chosen],
                    "hovertemplate": "%{text}<extra></extra>",
                },
            )
        )
    return traces
