"""Marks, lines and labels of the Pareto front, in per cent of the unpruned model, for both drawings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from dashboards.picture.picture import BLACK, BLUE, GREEN, GREY, PURPLE, SKY, VERMILION
from tuner.reporting.trial_table import ParetoPoint, front_numbers
from tuner.reporting.values import RunSummary

# Text beside lines that matter less.
MUTED = "#5b6068"

SPLITS = {"tune": "tune videos", "held_out": "held-out videos"}


class Axis(NamedTuple):
    """A measure of compute; `field` of a point holds its ratio to the unpruned model."""

    field: str
    button: str
    title: str


PREFILL = Axis("flops_ratio", "LLM prefill FLOPs", "LLM prefill FLOPs, % of unpruned (lower is better)")
AXES = (
    PREFILL,
    Axis(
        "flops_ratio_end_to_end",
        "end-to-end FLOPs",
        "end-to-end FLOPs including the vision tower,<br>% of unpruned (lower is better)",
    ),
)


class Marker(NamedTuple):
    """The look of one kind of mark in both drawings, and its name in the legend."""

    label: str
    fill: str
    edge: str
    size: float
    plotly: str
    matplotlib: str
    opacity: float = 1.0
    # Width of an interval's line, pixels.
    bar: float = 1.4


class Series(NamedTuple):
    """Marks of one kind at their cost and accuracy; `x` is None for a point without such a cost."""

    marker: Marker
    points: list[ParetoPoint]
    x: list[float | None]
    y: list[float]
    intervals: bool = False


_FRONT = Marker("trial on the front, tune videos", SKY, BLUE, 10, "circle", "o")
_DOMINATED = Marker("other trials, tune videos", SKY, BLUE, 8, "circle", "o", 0.35)
_OVER = Marker("trial over the budget, tune videos", "#d7dade", GREY, 9, "circle", "o")
_PRUNED = Marker("pruned trial (no accuracy: a tick at its cost)", GREY, GREY, 9, "line-ns-open", "|", 0.7)
_INFEASIBLE = Marker("closest infeasible proposal (a tick at its cost)", BLACK, BLACK, 11, "x-thin-open", "x")
_DEFAULTS = Marker("AdaTP's defaults, tune videos", "#ffffff", GREEN, 12, "square", "s")
_BEST = Marker("{best}, tune videos", "#ffffff", VERMILION, 13, "diamond", "D")
# These often lie on one another, so each is smaller than those drawn before it and stays visible on top.
_DEFAULTS_HELD_OUT = Marker(
    "AdaTP's defaults, held-out videos (95 %)", GREEN, GREEN, 16, "square", "s", bar=5
)
_PEERS = Marker("other methods, held-out videos (95 %)", PURPLE, PURPLE, 13, "triangle-up", "^", bar=2.2)
_BEST_HELD_OUT = Marker("{best}, held-out videos (95 %)", VERMILION, "#ffffff", 11, "diamond", "D")


def best_name(summary: RunSummary) -> str:
    """What the search chose: the best trial within a budget, or the trial for an allowed drop."""
    return "best within the budget" if summary.goal == "budget" else "chosen trial"


def series_of(points: Sequence[ParetoPoint], summary: RunSummary, axis: Axis) -> list[Series]:
    """The marks in drawing order: the same series for every axis, though some may be empty."""
    limits = limits_of(points, summary, axis)
    on_front = {point.trial for point in front_of(points, axis)}
    trials = [point for point in points if point.kind == "trial"]
    within = [trial for trial in trials if trial.within_budget]
    floor = limits.low_y + 0.02 * (limits.high_y - limits.low_y)
    drawn: list[tuple[Marker, list[ParetoPoint]]] = [
        (_PRUNED, [point for point in points if point.kind == "pruned"]),
        (_INFEASIBLE, [point for point in points if point.kind == "infeasible"]),
        (_DOMINATED, [point for point in within if point.trial not in on_front]),
        (_OVER, [trial for trial in trials if not trial.within_budget]),
        (_FRONT, [point for point in within if point.trial in on_front]),
        (_DEFAULTS, [point for point in points if point.kind == "defaults" and point.split == "tune"]),
        (_BEST, [point for point in points if point.kind == "best" and point.split == "tune"]),
        (
            _DEFAULTS_HELD_OUT,
            [point for point in points if point.kind == "defaults" and point.split == "held_out"],
        ),
        (_PEERS, [point for point in points if point.kind == "peer"]),
        (_BEST_HELD_OUT, [point for point in points if point.kind == "best" and point.split == "held_out"]),
    ]
    known = {marker for marker, chosen in drawn if chosen} | {_DOMINATED, _FRONT}
    return [
        Series(
            marker._replace(label=marker.label.format(best=best_name(summary))),
            chosen,
            [cost_of(point, axis) for point in chosen],
            [floor if point.accuracy is None else 100 * point.accuracy for point in chosen],
            any(point.split == "held_out" for point in chosen),
        )
        for marker, chosen in drawn
        if marker in known and (within or marker not in (_DOMINATED, _FRONT))
    ]


def cost_of(point: ParetoPoint, axis: Axis) -> float | None:
    """The cost in per cent of the unpruned model's."""
    value: float | None = getattr(point, axis.field)
    return None if value is None else 100 * value


def front_of(points: Sequence[ParetoPoint], axis: Axis) -> list[ParetoPoint]:
    """The completed trials on the front, cheapest first."""
    trials = [
        (point, cost)
        for point in points
        if point.split == "tune" and point.trial is not None and point.accuracy is not None
        if (cost := cost_of(point, axis)) is not None
    ]
    numbers = front_numbers((trial.trial or 0, trial.accuracy or 0.0, cost) for trial, cost in trials)
    return [trial for trial, cost in sorted(trials, key=lambda pair: pair[1]) if trial.trial in numbers]


class Label(NamedTuple):
    """The name of another method beside its mark."""

    text: str
    x: float
    y: float
    text_x: float
    text_y: float


def labels_of(points: Sequence[ParetoPoint], summary: RunSummary, axis: Axis) -> list[Label]:
    """One column of names to the right of all other methods, spaced so that they do not overlap."""
    limits = limits_of(points, summary, axis)
    peers = [
        (point_, x)
        for point_ in sorted(points, key=lambda point: -(point.accuracy or 0.0))
        if point_.kind == "peer" and (x := cost_of(point_, axis)) is not None
    ]
    if not peers:
        return []
    gap = 0.048 * (limits.high_y - limits.low_y)
    column = max(x for _, x in peers) + 0.02 * (limits.high_x - limits.low_x)
    heights = [100 * (point.accuracy or 0.0) for point, _ in peers]  # best first
    # Blocks of labels that touch, each centred on the mean height of its marks.
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
    # Keeps a long column above the axis.
    lift = max(0.0, limits.low_y + gap - min(spread))
    return [
        Label(one.name or "", x, 100 * (one.accuracy or 0.0), column, y + lift)
        for (one, x), y in zip(peers, spread, strict=True)
    ]


def _middle(block: Sequence[float]) -> float:
    return sum(block) / len(block)


class Limits(NamedTuple):
    """Axis ranges in per cent."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float


def limits_of(points: Sequence[ParetoPoint], summary: RunSummary, axis: Axis) -> Limits:
    """Ranges that show all points and intervals, the budget, the other methods' names and the margin."""
    costs = [
        cost for point in points if point.kind != "baseline" if (cost := cost_of(point, axis)) is not None
    ] or [0.0, 100.0]
    if axis is PREFILL and summary.goal == "budget":
        costs.append(100 * summary.budget)
    heights = [100 * point.accuracy for point in points if point.accuracy is not None]
    for item in points:
        if item.kind != "baseline" and item.accuracy_low is not None and item.accuracy_high is not None:
            heights += [100 * item.accuracy_low, 100 * item.accuracy_high]
    allowed = _allowed(points, summary)
    heights = (heights if allowed is None else [*heights, allowed]) or [0.0, 100.0]
    room_x = max(1.0, 0.08 * (max(costs) - min(costs)))
    room_y = max(0.8, 0.08 * (max(heights) - min(heights)))
    high_x = max(costs) + room_x
    peers = [cost for point in points if point.kind == "peer" and (cost := cost_of(point, axis)) is not None]
    if peers:  # room for their names
        high_x = max(high_x, max(peers) + 0.5 * (max(peers) - min(costs) + room_x))
    return Limits(
        max(0.0, min(costs) - room_x),
        high_x,
        max(0.0, min(heights) - room_y),
        min(101.5, max(heights) + 1.4 * room_y),
    )


class Line(NamedTuple):
    """A line across the drawing and its label."""

    at: float
    text: str
    dash: Literal["solid", "dot", "dash"]
    above: bool = True


def levels(points: Sequence[ParetoPoint], summary: RunSummary) -> list[Line]:
    """Horizontal lines: the unpruned accuracy on both splits, and the least that the margin allows."""
    lines = sorted(
        (point for point in points if point.kind == "baseline" and point.accuracy is not None),
        key=lambda point: -(point.accuracy or 0.0),
    )
    # The higher line has its label above, the other below, so that they never overlap.
    levels = [
        Line(
            100 * (line.accuracy or 0.0),
            f"unpruned, {SPLITS[line.split]}: {100 * (line.accuracy or 0.0):.1f} %",
            "dot" if line.split == "held_out" else "solid",
            line is lines[0],
        )
        for line in lines
    ]
    allowed = _allowed(points, summary)
    if allowed is not None:
        drop = f"{100 * (summary.margin or 0.0):.3g} points below unpruned, held-out videos"
        levels.append(Line(allowed, drop, "dash", above=False))
    return levels


def _allowed(points: Sequence[ParetoPoint], summary: RunSummary) -> float | None:
    """The least accuracy that an allowed drop leaves, in per cent; None for a search with a budget."""
    if summary.goal != "max_drop" or summary.margin is None:
        return None
    for point in points:
        if point.kind == "baseline" and point.split == "held_out" and point.accuracy is not None:
            return 100 * (point.accuracy - summary.margin)
    return None


def y_title(summary: RunSummary) -> tuple[str, str]:
    """Two lines, since the title is longer than the axis."""
    if summary.setting is not None and not summary.setting.labelled:
        return ("agreement with the unpruned model, % of questions", "(higher is better)")
    return ("accuracy, % of questions right", "(higher is better)")


def arms(series: Series) -> tuple[list[float], list[float]]:
    """Lengths of the intervals above and below the marks; 0 without an interval."""
    above = [
        0.0 if point.accuracy_high is None else 100 * point.accuracy_high - y
        for point, y in zip(series.points, series.y, strict=True)
    ]
    below = [
        0.0 if point.accuracy_low is None else y - 100 * point.accuracy_low
        for point, y in zip(series.points, series.y, strict=True)
    ]
    return above, below


def left_of_lines(points: Sequence[ParetoPoint], at: float, limits: Limits) -> bool:
    """Whether a vertical line's label stands to its left: on its right are other methods, or no room."""
    near_the_end = at > limits.high_x - 0.1 * (limits.high_x - limits.low_x)
    return near_the_end or any(point.kind == "peer" for point in points)


def shows_budget(summary: RunSummary, axis: Axis) -> bool:
    """Whether this axis has a budget: it limits prefill FLOPs, and a search by allowed drop has none."""
    return axis is PREFILL and summary.goal == "budget"


def columns(summary: RunSummary, axis: Axis, limits: Limits) -> list[tuple[float, str, str]]:
    """Vertical lines: the budget, and the unpruned model's cost if the axis reaches it."""
    lines = []
    if shows_budget(summary, axis):
        lines.append((100 * summary.budget, f" budget {100 * summary.budget:g} % ", "dash"))
    if limits.low_x < 100 < limits.high_x:
        lines.append((100.0, " unpruned: 100 % ", "dot"))
    return lines
