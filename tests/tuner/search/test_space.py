from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.methods import KNOBS, AdaTP, FastV
from tests.tuner.fakes import make_planner, make_study
from tuner.errors import UserError
from tuner.planning.planner import Planner
from tuner.search.optuna_sampler import make_sampler
from tuner.search.space import (
    Bins,
    Candidate,
    Range,
    SearchSpace,
    allows,
    cheapest,
    knob_ranges,
    smallest_reachable,
)
from tuner.study import Search
from tuner.study.values import Configuration

pytestmark = pytest.mark.quick

BUDGET = 0.32


@pytest.fixture(scope="module")
def planner() -> Planner:
    return make_planner(make_study(videos=20))


def of_knobs(planner: Planner, values: dict[str, float]) -> Candidate:
    """A configuration that no sampler proposed: these knobs, with gamma_cap at p or above."""
    method = AdaTP(**values | {"gamma_cap": max(values["gamma_cap"], values["p"])})
    return Candidate(Configuration.from_method(method), planner.binding_ratio(method))


def points(ranges: Any, count: int) -> list[dict[str, float]]:
    random = np.random.default_rng(0)
    return [
        {name: float(random.uniform(range_.low, range_.high)) for name, range_ in ranges.items()}
        for _ in range(count)
    ]


def test_ranges_are_those_of_adatp_and_tau_s_those_of_the_videos(planner: Planner) -> None:
    ranges = knob_ranges(Search(), planner.similarities)
    assert tuple(ranges) == KNOBS
    assert ranges["alpha_boost"] == Range(1.0, 1.5)
    assert ranges["p"] == Range(0.2, 1.0)
    assert ranges["tau_s"].low == 0.5
    assert ranges["tau_s"].high == pytest.approx(planner.similarities[-1], abs=1e-5)


def test_only_tune_videos_shape_the_search() -> None:
    study = make_study(videos=2)
    similarities = make_planner(study).similarities
    assert similarities.size == 15


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (Search(fixed=(("tau", 0.5),)), "AdaTP's knobs are tau_s"),
        (Search(bounds=(("p", (0.9, 0.3)),)), r"`low <= high` must hold for the bounds of p"),
        (Search(fixed=(("alpha_boost", 0.5),)), "alpha_boost lies in"),
    ],
)
def test_a_search_that_does_not_fit_adatp_is_the_users_mistake(search: Search, message: str) -> None:
    with pytest.raises(UserError, match=message):
        knob_ranges(search, np.zeros(0))


# What a study may say of the two knobs that share one parameter, and the parameters that are left.
BOOSTS = {
    "open": Search(),
    "gamma_cap fixed": Search(fixed=(("gamma_cap", 0.8),)),
    "gamma_cap bounded": Search(bounds=(("gamma_cap", (0.5, 0.8)), ("alpha_boost", (1.1, 1.4)))),
    "alpha_boost fixed": Search(fixed=(("alpha_boost", 1.3),)),
    "alpha_boost bounded": Search(bounds=(("alpha_boost", (1.2, 1.4)),)),
    "alpha_boost fixed, gamma_cap bounded": Search(
        fixed=(("alpha_boost", 1.3),), bounds=(("gamma_cap", (0.5, 0.8)),)
    ),
    "both fixed": Search(fixed=(("alpha_boost", 1.2), ("gamma_cap", 0.9))),
    "p bounded": Search(bounds=(("p", (0.3, 0.95)),)),
}
each_boost = pytest.mark.parametrize("search", BOOSTS.values(), ids=BOOSTS.keys())
GOALS: list[tuple[Any, float]] = [("budget", BUDGET), ("max_drop", 1.0)]
each_goal = pytest.mark.parametrize(("goal", "budget"), GOALS)


@pytest.fixture(scope="module")
def small() -> Planner:
    return make_planner(make_study(videos=8))


def boosted(candidate: Candidate) -> float:
    method = candidate.configuration.build()
    assert isinstance(method, AdaTP)
    return method.boosted_ratio


@each_boost
@each_goal
def test_every_reachable_proposal_lands_on_its_target(
    planner: Planner, search: Search, goal: Any, budget: float
) -> None:
    space = SearchSpace(planner, search, budget, goal)
    p = knob_ranges(search, planner.similarities)["p"]
    lowest = smallest_reachable(planner, search)
    landed = 0
    for point in points(space.ranges, 8):
        candidate = space.candidate(point)
        target = budget - (budget - lowest) * (1 - point["compute"]) ** 3
        if goal == "max_drop":
            target = lowest ** (1 - point["compute"])
        if p.low < float(candidate.configuration.get("p")) < p.high:
            landed += 1
            assert target - 0.02 < candidate.binding_ratio <= target + 1e-9
    assert landed >= 4


@each_boost
@each_goal
def test_a_proposal_finds_back_to_its_plans(small: Planner, search: Search, goal: Any, budget: float) -> None:
    space = SearchSpace(small, search, budget, goal)
    p = knob_ranges(search, small.similarities)["p"]
    found = 0
    for point in points(space.ranges, 8):
        candidate = space.candidate(point)
        if candidate.binding_ratio > budget or candidate.configuration.get("p") == p.low:
            continue  # the target could not be reached
        found += 1
        back = space.point(candidate.configuration, candidate.binding_ratio)
        assert back is not None
        again = space.candidate(back)
        assert plans(small, again) == plans(small, candidate)
        assert again.binding_ratio == candidate.binding_ratio
        for name in ("tau_s", "tau_t", "p"):
            assert again.configuration.get(name) == pytest.approx(candidate.configuration.get(name), abs=1e-6)
    assert found >= 4


@each_boost
def test_any_configuration_that_the_study_allows_has_a_point(small: Planner, search: Search) -> None:
    """Also where gamma_cap binds. A p between two steps of the binding part is moved to the upper one."""
    space = SearchSpace(small, search, 1.0)
    highest = knob_ranges(search, small.similarities)["gamma_cap"].high
    bound = 0
    for point in points(knob_ranges(search, small.similarities), 12):
        candidate = of_knobs(small, point)
        method = candidate.configuration.build()
        assert isinstance(method, AdaTP)
        bound += method.binds == "gamma_cap"
        back = space.point(candidate.configuration, candidate.binding_ratio)
        assert back is not None
        again = space.candidate(back)
        assert again.binding_ratio == candidate.binding_ratio
        p = float(again.configuration.get("p"))
        assert method.p - 1e-6 <= p < method.p + 0.02
        assert boosted(again) == pytest.approx(max(p, min(method.boosted_ratio / method.p * p, highest)))
    assert bound >= 1


def plans(planner: Planner, candidate: Candidate) -> tuple[str, ...]:
    return planner.fingerprints(candidate.configuration.build())


def test_boost_is_the_logarithm_of_what_a_relevant_segment_keeps_more(planner: Planner) -> None:
    space = SearchSpace(planner, Search(), BUDGET)
    assert list(space.ranges) == ["segments", "tau_t", "boost", "compute"]
    for boost in (0.0, 0.3, 1.0):
        candidate = space.candidate({"segments": 0.4, "tau_t": 0.5, "boost": boost, "compute": 0.9})
        p = float(candidate.configuration.get("p"))
        assert p < 0.6
        assert math.log(boosted(candidate) / p) == pytest.approx(boost * math.log(1.5))
        assert candidate.configuration.get("alpha_boost") == pytest.approx(1.5**boost)
        assert candidate.configuration.get("gamma_cap") == 0.95


def test_gamma_cap_does_not_bind_while_the_ratio_is_below_1(planner: Planner) -> None:
    space = SearchSpace(planner, Search(), 1.0, "max_drop")
    raised = 0
    for point in points(space.ranges | {"compute": Range(0.6, 1.0)}, 30):
        method = space.candidate(point).configuration.build()
        assert isinstance(method, AdaTP)
        if method.alpha_boost * method.p <= 0.95:
            assert method.gamma_cap == 0.95
        elif method.alpha_boost * method.p <= 1:
            raised += 1
            assert method.binds == "alpha_boost"
            assert method.gamma_cap - method.alpha_boost * method.p <= 1e-6
        else:
            assert method.gamma_cap == 1.0
    assert raised


def test_where_alpha_boost_is_fixed_gamma_cap_moves(planner: Planner) -> None:
    space = SearchSpace(planner, Search(fixed=(("alpha_boost", 1.3),)), BUDGET)
    point = {"segments": 0.4, "tau_t": 0.5, "compute": 0.9}
    for boost in (0.0, 0.5, 1.0):
        candidate = space.candidate(point | {"boost": boost})
        p = float(candidate.configuration.get("p"))
        assert candidate.configuration.get("alpha_boost") == 1.3
        assert boosted(candidate) == pytest.approx(1.3**boost * p)
        assert candidate.configuration.get("gamma_cap") == pytest.approx(
            1.3**boost * p if boost < 1 else 0.95
        )


@each_boost
@each_goal
def test_what_the_study_says_of_the_boost_holds(
    planner: Planner, search: Search, goal: Any, budget: float
) -> None:
    space = SearchSpace(planner, search, budget, goal)
    allowed = knob_ranges(search, planner.similarities)
    assert ("boost" in space.ranges) == (search != BOOSTS["both fixed"])
    for point in points(space.ranges, 6):
        configuration = space.candidate(point).configuration
        assert all(float(configuration.get(name)) in allowed[name] for name in KNOBS)


def test_a_fixed_p_leaves_no_target(planner: Planner) -> None:
    space = SearchSpace(planner, Search(fixed=(("p", 0.5),)), BUDGET)
    assert list(space.ranges) == ["segments", "tau_t", "boost"]
    for point in points(space.ranges, 5):
        candidate = space.candidate(point)
        assert candidate.configuration.get("p") == 0.5
        if candidate.binding_ratio <= BUDGET:
            back = space.point(candidate.configuration, candidate.binding_ratio)
            assert back == pytest.approx(point)


def test_without_a_budget_targets_are_even_in_their_logarithm(planner: Planner) -> None:
    space = SearchSpace(planner, Search(), 1.0, "max_drop")
    lowest = smallest_reachable(planner, Search())
    point = {"segments": 0.4, "tau_t": 0.5, "boost": 0.1}
    ratios = [space.candidate(point | {"compute": compute}).binding_ratio for compute in (0, 1 / 3, 2 / 3, 1)]
    assert ratios[-1] == 1.0
    assert np.log(ratios) == pytest.approx(np.log(lowest) * np.array([1, 2 / 3, 1 / 3, 0]), abs=0.06)


def test_more_compute_for_the_same_other_knobs(planner: Planner) -> None:
    space = SearchSpace(planner, Search(), BUDGET)
    best = space.defaults().configuration
    above = space.above(best, 0.5)
    assert 0.48 < above.binding_ratio <= 0.5
    assert above.binding_ratio == planner.binding_ratio(above.configuration.build())  # type: ignore[arg-type]
    assert {name: best.get(name) for name in KNOBS[:4]} == {
        name: above.configuration.get(name) for name in KNOBS[:4]
    }
    assert space.above(best, 1.0).configuration.get("p") == 1.0
    fixed = SearchSpace(planner, Search(fixed=(("p", 0.5),)), BUDGET)
    assert fixed.above(best, 0.5).configuration == best
    capped = SearchSpace(planner, Search(bounds=(("p", (0.3, 0.6)),)), BUDGET)
    assert capped.above(best, 0.9).configuration.get("p") == 0.6
    with pytest.raises(TypeError, match="one_shot"):
        space.above(Configuration.from_method(FastV(0.1)), 0.5)


def test_gamma_cap_is_never_below_p(planner: Planner) -> None:
    space = SearchSpace(planner, Search(), BUDGET)
    for point in points(space.ranges, 30):
        configuration = space.candidate(point).configuration
        assert float(configuration.get("gamma_cap")) >= float(configuration.get("p"))


def test_fixed_knobs_stay_and_bounds_hold(planner: Planner) -> None:
    search = Search(fixed=(("gamma_cap", 0.9), ("tau_s", 0.8)), bounds=(("alpha_boost", (1.2, 1.3)),))
    space = SearchSpace(planner, search, BUDGET)
    for point in points(space.ranges, 10):
        configuration = space.candidate(point).configuration
        assert configuration.get("gamma_cap") == 0.9
        assert configuration.get("tau_s") == pytest.approx(0.8)
        assert 1.2 <= float(configuration.get("alpha_boost")) <= 1.3
    assert space.defaults().configuration.get("gamma_cap") == 0.9
    assert space.defaults().configuration.get("alpha_boost") == 1.2


def test_the_defaults_are_adatps_with_p_solved_for_the_budget(planner: Planner) -> None:
    defaults = SearchSpace(planner, Search(), BUDGET).defaults()
    method = defaults.configuration.build()
    assert replace(method, p=0.85) == AdaTP()  # type: ignore[call-arg]
    assert BUDGET - 0.02 < defaults.binding_ratio <= BUDGET


def test_without_a_budget_the_defaults_are_adatps_altogether(planner: Planner) -> None:
    assert SearchSpace(planner, Search(), 1.0, "max_drop").defaults().configuration.build() == AdaTP()
    narrowed = SearchSpace(planner, Search(bounds=(("p", (0.3, 0.6)),)), 1.0, "max_drop")
    assert narrowed.defaults().configuration.get("p") == 0.6


def test_the_budget_holds_on_both_parts(planner: Planner) -> None:
    method = SearchSpace(planner, Search(), BUDGET).defaults().configuration.build()
    compute = planner.cost(method).compute
    assert set(compute) == {"tune", "held_out"}
    assert all(measurement.flops_ratio <= BUDGET for measurement in compute.values())


def test_what_lies_outside_of_a_space_has_no_point_in_it(planner: Planner) -> None:
    space = SearchSpace(planner, Search(), BUDGET)
    assert space.point(Configuration.from_method(AdaTP()), BUDGET + 0.1) is None
    assert space.point(Configuration.from_method(FastV(0.1)), BUDGET) is None
    assert space.point(Configuration.from_method(AdaTP(deduplicate="off")), BUDGET) is None


def test_what_the_study_excludes_now_has_no_point(planner: Planner) -> None:
    loose = SearchSpace(planner, Search(), BUDGET)
    candidate = loose.candidate({"segments": 0.4, "tau_t": 0.5, "boost": 0.2, "compute": 0.9})
    for excluding in (
        Search(fixed=(("alpha_boost", 1.2), ("gamma_cap", 0.9))),
        Search(bounds=(("alpha_boost", (1.0, 1.05)),)),
        Search(fixed=(("gamma_cap", 0.8),), bounds=(("alpha_boost", (1.2, 1.3)),)),
        Search(bounds=(("p", (0.8, 0.9)),)),
        Search(bounds=(("tau_t", (0.6, 0.9)),)),
        Search(fixed=(("tau_s", 0.99),)),
    ):
        space = SearchSpace(planner, excluding, 1.0)
        assert space.point(candidate.configuration, candidate.binding_ratio) is None


def test_what_the_budget_holds_up_to_floating_point_has_a_point(planner: Planner) -> None:
    defaults = SearchSpace(planner, Search(), BUDGET).defaults()
    space = SearchSpace(planner, Search(), defaults.binding_ratio - 1e-10)
    point = space.point(defaults.configuration, defaults.binding_ratio)
    assert point is not None
    assert point["compute"] == 1.0


@each_boost
def test_the_smallest_reachable_ratio_is_below_that_of_any_proposal(planner: Planner, search: Search) -> None:
    smallest = cheapest(planner, search)
    assert smallest.binding_ratio == smallest_reachable(planner, search)
    assert smallest.binding_ratio == planner.binding_ratio(smallest.configuration.build())  # type: ignore[arg-type]
    allowed = knob_ranges(search, planner.similarities)
    assert all(float(smallest.configuration.get(name)) in allowed[name] for name in KNOBS)
    space = SearchSpace(planner, search, BUDGET)
    made = [space.candidate(point) for point in points(space.ranges, 6)]
    made += [of_knobs(planner, point) for point in points(allowed, 6)]
    assert all(configuration.binding_ratio >= smallest.binding_ratio for configuration in made)


def test_the_cheapest_configuration_looks_like_one(planner: Planner) -> None:
    configuration = cheapest(planner, Search()).configuration
    assert [configuration.get(name) for name in KNOBS] == [0.5, 1.0, 1.0, 0.2, 0.2]


# Choices

ALL = ("demote", "drop", "off")
SEARCHED = Search(choices=(("deduplicate", ALL), ("score_query", ("mean", "last"))))


def listing(*values: str) -> Search:
    return Search(choices=(("deduplicate", values),))


def test_a_bin_holds_what_lies_in_it_and_its_end_belongs_to_the_last() -> None:
    bins = Bins(0.0, 3.0)
    assert bins.places == (0.5, 1.5, 2.5)
    for value, index in ((0.0, 0), (0.99, 0), (1.0, 1), (2.0, 2), (3.0, 2), (-1.0, 0), (9.0, 2)):
        assert bins.index(value) == index
        assert bins.clip(value) == bins.places[index]
        assert bins.clip(value) in bins
    assert 0.6 not in bins


def test_choices_go_through_the_space_and_back(small: Planner) -> None:
    space = SearchSpace(small, SEARCHED, 1.0)
    assert tuple(space.ranges)[-2:] == ("deduplicate", "score_query")
    assert space.ranges["deduplicate"] == Bins(0.0, 3.0)
    seen = set()
    for point in points(space.ranges, 24):
        candidate = space.candidate(point)
        made = candidate.configuration
        seen.add((made.get("deduplicate"), made.get("score_query")))
        assert made.get("deduplicate") == ALL[int(point["deduplicate"])]
        back = space.point(made, candidate.binding_ratio)
        assert back is not None
        assert back["deduplicate"] == int(point["deduplicate"]) + 0.5
        assert space.covers(back, made)
        assert space.candidate(back).configuration.get("score_query") == made.get("score_query")
    assert len(seen) == 6


def test_without_choices_nothing_is_another(small: Planner) -> None:
    plain = SearchSpace(small, Search(), BUDGET)
    assert list(plain.ranges) == ["segments", "tau_t", "boost", "compute"]
    assert all(type(range_) is Range for range_ in plain.ranges.values())
    # A single value is no parameter: the sampler proposes what it would without.
    fixed = SearchSpace(small, listing("drop"), BUDGET)
    assert dict(fixed.ranges).keys() == plain.ranges.keys()
    named = SearchSpace(small, listing("demote"), BUDGET)
    assert named.ranges == plain.ranges
    sampler = make_sampler("tpe")
    proposed = [[sampler.propose(item.ranges, [], 3, k, 0) for k in range(4)] for item in (plain, named)]
    assert proposed[0] == proposed[1]
    for point in proposed[0]:
        assert named.candidate(point) == plain.candidate(point)
        assert fixed.candidate(point).configuration.get("deduplicate") == "drop"


def test_the_defaults_are_adatps_where_they_are_listed_and_else_the_first(
    small: Planner,
) -> None:
    for values, expected in ((("drop", "demote"), "demote"), (("off", "drop"), "off"), (("drop",), "drop")):
        made = SearchSpace(small, listing(*values), BUDGET).defaults().configuration
        assert made.get("deduplicate") == expected
        assert made.get("score_query") == "last"
    # p is solved for the budget with that choice, and dropped repeats leave room for more.
    ratio = {
        way: SearchSpace(small, listing(way), BUDGET).defaults().configuration.get("p")
        for way in ("demote", "drop")
    }
    assert ratio["drop"] > ratio["demote"]


def test_the_cheapest_is_over_all_listed_values(small: Planner) -> None:
    alone = {method: smallest_reachable(small, listing(method)) for method in ALL}
    assert alone["drop"] < alone["demote"]
    assert smallest_reachable(small, SEARCHED) == min(alone.values())
    assert cheapest(small, listing("demote", "drop")).configuration.get("deduplicate") == "drop"
    assert smallest_reachable(small, Search()) == alone["demote"]


def test_what_lies_above_the_budget_keeps_the_choices_of_its_configuration(small: Planner) -> None:
    space = SearchSpace(small, SEARCHED, BUDGET)
    method = AdaTP(deduplicate="drop", score_query="mean", p=0.4)
    above = space.above(Configuration.from_method(method), 0.4).configuration.build()
    assert isinstance(above, AdaTP)
    assert above == replace(method, p=above.p)
    assert above.p > 0.4


def test_a_choice_that_is_not_listed_has_no_point(small: Planner) -> None:
    space = SearchSpace(small, listing("demote", "drop"), 1.0)
    for method, inside in (
        (AdaTP(tau_s=0.9), True),
        (AdaTP(tau_s=0.9, deduplicate="drop"), True),
        (AdaTP(tau_s=0.9, deduplicate="off"), False),
        (AdaTP(tau_s=0.9, score_query="mean"), False),
        (AdaTP(tau_s=0.9, relevance_norm="zscore"), False),
    ):
        found = space.point(Configuration.from_method(method), small.binding_ratio(method))
        assert (found is not None) == inside


def test_a_point_of_before_the_study_changed_is_told_from_one_of_this_space(small: Planner) -> None:
    made = Configuration.from_method(AdaTP(deduplicate="drop"))
    space = SearchSpace(small, listing("demote", "drop"), BUDGET)
    point = {"segments": 0.9, "tau_t": 0.5, "boost": 0.2, "compute": 0.5}
    assert space.covers(point | {"deduplicate": 1.5}, made)
    assert not space.covers(point, made)
    assert not space.covers(point | {"deduplicate": 0.5}, made)
    assert not space.covers(point | {"deduplicate": 1.5, "compute": 1.5}, made)
    assert SearchSpace(small, listing("drop"), BUDGET).covers(point, made)
    assert not SearchSpace(small, Search(), BUDGET).covers(point, made)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ((("relevance_norm", ("raw",)),), "the choices searched are deduplicate, score_query"),
        ((("deduplicate", ("maybe",)),), "is one of 'demote', 'drop', 'off'.* but got 'maybe'"),
        ((("deduplicate", ("drop", "drop")),), "none twice"),
        ((("score_query", ()),), "but got none"),
    ],
)
def test_choices_that_do_not_fit_adatp_are_the_users_mistake(
    small: Planner, choices: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        SearchSpace(small, Search(choices=choices), BUDGET)


@pytest.mark.parametrize(
    ("search", "allowed"),
    [
        (Search(), True),
        (Search(fixed=(("alpha_boost", 1.2),), bounds=(("tau_t", (0.5, 0.7)),)), True),
        (Search(fixed=(("alpha_boost", 1.0),)), False),
        (Search(bounds=(("tau_t", (0.0, 0.5)),)), False),
        # p is solved: what lies on a bound is within.
        (Search(bounds=(("p", (0.2, 0.8 - 1e-12)),)), True),
        (Search(choices=(("deduplicate", ("demote", "drop")),)), True),
        (Search(choices=(("deduplicate", ("drop", "off")),)), False),
        # What is not listed is at AdaTP's default.
        (Search(choices=(("score_query", ("mean",)),)), False),
    ],
)
def test_a_study_allows_what_keeps_to_its_fixed_values_bounds_and_choices(search, allowed) -> None:
    method = AdaTP(tau_s=0.9, tau_t=0.6, alpha_boost=1.2, p=0.8)
    assert allows(search, Configuration.from_method(method)) is allowed
