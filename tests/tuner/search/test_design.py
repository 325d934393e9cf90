from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy.stats import qmc

from tuner.search.design import Designed
from tuner.search.sampler import Observation
from tuner.search.space import Bins, Point, Range

pytestmark = pytest.mark.quick

RANGES = {"a": Range(-1.0, 1.0), "fixed": Range(0.5, 0.5), "b": Range(0.0, 0.1), "c": Range(0.0, 1.0)}
FREE = ("a", "b", "c")
KNOWN = [Observation({"a": 0.0, "fixed": 0.5, "b": 0.0, "c": 0.0}, (0.5, 0.5), -0.1)]


@dataclass
class Asked:
    calls: list[tuple[int, int, int, int]] = field(default_factory=list)

    def propose(
        self,
        ranges: Mapping[str, Range],
        observations: Sequence[Observation],
        seed: int,
        index: int,
        attempt: int,
    ) -> Point:
        self.calls.append((len(observations), seed, index, attempt))
        return {name: range_.low for name, range_ in ranges.items()}


def unit(designed: Designed, keys: Sequence[tuple[int, int]], seed: int = 0) -> np.ndarray:
    points = [designed.propose(RANGES, [], seed, index, attempt) for index, attempt in keys]
    assert all(point.keys() == RANGES.keys() and point["fixed"] == 0.5 for point in points)
    assert all(point[name] in RANGES[name] for point in points for name in RANGES)
    return np.array(
        [
            [(point[name] - RANGES[name].low) / (RANGES[name].high - RANGES[name].low) for name in FREE]
            for point in points
        ]
    )


def test_the_first_trials_fill_the_space_and_the_rest_is_the_samplers() -> None:
    sampler = Asked()
    designed = Designed(sampler, trials=8)
    points = unit(designed, [(index, 0) for index in range(8)])
    assert sampler.calls == []
    # What makes a Sobol sequence one: in every coordinate each eighth holds one of eight points.
    for column in points.T:
        assert sorted(np.floor(8 * column).astype(int)) == list(range(8))
    random = np.random.default_rng(0)
    assert qmc.discrepancy(points) < np.median([qmc.discrepancy(random.random((8, 3))) for _ in range(50)])
    designed.propose(RANGES, KNOWN, 3, 8, 2)
    assert sampler.calls == [(1, 3, 8, 2)]


def test_seed_index_and_attempt_decide_and_the_observations_do_not() -> None:
    designed = Designed(Asked())
    keys = [(index, attempt) for index in range(8) for attempt in range(25)]
    points = unit(designed, keys)
    assert len({tuple(point) for point in points}) == len(keys)
    assert not np.isin(points, unit(designed, keys, seed=1)).any()
    assert designed.propose(RANGES, KNOWN, 0, 5, 3) == designed.propose(RANGES, [], 0, 5, 3)


def test_where_nothing_is_free_the_point_is_what_is_left() -> None:
    assert Designed(Asked()).propose({"fixed": Range(0.5, 0.5)}, [], 0, 0, 0) == {"fixed": 0.5}


@pytest.mark.parametrize("values", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_every_value_of_a_choice_is_tried_more_than_once_and_stands_where_it_belongs(
    values: int, seed: int
) -> None:
    choice = Bins(0.0, float(values))
    ranges = RANGES | {"choice": choice}
    designed = Designed(Asked(), trials=8)
    places = [designed.propose(ranges, [], seed, index, 0)["choice"] for index in range(8)]
    assert set(places) == set(choice.places)
    assert min(places.count(place) for place in choice.places) >= 2
