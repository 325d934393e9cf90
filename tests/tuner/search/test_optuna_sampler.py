from __future__ import annotations

import time

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers._tpe import sampler as tpe
from optuna.trial import FrozenTrial, TrialState

from tuner.errors import UserError
from tuner.search.evidence import SAMPLERS, Evidence, SamplerName
from tuner.search.optuna_sampler import (
    OTHERS_PER_COMPLETED,
    OptunaSampler,
    _trial,
    distributions_of,
    make_sampler,
    told,
)
from tuner.search.space import Bins, Range

pytestmark = pytest.mark.quick

RANGES = {"a": Range(0.0, 1.0), "b": Range(0.0, 1.0), "fixed": Range(0.5, 0.5)}


def completed(a: float, b: float) -> Evidence:
    """Accurate near a = 0.7, and costing b; the budget is 0.5."""
    return Evidence({"a": a, "b": b, "fixed": 0.5}, (1 - abs(a - 0.7), b), b - 0.5)


def refused(a: float, b: float) -> Evidence:
    return Evidence({"a": a, "b": b, "fixed": 0.5}, None, b - 0.5)


def stopped(a: float, b: float) -> Evidence:
    return Evidence({"a": a, "b": b, "fixed": 0.5}, None, b - 0.5, stopped=True)


def evidence(feasible: int, infeasible: int) -> list[Evidence]:
    random = np.random.default_rng(0)
    good = [completed(float(a), float(b) / 2) for a, b in random.random((feasible, 2))]
    bad = [refused(float(a), 0.51 + float(b) * 0.49) for a, b in random.random((infeasible, 2))]
    return (
        [one for pair in zip(good, bad, strict=False) for one in pair] + good[len(bad) :] + bad[len(good) :]
    )


def mixed(completes: int, others: int, seed: int = 0) -> list[Evidence]:
    """Completed trials within the budget among stopped, refused and (of a larger budget) infeasible ones."""
    random = np.random.default_rng(seed)
    kinds = [completed] * completes + [(stopped, refused, completed, stopped)[k % 4] for k in range(others)]
    over = [False] * completes + [k % 4 in (1, 2) for k in range(others)]
    return [
        kinds[k](float(a), 0.5 + float(b) / 2 if over[k] else float(b) / 2)
        for k, (a, b) in zip(random.permutation(len(kinds)), random.random((len(kinds), 2)), strict=True)
    ]


@pytest.mark.parametrize("name", SAMPLERS)
def test_equal_evidence_gives_equal_proposals(name: SamplerName) -> None:
    for count in (0, 3, 11):
        known = evidence(count, count)
        first, again = (make_sampler(name).propose(RANGES, known, 1, 7, 2) for _ in range(2))
        assert first == again


@pytest.mark.parametrize("name", SAMPLERS)
def test_seed_index_and_attempt_each_change_the_proposal(name: SamplerName) -> None:
    known = evidence(12, 5)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    points = [make_sampler(name).propose(RANGES, known, *key) for key in keys]
    # A child of NSGA-II may take one coordinate from the same parent, or all of them from other ones.
    assert len({(one["a"], one["b"]) for one in points}) >= (3 if name == "nsga2" else 4)
    if name == "nsga2":  # before there are parents
        points = [make_sampler(name).propose(RANGES, known[:4], *key) for key in keys]
        assert len({(one["a"], one["b"]) for one in points}) == 4


@pytest.mark.parametrize("name", SAMPLERS)
def test_proposals_lie_inside_the_ranges(name: SamplerName) -> None:
    known = evidence(12, 12)
    for index in range(1 if name == "gp" else 20):
        point = make_sampler(name).propose(RANGES, known, 0, index, 0)
        assert point.keys() == RANGES.keys()
        assert all(point[name] in one for name, one in RANGES.items())


def test_an_unknown_sampler_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="tpe, nsga2, gp, random, but got 'cmaes'"):
        make_sampler("cmaes")  # type: ignore[arg-type]


def test_it_learns_where_answers_are_right_and_the_budget_holds() -> None:
    for name, told_of, count in (("tpe", 60, 30), ("gp", 15, 2)):
        known = evidence(told_of, told_of)
        proposals = [make_sampler(name).propose(RANGES, known, 0, index, 0) for index in range(count)]  # type: ignore[arg-type]
        assert np.mean([abs(one["a"] - 0.7) for one in proposals]) < 0.15
        assert np.mean([one["b"] <= 0.5 for one in proposals]) > 0.9


SHARES = [(10, 90), (1, 199), (5, 100), (40, 3), (3, 0)]


@pytest.mark.parametrize(("completes", "others"), SHARES)
def test_only_completed_trials_within_the_budget_reach_the_good_group(
    completes: int, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the Parzen estimator of the good group is built in a proposal.
    built: list[list[FrozenTrial]] = []
    build = tpe.TPESampler._build_parzen_estimator

    def watched(self: object, study: object, space: object, trials: list[FrozenTrial], handle_below: bool):
        if handle_below:
            built.append(trials)
        return build(self, study, space, trials, handle_below)  # type: ignore[arg-type]

    monkeypatch.setattr(tpe.TPESampler, "_build_parzen_estimator", watched)
    known = mixed(completes, others)
    OptunaSampler(startup_trials=1).propose(RANGES, known, 0, len(known), 0)
    assert len(built) == 1
    check_good(built[0], known)


@pytest.mark.parametrize(("completes", "others"), SHARES)
def test_nor_with_accuracy_alone_as_objective(completes: int, others: int) -> None:
    known = mixed(completes, others)
    study = optuna.create_study(direction="maximize")
    for trial in (_trial(one, distributions_of(RANGES)) for one in told(known)):
        if trial.state == TrialState.COMPLETE:
            trial.values = trial.values[:1]
        study.add_trial(trial)
    good, _ = tpe._split_trials(study, study.trials, tpe.default_gamma(len(study.trials)))
    check_good(good, known)


def check_good(good: list[FrozenTrial], known: list[Evidence]) -> None:
    assert good
    assert {trial.state for trial in good} == {TrialState.COMPLETE}
    within = [one.point for one in known if one.values is not None and one.over_budget <= 0]
    assert all(trial.params in within for trial in good)


def test_without_the_limit_stopped_trials_would_be_called_good() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trials([_trial(one, distributions_of(RANGES)) for one in mixed(5, 95)])
    good, _ = tpe._split_trials(study, study.trials, tpe.default_gamma_multiobjective(100))
    assert TrialState.PRUNED in {trial.state for trial in good}


def test_a_stopped_trial_has_no_values_of_any_kind() -> None:
    with pytest.raises(ValueError, match="A stopped trial has no values"):
        Evidence({"a": 0.1}, (0.9, 0.3), -0.1, stopped=True)
    trial = _trial(stopped(0.1, 0.2), distributions_of(RANGES))
    assert (trial.state, trial.values, trial.intermediate_values) == (TrialState.PRUNED, None, {})
    assert list(trial.constraints.values()) == [pytest.approx(-0.3)]


@pytest.mark.parametrize("name", ["nsga2", "gp", "random"])
def test_the_others_learn_from_completed_trials_alone(name: SamplerName) -> None:
    known = mixed(15, 15)
    alone = [one for one in known if one.values is not None]
    assert len(alone) < len(known)
    sampler = make_sampler(name)
    assert sampler.propose(RANGES, known, 0, 3, 0) == sampler.propose(RANGES, alone, 0, 3, 0)


def test_what_tpe_is_told_is_all_that_completed_and_the_latest_of_the_rest() -> None:
    known = mixed(2, 50)

    def within(one: Evidence) -> bool:
        return one.values is not None and one.over_budget <= 0

    kept = told(known)
    assert [one for one in kept if within(one)] == [one for one in known if within(one)]
    others = [one for one in kept if not within(one)]
    assert others == [one for one in known if not within(one)][-2 * OTHERS_PER_COMPLETED :]
    assert {one.stopped for one in others} == {True, False}
    assert told([one for one in known if not within(one)]) == []


def test_nsga2_crosses_the_elite_of_the_generation_before() -> None:
    # Three generations; in the last only a few are both accurate and cheap.
    known = evidence(30, 0)
    elite = sorted(known, key=lambda one: -one.values[0] if one.values else 0)[:15]
    values = {name: {one.point[name] for one in elite} for name in ("a", "b")}
    everything = {name: {one.point[name] for one in known} for name in ("a", "b")}
    sampler = make_sampler("nsga2", startup=10)
    points = [sampler.propose(RANGES, known, 0, index, 0) for index in range(60)]
    inherited = [one[name] in everything[name] for one in points for name in ("a", "b")]
    assert 0.3 < np.mean(inherited) < 0.9  # one coordinate of two mutates
    assert np.mean([one["a"] in values["a"] for one in points if one["a"] in everything["a"]]) > 0.7
    # The first generation is not full yet: nobody has parents.
    early = [sampler.propose(RANGES, known[:9], 0, index, 0) for index in range(10)]
    assert not any(one["a"] in everything["a"] for one in early)


def test_nsga2_prefers_what_lies_within_the_budget() -> None:
    # All that is accurate is over the budget: without the constraint these would be the elite.
    random = np.random.default_rng(0)
    within = [completed(0.1 + 0.1 * float(a), 0.5 * float(b)) for a, b in random.random((10, 2))]
    over = [completed(0.7, 0.5 + 0.5 * float(b)) for b in random.random(10)]
    sampler = make_sampler("nsga2", startup=10)
    points = [sampler.propose(RANGES, over + within, 0, index, 0) for index in range(20)]
    assert not any(one["a"] == 0.7 for one in points)


def test_nsga2_comes_closer_over_the_generations() -> None:
    late: list[Evidence] = []
    for seed in range(2):
        known: list[Evidence] = []
        for index in range(80):
            point = make_sampler("nsga2").propose(RANGES, known, seed, index, 0)
            known.append(completed(point["a"], point["b"]))
        late += known[60:]
    # Uniform points: 0.29 away on average, half of them within the budget.
    assert np.mean([abs(one.point["a"] - 0.7) for one in late]) < 0.23
    assert np.mean([one.over_budget <= 0 for one in late]) > 0.65


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_three_hundred_trials_are_rebuilt_in_a_moment(name: SamplerName) -> None:
    known = evidence(200, 100)
    make_sampler(name).propose(RANGES, known, 0, 299, 0)
    began = time.perf_counter()
    make_sampler(name).propose(RANGES, known, 0, 300, 0)
    assert time.perf_counter() - began < 2


# Values without an order

WITH_CHOICE = RANGES | {"choice": Bins(0.0, 3.0)}


def chosen(a: float, b: float, choice: int) -> Evidence:
    """The middle one of three values costs accuracy: a neighbour of both that are good."""
    accuracy = 1 - abs(a - 0.7) - 0.3 * (choice == 1)
    return Evidence({"a": a, "b": b, "fixed": 0.5, "choice": choice + 0.5}, (accuracy, b), b - 0.5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_choice_is_proposed_at_its_places_from_seed_index_and_attempt_alone(name: SamplerName) -> None:
    random = np.random.default_rng(1)
    known = [chosen(float(a), float(b) / 2, k % 3) for k, (a, b) in enumerate(random.random((12, 2)))]
    known.append(Evidence({"a": 0.1, "b": 0.9, "fixed": 0.5, "choice": 2.5}, None, 0.4))
    sampler = make_sampler(name)
    points = [sampler.propose(WITH_CHOICE, known, 0, 12, attempt) for attempt in range(4)]
    assert points == [make_sampler(name).propose(WITH_CHOICE, known, 0, 12, attempt) for attempt in range(4)]
    assert all(one[name] in WITH_CHOICE[name] for one in points for name in WITH_CHOICE)


def test_tpe_does_not_take_a_value_for_a_neighbour_of_the_good_ones() -> None:
    random = np.random.default_rng(0)
    known = [chosen(float(a), float(b) / 2, k % 3) for k, (a, b) in enumerate(random.random((60, 2)))]
    sampler = make_sampler("tpe")
    proposed = [sampler.propose(WITH_CHOICE, known, 0, index, 0)["choice"] for index in range(30)]
    assert proposed.count(1.5) <= 3


def test_without_choices_the_sampler_sees_numbers_alone() -> None:
    assert all(isinstance(one, FloatDistribution) for one in distributions_of(RANGES).values())
    assert distributions_of(WITH_CHOICE)["choice"] == CategoricalDistribution((0.5, 1.5, 2.5))
