"""The speed benchmarks on a tiny model: that they measure the same work on both sides, and miss no part."""

import argparse
from unittest.mock import patch

import pytest
import torch

from pipeline.flops import LLAVA_ONEVISION_7B, plan_flops
from tests.benchmarks import memory, prefill, shapes, trial
from tests.benchmarks.clock import Clock, side_by_side, verdict

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["tiny", "llava-video-tiny"])
def options(request):
    return argparse.Namespace(
        shape=request.param, device="cpu", dtype=None, frames=8, threads=1, repeats=1, ratio=0.27, questions=3
    )


@pytest.fixture(scope="module")
def setup(options, tmp_path_factory):
    return shapes.set_up(options, tmp_path_factory.mktemp("tiny"), questions=3)


@pytest.fixture(scope="module")
def clip(setup):
    return setup.runtime.encode(setup.video)


@pytest.fixture(scope="module")
def method(setup, clip):
    return setup.adatp(clip, flops_ratio=0.27)


def test_a_naive_trial_and_a_trial_say_the_same(setup, clip, method):
    clock = Clock(CPU)
    naive = [trial.naive(setup, question, method, clock) for question in setup.questions]
    assert trial.trial(setup, clip, method, clock) == naive
    assert clock.take().keys() == {*trial.NAIVE, trial.PREFIX, trial.QUESTION}


def test_a_trial_embeds_and_encodes_nothing(setup, clip, method):
    runtime = setup.runtime
    trial.trial(setup, clip, method, Clock(CPU))
    with (
        patch.object(runtime.family, "encode_frames", side_effect=AssertionError),
        patch.object(runtime.encoder, "embed_text", side_effect=AssertionError),
    ):
        trial.trial(setup, clip, method, Clock(CPU))


def test_the_ratio_counts_the_shared_prefix_and_leaves_out_what_it_is_told_to():
    measured = trial.Measured({"decode": 2.0, "rest": 8.0}, prefix=3.0, question=1.0)
    assert measured.trial(3) == 2.0
    assert measured.ratio(3) == pytest.approx(0.2)
    assert measured.ratio(3, without=("decode",)) == pytest.approx(0.25)


def test_the_flops_of_a_trial_add_up_to_the_language_models(setup, clip, method):
    layout, shape = setup.runtime.layout(clip, setup.questions[0]), setup.runtime.shape
    got = trial.flops(setup, clip, method)
    plan = method.plan(layout, shape.layers)
    stored, after, first = layout.tokens - layout.text_after, layout.text_after, plan.layers[0]
    masked = first * 2 * stored * after * shape.hidden  # the video's attention to the question
    assert got.prefix + got.question == plan_flops(plan, layout, shape) - masked
    assert got.naive > got.prefix + got.question


def test_ways_that_keep_different_tokens_are_refused(setup, clip, method):
    other = setup.adatp(clip, p=0.9)
    wrong = trial.naive(setup, setup.questions[0], other, Clock(CPU))
    with patch.object(trial, "naive", return_value=wrong), pytest.raises(RuntimeError, match="One way kept"):
        trial.measure(setup, clip, method, 1)


def test_own_work_is_found_in_every_place(setup, clip, method):
    spent = prefill.own_work(setup.runtime, clip, setup.questions[0], method, 1)
    assert spent.keys() == prefill.OWN.keys()
    assert all(item > 0 for item in spent.values())
    with pytest.raises(RuntimeError, match="No call was met of"):
        prefill.own_work(setup.runtime, clip, setup.questions[0], None, 1)


def test_all_variants_of_a_prefill_and_of_throughput_run(setup, clip, method):
    runtime = setup.runtime
    taken = side_by_side(CPU, prefill.variants(runtime, clip, setup.questions[0], method), 1)
    assert len(taken) == 4
    rates = prefill.throughput(setup, clip, method, 3, 1)
    assert len(rates) == 4
    assert min(*taken.values(), *rates.values()) > 0


@pytest.mark.parametrize("variant", memory.VARIANTS)
def test_a_peak_lies_above_the_weights(setup, variant):
    weights = sum(parameter.nbytes for parameter in setup.runtime.model.parameters())
    peak = memory.measure(setup, variant, 0.27)
    assert peak.highest >= peak.before > weights


def test_the_peak_is_that_of_the_questions():
    meter = memory.Meter(CPU)
    held = torch.ones(2**24)  # 64 MiB
    del held
    before = meter.restart()
    assert meter.highest() - before < 2**25
    held = torch.ones(2**24)
    del held
    assert meter.highest() - before > 2**25


def test_the_video_has_its_scenes_as_segments(setup, clip):
    adatp = setup.adatp(clip)
    layout = setup.runtime.layout(clip, setup.questions[0])
    assert len(adatp.plan(layout, setup.runtime.shape.layers).groups) == shapes.SCENES


def test_the_shapes_are_the_published_ones():
    big, published = shapes.SIZES["7b"], LLAVA_ONEVISION_7B
    assert (big.layers, big.hidden, big.mlp, big.heads) == (
        published.layers,
        published.hidden,
        published.mlp_width,
        published.heads,
    )
    assert big.hidden // big.heads * big.kv_heads == published.kv_width
    vision = published.vision
    assert (big.image // big.patch) ** 2 == vision.patches
    assert (big.vision_width, big.vision_mlp, big.vision_layers - 1) == (
        vision.width,
        vision.mlp_width,
        vision.layers,
    )
    assert (big.text_layers, big.text_length) == (vision.text_layers, vision.text_tokens)
    assert big.hidden % big.heads == big.vision_width % big.vision_heads == 0


def test_a_verdict_stands_beside_a_target_only():
    assert verdict(0.09, 0.1) == " (target: at most 0.1, met)"
    assert verdict(0.11, 0.1) == " (target: at most 0.1, missed)"
    assert verdict(0.11, None) == ""
