from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers._tpe import sampler as tpe
from optuna.trial import FrozenTrial, TrialState

from tuner.errors import UserError
from tuner.search.optuna_sampler import (
    MOST_COMPLETED,
    MOST_OTHERS,
    OTHERS_PER_COMPLETED,
    OptunaSampler,
    _trial,
    distributions_of,
    leading,
    make_sampler,
    told,
)
from tuner.search.sampler import SAMPLERS, Observation, SamplerName
from tuner.search.space import Bins, Range

pytestmark = pytest.mark.quick

RANGES = {"a": Range(0.0, 1.0), "b": Range(0.0, 1.0), "fixed": Range(0.5, 0.5)}


def completed(a: float, b: float) -> Observation:
    """Accurate near a = 0.7, and costing b; the budget is 0.5."""
    return Observation({"a": a, "b": b, "fixed": 0.5}, (1 - abs(a - 0.7), b), b - 0.5)


def infeasible(a: float, b: float) -> Observation:
    return Observation({"a": a, "b": b, "fixed": 0.5}, None, b - 0.5, "infeasible")


def pruned(a: float, b: float) -> Observation:
    return Observation({"a": a, "b": b, "fixed": 0.5}, None, b - 0.5, "pruned")


def observations(feasible: int, over: int) -> list[Observation]:
    random = np.random.default_rng(0)
    good = [completed(float(a), float(b) / 2) for a, b in random.random((feasible, 2))]
    bad = [infeasible(float(a), 0.51 + float(b) * 0.49) for a, b in random.random((over, 2))]
    return (
        [item for pair in zip(good, bad, strict=False) for item in pair] + good[len(bad) :] + bad[len(good) :]
    )


def mixed(completes: int, others: int, seed: int = 0) -> list[Observation]:
    """Completed trials within the budget among pruned, infeasible and completed ones above it."""
    random = np.random.default_rng(seed)
    kinds = [completed] * completes + [(pruned, infeasible, completed, pruned)[k % 4] for k in range(others)]
    over = [False] * completes + [k % 4 in (1, 2) for k in range(others)]
    return [
        kinds[k](float(a), 0.5 + float(b) / 2 if over[k] else float(b) / 2)
        for k, (a, b) in zip(random.permutation(len(kinds)), random.random((len(kinds), 2)), strict=True)
    ]


@pytest.mark.parametrize("name", SAMPLERS)
def test_equal_observations_give_equal_proposals(name: SamplerName) -> None:
    for count in (0, 3, 11):
        known = observations(count, count)
        first, again = (make_sampler(name).propose(RANGES, known, 1, 7, 2) for _ in range(2))
        assert first == again


@pytest.mark.parametrize("name", SAMPLERS)
def test_seed_index_and_attempt_each_change_the_proposal(name: SamplerName) -> None:
    known = observations(12, 5)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    points = [make_sampler(name).propose(RANGES, known, *key) for key in keys]
    assert len({(point["a"], point["b"]) for point in points}) == 4


@pytest.mark.parametrize("name", SAMPLERS)
def test_proposals_lie_inside_the_ranges(name: SamplerName) -> None:
    known = observations(12, 12)
    for index in range(20):
        point = make_sampler(name).propose(RANGES, known, 0, index, 0)
        assert point.keys() == RANGES.keys()
        assert all(point[name] in range_ for name, range_ in RANGES.items())


def test_an_unknown_sampler_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="tpe, random, but got 'cmaes'"):
        make_sampler("cmaes")  # type: ignore[arg-type]


def test_it_learns_where_answers_are_right_and_the_budget_holds() -> None:
    known = observations(60, 60)
    proposals = [make_sampler("tpe").propose(RANGES, known, 0, index, 0) for index in range(30)]
    assert np.mean([abs(proposal["a"] - 0.7) for proposal in proposals]) < 0.15
    assert np.mean([proposal["b"] <= 0.5 for proposal in proposals]) > 0.9


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
    for trial in (_trial(item, distributions_of(RANGES)) for item in told(known)):
        if trial.state == TrialState.COMPLETE:
            trial.values = trial.values[:1]
        study.add_trial(trial)
    good, _ = tpe._split_trials(study, study.trials, tpe.default_gamma(len(study.trials)))
    check_good(good, known)


def check_good(good: list[FrozenTrial], known: list[Observation]) -> None:
    assert good
    assert {trial.state for trial in good} == {TrialState.COMPLETE}
    within = [trial.point for trial in known if trial.values is not None and trial.over_budget <= 0]
    assert all(trial.params in within for trial in good)


def test_without_the_limit_pruned_trials_would_be_called_good() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trials([_trial(item, distributions_of(RANGES)) for item in mixed(5, 95)])
    good, _ = tpe._split_trials(study, study.trials, tpe.default_gamma_multiobjective(100))
    assert TrialState.PRUNED in {trial.state for trial in good}


def test_a_pruned_trial_has_no_values_of_any_kind() -> None:
    with pytest.raises(ValueError, match="Completed trials have values and no others"):
        Observation({"a": 0.1}, (0.9, 0.3), -0.1, "pruned")
    trial = _trial(pruned(0.1, 0.2), distributions_of(RANGES))
    assert (trial.state, trial.values, trial.intermediate_values) == (TrialState.PRUNED, None, {})
    assert list(trial.constraints.values()) == [pytest.approx(-0.3)]


def test_what_tpe_is_told_is_all_that_completed_and_the_latest_of_the_rest() -> None:
    known = mixed(2, 50)

    def within(one: Observation) -> bool:
        return one.values is not None and one.over_budget <= 0

    kept = told(known)
    assert [observation for observation in kept if within(observation)] == [
        item for item in known if within(item)
    ]
    others = [observation for observation in kept if not within(observation)]
    assert others == [item for item in known if not within(item)][-2 * OTHERS_PER_COMPLETED :]
    assert {other.state for other in others} >= {"pruned", "infeasible"}
    assert told([item for item in known if not within(item)]) == []


def test_pending_trials_are_told_and_keep_the_sampler_away() -> None:
    known = observations(40, 20)
    apart = {}
    for tell in (False, True):
        distances = []
        for seed in range(6):
            points: list[np.ndarray] = []
            pending: list[Observation] = []
            for index in range(8):
                point = make_sampler("tpe").propose(RANGES, known + pending, seed, index, 0)
                points.append(np.array([point["a"], point["b"]]))
                if tell:
                    pending.append(Observation(point, None, point["b"] - 0.5, "pending"))
            assert told(known + pending)[len(known) :] == pending
            distances += [
                min(np.abs(point - other).sum() for other in points if other is not point) for point in points
            ]
        apart[tell] = np.mean(distances)
    assert apart[True] > 1.1 * apart[False]


def test_what_tpe_is_told_is_bounded_and_holds_the_best() -> None:
    known = mixed(400, 2000)
    kept = told(known)
    assert len(kept) == MOST_COMPLETED + MOST_OTHERS
    assert kept == [item for item in known if item in kept]
    values = [trial.values for trial in known if trial.values is not None and trial.over_budget <= 0]
    best = {
        value
        for value in values
        if not any(b[0] >= value[0] and b[1] <= value[1] and b != value for b in values)
    }
    assert best <= {observation.values for observation in kept}
    # The latest are there too.
    assert known[-1] in kept


def test_the_best_come_first_by_rank() -> None:
    assert leading([(0.5, 0.3), (0.9, 0.3), (0.4, 0.1), (0.3, 0.2), (0.45, 0.2)], 4) == [4, 2, 1, 3]
    assert leading([(0.5, 0.3)] * 3, 2) == [0, 1]


# Values without an order

WITH_CHOICE = RANGES | {"choice": Bins(0.0, 3.0)}


def chosen(a: float, b: float, choice: int) -> Observation:
    """The middle one of three values costs accuracy: a neighbour of both that are good."""
    accuracy = 1 - abs(a - 0.7) - 0.3 * (choice == 1)
    return Observation({"a": a, "b": b, "fixed": 0.5, "choice": choice + 0.5}, (accuracy, b), b - 0.5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_choice_is_proposed_at_its_places_from_seed_index_and_attempt_alone(name: SamplerName) -> None:
    random = np.random.default_rng(1)
    known = [chosen(float(a), float(b) / 2, k % 3) for k, (a, b) in enumerate(random.random((12, 2)))]
    known.append(Observation({"a": 0.1, "b": 0.9, "fixed": 0.5, "choice": 2.5}, None, 0.4, "infeasible"))
    sampler = make_sampler(name)
    points = [sampler.propose(WITH_CHOICE, known, 0, 12, attempt) for attempt in range(4)]
    assert points == [make_sampler(name).propose(WITH_CHOICE, known, 0, 12, attempt) for attempt in range(4)]
    assert all(point[name] in WITH_CHOICE[name] for point in points for name in WITH_CHOICE)


def test_tpe_does_not_take_a_value_for_a_neighbour_of_the_good_ones() -> None:
    random = np.random.default_rng(0)
    known = [chosen(float(a), float(b) / 2, k % 3) for k, (a, b) in enumerate(random.random((60, 2)))]
    sampler = make_sampler("tpe")
    proposed = [sampler.propose(WITH_CHOICE, known, 0, index, 0)["choice"] for index in range(30)]
    assert proposed.count(1.5) <= 3


def test_without_choices_the_sampler_sees_numbers_alone() -> None:
    assert all(
        isinstance(distribution, FloatDistribution) for distribution in distributions_of(RANGES).values()
    )
    assert distributions_of(WITH_CHOICE)["choice"] == CategoricalDistribution((0.5, 1.5, 2.5))
