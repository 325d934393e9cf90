"""The Pareto front: accuracy against compute for every trial, and what the chosen one does on unseen videos.

`pareto_points` computes the table, without drawing; the rest draws it, once for each measure of compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dashboards.picture import (
    BLACK,
    BLUE,
    FONT,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Picture,
    write,
)
from pipeline.methods import KNOBS
from tuner.results import AnswerCost, Comparison, Configuration, Measured, Outcome, Part, RunSummary
from tuner.summary import up_to

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure
    from plotly.graph_objects import Figure as PlotlyFigure

Kind = Literal["trial", "stopped", "defaults", "best", "peer", "baseline", "refused"]


@dataclass(frozen=True)
class ParetoPoint:
    """One row of the table: a configuration (or the unpruned model) measured on one part of the study."""

    kind: Kind
    part: Part
    # None for the baseline, for peers, for proposals that were never run, and for held-out rows of no trial.
    trial: int | None
    # None for a trial that the race stopped, and for a proposal that was refused before it cost model time.
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    # Of a stopped trial and of a refused proposal the larger one of the two parts.
    flops_ratio: float
    flops_ratio_end_to_end: float | None
    regressions: int | None
    within_budget: bool
    # Among the tune part's trials none is both cheaper (in prefill FLOPs) and better.
    on_front: bool
    tau_s: float | None = None
    tau_t: float | None = None
    alpha_boost: float | None = None
    gamma_cap: float | None = None
    p: float | None = None
    # Seconds per answer over the unpruned model's on the same part, as the study measured them.
    seconds_ratio: float | None = None
    # A peer's, as in `tuner.results.Compared`, and its method.
    name: str | None = None
    method: str | None = None
    # The trial that dominates it, and the tune videos judged until then.
    stopped_by: int | None = None
    stopped_videos: int | None = None


def pareto_points(summary: RunSummary, comparison: Comparison | None = None) -> tuple[ParetoPoint, ...]:
    """The table: baselines, trials by number, held-out rows, peers, the closest refused proposal."""
    completed = (*summary.trials, *summary.above)
    front = front_numbers((one.number, one.outcome.accuracy, one.outcome.flops_ratio) for one in completed)
    best = None if summary.best is None else summary.best.number
    defaults = None if summary.defaults is None else summary.defaults.number
    costs: dict[Part, AnswerCost | None] = {
        "tune": summary.baseline_cost_tune,
        "held_out": summary.baseline_cost,
    }
    rows = [_baseline(part, measured) for part, measured in sorted(summary.baseline.items(), reverse=True)]
    trials = []
    for trial in completed:
        kind: Kind = "best" if trial.number == best else "defaults" if trial.number == defaults else "trial"
        point = _point(kind, trial.configuration, trial.outcome, None, costs["tune"])
        trials.append(
            replace(
                point,
                trial=trial.number,
                within_budget=trial.within_budget,
                on_front=trial.number in front,
            )
        )
    for stopped in summary.stopped:
        point = _unmeasured("stopped", stopped.configuration, stopped.binding_ratio, summary.budget)
        trials.append(
            replace(point, trial=stopped.number, stopped_by=stopped.by, stopped_videos=stopped.videos)
        )
    rows += sorted(trials, key=lambda one: one.trial or 0)
    own: list[Configuration] = []
    chosen: tuple[tuple[Kind, int | None, Any], ...] = (
        ("defaults", defaults, summary.defaults_held_out),
        ("best", best, summary.best_held_out),
    )
    for kind, number, held_out in chosen:
        if held_out is not None:
            own.append(held_out.configuration)
            point = _point(
                kind, held_out.configuration, held_out.outcome, held_out.accuracy, costs["held_out"]
            )
            fits = point.flops_ratio <= summary.budget
            rows.append(replace(point, trial=number, within_budget=fits))
    for peer in () if comparison is None else comparison.rows:
        if peer.held_out.configuration not in own:
            held_out = peer.held_out
            cost = None if comparison is None else comparison.baseline_cost
            point = _point("peer", held_out.configuration, held_out.outcome, held_out.accuracy, cost)
            fits = point.flops_ratio <= summary.budget
            rows.append(
                replace(point, name=peer.name, method=held_out.configuration.method, within_budget=fits)
            )
    if summary.closest is not None:
        closest = summary.closest
        rows.append(
            replace(
                _unmeasured("refused", closest.configuration, closest.flops_ratio, summary.budget),
                within_budget=False,
            )
        )
    return tuple(rows)


def front_numbers(points: Iterable[tuple[int, float, float]]) -> frozenset[int]:
    """Numbers of those (number, accuracy, cost) that none beats: nothing is cheaper and at least as accurate.

    Of equal points all are on the front.
    """
    front: set[int] = set()
    best = float("-inf")
    cost_of_best = float("nan")
    for number, accuracy, cost in sorted(points, key=lambda one: (one[2], -one[1])):
        if accuracy > best or (accuracy == best and cost == cost_of_best):
            front.add(number)
            best, cost_of_best = accuracy, cost
    return frozenset(front)


def pareto_picture(summary: RunSummary, comparison: Comparison | None = None) -> Picture:
    """The front, with peers where `tuner compare` ran."""
    points = pareto_points(summary, comparison)
    return Picture(
        name="pareto",
        title=f"{summary.study}: accuracy against compute, {len(summary.trials)} trials",
        description=_description(points, summary),
        table=points,
        plotly=_plotly(points, summary),
        still=_still(points, summary),
    )


def write_pareto(summary: RunSummary, folder: Path, comparison: Comparison | None = None) -> tuple[Path, ...]:
    """Writes pareto.html (self-contained), pareto.png and pareto.csv; the same each time it is called."""
    return write(pareto_picture(summary, comparison), folder)


# What both drawings share: series of marks in per cent, for one measure of compute


class _Axis(NamedTuple):
    """A measure of compute; `field` is the points' and holds the ratio to the unpruned model."""

    field: str
    button: str
    title: str


_PREFILL = _Axis("flops_ratio", "LLM prefill FLOPs", "LLM prefill FLOPs, % of unpruned (lower is better)")
_AXES = (
    _PREFILL,
    _Axis(
        "flops_ratio_end_to_end",
        "end-to-end FLOPs",
        "end-to-end FLOPs with the vision tower, % of unpruned (lower is better)",
    ),
    _Axis(
        "seconds_ratio",
        "measured seconds",
        "measured seconds per answer, % of unpruned (lower is better)",
    ),
)


class _Marker(NamedTuple):
    label: str
    fill: str
    edge: str
    size: float
    plotly: str
    matplotlib: str
    opacity: float = 1.0


class _Series(NamedTuple):
    """Marks of one kind; `x` is None where a point has no such measure."""

    marker: _Marker
    points: list[ParetoPoint]
    x: list[float | None]
    y: list[float]
    intervals: bool = False


_FRONT = _Marker("trial on the front, tune videos", SKY, BLUE, 10, "circle", "o")
_DOMINATED = _Marker("other trials, tune videos", SKY, BLUE, 8, "circle", "o", 0.35)
_OVER = _Marker("trial over the budget, tune videos", "#d7dade", GREY, 9, "circle", "o")
_STOPPED = _Marker(
    "trial stopped early (no accuracy: a tick at its cost)", GREY, GREY, 9, "line-ns-open", "|", 0.7
)
_REFUSED = _Marker("closest proposal (tick at its cost)", BLACK, BLACK, 11, "x-thin-open", "x")
_DEFAULTS = _Marker("AdaTP's defaults, tune videos", "#ffffff", GREEN, 12, "square", "s")
_BEST = _Marker("{best}, tune videos", "#ffffff", VERMILION, 13, "diamond", "D")
_PEERS = _Marker("other methods, held-out videos (95 %)", PURPLE, PURPLE, 11, "triangle-up", "^")
_ABLATIONS = _Marker(
    "AdaTP with parts changed, held-out videos (95 %)", ORANGE, ORANGE, 11, "triangle-down", "v"
)
_DEFAULTS_HELD_OUT = _Marker("AdaTP's defaults, held-out videos (95 %)", GREEN, GREEN, 11, "square", "s")
_BEST_HELD_OUT = _Marker("{best}, held-out videos (95 %)", VERMILION, VERMILION, 12, "diamond", "D")


def _best(summary: RunSummary) -> str:
    return "best within the budget" if summary.goal == "budget" else "chosen trial"


def _series(points: Sequence[ParetoPoint], summary: RunSummary, axis: _Axis) -> list[_Series]:
    """In the order they are drawn; the same series, some of them perhaps empty, for every axis."""
    limits = _limits(points, summary, axis)
    on_front = {one.trial for one in _front(points, axis)}
    trials = [one for one in points if one.kind == "trial"]
    within = [one for one in trials if one.within_budget]
    floor = limits.low_y + 0.02 * (limits.high_y - limits.low_y)
    placed = dict(_placed(points, summary, axis))
    drawn: list[tuple[_Marker, list[ParetoPoint]]] = [
        (_STOPPED, [one for one in points if one.kind == "stopped"]),
        (_REFUSED, [one for one in points if one.kind == "refused"]),
        (_DOMINATED, [one for one in within if one.trial not in on_front]),
        (_OVER, [one for one in trials if not one.within_budget]),
        (_FRONT, [one for one in within if one.trial in on_front]),
        (_DEFAULTS, [one for one in points if one.kind == "defaults" and one.part == "tune"]),
        (_BEST, [one for one in points if one.kind == "best" and one.part == "tune"]),
        (_PEERS, [one for one in points if one.kind == "peer" and one.method != "adatp"]),
        (_ABLATIONS, [one for one in points if one.kind == "peer" and one.method == "adatp"]),
        (_DEFAULTS_HELD_OUT, [one for one in points if one.kind == "defaults" and one.part == "held_out"]),
        (_BEST_HELD_OUT, [one for one in points if one.kind == "best" and one.part == "held_out"]),
    ]
    known = {marker for marker, chosen in drawn if chosen} | {_DOMINATED, _FRONT}
    return [
        _Series(
            marker._replace(label=marker.label.format(best=_best(summary))),
            chosen,
            [placed.get(one, _cost(one, axis)) for one in chosen],
            [floor if one.accuracy is None else 100 * one.accuracy for one in chosen],
            any(one.part == "held_out" for one in chosen),
        )
        for marker, chosen in drawn
        if marker in known and (within or marker not in (_DOMINATED, _FRONT))
    ]


def _cost(point: ParetoPoint, axis: _Axis) -> float | None:
    """In per cent of the unpruned model."""
    value: float | None = getattr(point, axis.field)
    return None if value is None else 100 * value


def _front(points: Sequence[ParetoPoint], axis: _Axis) -> list[ParetoPoint]:
    """The completed trials on the front, the cheapest by this measure first."""
    trials = [
        (one, cost)
        for one in points
        if one.part == "tune" and one.trial is not None and one.accuracy is not None
        if (cost := _cost(one, axis)) is not None
    ]
    numbers = front_numbers((one.trial or 0, one.accuracy or 0.0, cost) for one, cost in trials)
    return [one for one, cost in sorted(trials, key=lambda pair: pair[1]) if one.trial in numbers]


def _placed(
    points: Sequence[ParetoPoint], summary: RunSummary, axis: _Axis
) -> list[tuple[ParetoPoint, float]]:
    """Held-out points and where each is drawn, so that no interval hides another.

    Configurations solved for the same budget differ by less than a line's width: the best one stays in its
    place, the defaults move to its left and the peers, the best of them first, to its right.
    """
    limits = _limits(points, summary, axis)
    apart = 0.009 * (limits.high_x - limits.low_x)
    placed: list[tuple[ParetoPoint, float]] = []
    order = {"best": 0, "defaults": 1, "peer": 2}
    wanted = [one for one in points if one.part == "held_out" and one.kind in order]
    for one in sorted(wanted, key=lambda one: (order[one.kind], -(one.accuracy or 0.0))):
        at = _cost(one, axis)
        if at is None:
            continue
        step = apart if one.kind == "peer" else -apart
        while any(abs(at - other) < 0.99 * apart for _, other in placed):
            at += step
        placed.append((one, at))
    return placed


class _Label(NamedTuple):
    """A peer's name beside its mark."""

    text: str
    x: float
    y: float
    text_x: float
    text_y: float


def _labels(points: Sequence[ParetoPoint], summary: RunSummary, axis: _Axis) -> list[_Label]:
    """In one column to the right of all peers, as far apart as the letters need."""
    limits = _limits(points, summary, axis)
    peers = [(one, x) for one, x in _placed(points, summary, axis) if one.kind == "peer"]
    if not peers:
        return []
    gap = 0.042 * (limits.high_y - limits.low_y)
    column = max(x for _, x in peers) + 0.02 * (limits.high_x - limits.low_x)
    heights = [100 * (one.accuracy or 0.0) for one, _ in peers]  # the best first
    # Blocks of labels that touch, each around the mean of where its labels would like to be.
    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height])
        while (
            len(blocks) > 1
            and _middle(blocks[-2]) - _middle(blocks[-1]) < gap * (len(blocks[-2]) + len(blocks[-1])) / 2
        ):
            last = blocks.pop()
            blocks[-1] += last
    spread = [
        _middle(block) + gap * ((len(block) - 1) / 2 - place)
        for block in blocks
        for place in range(len(block))
    ]
    # A long column may reach below the axis.
    lift = max(0.0, limits.low_y + gap - min(spread))
    return [
        _Label(one.name or "", x, 100 * (one.accuracy or 0.0), column, y + lift)
        for (one, x), y in zip(peers, spread, strict=True)
    ]


def _middle(block: Sequence[float]) -> float:
    return sum(block) / len(block)


class _Limits(NamedTuple):
    """Axis ranges in per cent: all configurations and baselines, and some room around them."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float


def _limits(points: Sequence[ParetoPoint], summary: RunSummary, axis: _Axis) -> _Limits:
    costs = [cost for one in points if one.kind != "baseline" if (cost := _cost(one, axis)) is not None] or [
        0.0,
        100.0,
    ]
    if axis is _PREFILL and summary.goal == "budget":
        costs.append(100 * summary.budget)
    heights = [100 * one.accuracy for one in points if one.accuracy is not None]
    for one in points:
        if one.kind != "baseline" and one.accuracy_low is not None and one.accuracy_high is not None:
            heights += [100 * one.accuracy_low, 100 * one.accuracy_high]
    allowed = _allowed(points, summary)
    heights = (heights if allowed is None else [*heights, allowed]) or [0.0, 100.0]
    room_x = max(1.0, 0.08 * (max(costs) - min(costs)))
    room_y = max(0.8, 0.08 * (max(heights) - min(heights)))
    high_x = max(costs) + room_x
    peers = [cost for one in points if one.kind == "peer" and (cost := _cost(one, axis)) is not None]
    if peers:  # and their names
        high_x = max(high_x, max(peers) + 0.5 * (max(peers) - min(costs) + room_x))
    return _Limits(
        max(0.0, min(costs) - room_x),
        high_x,
        max(0.0, min(heights) - room_y),
        min(101.5, max(heights) + 1.4 * room_y),
    )


class _Line(NamedTuple):
    """A line across the drawing, with what it says."""

    at: float
    text: str
    dash: Literal["solid", "dot", "dash"]
    above: bool = True


def _levels(points: Sequence[ParetoPoint], summary: RunSummary) -> list[_Line]:
    """Accuracies: the unpruned model's on both parts, and the least that the margin allows."""
    lines = sorted(
        (one for one in points if one.kind == "baseline" and one.accuracy is not None),
        key=lambda one: -(one.accuracy or 0.0),
    )
    # The label of the higher one above its line, the other's below: they never meet.
    levels = [
        _Line(
            100 * (one.accuracy or 0.0),
            f"unpruned, {_PARTS[one.part]}: {100 * (one.accuracy or 0.0):.1f} %",
            "dot" if one.part == "held_out" else "solid",
            one is lines[0],
        )
        for one in lines
    ]
    allowed = _allowed(points, summary)
    if allowed is not None:
        drop = f"{100 * (summary.margin or 0.0):.3g} points below unpruned, held-out videos"
        levels.append(_Line(allowed, drop, "dash", above=False))
    return levels


def _allowed(points: Sequence[ParetoPoint], summary: RunSummary) -> float | None:
    """Where the drop was asked for and not the compute: the accuracy it leads to, in per cent."""
    if summary.goal != "max_drop" or summary.margin is None:
        return None
    for one in points:
        if one.kind == "baseline" and one.part == "held_out" and one.accuracy is not None:
            return 100 * (one.accuracy - summary.margin)
    return None


_PARTS = {"tune": "tune videos", "held_out": "held-out videos"}
_MUTED = "#5b6068"


def _y_title(summary: RunSummary) -> str:
    if summary.setting is not None and not summary.setting.labelled:
        return "agreement with the unpruned model, % of questions (higher is better)"
    return "accuracy, % of questions right (higher is better)"


# The page


def _plotly(points: Sequence[ParetoPoint], summary: RunSummary) -> PlotlyFigure:
    """The interactive figure; hovering shows a configuration's knobs, buttons choose the measure."""
    import plotly.graph_objects as go

    axes = [axis for axis in _AXES if axis is _PREFILL or any(_front(points, axis))]
    drawn = {axis: _traces(points, summary, axis) for axis in axes}
    layouts = {axis: _layout(points, summary, axis) for axis in axes}
    figure = go.Figure([go.Scatter(one) for one in drawn[_PREFILL]])
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
        margin={"l": 80, "r": 30, "t": 56, "b": 140},
        **layouts[_PREFILL],
    )
    if len(buttons) > 1:
        figure.update_layout(
            updatemenus=[
                {
                    "type": "buttons",
                    "direction": "right",
                    "buttons": buttons,
                    "x": 0,
                    "xanchor": "left",
                    "y": 1.02,
                    "yanchor": "bottom",
                    "pad": {"t": 0, "b": 4},
                    "font": {"size": 13},
                }
            ]
        )
    return figure


def _traces(points: Sequence[ParetoPoint], summary: RunSummary, axis: _Axis) -> list[dict[str, Any]]:
    front = _front(points, axis)
    traces: list[dict[str, Any]] = [
        {
            "x": [_cost(one, axis) for one in front],
            "y": [100 * (one.accuracy or 0.0) for one in front],
            "mode": "lines",
            "line": {"color": BLUE, "width": 2, "shape": "hv"},
            "name": "Pareto front",
            "hoverinfo": "skip",
        }
    ]
    for series in _series(points, summary, axis):
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


def _errors(series: _Series) -> dict[str, Any]:
    if not series.intervals:
        return {"visible": False}
    above, below = _arms(series)
    return {
        "visible": True,
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "color": series.marker.edge,
        "thickness": 1.4,
        "width": 4,
    }


def _arms(series: _Series) -> tuple[list[float], list[float]]:
    """How far the intervals reach above and below the marks; 0 where there is none."""
    above = [
        0.0 if one.accuracy_high is None else 100 * one.accuracy_high - y
        for one, y in zip(series.points, series.y, strict=True)
    ]
    below = [
        0.0 if one.accuracy_low is None else y - 100 * one.accuracy_low
        for one, y in zip(series.points, series.y, strict=True)
    ]
    return above, below


def _layout(points: Sequence[ParetoPoint], summary: RunSummary, axis: _Axis) -> dict[str, Any]:
    """Axes, lines and labels for one measure."""
    limits = _limits(points, summary, axis)
    shapes: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    budget = 100 * summary.budget
    if _shows_budget(summary, axis):
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
    for at, text, dash in _columns(summary, axis, limits):
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
                "xanchor": "left" if at < limits.high_x - 0.1 * (limits.high_x - limits.low_x) else "right",
                "yanchor": "bottom",
                "font": {"size": 12, "color": _MUTED},
            }
        )
    for level in _levels(points, summary):
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
                "font": {"size": 12, "color": BLACK},
            }
        )
    for label in _labels(points, summary, axis):
        annotations.append(
            {
                "x": label.x,
                "y": label.y,
                "ax": label.text_x,
                "ay": label.text_y,
                "axref": "x",
                "ayref": "y",
                "text": label.text,
                "showarrow": True,
                "arrowhead": 0,
                "arrowwidth": 1,
                "arrowcolor": "#b9bdc4",
                "standoff": 6,
                "xanchor": "left",
                "bgcolor": "rgba(255,255,255,0.8)",
                "borderpad": 0,
                "font": {"size": 12, "color": BLACK},
            }
        )
    return {
        "xaxis": {
            "title": {"text": axis.title},
            "range": [limits.low_x, limits.high_x],
            "ticksuffix": " %",
            "zeroline": False,
        },
        "yaxis": {
            "title": {"text": _y_title(summary)},
            "range": [limits.low_y, limits.high_y],
            "ticksuffix": " %",
            "zeroline": False,
        },
        "shapes": shapes,
        "annotations": annotations,
    }


def _shows_budget(summary: RunSummary, axis: _Axis) -> bool:
    """The budget is one of prefill FLOPs; where the drop was given there is none."""
    return axis is _PREFILL and summary.goal == "budget"


def _columns(summary: RunSummary, axis: _Axis, limits: _Limits) -> list[tuple[float, str, str]]:
    """Vertical lines: the budget, and the unpruned model's cost where it is in sight."""
    lines = []
    if _shows_budget(summary, axis):
        lines.append((100 * summary.budget, f" budget {100 * summary.budget:g} % ", "dash"))
    if limits.low_x < 100 < limits.high_x:
        lines.append((100.0, " unpruned: 100 % ", "dot"))
    return lines


# The picture


def _still(points: Sequence[ParetoPoint], summary: RunSummary) -> MatplotlibFigure:
    """The same figure as a still against prefill FLOPs, 1600 x 1000 pixels when saved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(10, 6.25), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    limits = _limits(points, summary, _PREFILL)
    axes.set_xlim(limits.low_x, limits.high_x)
    axes.set_ylim(limits.low_y, limits.high_y)
    styles = {"solid": "-", "dot": ":", "dash": "--"}
    if _shows_budget(summary, _PREFILL):
        axes.axvspan(100 * summary.budget, limits.high_x, color=GREY, alpha=0.10, linewidth=0)
    for at, text, dash in _columns(summary, _PREFILL, limits):
        axes.axvline(at, color=GREY, linewidth=1.4, linestyle=styles[dash])
        axes.annotate(
            text,
            (at, limits.low_y),
            xytext=(0, 18),
            textcoords="offset points",
            color=_MUTED,
            ha="left" if at < limits.high_x - 0.1 * (limits.high_x - limits.low_x) else "right",
        )
    for level in _levels(points, summary):
        axes.axhline(level.at, color=BLACK, linewidth=1.1, linestyle=styles[level.dash])
        axes.annotate(
            level.text,
            (limits.low_x, level.at),
            xytext=(8, 5 if level.above else -14),
            textcoords="offset points",
            color=BLACK,
            fontsize=9.5,
        )
    front = _front(points, _PREFILL)
    axes.step(
        [100 * one.flops_ratio for one in front],
        [100 * (one.accuracy or 0.0) for one in front],
        where="post",
        color=BLUE,
        linewidth=1.8,
        label="Pareto front",
    )
    for series in _series(points, summary, _PREFILL):
        marker = series.marker
        if not series.points:
            continue
        if series.intervals:
            above, below = _arms(series)
            axes.errorbar(
                series.x,
                series.y,
                yerr=[below, above],
                marker=marker.matplotlib,
                markersize=marker.size * 0.75,
                color=marker.fill,
                markeredgecolor=marker.edge,
                ecolor=marker.edge,
                elinewidth=1.3,
                capsize=3,
                linestyle="none",
                label=marker.label,
                zorder=4,
            )
            continue
        # A tick and a cross have no face.
        colors = (
            {"color": marker.edge}
            if marker.matplotlib in "|x"
            else {"color": marker.fill, "edgecolors": marker.edge}
        )
        axes.scatter(
            series.x,
            series.y,
            s=marker.size**2 * 0.55,
            marker=marker.matplotlib,
            alpha=marker.opacity,
            linewidths=1.0,
            label=marker.label,
            zorder=3,
            **colors,
        )
    for label in _labels(points, summary, _PREFILL):
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
    axes.set_xlabel(_PREFILL.title)
    axes.set_ylabel(_y_title(summary))
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
        "choosing; where they would hide one another they are drawn side by side. The unpruned model costs "
        "100 %."
    )
    for one in points:
        if one.kind == "best" and one.part == "held_out" and one.accuracy is not None:
            what = _best(summary)
            if summary.goal == "budget":
                what += f" of {100 * summary.budget:g} %"
            text += (
                f" {what[0].upper()}{what[1:]}: trial {one.trial}, {100 * one.accuracy:.1f} % on held-out "
                f"videos at {100 * one.flops_ratio:.1f} % of the prefill FLOPs, {one.regressions} regressions."
            )
    if summary.serving is not None:
        pays = f"{up_to(summary.serving.break_even)} by FLOPs"
        if summary.serving.measured is not None:
            pays += f" and {up_to(summary.serving.measured.break_even)} by seconds"
        text += f" Break-even, on a server that keeps each video's prefix: pruning pays for {pays}."
    if any(one.seconds_ratio is not None for one in points):
        text += (
            " Seconds are those of the study's own answers, with the video encoded and its prefix shared "
            "by its questions; more workers or other load on the machine show in them."
        )
    return text


def _hover(point: ParetoPoint, summary: RunSummary) -> str:
    from html import escape

    name = {"best": f", {_best(summary)}", "defaults": ", AdaTP's defaults", "refused": "closest proposal"}
    head = escape(point.name or "") if point.trial is None else f"trial {point.trial}"
    lines = [f"<b>{head}{name.get(point.kind, '')}</b>, {_PARTS[point.part]}"]
    if point.kind == "stopped":
        lines.append(f"stopped after {point.stopped_videos} videos: trial {point.stopped_by} dominates it")
    if point.accuracy is not None:
        accuracy = f"accuracy {100 * point.accuracy:.1f} %"
        if point.accuracy_low is not None and point.accuracy_high is not None:
            accuracy += f" ({100 * point.accuracy_low:.1f} to {100 * point.accuracy_high:.1f})"
        lines.append(accuracy)
    lines.append(f"prefill FLOPs {100 * point.flops_ratio:.1f} %")
    if point.flops_ratio_end_to_end is not None:
        lines.append(f"end to end {100 * point.flops_ratio_end_to_end:.1f} %")
    if point.seconds_ratio is not None:
        lines.append(f"seconds per answer {100 * point.seconds_ratio:.0f} %")
    if point.regressions is not None:
        lines.append(f"{point.regressions} regressions")
    for knob in KNOBS:
        value = getattr(point, knob)
        if value is not None:
            lines.append(f"{knob} {value:.4g}")
    return "<br>".join(lines)


# Rows


def _point(
    kind: Kind,
    configuration: Configuration,
    outcome: Outcome,
    accuracy: Measured | None,
    unpruned: AnswerCost | None,
) -> ParetoPoint:
    interval = None if accuracy is None else accuracy.interval
    return ParetoPoint(
        kind=kind,
        part=outcome.part,
        trial=None,
        accuracy=outcome.accuracy,
        accuracy_low=None if interval is None else interval.low,
        accuracy_high=None if interval is None else interval.high,
        flops_ratio=outcome.flops_ratio,
        flops_ratio_end_to_end=outcome.flops_ratio_end_to_end,
        regressions=outcome.regressions,
        within_budget=False,
        on_front=False,
        seconds_ratio=None
        if unpruned is None or not unpruned.seconds
        else outcome.per_answer.seconds / unpruned.seconds,
        **_knobs(configuration),
    )


def _unmeasured(kind: Kind, configuration: Configuration, ratio: float, budget: float) -> ParetoPoint:
    return ParetoPoint(
        kind=kind,
        part="tune",
        trial=None,
        accuracy=None,
        accuracy_low=None,
        accuracy_high=None,
        flops_ratio=ratio,
        flops_ratio_end_to_end=None,
        regressions=None,
        within_budget=ratio <= budget,
        on_front=False,
        **_knobs(configuration),
    )


def _baseline(part: Part, accuracy: Measured) -> ParetoPoint:
    return ParetoPoint(
        kind="baseline",
        part=part,
        trial=None,
        accuracy=accuracy.value,
        accuracy_low=None if accuracy.interval is None else accuracy.interval.low,
        accuracy_high=None if accuracy.interval is None else accuracy.interval.high,
        flops_ratio=1.0,
        flops_ratio_end_to_end=1.0,
        regressions=0,
        within_budget=False,
        on_front=False,
        seconds_ratio=1.0,
    )


def _knobs(configuration: Configuration) -> dict[str, Any]:
    parameters = dict(configuration.parameters)
    return {name: float(parameters[name]) for name in KNOBS if name in parameters}
