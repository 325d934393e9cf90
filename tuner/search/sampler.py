"""What a sampler learns from, and what a sampler is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tuner.search.space import Point, Range

SamplerName = Literal["tpe", "random"]
# Here, so that the command line can offer them without importing Optuna.
SAMPLERS: tuple[SamplerName, ...] = ("tpe", "random")


@dataclass(frozen=True)
class Observation:
    """One point that was proposed, and what is known of it by now.

    completed   evaluated on all tune videos
    pruned      stopped early by the pruner
    infeasible  over the budget: rejected before it cost model time
    pending     being evaluated by a worker

    Errors: ValueError unless exactly the completed ones have values: accuracy on some of the videos is not
    comparable with accuracy on all of them, and no sampler may see it.
    """

    point: Point
    # (accuracy on the tune split, FLOPs ratio) of a completed trial.
    values: tuple[float, float] | None
    # FLOPs ratio minus budget: feasible at zero or below.
    over_budget: float
    state: Literal["completed", "pruned", "infeasible", "pending"] = "completed"

    def __post_init__(self) -> None:
        if (self.state == "completed") != (self.values is not None):
            raise ValueError(f"Completed trials have values and no others, but got {self}.")


class Sampler(Protocol):
    """Proposes points. Equal arguments give equal points: nothing is remembered between two calls."""

    def propose(
        self,
        ranges: Mapping[str, Range],
        observations: Sequence[Observation],
        seed: int,
        index: int,
        attempt: int,
    ) -> Point:
        """The point to try next.

        `observations`: in the order of their proposals. `index`: how many trials this search proposed before.
        `attempt`: how many proposals for this trial were infeasible.
        """
