"""How far compute ranges in the design, and maps whose cells are real configurations at what they cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.methods import AdaTP
from tests.tuner import fakes
from tuner.planning.planner import Planner
from tuner.search.space import Range, knob_ranges, smallest_reachable
from tuner.sensitivity.design import DesignSpace, Plane
from tuner.sensitivity.maps import POINTS, grid, place_of, plane
from tuner.study import Search
from tuner.study.values import Configuration

pytestmark = pytest.mark.quick

BUDGET = 0.5


@pytest.fixture(scope="module")
def planner() -> Planner:
    return fakes.make_planner(fakes.make_study())


def fixed(**knobs: float) -> Search:
    return Search(fixed=tuple(knobs.items()))


def make_plane(planner: Planner, inputs: tuple[str, str], search: Search | None = None) -> Plane:
    search = search or Search()
    method = planner.solve(AdaTP(alpha_boost=1.4), BUDGET)
    assert isinstance(method, AdaTP)
    ranges = {
        name: range_
        for name, range_ in knob_ranges(search, planner.similarities).items()
        if range_.low < range_.high
    }
    return plane(planner, DesignSpace(planner, search, BUDGET), method, ranges, inputs, points=7)


def test_compute_goes_from_a_third_of_the_budget_to_a_third_beyond_it(planner: Planner) -> None:
    smallest = smallest_reachable(planner, Search())
    assert BUDGET / 3 < smallest < BUDGET
    assert DesignSpace(planner, Search(), BUDGET).compute == Range(smallest, pytest.approx(4 / 3 * BUDGET))
    # More cannot be used than there is, and a third of it is above the smallest.
    assert DesignSpace(planner, Search(), 1.0).compute == Range(1 / 3, 1.0)
    assert DesignSpace(planner, Search(), 0.9).compute == Range(pytest.approx(0.3), 1.0)
    # A budget that hardly anything fits leaves what is beyond it; one that nothing comes near, nothing.
    assert DesignSpace(planner, Search(), smallest).compute == Range(
        smallest, pytest.approx(4 / 3 * smallest)
    )
    assert DesignSpace(planner, Search(), smallest / 2).compute is None


def test_the_design_has_the_choices_of_its_search(planner: Planner) -> None:
    search = Search(choices=(("deduplicate", ("drop",)), ("score_query", ("mean",))))
    space = DesignSpace(planner, search, BUDGET)
    assert space.inputs == DesignSpace(planner, Search(), BUDGET).inputs
    for point in space.sample(8):
        method = space.configuration(point).build()
        assert isinstance(method, AdaTP)
        assert (method.deduplicate, method.score_query) == ("drop", "mean")
        # p is solved for what is really asked.
        assert planner.binding_ratio(method) <= space.values(point[None])[0][-1] + 1e-9 or method.p == 0.2
    # Several values: those of the defaults; how far compute goes is theirs too.
    several = DesignSpace(planner, Search(choices=(("deduplicate", ("drop", "demote")),)), BUDGET)
    assert several.configuration(several.sample(1)[0]).get("deduplicate") == "demote"
    assert several.compute == DesignSpace(planner, Search(), BUDGET).compute


def test_compute_ends_where_the_studys_own_knobs_do(planner: Planner) -> None:
    space = DesignSpace(planner, fixed(p=0.6), BUDGET)
    assert space.compute is None
    assert space.inputs == ("tau_s", "tau_t", "alpha_boost", "gamma_cap")
    search = Search(bounds=(("p", (0.4, 0.6)), ("alpha_boost", (1.0, 1.1))))
    space = DesignSpace(planner, search, BUDGET)
    ratios = [planner.binding_ratio(space.configuration(point).build()) for point in space.sample(32)]
    assert space.compute is not None
    assert space.compute.low - 0.01 <= min(ratios)
    assert max(ratios) <= space.compute.high < 4 / 3 * BUDGET


def test_the_designs_runs_lie_on_both_sides_of_the_budget_and_where_they_say(planner: Planner) -> None:
    space = DesignSpace(planner, Search(), BUDGET)
    unit = space.sample(32)
    found = [space.configuration(point) for point in unit]
    ratios = np.array([planner.binding_ratio(configuration.build()) for configuration in found])
    assert space.compute is not None
    assert ratios.max() <= space.compute.high + 1e-9
    assert 0.1 < (ratios > BUDGET).mean() < 0.6
    # Where p is solved for the target, the way back leads to the point; but for whole tokens.
    target = space.values(unit)[:, -1]
    reached = ratios <= target + 1e-9
    assert reached.mean() > 0.5
    back = np.array([space.unit(item, ratio) for item, ratio in zip(found, ratios, strict=True)])
    assert back[reached][:, :3] == pytest.approx(unit[reached][:, :3], abs=1e-6)
    assert back[reached][:, 4] == pytest.approx(unit[reached][:, 4], abs=0.05)


def test_a_point_beyond_the_design_says_so_and_what_changes_nothing_is_its_end(planner: Planner) -> None:
    space = DesignSpace(planner, Search(), BUDGET)
    assert space.compute is not None
    configuration = Configuration.from_method(AdaTP(tau_s=1.0, gamma_cap=0.3, p=0.6))
    low, high = (space.unit(configuration, ratio) for ratio in (0.99 * space.compute.low, 0.7))
    assert low[-1] < 0
    assert high[-1] > 1
    assert low[0] == 1  # above every similarity
    assert low[3] == 0  # a cap below p


@pytest.mark.parametrize("inputs", [("compute", "tau_s"), ("tau_t", "compute"), ("alpha_boost", "gamma_cap")])
def test_every_cell_is_the_reference_with_two_knobs_elsewhere(
    planner: Planner, inputs: tuple[str, str]
) -> None:
    found = make_plane(planner, inputs)
    reference = planner.solve(AdaTP(alpha_boost=1.4), BUDGET)
    space = DesignSpace(planner, Search(), BUDGET)
    first, second = found.knobs
    assert found.knobs == tuple("p" if input_ == "compute" else input_ for input_ in inputs)
    assert found.reference == (getattr(reference, first), getattr(reference, second))
    assert found.unit.shape == (7, 7, 5)
    for i, j in ((0, 0), (3, 5), (6, 2), (6, 6)):
        changed = {first: found.values[0][i], second: found.values[1][j]}
        method = replace(reference, **{name: float(value) for name, value in changed.items()})
        assert found.flops_ratio[i, j] == planner.binding_ratio(method)
        expected = space.unit(Configuration.from_method(method), found.flops_ratio[i, j])
        assert np.array_equal(found.unit[i, j], expected)
    for values, chosen in zip(found.values, found.reference, strict=True):
        assert values[0] <= chosen <= values[-1]
        assert (np.diff(values) > 0).all()


def test_along_p_a_map_shows_what_the_design_covers_and_the_budget_lies_at_the_reference(
    planner: Planner,
) -> None:
    found = make_plane(planner, ("compute", "tau_t"))
    space = DesignSpace(planner, Search(), BUDGET)
    assert space.compute is not None
    reference = planner.solve(AdaTP(alpha_boost=1.4), BUDGET)
    along = [planner.binding_ratio(replace(reference, p=float(value))) for value in found.values[0]]
    assert space.compute.low - 0.02 <= along[0]
    assert space.compute.high - 0.02 <= along[-1] <= space.compute.high
    # The reference's p is the largest that fits: right above it is the budget's line.
    assert planner.binding_ratio(reference) <= BUDGET
    assert planner.binding_ratio(replace(reference, p=reference.p + 0.02)) > BUDGET
    inside = (found.unit[..., -1] >= 0) & (found.unit[..., -1] <= 1)
    over = (found.flops_ratio < space.compute.low) | (found.flops_ratio > space.compute.high)
    assert np.array_equal(inside, ~over)
    assert over.any()  # with tau_t at 0 everything is boosted
    assert inside.mean() > 0.5


def test_where_p_is_fixed_compute_limits_no_map(planner: Planner) -> None:
    found = make_plane(planner, ("tau_s", "tau_t"), fixed(p=0.6))
    assert found.unit.shape == (7, 7, 4)
    assert ((found.unit >= 0) & (found.unit <= 1)).all()


def test_values_are_even_where_they_are_shown() -> None:
    values = grid("tau_s", Range(0.5, 1.0))
    assert values.shape == (POINTS,)
    assert (values[0], values[-1]) == (0.5, 1.0)
    assert np.diff([place_of("tau_s", value) for value in values]) == pytest.approx(
        (4 - np.log10(2)) / (POINTS - 1)
    )
    assert grid("p", Range(0.2, 0.6), points=3) == pytest.approx([0.2, 0.4, 0.6])
