"""Known indices are found within their intervals, noise is refused, and maps show what the surrogate says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import qmc

from tuner.search.optuna_sampler import ped_anova
from tuner.sensitivity.design import Design, Plane
from tuner.sensitivity.surrogate import (
    GOOD_R2,
    analyse,
    cross_validated_r2,
    fit,
    more_runs,
    sobol_indices,
)

WEIGHTS = np.array([0.4, 0.2, 0.1, 0.0])
GRID = np.linspace(0, 1, 17)
ADDITIVE = WEIGHTS**2 / np.sum(WEIGHTS**2)  # first-order and total alike


def points(runs, inputs, seed=0):
    return qmc.Sobol(inputs, rng=np.random.default_rng(seed)).random(runs)


def make_design(unit, **outputs):
    """Inputs "a" and so on, whose knobs "A" go from 2 to 4; of "A" a quarter lies beyond the design."""
    names = ("a", "b", "c", "d", "e")[: unit.shape[1]]

    def plane(first, second):
        places = [GRID * (4 / 3 if knob == "a" else 1.0) for knob in (first, second)]
        at = np.full((GRID.size, GRID.size, len(names)), 0.25)
        at[..., names.index(first)] = places[0][:, None]
        at[..., names.index(second)] = places[1][None]
        values = (2 + 2 * GRID, 2 + 2 * GRID)
        return Plane((first.upper(), second.upper()), values, at, 0.3 * at[..., 0], (2.5, 2.5))

    return Design(names, unit, outputs, plane)


def additive(unit, noise=0.0):
    return 0.2 + unit @ WEIGHTS[: unit.shape[1]] + noise * np.random.default_rng(5).standard_normal(len(unit))


def ishigami(unit):
    x = -np.pi + 2 * np.pi * unit
    return np.sin(x[:, 0]) + 7 * np.sin(x[:, 1]) ** 2 + 0.1 * x[:, 2] ** 4 * np.sin(x[:, 0])


@pytest.fixture(scope="module")
def found():
    unit = points(32, 4)
    noise = np.random.default_rng(1).standard_normal(32)
    return analyse(make_design(unit, accuracy=additive(unit, 0.01), regressions=noise))


def test_an_additive_functions_indices_lie_within_their_intervals(found):
    outputs, _ = found
    assert [output.name for output in outputs] == ["accuracy", "regressions"]
    assert outputs[0].good
    assert outputs[0].r2 > 0.9
    for index, truth in zip(outputs[0].indices, ADDITIVE, strict=True):
        for measured in (index.first, index.total):
            assert measured.interval.low - 0.005 <= truth <= measured.interval.high + 0.005
            assert measured.interval.low <= measured.value <= measured.interval.high
            assert measured.interval.high - measured.interval.low < 0.25


def test_noise_has_no_indices_and_more_runs_are_not_promised(found):
    noise = found[0][1]
    assert (noise.good, noise.indices, noise.more_runs) == (False, (), None)
    assert noise.r2 < 0.2


def test_indices_come_with_ped_anova_which_adds_up_to_one(found):
    indices = found[0][0].indices
    assert sum(index.ped_anova for index in indices) == pytest.approx(1)
    assert max(indices, key=lambda index: index.ped_anova).input == "a"


def test_maps_show_the_three_inputs_that_matter_over_their_knobs_with_exact_flops(found):
    _, maps = found
    assert [(map_.first, map_.second) for map_ in maps] == [("A", "B"), ("A", "C"), ("B", "C")]
    design = make_design(points(32, 4))
    for item in maps:
        plane = design.plane(item.first.lower(), item.second.lower())
        assert item.first_values == item.second_values == tuple(2 + 2 * GRID)
        assert item.reference == (2.5, 2.5)
        assert np.array(item.flops_ratio) == pytest.approx(plane.flops_ratio)
        accuracy = np.array(item.accuracy, dtype=float)  # nothing predicted: not a number
        # The budget of 0.3 is the design's end along "a"; nothing is said beyond, and all of it before.
        assert (np.isnan(accuracy) == (plane.flops_ratio > 0.3 + 1e-9)).all()
        assert np.nanmax(np.abs(accuracy - (0.2 + plane.unit @ WEIGHTS))) < 0.05
    assert np.isnan(np.array(maps[0].accuracy, dtype=float)).any()
    assert not np.isnan(np.array(maps[2].accuracy, dtype=float)).any()


def test_a_map_wholly_beyond_the_design_is_blank_and_an_end_of_the_design_is_not():
    unit = points(16, 3)
    design = make_design(unit, accuracy=0.4 + 0.3 * unit[:, 0] + 0.1 * unit[:, 1] + 0.05 * unit[:, 2])
    places = {"AB": 1.001, "AC": -0.001, "BC": 1 + 1e-12}

    def plane(first, second):
        found = design.plane(first, second)
        found.unit[..., 0] = places["".join(found.knobs)]
        return found

    _, maps = analyse(replace(design, plane=plane))
    above, below, end = ({value for row in map_.accuracy for value in row} for map_ in maps)
    assert above == below == {None}
    assert None not in end
    assert min(end) == pytest.approx(0.7, abs=0.03)


def test_ishigamis_indices_lie_within_their_intervals():
    # Sobol and Levitan 1999: a = 7, b = 0.1. The third input acts with the first alone.
    unit = points(128, 3)
    indices = sobol_indices(fit(unit, ishigami(unit)), ("a", "b", "c"), draws=40)
    truth = [(0.3139, 0.5576), (0.4424, 0.4424), (0.0, 0.2437)]
    for measured, expected in zip(indices, truth, strict=True):
        for change, value in zip(measured, expected, strict=True):
            # At this many runs the process still sees some interaction that is not there.
            assert change.interval.low - 0.03 <= value <= change.interval.high + 0.03
    assert indices[2][0].value < 0.1 < indices[2][1].interval.low


def test_fewer_runs_give_longer_intervals():
    def width(runs):
        unit = points(runs, 2)
        values = np.sin(7 * unit[:, 0]) + unit[:, 1] + 0.5 * np.random.default_rng(3).standard_normal(runs)
        return sum(
            change.interval.high - change.interval.low
            for pair in sobol_indices(fit(unit, values), ("a", "b"), draws=40)
            for change in pair
        )

    assert width(16) > 1.5 * width(64)


def test_draws_agree_with_the_process_they_are_drawn_from():
    unit = points(32, 2)
    surrogate = fit(unit, np.sin(5 * unit[:, 0]) + 0.2 * np.random.default_rng(0).standard_normal(32))
    at = points(8, 2, seed=9)
    drawn = np.array([draw(at) for draw in surrogate.draws(200, np.random.default_rng(2))])
    mean, spread = surrogate.process.predict(at, return_std=True)
    noise = np.exp(surrogate.process.kernel_.theta[-1])
    latent = surrogate.spread * np.sqrt(np.maximum(spread**2 - noise, 0))
    assert drawn.mean(0) == pytest.approx(surrogate.mean + surrogate.spread * mean, abs=0.15)
    # Parameters vary as well, so draws spread more than the best parameters say, but not several times more.
    assert (drawn.std(0) > 0.6 * latent).all()
    assert (drawn.std(0) < 3 * latent + 0.1).all()


def test_the_same_design_gives_the_same_values():
    unit = points(16, 2)
    design = make_design(unit, accuracy=0.5 + 0.3 * unit[:, 0] ** 2)
    assert analyse(design) == analyse(design)


def test_an_input_that_never_varies_has_no_index():
    unit = points(16, 2)
    unit[:, 1] = 0.5
    outputs, maps = analyse(make_design(unit, accuracy=0.5 + 0.3 * unit[:, 0] ** 2))
    assert [index.input for index in outputs[0].indices] == ["a"]
    assert maps == ()


def test_a_constant_output_and_too_few_runs_are_refused():
    unit = points(16, 4)
    (constant,), _ = analyse(make_design(unit, regressions=np.zeros(16)))
    assert (constant.good, constant.r2, constant.more_runs) == (False, 0.0, None)
    (few,), maps = analyse(make_design(unit, accuracy=additive(unit)))
    assert few.r2 > GOOD_R2
    assert (few.good, few.indices, few.more_runs, maps) == (False, (), 16, ())


def test_a_design_that_does_not_fit_together_is_an_error():
    unit = points(16, 2)
    design = make_design(unit, accuracy=np.full(16, np.nan))
    with pytest.raises(ValueError, match="one finite number for each of the 16 runs"):
        analyse(design)
    with pytest.raises(ValueError, match="2 inputs"):
        analyse(replace(design, unit=points(16, 3)))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("curve", "more"),
    [
        ((0.62, 0.4, 0.55), 64),  # 0.84 at the end; needs less than twice the runs
        ((0.65, 0.65, 0.65), None),  # flat: all the rest is noise
        ((0.5, 0.48, 0.49), None),  # heads for a floor below the bar
        ((0.4, 0.6, 0.5), None),  # falls
        ((0.4, 0.09, 0.296), None),  # would need 30 times the runs
        ((0.1, -0.7, -0.2), 448),
    ],
)
def test_more_runs_follow_from_the_learning_curve(curve, more):
    r2, half, three_quarters = curve
    assert more_runs(64, 5, r2, half, three_quarters) == more


@pytest.mark.quick
def test_r2_counts_what_is_left_out():
    unit = points(32, 2)
    assert cross_validated_r2(unit, unit[:, 0]) > 0.99
    assert cross_validated_r2(unit, np.full(32, 0.3)) == 0.0


@pytest.mark.quick
def test_ped_anova_sees_which_input_leads_to_the_best_runs():
    unit = points(64, 3)
    hump = -((unit[:, 1] - 0.5) ** 2)
    best = ped_anova(("a", "b", "c"), unit, hump, "maximize")
    assert best["b"] > 0.8
    assert sum(best.values()) == pytest.approx(1)
    assert ped_anova(("a", "b", "c"), unit, -hump, "minimize") == best
