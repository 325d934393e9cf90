"""Where thresholds act: plans between breakpoints, exact FLOPs at every step, ranges within the budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.methods import AdaTP
from tests.tuner import fakes
from tuner.planning.planner import Planner
from tuner.search.space import Range
from tuner.sensitivity.breakpoints import steps
from tuner.sensitivity.curves import GRID, grid

pytestmark = pytest.mark.quick

METHOD = AdaTP(tau_s=0.95, tau_t=0.6, alpha_boost=1.2, p=0.8)
RANGES = {"tau_s": Range(0.3, 0.99), "tau_t": Range(0.0, 1.0)}


@pytest.fixture(scope="module")
def planner() -> Planner:
    return fakes.make_planner(fakes.make_study(videos=6))


@pytest.mark.parametrize("norm", ["minmax", "raw", "zscore"])
@pytest.mark.parametrize("knob", ["tau_s", "tau_t"])
def test_plans_and_flops_at_any_value_are_those_of_the_method(planner: Planner, knob, norm) -> None:
    method = replace(METHOD, relevance_norm=norm)
    found = steps(planner, method, knob, RANGES[knob])
    assert found.values.size > 10 or norm == "raw"
    values = np.concatenate((found.values, found.until, np.random.default_rng(0).uniform(0.3, 0.99, 10)))
    for value in values:
        at = found.configuration_at(float(value))
        step = found.step_of(value)
        assert found.values[step] <= value <= found.until[step]
        assert found.flops_ratio[step] == planner.binding_ratio(at)
        now = {
            piece.question: piece.fingerprint
            for piece, begin in zip(found.pieces, found.begins, strict=True)
            if begin <= step
        }
        assert tuple(now[question.id] for question in planner.questions) == planner.fingerprints(at)


def test_a_plan_is_asked_for_away_from_where_it_ends(planner: Planner) -> None:
    found = steps(planner, METHOD, "tau_t", RANGES["tau_t"])
    for piece in found.pieces:
        assert piece.low < piece.inside < piece.high or piece.low == piece.high == piece.inside
        at = found.configuration_at(piece.inside)
        assert planner.fingerprints(at, [piece.question]) == (piece.fingerprint,)


def test_variants_are_the_plans_of_methods_with_these_thresholds(planner: Planner) -> None:
    ids = [question.id for question in planner.questions][:5] * 2
    tau_s, tau_t = np.linspace(0.3, 0.97, 10), np.linspace(0.0, 1.0, 10)
    found = planner.variants(METHOD, ids, tau_s, tau_t)
    for index, question in enumerate(ids):
        one = replace(METHOD, tau_s=float(tau_s[index]), tau_t=float(tau_t[index]))
        assert planner.fingerprints(one, [question]) == (found.fingerprints[index],)


def test_a_grid_is_dense_near_the_chosen_value_and_ends_at_the_range() -> None:
    for knob, range_ in (
        ("p", Range(0.2, 1.0)),
        ("alpha_boost", Range(1.0, 1.5)),
        ("gamma_cap", Range(0.0, 1.0)),
    ):
        values = [getattr(item, knob) for item in grid(METHOD, knob, range_, 6)]
        chosen = getattr(METHOD, knob)
        assert values == sorted(set(values))
        assert chosen in values
        assert values[0] == max(range_.low, METHOD.p if knob == "gamma_cap" else 0.0)
        assert values[-1] == range_.high
        # And the corner where the other one of the pair begins to bind.
        assert GRID - 1 <= len(values) <= GRID + 1
        at = values.index(chosen)
        gaps = np.diff(np.log(values[: at + 1]))
        assert knob == "gamma_cap" or (gaps[:-1] > gaps[1:]).all()
    assert METHOD.alpha_boost * METHOD.p in [
        item.gamma_cap for item in grid(METHOD, "gamma_cap", Range(0, 1), 6)
    ]


def test_a_chosen_value_at_the_end_of_its_range_has_a_grid_to_one_side() -> None:
    values = [
        item.alpha_boost for item in grid(replace(METHOD, alpha_boost=1.5), "alpha_boost", Range(1, 1.5), 6)
    ]
    assert values[0] == 1.0
    assert values[-1] == 1.5
