from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.samplers._tpe import sampler as tpe
from optuna.trial import TrialState

from tuner.search.evidence import Evidence
from tuner.search.optuna_sampler import INFEASIBLE_PER_FEASIBLE, OptunaSampler, told
from tuner.search.space import Range

pytestmark = pytest.mark.quick

RANGES = {"a": Range(0.0, 1.0), "b": Range(0.0, 1.0), "fixed": Range(0.5, 0.5)}


def completed(a: float, b: float) -> Evidence:
    """Accurate near a = 0.7, and costing b; the budget is 0.5."""
    return Evidence({"a": a, "b": b, "fixed": 0.5}, (1 - abs(a - 0.7), b), b - 0.5)


def refused(a: float, b: float) -> Evidence:
    return Evidence({"a": a, "b": b, "fixed": 0.5}, None, b - 0.5)


def evidence(feasible: int, infeasible: int) -> list[Evidence]:
    random = np.random.default_rng(0)
    good = [completed(float(a), float(b) / 2) for a, b in random.random((feasible, 2))]
    bad = [refused(float(a), 0.51 + float(b) * 0.49) for a, b in random.random((infeasible, 2))]
    return (
        [one for pair in zip(good, bad, strict=False) for one in pair] + good[len(bad) :] + bad[len(good) :]
    )


def test_equal_evidence_gives_equal_proposals() -> None:
    for count in (0, 3, 30):
        known = evidence(count, count)
        assert OptunaSampler().propose(RANGES, known, 1, 7, 2) == OptunaSampler().propose(
            RANGES, known, 1, 7, 2
        )


def test_seed_number_and_attempt_each_change_the_proposal() -> None:
    known = evidence(20, 5)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    proposals = {OptunaSampler().propose(RANGES, known, *key)["a"] for key in keys}
    assert len(proposals) == len(keys)


def test_proposals_lie_inside_the_ranges() -> None:
    known = evidence(30, 30)
    for number in range(20):
        point = OptunaSampler().propose(RANGES, known, 0, number, 0)
        assert point.keys() == RANGES.keys()
        assert all(point[name] in one for name, one in RANGES.items())


def test_it_learns_where_answers_are_right_and_the_budget_holds() -> None:
    known = evidence(60, 60)
    proposals = [OptunaSampler().propose(RANGES, known, 0, number, 0) for number in range(60)]
    assert np.mean([abs(one["a"] - 0.7) for one in proposals]) < 0.15
    assert np.mean([one["b"] <= 0.5 for one in proposals]) > 0.9


@pytest.mark.parametrize(("feasible", "infeasible"), [(1, 199), (5, 100), (40, 3), (3, 0)])
def test_only_completed_trials_reach_the_good_group(
    feasible: int, infeasible: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    good: list[optuna.trial.FrozenTrial] = []
    split = tpe._split_trials

    def watched(*values: object) -> object:
        below, above = split(*values)  # type: ignore[arg-type]
        good.extend(below)
        return below, above

    monkeypatch.setattr(tpe, "_split_trials", watched)
    known = evidence(feasible, infeasible)
    OptunaSampler(startup_trials=1).propose(RANGES, known, 0, len(known), 0)
    assert good
    assert {trial.state for trial in good} == {TrialState.COMPLETE}


def test_the_latest_refusals_are_told_and_all_that_is_feasible() -> None:
    known = evidence(2, 50)
    kept = told(known)
    assert [one for one in kept if one.over_budget <= 0] == [one for one in known if one.over_budget <= 0]
    refusals = [one for one in kept if one.over_budget > 0]
    assert refusals == [one for one in known if one.over_budget > 0][-2 * INFEASIBLE_PER_FEASIBLE :]


def test_three_hundred_trials_are_rebuilt_in_a_moment() -> None:
    import time

    known = evidence(200, 100)
    OptunaSampler().propose(RANGES, known, 0, 299, 0)
    began = time.perf_counter()
    OptunaSampler().propose(RANGES, known, 0, 300, 0)
    assert time.perf_counter() - began < 2
