from __future__ import annotations

import numpy as np
import pytest

from tuner.search.front import trials_since_growth
from tuner.search.selection import hypervolume

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("seed", range(20))
def test_a_trial_counts_exactly_where_the_hypervolume_grows(seed: int) -> None:
    # On a lattice, so that equal ratios and scores occur; some beyond the reference, some without result.
    rng = np.random.default_rng(seed)
    lattice = rng.integers(0, 12, (60, 2)) / 10
    trials = [None if rng.random() < 0.2 else (float(a), float(b)) for a, b in lattice]
    points: list[tuple[float, float]] = []
    since, area = 0, 0.0
    for count, trial in enumerate(trials, 1):
        points += [] if trial is None else [trial]
        grown = hypervolume(points, (1.0, 0.1))
        since, area = (0, grown) if grown > area + 1e-12 else (since + 1, area)
        assert trials_since_growth(trials[:count], (1.0, 0.1)) == since


def test_no_trial_no_count() -> None:
    assert trials_since_growth([], (1.0, 0.0)) == 0
