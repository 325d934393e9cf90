"""Analytic FLOPs against torch's FlopCounterMode. It counts two per multiply-add, and sdpa on the CPU as
nothing.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.flops import plan_flops, unpruned_flops
from pipeline.methods import AdaTP, FastV, FewerFrames, RandomTokens
from tests.checkpoints import scenes
from tests.pipeline.conftest import FRAMES

METHODS = [
    AdaTP(p=0.6),
    AdaTP(p=0.3, tau_s=0.5, tau_t=0.0),  # the later prunings drop nothing, and so score nothing
    AdaTP(p=0.8, score_query="mean", deduplicate="drop"),
    FastV(keep_ratio=0.3),
    RandomTokens(keep_ratio=0.3),
    FewerFrames(keep_ratio=0.4),
]


def counted(runtime, clip, question, method=None):
    """Multiply-adds of a single-pass prefill without lm_head."""
    runtime.layout(clip, question)  # embeds the question's text once
    with FlopCounterMode(display=False) as counter:
        runtime.one_pass(clip, question, method)
    return counter.get_total_flops() / 2 - runtime.family.lm_head.weight.numel()


def test_unpruned_prefill(eager, clip, question):
    assert counted(eager, clip, question) == unpruned_flops(eager.layout(clip, question), eager.shape)
    inputs = eager.inputs(clip, question)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        eager.model(**inputs, logits_to_keep=1)
    head = eager.family.lm_head.weight.numel()
    assert counter.get_total_flops() / 2 - head == unpruned_flops(eager.layout(clip, question), eager.shape)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.ratio}")
def test_pruned_prefill_with_its_own_scoring(eager, clip, question, method):
    layout, shape = eager.layout(clip, question), eager.shape
    # Exactly, where 0.1 % is what the project promises.
    planned = plan_flops(method.plan(layout, shape.layers), layout, shape)
    assert counted(eager, clip, question, method) == planned


def test_vision_tower_and_projector(eager):
    frames = scenes(FRAMES)
    with FlopCounterMode(display=False) as counter:
        eager.family.encode_frames(frames)
    vision = eager.shape.vision
    # Beside them, the attention that is stored for VisionZip: one product of all queries and keys of one
    # layer, 0.2 % of the 7B model's tower, and left out of every count.
    stored = vision.patches**2 * vision.width
    assert counter.get_total_flops() / 2 == FRAMES * (vision.frame(eager.shape.hidden) + stored)


def test_frame_embeddings(eager):
    encoder, encoded = eager.encoder, eager.family.encode_frames(scenes(FRAMES))
    with eager_attention(encoder), FlopCounterMode(display=False) as counter:
        encoder.embed_frames(scenes(FRAMES), encoded.tower_features)
    assert counter.get_total_flops() / 2 == FRAMES * eager.shape.vision.frame_embedding()


def test_text_embedding(eager):
    encoder = eager.encoder
    with eager_attention(encoder), FlopCounterMode(display=False) as counter:
        encoder.embed_text("what color is the ring?")
    assert counter.get_total_flops() / 2 == eager.shape.vision.text_embedding()


class eager_attention:  # noqa: N801
    def __init__(self, encoder):
        attentions = [layer.self_attn for layer in [*encoder._layers, *encoder._text.encoder.layers]]
        self.configs = {id(attention.config): attention.config for attention in attentions}.values()

    def __enter__(self):
        for config in self.configs:
            config._attn_implementation = "eager"

    def __exit__(self, *_):
        for config in self.configs:
            config._attn_implementation = "sdpa"
