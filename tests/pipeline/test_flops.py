"""The formulas against every figure published, and against torch's own counter."""

import numpy as np
import pytest

from pipeline.flops import (
    LLAVA_ONEVISION_7B,
    compute,
    flops_ratio,
    layer_flops,
    plan_flops,
    prefill_flops,
    question_ratios,
    unpruned_flops,
    visual_only_ratio,
)
from pipeline.layout import Layout, Layouts
from pipeline.methods import METHODS, AdaTP, FastV, FewerFrames
from tests.pipeline.test_plan import random_layout

pytestmark = pytest.mark.quick

VISUAL = 6272


def video_alone(segments: int) -> Layout:
    """32 frames of 196 tokens in equal segments; no text counts in the visual-only ratio."""
    similarity = np.ones(31)
    similarity[np.arange(1, segments) * (32 // segments) - 1] = 0
    return Layout(32, 196, 0, 0, 0, similarity, np.zeros(32))


@pytest.mark.parametrize(
    ("tokens", "tera"), [(6272, 48.82), (2038, 14.13), (1568, 10.73), (1248, 8.46), (928, 6.23), (608, 4.04)]
)
def test_published_tflops_with_equal_tokens_in_every_layer(tokens, tera):
    assert prefill_flops(LLAVA_ONEVISION_7B, [tokens] * 28) / 1e12 == pytest.approx(tera, abs=0.005)


@pytest.mark.parametrize(("keep", "tera"), [(0.25, 13.45), (0.20, 11.38), (0.15, 9.35), (0.10, 7.36)])
def test_published_tflops_of_fastv(keep, tera):
    tokens = [VISUAL] * 2 + [VISUAL * keep] * 26
    assert prefill_flops(LLAVA_ONEVISION_7B, tokens) / 1e12 == pytest.approx(tera, abs=0.005)


def test_one_shot_plans_what_fastv_was_counted_with():
    plan = FastV(keep_ratio=0.25).plan(video_alone(1), 28)
    tokens = plan.tokens_per_layer(28, video_alone(1))
    assert prefill_flops(LLAVA_ONEVISION_7B, tokens) / 1e12 == pytest.approx(13.45, abs=0.005)


def test_published_tflops_of_pyramid_drop():
    shares = [1.0] * 8 + [0.041] * 8 + [0.02] * 8 + [0.01] * 4
    tera = prefill_flops(LLAVA_ONEVISION_7B, [VISUAL * share for share in shares]) / 1e12
    assert tera == pytest.approx(14.7, abs=0.05)


def test_the_formula_without_gate_and_grouped_queries_would_be_wrong_for_qwen2():
    d, m = LLAVA_ONEVISION_7B.hidden, LLAVA_ONEVISION_7B.mlp_width
    other = 28 * (4 * VISUAL * d**2 + 2 * VISUAL**2 * d + 2 * VISUAL * d * m) / 1e12
    assert other == pytest.approx(40.8, abs=0.05)


@pytest.mark.parametrize(("p", "percent"), [(0.85, 27.04), (0.8516, 27.3)])
def test_share_of_flops_before_rounding(p, percent):
    tokens = [VISUAL * p ** max(0, min(layer, 16) - 1) for layer in range(28)]
    share = prefill_flops(LLAVA_ONEVISION_7B, tokens) / prefill_flops(LLAVA_ONEVISION_7B, [VISUAL] * 28)
    assert 100 * share == pytest.approx(percent, abs=0.006 if percent == 27.04 else 0.05)


@pytest.mark.parametrize(("segments", "percent"), [(1, 27.05), (8, 27.10), (32, 27.31)])
def test_share_of_flops_with_whole_tokens(segments, percent):
    plans = AdaTP(p=0.85).plans(Layouts.of([video_alone(segments)]), 28)
    assert len(plans.plan(0).groups) == segments
    assert 100 * visual_only_ratio(plans, LLAVA_ONEVISION_7B) == pytest.approx(percent, abs=0.005)


def test_end_to_end_27_percent_becomes_about_40():
    layouts = Layouts.of([video_alone(8)])
    plans = AdaTP(p=0.85).plans(layouts, 28)
    assert compute(plans, LLAVA_ONEVISION_7B).flops_ratio_end_to_end == pytest.approx(0.40, abs=0.01)


@pytest.mark.parametrize("name", METHODS)
def test_counting_a_study_equals_counting_its_questions(name):
    random = np.random.default_rng(3)
    layouts = [random_layout(random) for _ in range(30)]
    method = METHODS[name]().with_ratio(0.5)
    plans = method.plans(Layouts.of(layouts), 28)
    shape = LLAVA_ONEVISION_7B
    each = [plan_flops(plan, layout, shape) for plan, layout in zip(plans.plans(), layouts, strict=True)]
    unpruned = [unpruned_flops(layout, shape) for layout in layouts]
    assert flops_ratio(plans, shape) == sum(each) / sum(unpruned)
    assert question_ratios(plans, shape).tolist() == (np.array(each) / unpruned).tolist()
    visual = sum(
        layer_flops(shape, tokens - layout.text)
        for plan, layout in zip(plans.plans(), layouts, strict=True)
        for tokens in plan.tokens_per_layer(28, layout)
    )
    whole = sum(28 * layer_flops(shape, layout.visual) for layout in layouts)
    assert visual_only_ratio(plans, shape) == visual / whole
    assert compute(plans, shape).flops_ratio_max == question_ratios(plans, shape).max()


def test_scoring_is_counted_where_something_is_dropped_and_nowhere_else():
    layout = Layout(8, 4, 1, 3, 5, np.ones(7), np.zeros(8))
    shape = LLAVA_ONEVISION_7B
    d = shape.hidden  # the layer's own queries are used: nothing is projected again
    for query, rows in (("last", 1), ("mean", 5)):
        plan = AdaTP(p=0.5, score_query=query).plan(layout, 28)  # 16, 8, 4, 2, 1, 1, ...: five real prunings
        tokens = plan.tokens_per_layer(28, layout)
        extra = plan_flops(plan, layout, shape) - sum(layer_flops(shape, count) for count in tokens)
        assert extra == sum(rows * (9 + n) * d for n in (32, 16, 8, 4, 2))
    assert plan_flops(AdaTP(p=1.0).plan(layout, 28), layout, shape) == unpruned_flops(layout, shape)


def test_fewer_frames_save_in_the_vision_tower_and_need_no_aligned_encoder():
    layouts = Layouts.of([video_alone(1)])
    shape = LLAVA_ONEVISION_7B
    half = compute(FewerFrames(keep_ratio=0.5).plans(layouts, 28), shape)
    same_tokens = compute(FastV(keep_ratio=0.5).plans(layouts, 28), shape)
    assert half.flops_ratio_end_to_end < same_tokens.flops_ratio_end_to_end
    everything = compute(FewerFrames(keep_ratio=1.0).plans(layouts, 28), shape)
    assert everything.flops_ratio_end_to_end == 1.0
    assert compute(AdaTP(p=1.0).plans(layouts, 28), shape).flops_ratio_end_to_end > 1.0


def test_counting_needs_one_number_per_layer():
    with pytest.raises(ValueError, match="28 layers, but got 3"):
        prefill_flops(LLAVA_ONEVISION_7B, [1, 2, 3])
