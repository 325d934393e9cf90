import numpy as np
import pytest

from pipeline.flops import LLAVA_ONEVISION_7B, ModelShape, flops_ratio
from pipeline.keep_ratio import STEPS, Unreachable, smallest_ratio, solve_keep_ratio
from pipeline.layout import Layout, Layouts
from pipeline.methods import METHODS, AdaTP
from pipeline.methods.base import knobs

pytestmark = pytest.mark.quick

SMALL = ModelShape(layers=12, hidden=160, kv_width=80, mlp_width=448, heads=4)


def study(count: int, frames: int = 16, cells: int = 16) -> Layouts:
    random = np.random.default_rng(0)
    return Layouts.of(
        [
            Layout(frames, cells, 1, 5, int(random.integers(10, 30)),
                   random.uniform(0.3, 1, frames - 1), random.uniform(0, 0.2, frames))
            for _ in range(count)
        ]
    )  # fmt: skip


def ratio(method, layouts, shape):
    return flops_ratio(method.plans(layouts, shape.layers), shape)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("target", [0.3, 0.45, 0.8])
@pytest.mark.parametrize("shape", [SMALL, LLAVA_ONEVISION_7B], ids=["small", "7B"])
def test_the_solution_fits_the_target_and_a_little_more_does_not(name, target, shape):
    layouts = study(20)
    solved = solve_keep_ratio(METHODS[name](), layouts, shape, target)
    if name == "pyramid_drop" and target == 0.3:  # a quarter of the layers see every token
        assert isinstance(solved, Unreachable)
        assert 0.3 < solved.smallest < 0.33
        return
    assert not isinstance(solved, Unreachable)
    assert ratio(solved, layouts, shape) <= target
    assert ratio(solved.with_ratio(solved.ratio + 2e-6), layouts, shape) > target


def test_other_knobs_stay_as_they_are():
    method = AdaTP(tau_s=0.8, tau_t=0.1, alpha_boost=1.3, gamma_cap=0.9)
    solved = solve_keep_ratio(method, study(5), SMALL, 0.5)
    assert solved == method.with_ratio(solved.ratio)


def test_a_target_below_the_searched_range_says_the_smallest_possible():
    layouts = study(5)
    solved = solve_keep_ratio(AdaTP(), layouts, SMALL, 0.05)
    assert isinstance(solved, Unreachable)
    assert solved.smallest == smallest_ratio(AdaTP(), layouts, SMALL) == ratio(AdaTP(p=0.2), layouts, SMALL)
    assert not isinstance(solve_keep_ratio(AdaTP(), layouts, SMALL, solved.smallest), Unreachable)


def test_a_target_of_one_keeps_everything():
    assert solve_keep_ratio(AdaTP(), study(3), SMALL, 1.0) == AdaTP(p=1.0)


@pytest.mark.parametrize("target", [0, -0.1, 1.01, float("nan")])
def test_a_target_outside_zero_to_one_is_refused(target):
    with pytest.raises(ValueError, match=r"lies in \(0, 1\], but got"):
        solve_keep_ratio(AdaTP(), study(1), SMALL, target)


def test_the_result_is_written_with_six_decimals_within_the_searched_range():
    solved = solve_keep_ratio(AdaTP(), study(7), SMALL, 0.37)
    assert not isinstance(solved, Unreachable)
    assert round(solved.ratio, 6) == solved.ratio
    assert knobs(AdaTP)["p"].low <= solved.ratio <= knobs(AdaTP)["p"].high


def test_a_study_is_planned_once_a_step(monkeypatch):
    """Whatever the number of questions: solving stands in every proposal of a search."""
    planned = []
    plans = AdaTP.plans
    monkeypatch.setattr(AdaTP, "plans", lambda self, *given: planned.append(self) or plans(self, *given))
    solve_keep_ratio(AdaTP(), study(60), LLAVA_ONEVISION_7B, 0.3)
    assert len(planned) <= STEPS + 2
