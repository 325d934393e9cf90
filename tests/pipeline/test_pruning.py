"""Pruning inside the model: what it keeps, what it computes, and that it leaves nothing behind."""

import numpy as np
import pytest
import torch

from pipeline.errors import UnsupportedError
from pipeline.methods import (
    AdaTP,
    AdaTPOneShot,
    FastVid,
    FewerFrames,
    OneShot,
    PyramidDrop,
    RandomTokens,
    VisionZip,
)
from pipeline.pruning import attention_scores, pruned
from pipeline.question import Question
from tests.pipeline import reference

METHODS = [
    AdaTP(p=0.6),
    AdaTP(p=0.6, tau_s=0.5),
    AdaTP(p=0.75, tau_t=0.0, alpha_boost=1.3, deduplicate="drop"),
    AdaTP(p=0.6, deduplicate="off"),
    AdaTP(p=0.6, score_query="mean"),
    AdaTPOneShot(p=0.8),
    OneShot(keep_ratio=0.3),
    PyramidDrop(keep_ratio=0.5),
    FewerFrames(keep_ratio=0.4),
]
MERGING = [
    VisionZip(keep_ratio=0.4),
    FastVid(keep_ratio=0.4, segments=2),
]  # written out in tests/pipeline/methods
ALL = [*METHODS, RandomTokens(keep_ratio=0.3), *MERGING]

# One pass and a split one multiply matrices of other shapes, and so round differently: of float32 logits of
# the order of 10, this much may differ.
TOLERANCE = 2e-5


def names(method):
    changed = [str(value) for name, value in vars(method).items() if value != getattr(type(method)(), name)]
    return f"{method.name}-{'-'.join(changed)}"


@torch.no_grad()
def logits(runtime, clip, question, **kwargs):
    return runtime.model(**runtime.inputs(clip, question), **kwargs).logits[0]


def hooks(model):
    """Every hook of every module but those that transformers installs to capture outputs, which it leaves."""

    def ours(hook):
        return not getattr(hook, "func", hook).__module__.startswith("transformers.")

    found = {
        (name, kind): sum(map(ours, getattr(module, kind).values()))
        for name, module in model.named_modules()
        for kind in vars(module)
        if kind.endswith("hooks") and getattr(module, kind)
    }
    return {place: count for place, count in found.items() if count}


@pytest.mark.parametrize("method", METHODS, ids=names)
def test_a_pruned_pass_equals_the_same_written_out(eager, clip, question, method):
    expected = reference.prefill(eager, clip, question, method)
    with pruned(eager, method, clip, question) as pruning:
        got = logits(eager, clip, question)[-1]
    assert [tokens.tolist() for tokens in pruning.tokens] == expected.tokens
    torch.testing.assert_close(got, expected.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("method", ALL, ids=names)
def test_backends_keep_the_same_tokens(runtime, eager, clip, question, method):
    kept = []
    for one in (runtime, eager):
        with pruned(one, method, clip, question) as pruning:
            logits(one, clip, question)
        kept.append([tokens.tolist() for tokens in pruning.tokens])
    assert kept[0] == kept[1]


@pytest.mark.parametrize("which", ["runtime", "eager"])
@pytest.mark.parametrize(
    "method",
    [AdaTP(), OneShot(), RandomTokens(), FewerFrames(), VisionZip(), FastVid()],
    ids=lambda m: m.name,
)
def test_keeping_everything_is_the_untouched_model_bit_for_bit(request, which, clip, question, method):
    runtime = request.getfixturevalue(which)
    untouched = logits(runtime, clip, question)
    with pruned(runtime, method.with_ratio(1.0), clip, question) as pruning:
        assert hooks(runtime.model)
        got = logits(runtime, clip, question)
    assert pruning.kept
    assert set(pruning.kept) == {clip.frames * clip.cells}
    assert got.equal(untouched)


@pytest.mark.parametrize("method", ALL, ids=names)
def test_nothing_is_left_behind(runtime, clip, question, method):
    before, state = hooks(runtime.model), {key: id(value) for key, value in vars(runtime.model).items()}
    untouched = logits(runtime, clip, question)
    with pruned(runtime, method, clip, question):
        assert not logits(runtime, clip, question, logits_to_keep=1).equal(untouched[-1:])
    assert hooks(runtime.model) == before == {}
    assert {key: id(value) for key, value in vars(runtime.model).items()} == state
    assert logits(runtime, clip, question).equal(untouched)


def test_nothing_is_left_behind_by_an_error_either(runtime, clip, question):
    other = runtime.encode_frames(np.zeros((3, 32, 32, 3), dtype=np.uint8), np.arange(3.0))
    with pytest.raises(UnsupportedError), pruned(runtime, AdaTP(p=0.5), clip, question):
        logits(runtime, other, question)
    assert hooks(runtime.model) == {}


@pytest.mark.parametrize("method", ALL, ids=names)
def test_planned_counts_are_the_tokens_kept_in_every_group(runtime, clip, method):
    layout_of = runtime.layout
    for text in ("what color is the ring?", "is the red ball on sea?", "what shape is first?"):
        question = Question(text, text, ("yes", "no"))
        plan = method.plan(layout_of(clip, question), 12)
        with pruned(runtime, method, clip, question) as pruning:
            logits(runtime, clip, question)
        borders = np.cumsum([0, *plan.groups])
        for tokens, kept in zip(pruning.tokens, plan.kept, strict=True):
            assert np.histogram(tokens, borders)[0].tolist() == list(kept)
            assert (np.diff(tokens) > 0).all()


@pytest.mark.parametrize("rows", [1, 4])
def test_scores_are_the_attention_of_the_last_rows(eager, clip, question, rows):
    weights = reference.prefill(eager, clip, question, None).weights
    family = eager.family
    given = {}

    def keep(_, args, kwargs):
        given.update(kwargs)

    handle = family.layers[3].self_attn.register_forward_pre_hook(keep, with_kwargs=True)
    logits(eager, clip, question)
    handle.remove()
    keys = given["past_key_values"].layers[3].keys
    scores = attention_scores(
        family.layers[3].self_attn,
        given["hidden_states"][:, -rows:],
        given["position_embeddings"],
        keys,
        slice(2, 34),
    )
    torch.testing.assert_close(scores, weights[3][:, -rows:, 2:34].mean(dim=(0, 1)), rtol=1e-5, atol=1e-7)


# -- going on after the prefill -----------------------------------------------------------------------------


def test_a_second_prompt_in_the_same_block_starts_over(runtime, clip, question):
    with pruned(runtime, AdaTP(p=0.5), clip, question) as pruning:
        first = logits(runtime, clip, question)
        assert logits(runtime, clip, question).equal(first)
    assert len(pruning.tokens) == 6


# -- refused rather than wrong ------------------------------------------------------------------------------


def test_a_batch_is_refused(runtime, clip, question):
    inputs = runtime.inputs(clip, question)
    features = inputs["mm_encoder_outputs"]["video"]
    features.pooler_output = features.pooler_output.repeat(2, 1, 1)
    with (
        pytest.raises(UnsupportedError, match="One sequence at a time is pruned, but got a batch of 2"),
        pruned(runtime, AdaTP(p=0.5), clip, question),
    ):
        runtime.model(input_ids=inputs["input_ids"].repeat(2, 1), mm_encoder_outputs={"video": features})


def test_a_call_without_cache_is_refused(runtime, clip, question):
    with (
        pytest.raises(UnsupportedError, match="use_cache=True"),
        pruned(runtime, AdaTP(p=0.5), clip, question),
    ):
        logits(runtime, clip, question, use_cache=False)


def test_two_methods_at_once_are_refused(runtime, clip, question):
    with pruned(runtime, AdaTP(p=0.5), clip, question):
        with (
            pytest.raises(UnsupportedError, match="already being pruned"),
            pruned(runtime, OneShot(), clip, question),
        ):
            pass
        logits(runtime, clip, question)
    assert hooks(runtime.model) == {}


def test_a_prompt_that_ends_with_its_video_is_refused(runtime, clip, question):
    inputs = runtime.inputs(clip, question)
    inputs["input_ids"] = inputs["input_ids"][:, : -len(runtime._prompt(clip, question).after)]
    with (
        pytest.raises(UnsupportedError, match="the question along with it"),
        pruned(runtime, AdaTP(p=0.5), clip, question),
    ):
        runtime.model(**inputs)


def test_a_prompt_with_another_clip_is_refused(runtime, clip, question):
    other = runtime.encode_frames(np.zeros((3, 32, 32, 3), dtype=np.uint8), np.arange(3.0))
    with (
        pytest.raises(UnsupportedError, match="The clip has 33 video tokens, but the prompt has 13"),
        pruned(runtime, AdaTP(p=0.5), clip, question),
    ):
        logits(runtime, other, question)


def test_a_longer_prompt_of_ones_own_is_found_its_way_around_in(runtime, clip, question):
    inputs = runtime.inputs(clip, question)
    inputs["input_ids"] = torch.cat((torch.tensor([[20, 21, 22]]), inputs["input_ids"]), dim=1)
    method = AdaTP(p=1.0)
    with torch.no_grad():
        untouched = runtime.model(**inputs).logits
        with pruned(runtime, method, clip, question):
            assert runtime.model(**inputs).logits.equal(untouched)
        with pruned(runtime, AdaTP(p=0.5), clip, question) as pruning:
            runtime.model(**inputs)
    assert pruning.kept == tuple(pruning.plan.total(j) for j in range(6))


def test_an_attention_backend_nobody_tried_is_refused(runtime, clip, question):
    config = runtime.family.language_model.config
    config._attn_implementation = "flex_attention"
    try:
        with (
            pytest.raises(UnsupportedError, match="works with eager, sdpa, flash_attention_2"),
            pruned(runtime, AdaTP(p=0.5), clip, question),
        ):
            pass
    finally:
        config._attn_implementation = "sdpa"
