from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.methods import KNOBS, AdaTP, OneShot
from tests.tuner.fakes import make_planner, make_study
from tuner.errors import UserError
from tuner.planning import Planner
from tuner.results import Configuration
from tuner.search.space import BudgetSpace, KnobSpace, Range, knob_ranges, make_space, smallest_reachable
from tuner.study import Search

pytestmark = pytest.mark.quick

BUDGET = 0.32


@pytest.fixture(scope="module")
def planner() -> Planner:
    return make_planner(make_study(videos=20))


def points(ranges: Any, count: int) -> list[dict[str, float]]:
    random = np.random.default_rng(0)
    return [
        {name: float(random.uniform(one.low, one.high)) for name, one in ranges.items()} for _ in range(count)
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


def test_every_reachable_proposal_lands_on_its_target(planner: Planner) -> None:
    space = BudgetSpace(planner, Search(), BUDGET)
    lowest = smallest_reachable(planner, Search())
    for point in points(space.ranges, 30):
        candidate = space.candidate(point)
        target = BUDGET - (BUDGET - lowest) * (1 - point["compute"]) ** 3
        if candidate.configuration.get("p") != 0.2:
            assert target - 0.02 < candidate.binding_ratio <= target


@pytest.mark.parametrize("kind", [BudgetSpace, KnobSpace])
def test_a_configuration_finds_back_to_its_point(planner: Planner, kind: Any) -> None:
    space = kind(planner, Search(), BUDGET)
    for point in points(space.ranges, 20):
        candidate = space.candidate(point)
        back = space.point(candidate.configuration, candidate.binding_ratio)
        if back is not None:
            again = space.candidate(back)
            assert again.configuration.get("p") == pytest.approx(candidate.configuration.get("p"), abs=0.02)
            for name in ("tau_s", "tau_t", "alpha_boost"):
                assert again.configuration.get(name) == pytest.approx(
                    candidate.configuration.get(name), abs=1e-6
                )


def test_gamma_cap_is_never_below_p(planner: Planner) -> None:
    for space in (BudgetSpace(planner, Search(), BUDGET), KnobSpace(planner, Search(), BUDGET)):
        for point in points(space.ranges, 30):
            configuration = space.candidate(point).configuration
            assert float(configuration.get("gamma_cap")) >= float(configuration.get("p"))


@pytest.mark.parametrize("coordinates", ["budget", "knobs"])
def test_fixed_knobs_stay_and_bounds_hold(planner: Planner, coordinates: Any) -> None:
    search = Search(fixed=(("gamma_cap", 0.9), ("tau_s", 0.8)), bounds=(("alpha_boost", (1.2, 1.3)),))
    space = make_space(coordinates, planner, search, BUDGET)
    assert "headroom" not in space.ranges
    for point in points(space.ranges, 10):
        configuration = space.candidate(point).configuration
        assert configuration.get("gamma_cap") == 0.9
        assert configuration.get("tau_s") == pytest.approx(0.8)
        assert 1.2 <= float(configuration.get("alpha_boost")) <= 1.3
    assert space.defaults().configuration.get("gamma_cap") == 0.9
    assert space.defaults().configuration.get("alpha_boost") == 1.2


def test_the_defaults_are_adatps_with_p_solved_for_the_budget(planner: Planner) -> None:
    defaults = make_space("budget", planner, Search(), BUDGET).defaults()
    method = defaults.configuration.build()
    assert replace(method, p=0.85) == AdaTP()  # type: ignore[call-arg]
    assert BUDGET - 0.02 < defaults.binding_ratio <= BUDGET


def test_the_budget_holds_on_both_parts(planner: Planner) -> None:
    method = make_space("budget", planner, Search(), BUDGET).defaults().configuration.build()
    compute = planner.cost(method).compute
    assert set(compute) == {"tune", "held_out"}
    assert all(one.flops_ratio <= BUDGET for one in compute.values())


def test_what_lies_outside_of_a_space_has_no_point_in_it(planner: Planner) -> None:
    space = BudgetSpace(planner, Search(), BUDGET)
    assert space.point(Configuration.from_method(AdaTP()), BUDGET + 0.1) is None
    assert space.point(Configuration.from_method(OneShot(0.1)), BUDGET) is None
    assert space.point(Configuration.from_method(AdaTP(deduplicate="off")), BUDGET) is None


def test_unknown_coordinates_are_the_users_mistake(planner: Planner) -> None:
    with pytest.raises(UserError, match="budget or knobs, but got 'polar'"):
        make_space("polar", planner, Search(), BUDGET)  # type: ignore[arg-type]


def test_the_smallest_reachable_ratio_is_below_that_of_any_proposal(planner: Planner) -> None:
    space = BudgetSpace(planner, Search(), BUDGET)
    smallest = smallest_reachable(planner, Search())
    assert all(space.candidate(point).binding_ratio >= smallest for point in points(space.ranges, 20))
