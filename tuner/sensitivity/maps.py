"""Two knobs that drift together: the configurations of a pairwise map and their costs.

A map shows the knobs as users set them, so compute changes along p and the budget is a line on the map. With
the design's inputs, for which p is solved, compute would be constant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.keep_ratio import Unreachable
from pipeline.methods import AdaTP
from tuner.planning.planner import Planner
from tuner.search.space import Range
from tuner.sensitivity.design import DesignSpace, Plane
from tuner.statistics.paired import Floats
from tuner.study.values import Configuration

# Values of each knob. The plans of a pair take some milliseconds for a thousand questions.
POINTS = 21

# Smallest distance of tau_s from 1 on the axis; closer values coincide.
_NEAREST = 1e-4


def plane(
    planner: Planner,
    space: DesignSpace,
    method: AdaTP,
    ranges: Mapping[str, Range],
    inputs: tuple[str, str],
    points: int = POINTS,
) -> Plane:
    """The reference (`method`) with the knobs of two inputs over their ranges; the knob of compute is p.

    ranges: of each free knob, including the reference's value.
    """
    first, second = ("p" if input_ == "compute" else input_ for input_ in inputs)
    values = tuple(
        grid(knob, _shown(planner, space, method, knob, ranges[knob]), points) for knob in (first, second)
    )
    unit = np.empty((points, points, len(space.inputs)))
    ratio = np.empty((points, points))
    for at in np.ndindex(points, points):
        changed: dict[str, Any] = {first: float(values[0][at[0]]), second: float(values[1][at[1]])}
        moved = replace(method, **changed)
        ratio[at] = planner.binding_ratio(moved)
        unit[at] = space.unit(Configuration.from_method(moved), float(ratio[at]))
    reference = (float(getattr(method, first)), float(getattr(method, second)))
    return Plane((first, second), (values[0], values[1]), unit, ratio, reference)


def grid(knob: str, range_: Range, points: int = POINTS) -> Floats:
    """(points,) values over the range, evenly spaced on the axis."""
    if knob != "tau_s":
        return np.linspace(range_.low, range_.high, points)
    values = 1 - 10 ** -np.linspace(place_of(knob, range_.low), place_of(knob, range_.high), points)
    values[[0, -1]] = range_.low, range_.high
    return np.asarray(values, dtype=np.float64)


def place_of(knob: str, value: float) -> float:
    """A knob's position on its axis: its value, but for tau_s the negative logarithm of its distance from 1,
    because most similarities are close to 1.
    """
    return -math.log10(max(1 - value, _NEAREST)) if knob == "tau_s" else value


def _shown(planner: Planner, space: DesignSpace, method: AdaTP, knob: str, range_: Range) -> Range:
    """The informative part of a range: for p where the design has runs, for gamma_cap from p on."""
    chosen = float(getattr(method, knob))
    if knob == "gamma_cap":
        return Range(min(max(range_.low, method.p), chosen), range_.high)
    if knob == "p" and space.compute is not None:
        low, high = (_solved(planner, method, end, range_) for end in (space.compute.low, space.compute.high))
        return Range(min(low, chosen), max(high, chosen))
    return range_


def _solved(planner: Planner, method: AdaTP, target: float, range_: Range) -> float:
    solved = planner.solve(method, target)
    return range_.low if isinstance(solved, Unreachable) else range_.clip(solved.ratio)
