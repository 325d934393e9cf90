"""PyramidDrop's stages and counts, on hand-made numbers and on the paper's own."""

import numpy as np
import pytest
import torch

from pipeline.flops import layer_flops
from pipeline.keep_ratio import Unreachable, solve_keep_ratio
from pipeline.layout import Layout, Layouts
from pipeline.methods import PyramidDrop
from pipeline.methods.pyramid_drop import stage_borders
from pipeline.ranking import stages
from tests.tuner.fakes import SHAPE

pytestmark = pytest.mark.quick


def layout(frames=6, cells=4):
    return Layout(frames, cells, 1, 3, 5, np.full(frames - 1, 0.9), np.full(frames, 0.1))


@pytest.mark.parametrize(
    ("layers", "borders"),
    [
        (32, (8, 16, 24)),
        (28, (7, 14, 21)),
        (24, (6, 12, 18)),
        (12, (3, 6, 9)),
        (3, (1, 2)),
        (2, (1,)),
        (1, ()),
    ],
)
def test_stages_are_quarters_of_the_model(layers, borders):
    assert stage_borders(layers) == borders


def test_the_papers_default_keeps_a_half_a_quarter_and_an_eighth():
    plan = PyramidDrop().plan(layout(frames=36, cells=16), 32)
    assert plan.layers == (8, 16, 24)
    assert [plan.total(j) for j in range(3)] == [288, 144, 72]  # of 576, as its code's lists give


def test_counts_are_of_the_whole_video_and_rounded_once():
    plan = PyramidDrop(keep_ratio=0.3).plan(layout(), 12)  # 24 tokens: 7.2, 2.16, 0.648
    assert [plan.total(j) for j in range(3)] == [8, 3, 1]
    assert plan.groups == (24,)


def test_the_best_of_what_is_left_stays():
    one, method = layout(), PyramidDrop(keep_ratio=0.25)
    plan = method.plan(one, 12)
    stage = stages(plan, one, torch.device("cpu"))[0]
    scores = torch.zeros(24)
    scores[[3, 5, 6, 11, 17, 23]] = torch.tensor([0.1, 0.6, 0.2, 0.5, 0.4, 0.3])
    chosen = method.select(stage, scores, torch.arange(24), "")
    assert chosen.tolist() == [3, 5, 6, 11, 17, 23]
    stage = stages(plan, one, torch.device("cpu"))[1]
    assert method.select(stage, scores[chosen], chosen, "").tolist() == [1, 3]  # tokens 5 and 11


def test_the_ratio_is_solved_for_a_budget_down_to_the_first_quarter():
    layouts = Layouts.of([layout(16, 16)])
    solved = solve_keep_ratio(PyramidDrop(), layouts, SHAPE, 0.45)
    assert isinstance(solved, PyramidDrop)
    plans = solved.plans(layouts, SHAPE.layers)
    kept = plans.visual_by_stage[:, 0]
    tokens = np.repeat(kept, 3) + layouts.text[0]
    assert sum(layer_flops(SHAPE, n) for n in tokens) <= 0.45 * 12 * layer_flops(SHAPE, 256 + 9)
    found = solve_keep_ratio(PyramidDrop(), layouts, SHAPE, 0.2)
    assert isinstance(found, Unreachable)
    assert 0.25 < found.smallest < 0.3
