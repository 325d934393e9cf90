"""What is drawn on a pairwise map: cells, lines of equal FLOPs, marks over the budget, and their colours.

In dark mode a page swaps black and white, but the colours of the cells stay. So marks on cells have their own
colours, chosen by the brightness of the cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dashboards.picture.picture import GREY
from tuner.search.space import TOLERANCE
from tuner.sensitivity.maps import place_of
from tuner.sensitivity.results import PairMap, Sensitivity
from tuner.statistics.values import Interval

_ON_DARK, _ON_BRIGHT = "#f4f6f8", "#30343a"
# Share of the colour scale from which a cell counts as bright.
_BRIGHT = 0.5

# Least distance of the budget's label from the map's edges, as shares of its width and height.
_EDGES = (0.16, 0.07)

Grid = list[list[float]]


@dataclass(frozen=True)
class Mark:
    """A cell over the budget."""

    x: float
    y: float
    color: str


@dataclass(frozen=True)
class DrawnMap:
    """x and y in axis units (`place_of`); grids as [y][x], in per cent."""

    x: list[float]
    y: list[float]
    accuracy: list[list[float | None]]
    flops: Grid
    # Round values of FLOPs, each with the colour of its line.
    lines: list[tuple[float, str]]
    over: list[Mark]
    # Where the budget's line is labelled; None: the map does not cross the budget.
    budget_at: tuple[float, float] | None
    reference: tuple[float, float]


def drawn_map(one: PairMap, budget: float, scale: Interval | None) -> DrawnMap:
    """The marks of one map; `scale` is the colour scale of all maps together (`color_scale`)."""
    x = [place_of(one.first, value) for value in one.first_values]
    y = [place_of(one.second, value) for value in one.second_values]
    accuracy = [[_percent(value) for value in column] for column in zip(*one.accuracy, strict=True)]
    flops = [[100 * value for value in column] for column in zip(*one.flops_ratio, strict=True)]
    reference = (place_of(one.first, one.reference[0]), place_of(one.second, one.reference[1]))
    limit = 100 * (budget + TOLERANCE)
    return DrawnMap(
        x,
        y,
        accuracy,
        flops,
        lines=[(level, _along(level, accuracy, flops, scale)) for level in _levels(flops, 100 * budget)],
        over=[
            Mark(x[i], y[j], _ink(accuracy[j][i], scale))
            for j, row in enumerate(flops)
            for i, value in enumerate(row)
            if value > limit
        ],
        budget_at=_budget_at(x, y, flops, limit, reference),
        reference=reference,
    )


def color_scale(found: Sensitivity) -> Interval | None:
    """The lowest and highest predicted value of all maps, in per cent; None where nothing is predicted."""
    values = [
        100 * value for map_ in found.maps for row in map_.accuracy for value in row if value is not None
    ]
    return Interval(min(values), max(values)) if values else None


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _levels(flops: Grid, budget: float) -> list[float]:
    """Round values of FLOPs within the map, except those close to the budget."""
    low, high = min(map(min, flops)), max(map(max, flops))
    step = next((step for step in (1.0, 2.0, 5.0, 10.0, 20.0) if (high - low) / step <= 5), 50.0)
    levels = [step * k for k in range(int(low // step) + 1, int(high // step) + 1)]
    return [level for level in levels if low < level < high and abs(level - budget) > step / 4]


def _ink(value: float | None, scale: Interval | None) -> str:
    if value is None or scale is None:
        return GREY
    return _ON_BRIGHT if value - scale.low > _BRIGHT * (scale.high - scale.low) else _ON_DARK


def _along(level: float, accuracy: list[list[float | None]], flops: Grid, scale: Interval | None) -> str:
    """The colour of a line: that of a mark on most of the cells closest to it."""
    cells = sorted((abs(flops[j][i] - level), i, j) for j, row in enumerate(flops) for i in range(len(row)))
    inks = [_ink(accuracy[j][i], scale) for _, i, j in cells[: len(flops)]]
    return max(inks, key=inks.count)


def _budget_at(
    x: Sequence[float], y: Sequence[float], flops: Grid, limit: float, reference: tuple[float, float]
) -> tuple[float, float] | None:
    """Where the budget's line is labelled: away from the reference, and from the edges if possible."""
    spots = list(_crossings(x, y, flops, limit))
    if not spots:
        return None
    wide, high = x[-1] - x[0] or 1.0, y[-1] - y[0] or 1.0

    def inside(spot: tuple[float, float]) -> bool:
        across, up = (spot[0] - x[0]) / wide, (spot[1] - y[0]) / high
        return _EDGES[0] <= across <= 1 - _EDGES[0] and _EDGES[1] <= up <= 1 - _EDGES[1]

    return max(
        spots,
        key=lambda spot: (
            inside(spot),
            math.hypot((spot[0] - reference[0]) / wide, (spot[1] - reference[1]) / high),
        ),
    )


def _crossings(
    x: Sequence[float], y: Sequence[float], flops: Grid, limit: float
) -> Iterator[tuple[float, float]]:
    """Points between neighbouring cells of which only one is over the budget."""
    for j, row in enumerate(flops):
        for i, value in enumerate(row):
            for right, up in ((1, 0), (0, 1)):
                if i + right < len(x) and j + up < len(y):
                    other = flops[j + up][i + right]
                    if (value > limit) != (other > limit):
                        share = (limit - value) / (other - value)
                        yield (
                            x[i] + share * (x[i + right] - x[i]),
                            y[j] + share * (y[j + up] - y[j]),
                        )
