"""Two knobs that drift together: the configurations of a pairwise map, and what each of them costs.

A map shows the knobs as somebody sets them, so along p compute moves, and the budget is a line across it; the
design's inputs, for which p is solved, would all lie on one side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.methods import AdaTP
from pipeline.solve import Unreachable
from tuner.planning.planner import Planner
from tuner.search.space import Range
from tuner.sensitivity.design import DesignSpace, Plane
from tuner.statistics.paired import Floats
from tuner.study.values import Configuration

# Values of each knob; every pair of them costs its plans, some milliseconds for a thousand questions.
POINTS = 21

# To 1 itself; nearer values of tau_s are not told apart.
_NEAREST = 1e-4


def plane(
    planner: Planner,
    space: DesignSpace,
    method: AdaTP,
    ranges: Mapping[str, Range],
    inputs: tuple[str, str],
    points: int = POINTS,
) -> Plane:
    """The reference (`method`) with the knobs of two inputs of the design over their ranges; compute's is p.

    ranges: of each knob that is free, with the reference's value in it.
    """
    first, second = ("p" if one == "compute" else one for one in inputs)
    values = tuple(
        grid(one, _shown(planner, space, method, one, ranges[one]), points) for one in (first, second)
    )
    unit = np.empty((points, points, len(space.inputs)))
    ratio = np.empty((points, points))
    for at in np.ndindex(points, points):
        changed: dict[str, Any] = {first: float(values[0][at[0]]), second: float(values[1][at[1]])}
        one = replace(method, **changed)
        ratio[at] = planner.binding_ratio(one)
        unit[at] = space.unit(Configuration.from_method(one), float(ratio[at]))
    reference = (float(getattr(method, first)), float(getattr(method, second)))
    return Plane((first, second), (values[0], values[1]), unit, ratio, reference)


def grid(knob: str, range_: Range, points: int = POINTS) -> Floats:
    """(points,) values from one end of the range to the other, even where they are shown."""
    if knob != "tau_s":
        return np.linspace(range_.low, range_.high, points)
    values = 1 - 10 ** -np.linspace(place_of(knob, range_.low), place_of(knob, range_.high), points)
    values[[0, -1]] = range_.low, range_.high
    return np.asarray(values, dtype=np.float64)


def place_of(knob: str, value: float) -> float:
    """Where a knob's value lies on the scale it is shown on: its own, but of tau_s the logarithm of the
    distance from 1, because similarities crowd near 1, and there tau_s acts.
    """
    return -math.log10(max(1 - value, _NEAREST)) if knob == "tau_s" else value


def _shown(planner: Planner, space: DesignSpace, method: AdaTP, knob: str, range_: Range) -> Range:
    """Of the range what says something: of p where the design has runs, of gamma_cap what is not below p."""
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
