"""Solving a method's keep ratio for a compute target, on the plans alone: microseconds, no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.flops import ModelShape, flops_ratio
from pipeline.layout import Layout, Layouts
from pipeline.methods.base import Method, knobs
from pipeline.plan import StudyPlans

STEPS = 25  # bisections: the ratio is known to 3e-8, finer than it is written
DECIMALS = 6


@dataclass(frozen=True)
class Unreachable:
    """No ratio in the searched range fits the target; `smallest` is what the smallest one needs."""

    smallest: float


def solve_keep_ratio(
    method: Method,
    layouts: Layouts | Sequence[Layout],
    shape: ModelShape,
    target: float,
    measure: Callable[[StudyPlans, ModelShape], float] = flops_ratio,
) -> Method | Unreachable:
    """The method with the largest ratio (its `ratio_field`) whose flops_ratio over all questions is <=
    target.

    measure: what is compared with the target, `pipeline.flops.flops_ratio` or `end_to_end_ratio`. The other
    fields stay as they are. Counts are whole tokens, so the ratio steps: the result lies at or just below the
    target, and is rounded down to six decimals.

    Errors: ValueError when the target is not in (0, 1].
    """
    if not 0 < target <= 1:
        raise ValueError(f"A FLOPs target lies in (0, 1], but got {target!r}.")
    layouts = Layouts.of(layouts)
    partition = method.partition(layouts)

    def ratio_at(value: float) -> float:
        plans = method.with_ratio(value).plans(layouts, shape.layers, partition)
        return measure(plans, shape)

    searched = knobs(method)[method.ratio_field]
    low, high = searched.low, searched.high
    smallest = ratio_at(low)
    if smallest > target:
        return Unreachable(smallest)
    if ratio_at(high) <= target:
        return method.with_ratio(high)
    for _ in range(STEPS):  # low always fits, high never does
        if _rounded_down(low) == _rounded_down(high):
            break
        middle = (low + high) / 2
        if ratio_at(middle) <= target:
            low = middle
        else:
            high = middle
    return method.with_ratio(max(searched.low, _rounded_down(low)))


def _rounded_down(ratio: float) -> float:
    return float(math.floor(ratio * 10**DECIMALS) / 10**DECIMALS)


def smallest_ratio(method: Method, layouts: Layouts | Sequence[Layout], shape: ModelShape) -> float:
    """The flops_ratio at the lower end of the method's searched range, its other fields as they are."""
    least = method.with_ratio(knobs(method)[method.ratio_field].low)
    return flops_ratio(least.plans(Layouts.of(layouts), shape.layers), shape)
