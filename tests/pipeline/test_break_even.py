"""What a server pays, split and added up, against single passes, by hand, and against what torch counts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.break_even import Serving, break_even, serving_flops, stored_numbers
from pipeline.flops import (
    LLAVA_ONEVISION_7B,
    chunk_flops,
    layer_flops,
    pruned_by_question,
    unpruned_by_question,
)
from pipeline.layout import Layout, Layouts
from pipeline.methods import METHODS, AdaTP, FewerFrames
from pipeline.question import Question
from tests.pipeline.test_flops import video_alone
from tests.pipeline.test_plan import random_layout

SHAPE = LLAVA_ONEVISION_7B


def plans_of(method, *layouts):
    return method.plans(Layouts.of(layouts), SHAPE.layers)


def serving(per_video: float, per_question: float) -> Serving:
    return Serving(1.0, 0.0, per_video - 1.0, 0.0, per_question)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("unpruned", "pruned", "questions"),
    [
        ((100, 1), (20, 11), 8.0),
        ((100, 1), (20, 1), math.inf),
        ((100, 2), (20, 1), math.inf),
        ((20, 1), (20, 11), 0.0),
        ((20, 1), (30, 11), 0.0),
    ],
)
def test_pruning_pays_up_to_where_both_have_cost_the_same(unpruned, pruned, questions):
    unpruned, pruned = serving(*unpruned), serving(*pruned)
    assert break_even(unpruned, pruned) == questions
    if 0 < questions < math.inf:
        assert unpruned.per_video + questions * unpruned.per_question == pytest.approx(
            pruned.per_video + questions * pruned.per_question
        )


@pytest.mark.quick
def test_a_mean_is_taken_part_by_part():
    assert Serving.mean([Serving(1, 2, 3, 4, 5), Serving(3, 2, 1, 0, 6)]) == Serving(2, 2, 2, 2, 5.5)
    with pytest.raises(ValueError, match="at least one"):
        Serving.mean([])


@pytest.mark.quick
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_prefix_and_question_are_a_single_pass_but_for_what_the_mask_takes_out(name, ratio):
    random = np.random.default_rng(3)
    for layout in [random_layout(random) for _ in range(10)]:
        plans = plans_of(METHODS[name]().with_ratio(ratio), layout)
        unpruned, pruned = serving_flops(plans, SHAPE)
        masked = 2 * SHAPE.hidden * (layout.tokens - layout.text_after) * layout.text_after
        whole = unpruned_by_question(plans.layouts, SHAPE)[0]
        assert unpruned.prefix + unpruned.question + SHAPE.layers * masked == whole
        stored = SHAPE.layers if plans.plan(0).keeps_everything else plans.layers[0]
        assert pruned.prefix + pruned.question + stored * masked == pruned_by_question(plans, SHAPE)[0]


@pytest.mark.quick
def test_a_chunk_on_nothing_is_a_layer():
    assert chunk_flops(SHAPE, 100, 0) == layer_flops(SHAPE, 100)


@pytest.mark.quick
def test_break_even_of_the_published_model_by_hand():
    layout = replace(video_alone(8), text_before=14, trailing=1, text_after=40)
    plans = plans_of(AdaTP(p=0.85), layout)
    unpruned, pruned = serving_flops(plans, SHAPE)
    n, layer = 6272 + 15, SHAPE.hidden * (2 * 3584 + 2 * 512 + 3 * 18944)
    assert unpruned.prefix == 28 * (n * layer + 2 * n * n * 3584)
    assert pruned.prefix == 2 * (n * layer + 2 * n * n * 3584)
    assert unpruned.question == 28 * (40 * layer + 2 * 40 * (n + 40) * 3584)
    assert unpruned.vision == pruned.vision == 32 * SHAPE.vision.frame(3584)
    assert pruned.frame_embedding == 32 * SHAPE.vision.frame_embedding()
    assert pruned.text_embedding == SHAPE.vision.text_embedding()
    # docs/production.md cites these.
    assert break_even(unpruned, pruned) == pytest.approx(4.6, abs=0.05)
    kept = [2 * numbers / 2**20 for numbers in stored_numbers(plans, SHAPE)]
    assert kept == pytest.approx([344, 68], abs=0.5)


@pytest.mark.quick
def test_fewer_frames_pay_for_fewer_frames_and_no_aligned_encoder():
    unpruned, pruned = serving_flops(plans_of(FewerFrames(keep_ratio=0.5), video_alone(1)), SHAPE)
    assert pruned.vision == unpruned.vision / 2
    assert pruned.frame_embedding == pruned.text_embedding == pruned.prefix == 0


@pytest.mark.quick
def test_a_server_keeps_keys_and_values_or_fewer_of_them_and_hidden_states():
    layout = Layout(4, 4, 1, 3, 5, np.ones(3), np.zeros(4))
    full, pruned = stored_numbers(plans_of(AdaTP(p=0.5), layout), SHAPE)
    assert full == 20 * 28 * 2 * 512
    assert pruned == 20 * (2 * 2 * 512 + 3584)
    assert stored_numbers(plans_of(AdaTP(p=1.0), layout), SHAPE) == (full, full)


@pytest.mark.quick
def test_serving_needs_the_vision_towers_shape():
    with pytest.raises(ValueError, match="vision"):
        serving_flops(plans_of(AdaTP(), video_alone(1)), replace(SHAPE, vision=None))


# Answers of one token each, so that a question is its prefill and nothing else.
ONE_TOKEN = Question("q", "what color is the ring on brick?", ("red", "blue", "green"))


def counted(runtime, work):
    """Multiply-adds, one row of lm_head left out."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        work()
    head = runtime.family.lm_head.weight.numel()
    return counter.get_total_flops() / 2, head


@pytest.mark.parametrize("method", [None, AdaTP(p=0.6), AdaTP(p=1.0)], ids=str)
def test_what_a_runtime_keeps_and_computes_is_what_serving_counts(eager, clip, method):
    layout, shape = eager.layout(clip, ONE_TOKEN), eager.shape
    plans = (method or AdaTP()).plans(Layouts.of([layout]), shape.layers)
    planned = serving_flops(plans, shape)[method is not None]
    eager.forget_prefixes()
    both, head = counted(eager, lambda: eager.answer(clip, ONE_TOKEN, method))
    question, _ = counted(eager, lambda: eager.answer(clip, ONE_TOKEN, method))
    assert both - question == planned.prefix
    # Scoring within the packed pass has its query rows at hand; the plan counts them as computed again.
    spared = 0 if method is None or plans.plan(0).keeps_everything else len(plans.layers) * shape.hidden**2
    assert planned.question - spared <= question - head <= planned.question
    held = eager._prefixes.get((clip.content_hash, plans.layers[0] if spared else shape.layers), None)
    tensors = [*held.keys, *held.values, *([] if held.hidden is None else [held.hidden])]
    assert sum(tensor.numel() for tensor in tensors) == stored_numbers(plans, shape)[method is not None]
