"""FlashAttention's way through transformers, with a stand-in for its package that computes the same exactly.

The real one needs a GPU. What can go wrong before it is reached is the same here: how it is looked up, which
arguments it gets, and that rows without a mask of their own see what they should.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import modeling_flash_attention_utils as lookup
from transformers import modeling_utils

from pipeline.checkpoint import find_checkpoint
from pipeline.errors import ModelError
from pipeline.families import load_family
from pipeline.methods import METHODS, AdaTP, FastV, FewerFrames
from pipeline.question import Question
from pipeline.runtime import Request, Runtime
from tests.checkpoints import scenes

BACKEND = "flash_attention_2"
SAME = {"rtol": 0, "atol": 5e-5}

QUESTIONS = [
    Question("a", "what color is the ring?", ("red", "dark blue", "top left of the scene")),
    Question("b", "is the red ball on sea?", ("yes", "no")),
    Question("c", "what is before?"),
]


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    alibi_slopes=None, deterministic=False, return_attn_probs=False,
):  # fmt: skip
    """As flash_attn 2.3 and newer: (1, rows, heads, head) over (1, keys, key-value heads, head).

    With fewer rows than keys the causal rule holds at the right end: the last row sees every key.
    """
    assert (dropout_p, window_size, softcap, alibi_slopes) == (0.0, (-1, -1), 0.0, None)
    calls.append(tuple(q.shape[1:2] + k.shape[1:2]))
    groups = q.shape[2] // k.shape[2]
    query, key, value = (item.transpose(1, 2) for item in (q, k, v))
    key, value = (item.repeat_interleave(groups, dim=1) for item in (key, value))
    logits = query @ key.transpose(2, 3) * softmax_scale
    if causal:
        rows, keys = logits.shape[2:]
        later = torch.ones(rows, keys, dtype=torch.bool).triu(1 + keys - rows)
        logits = logits.masked_fill(later, float("-inf"))
    return (logits.softmax(dim=-1) @ value).transpose(1, 2)


def flash_attn_varlen_func(*_, cu_seqlens_q=None, cu_seqlens_k=None, **__):
    """For padded batches and rows that positions divide: nothing here makes either."""
    raise AssertionError("taken for packed sequences")


calls: list[tuple[int, int]] = []


@pytest.fixture
def package(monkeypatch):
    """The stand-in, found where the package would be."""
    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    package.flash_attn_func = flash_attn_func
    package.flash_attn_varlen_func = package.flash_attn_with_kvcache = flash_attn_varlen_func
    padding.pad_input = padding.unpad_input = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(lookup, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(lookup, "_loaded_implementation", None)
    asked_for = modeling_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    monkeypatch.setitem(asked_for, "general_availability_check", lambda: True)
    calls.clear()


@pytest.fixture
def flash(runtime, package, monkeypatch):
    """The runtime with flash_attention_2 in its language model."""
    monkeypatch.setattr(runtime.family.language_model.config, "_attn_implementation", BACKEND)
    runtime.forget_prefixes()
    yield runtime
    assert calls
    assert runtime.family.language_model.config._attn_implementation == BACKEND
    runtime.forget_prefixes()


@pytest.fixture(scope="module")
def clips(runtime):
    return [runtime.encode_frames(scenes(n, seed=n), np.arange(n) / 2) for n in (8, 5)]


@pytest.fixture(scope="module")
def requests(clips):
    methods = [None, *(method() for method in METHODS.values()), AdaTP(p=0.6, score_query="mean")]
    return [Request(clip, question, method) for method in methods for clip in clips for question in QUESTIONS]


@pytest.fixture(scope="module")
def expected(runtime, requests):
    """By sdpa."""
    return runtime.answer_many(requests)


def test_answers_are_those_of_sdpa(flash, requests, expected):
    """Options of several tokens, free text, questions packed and alone; grouped-query attention throughout.

    At ae20304: "Could not find ... adatp_packed_flash_attention_2".
    """
    packed = flash.answer_many(requests)
    alone = [
        flash.answer(request.clip, request.question, request.method) for request in requests[: len(QUESTIONS)]
    ]
    for answers in (packed, alone):
        for answer, wanted in zip(answers, expected, strict=False):
            assert (answer.text, answer.option, answer.kept) == (wanted.text, wanted.option, wanted.kept)
            assert answer.logprob == pytest.approx(wanted.logprob, abs=5e-5)
            if wanted.option_logprobs is not None:
                assert answer.option_logprobs == pytest.approx(wanted.option_logprobs, abs=5e-5)


def test_a_model_loaded_with_it_encodes_and_answers_as_one_loaded_with_sdpa(package, checkpoints):
    """In half precision, the only one it has; the vision tower runs on it too."""
    found = []
    for attention in ("sdpa", BACKEND):
        loaded = Runtime.load(
            str(checkpoints.model),
            text_encoder=str(checkpoints.siglip),
            frames=8,
            dtype="bfloat16",
            attention=attention,
        )
        assert loaded.family.attention == loaded.model.config._attn_implementation == attention
        clip = loaded.encode_frames(scenes(8), np.arange(8) / 2)
        found.append((loaded, clip, loaded.answer(clip, QUESTIONS[0], AdaTP(p=0.6))))
        assert bool(calls) == (attention == BACKEND)
    (sdpa, clip, wanted), (flash, other, answer) = found
    patches = flash.shape.vision.patches
    assert {(patches, patches)} < set(calls)  # the tower's calls
    torch.testing.assert_close(other.features, clip.features, rtol=0.05, atol=0.05)
    assert answer.option_logprobs == pytest.approx(wanted.option_logprobs, abs=0.3)
    assert sdpa.encoding != flash.encoding


def test_without_the_package_it_is_refused_in_words(checkpoints):
    with pytest.raises(ModelError, match="the package for FlashAttention2 doesn't seem to be installed"):
        load(checkpoints, "bfloat16")


def test_float32_is_refused_with_it(package, checkpoints):
    """Its kernels would raise at the first video."""
    with pytest.raises(
        ModelError, match="flash_attention_2 computes in bfloat16 or float16, but dtype is float32"
    ):
        load(checkpoints, "auto")


def load(checkpoints, dtype):
    checkpoint = find_checkpoint(str(checkpoints.model))
    return load_family(checkpoint, device="cpu", dtype=dtype, attention=BACKEND)


@pytest.mark.parametrize("method", [AdaTP(p=0.6), FastV(0.3), FewerFrames(0.4)], ids=lambda one: one.name)
def test_a_prompt_its_continuation_and_a_follow_up_are_those_of_sdpa(flash, clips, method, monkeypatch):
    found = []
    for backend in (BACKEND, "sdpa"):
        monkeypatch.setattr(flash.family.language_model.config, "_attn_implementation", backend)
        first = flash.prefill(clips[0], QUESTIONS[2], method)
        said = flash.model.generate(**first.inputs, max_new_tokens=4, do_sample=False)
        second = first.follow_up(said, "is the red ball on sea?")
        found.append((said.tolist(), [token.tolist() for token in first.tokens], first.logits, second.logits))
    monkeypatch.setattr(flash.family.language_model.config, "_attn_implementation", BACKEND)
    (said, tokens, first, second), other = found
    assert (said, tokens) == other[:2]
    torch.testing.assert_close(first, other[2], **SAME)
    torch.testing.assert_close(second, other[3], **SAME)
