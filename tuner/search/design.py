"""The first proposals of a search: a space-filling design, before a sampler has anything to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from tuner.search.sampler import Observation, Sampler
from tuner.search.space import Point, Range


@dataclass(frozen=True)
class Designed:
    """The first `trials` proposals of a search are a scrambled Sobol sequence, the others `sampler`'s.

    A power of two fills the space evenly: eight proposals try each value of a choice at least twice. These
    proposals depend on the seed alone, whatever other searches recorded.
    """

    sampler: Sampler
    trials: int = 8

    def propose(
        self,
        ranges: Mapping[str, Range],
        observations: Sequence[Observation],
        seed: int,
        index: int,
        attempt: int,
    ) -> Point:
        """See `Sampler.propose`. After an infeasible proposal it takes a later point of the sequence."""
        if index >= self.trials:
            return self.sampler.propose(ranges, observations, seed, index, attempt)
        point = {name: range_.low for name, range_ in ranges.items()}
        # A dimension for a fixed parameter would only worsen the sequence in the others.
        free = [name for name, range_ in ranges.items() if range_.low < range_.high]
        if free:
            sequence = qmc.Sobol(len(free), rng=np.random.default_rng(seed))
            place = index + self.trials * attempt  # no two share one
            if place:  # scipy cannot go forward by none
                sequence.fast_forward(place)
            for name, share in zip(free, sequence.random(1)[0], strict=True):
                bounds = ranges[name]
                point[name] = bounds.clip(bounds.low + float(share) * (bounds.high - bounds.low))
        return point
