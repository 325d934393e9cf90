"""What a sampler learns from, and what a sampler is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tuner.search.space import Point, Range

SamplerName = Literal["tpe", "nsga2", "gp", "random"]
# Here, so that the command line can offer them without importing Optuna.
SAMPLERS: tuple[SamplerName, ...] = ("tpe", "nsga2", "gp", "random")


@dataclass(frozen=True)
class Evidence:
    """One point that was tried: completed, stopped by the race, or refused.

    Errors: ValueError for a stopped trial with values: those of a part of the videos are not comparable with
    those of all, and no sampler shall see them.
    """

    point: Point
    # (accuracy on the tune part, FLOPs ratio); None for a proposal refused before it cost model time, and for
    # a trial that was stopped.
    values: tuple[float, float] | None
    # FLOPs ratio minus budget: feasible at zero or below.
    over_budget: float
    # The race ended the trial: others beat it.
    stopped: bool = False

    def __post_init__(self) -> None:
        if self.stopped and self.values is not None:
            raise ValueError(f"A stopped trial has no values, but got {self.values}.")


class Sampler(Protocol):
    """Proposes points. Equal arguments give equal points: nothing is remembered between two calls."""

    def propose(
        self, ranges: Mapping[str, Range], evidence: Sequence[Evidence], seed: int, index: int, attempt: int
    ) -> Point:
        """The point to try next.

        `index`: how many trials this search proposed before. `attempt`: how many proposals for this one were
        refused.
        """
