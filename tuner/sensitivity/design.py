"""The space-filling design of a sensitivity study: where it asks, and what came out there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tuner.sensitivity.results import OutputName
from tuner.statistics import Floats


@dataclass(frozen=True, eq=False)
class Design:
    """R configurations over D independent inputs, answered on one whole part of the study.

    unit: (R, D) in [0, 1], a scrambled Sobol sequence; values: (R, D), the same points as values of the
    inputs; outputs: each (R,); reference: (D,), the reference's unit point; budget: FLOPs ratio; flops: exact
    FLOPs ratios (N,) of unit points (N, D), from their plans.
    """

    inputs: tuple[str, ...]
    unit: Floats
    values: Floats
    outputs: Mapping[OutputName, Floats]
    reference: Floats
    budget: float
    flops: Callable[[Floats], Floats]
