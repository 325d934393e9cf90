"""What a sampler learns from, and what a sampler is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tuner.search.space import Point, Range


@dataclass(frozen=True)
class Evidence:
    """One point that was tried."""

    point: Point
    # (accuracy on the tune part, FLOPs ratio); None for a proposal refused before it cost model time.
    values: tuple[float, float] | None
    # FLOPs ratio minus budget: feasible at zero or below.
    over_budget: float


class Sampler(Protocol):
    """Proposes points. Equal arguments give equal points: nothing is remembered between two calls."""

    def propose(
        self, ranges: Mapping[str, Range], evidence: Sequence[Evidence], seed: int, number: int, attempt: int
    ) -> Point:
        """The point to try as trial `number`, after `attempt` proposals for it were refused."""
