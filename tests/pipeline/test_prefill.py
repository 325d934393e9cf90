"""The pruned prefill: what it keeps, what it computes, and that it leaves the model as it was."""

import numpy as np
import pytest
import torch

from pipeline.methods import (
    AdaTP,
    AdaTPOneShot,
    FastV,
    FastVid,
    FewerFrames,
    PyramidDrop,
    RandomTokens,
    VisionZip,
)
from pipeline.packing import Pack
from pipeline.question import Question
from pipeline.runtime import Request
from tests.pipeline import reference
from tests.pipeline.methods.merging import by_hand

METHODS = [
    AdaTP(p=0.6),
    AdaTP(p=0.6, tau_s=0.5),
    AdaTP(p=0.75, tau_t=0.0, alpha_boost=1.3, deduplicate="drop"),
    AdaTP(p=0.6, deduplicate="off"),
    AdaTP(p=0.6, score_query="mean"),
    AdaTPOneShot(p=0.8),
    FastV(keep_ratio=0.3),
    PyramidDrop(keep_ratio=0.5),
    FewerFrames(keep_ratio=0.4),
]
MERGING = [
    VisionZip(keep_ratio=0.4),
    FastVid(keep_ratio=0.4, segments=2),
]  # written out in tests/pipeline/methods
ALL = [*METHODS, RandomTokens(keep_ratio=0.3), *MERGING]

# Matrices of other shapes round differently: of float32 logits of the order of 10, this much may differ.
TOLERANCE = 2e-5


def names(method):
    changed = [str(value) for name, value in vars(method).items() if value != getattr(type(method)(), name)]
    return f"{method.name}-{'-'.join(changed)}"


@torch.no_grad()
def untouched(runtime, clip, question):
    return runtime.model(**runtime.inputs(clip, question), logits_to_keep=1).logits[0, -1]


@pytest.mark.parametrize("which", ["runtime", "eager"])
@pytest.mark.parametrize("method", METHODS, ids=names)
def test_a_pruned_pass_equals_the_same_written_out(request, which, eager, clip, question, method):
    expected = reference.prefill(eager, clip, question, method)
    pack = request.getfixturevalue(which).one_pass(clip, question, method)
    assert [tokens.tolist() for tokens in pack.tokens(0)] == expected.tokens
    torch.testing.assert_close(pack.logits(0), expected.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("method", MERGING, ids=names)
def test_a_merging_pass_equals_the_decoder_on_tokens_merged_by_hand(runtime, clip, question, method):
    found = runtime.one_pass(clip, question, method).logits(0).log_softmax(-1)
    torch.testing.assert_close(found, by_hand(runtime, method, clip, question), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("method", ALL, ids=names)
def test_backends_keep_the_same_tokens(runtime, eager, clip, question, method):
    kept = [
        [tokens.tolist() for tokens in way.one_pass(clip, question, method).tokens(0)]
        for way in (runtime, eager)
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("which", ["runtime", "eager"])
@pytest.mark.parametrize(
    "method",
    [AdaTP(), FastV(), RandomTokens(), FewerFrames(), VisionZip(), FastVid()],
    ids=lambda m: m.name,
)
def test_keeping_everything_is_the_untouched_model_bit_for_bit(request, which, clip, question, method):
    runtime = request.getfixturevalue(which)
    whole = untouched(runtime, clip, question)
    assert runtime.one_pass(clip, question, method.with_ratio(1.0)).logits(0).equal(whole)
    assert runtime.one_pass(clip, question, None).logits(0).equal(whole)


@pytest.mark.parametrize("method", ALL, ids=names)
def test_nothing_is_left_behind(runtime, clip, question, method):
    def state():
        hooks = [
            hook
            for module in runtime.model.modules()
            for kind in ("_forward_pre_hooks", "_forward_hooks")
            for hook in getattr(module, kind).values()
            if not getattr(hook, "func", hook).__module__.startswith("transformers.")
        ]
        return hooks, {key: id(value) for key, value in vars(runtime.model).items()}

    whole, before = untouched(runtime, clip, question), state()
    assert not runtime.one_pass(clip, question, method).logits(0).equal(whole)
    assert state() == before
    assert untouched(runtime, clip, question).equal(whole)


@pytest.mark.parametrize("method", ALL, ids=names)
def test_planned_counts_are_the_tokens_kept_in_every_group(runtime, clip, method):
    for text in ("what color is the ring?", "is the red ball on sea?", "what shape is first?"):
        question = Question(text, text, ("yes", "no"))
        plan = method.plan(runtime.layout(clip, question), 12)
        pack = runtime.one_pass(clip, question, method)
        borders = np.cumsum([0, *plan.groups])
        for tokens, kept in zip(pack.tokens(0), plan.kept, strict=True):
            assert np.histogram(tokens, borders)[0].tolist() == list(kept)
            assert (np.diff(tokens) > 0).all()


@pytest.mark.parametrize("score_query", ["last", "mean"])
def test_scores_are_the_attention_of_the_last_token_or_of_the_question_alone(
    eager, clip, question, score_query, monkeypatch
):
    """The mean once went over all tokens after the video, chat template and time instruction included."""
    from pipeline import packing

    found = []
    scores = packing.row_scores
    monkeypatch.setattr(packing, "row_scores", lambda *given: found.append(scores(*given)) or found[-1])
    eager.one_pass(clip, question, AdaTP(p=0.6, score_query=score_query))
    weights, prompt = reference.prefill(eager, clip, question, None).weights[1], eager.prompt(clip, question)
    rows = prompt.question if score_query == "mean" else slice(-1, None)
    assert score_query == "last" or rows.stop < len(prompt.ids)
    expected = weights[:, rows][..., torch.from_numpy(prompt.visual)].mean(dim=(0, 1))
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-7)


# -- what families to come need -----------------------------------------------------------------------------


class Scattered:
    """A family whose prompt has a word between frames, and whose decoder adds to visual tokens after layers.

    Beside them it is the model it wraps.
    """

    def __init__(self, family):
        self._family = family
        self.adds_after = (0, 1, 3)
        self.seen = []

    def __getattr__(self, name):
        return getattr(self._family, name)

    def prompt(self, text, clip):
        from pipeline.prompt import Prompt

        plain = self._family.prompt(text, clip)
        word, ids, visual = self.answer_ids("red")[0], list(plain.before), []
        for _ in clip.times:
            ids += [word, *[self.video_token_id] * clip.cells]
            visual += range(len(ids) - clip.cells, len(ids))
        ids += [self.video_token_id] * clip.trailing
        features = np.array([*visual, *range(len(ids) - clip.trailing, len(ids))])
        begin = len(ids)
        ids += plain.after
        shift = begin - plain.video_end
        question = slice(plain.question.start + shift, plain.question.stop + shift)
        # Every second position is left out: whatever they are, they go along with their tokens.
        positions = 2 * np.arange(len(ids))[None]
        return Prompt(tuple(ids), features, np.array(visual), positions, 2 * len(ids), question)

    def after_layer(self, layer, hidden, extra, tokens, rows):
        self.seen.append((layer, len(tokens)))
        return hidden.index_add(1, rows, extra["deep"][None, tokens] * (layer + 1))


@pytest.fixture
def scattered(checkpoints, clip):
    from dataclasses import replace

    from pipeline.runtime import Runtime

    runtime = Runtime.load(str(checkpoints.model), text_encoder=str(checkpoints.siglip), frames=clip.frames)
    family = Scattered(runtime.family)
    drawn = torch.Generator().manual_seed(5)
    deep = torch.randn(clip.frames * clip.cells, clip.features.shape[1], generator=drawn) / 10
    return Runtime(
        family, runtime.encoder, identity="scattered", encoder_identity="", frames=clip.frames
    ), replace(clip, extra={"deep": deep})


@torch.no_grad()
def by_layers(runtime, clip, question, forced, layers):
    """The decoder layer by layer on all tokens in one row, dropping those that are not in `forced`."""
    family, prompt = runtime.family, runtime.prompt(clip, question)
    hidden = family.embed(prompt.ids)
    hidden[0, prompt.features] = clip.features
    rows, positions = np.arange(len(prompt.ids)), torch.from_numpy(prompt.positions[0])
    for index, layer in enumerate(family.layers):
        if index in layers:
            gone = np.delete(prompt.visual, forced[layers.index(index)])
            kept = ~np.isin(rows, gone)
            hidden, rows = hidden[:, kept], rows[kept]
        n = len(rows)
        mask = torch.full((1, 1, n, n), float("-inf")).triu(1)
        rotary = family.language_model.rotary_emb(hidden, positions[rows][None])
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        if index in family.adds_after:
            at = np.isin(rows, prompt.visual)
            tokens = np.searchsorted(prompt.visual, rows[at])
            hidden[0, at] += clip.extra["deep"][tokens] * (index + 1)
    return family.lm_head(family.language_model.norm(hidden))[0, -1]


@pytest.mark.parametrize(
    "method", [None, AdaTP(p=0.6), AdaTP(p=0.6, score_query="mean"), FastV(0.3)], ids=str
)
def test_visual_tokens_need_not_stand_side_by_side_and_decoders_may_add_to_them(scattered, question, method):
    runtime, clip = scattered
    layout = runtime.layout(clip, question)
    assert layout.tokens == len(runtime.prompt(clip, question).ids)
    split, single = runtime.prefill(clip, question, method), runtime.one_pass(clip, question, method)
    forced = [tokens.numpy() for tokens in split.tokens]
    assert [list(tokens) for tokens in forced] == [tokens.tolist() for tokens in single.tokens(0)]
    plan = method.plan(layout, 12) if method is not None else None
    assert split.kept == (() if plan is None else tuple(plan.total(j) for j in range(len(plan.layers))))
    expected = by_layers(runtime, clip, question, forced, () if plan is None else plan.layers)
    torch.testing.assert_close(single.logits(0), expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(split.logits, expected, rtol=0, atol=TOLERANCE)
    if plan is not None:
        assert (3, plan.total(plan.layers.index(3) if 3 in plan.layers else 0)) in runtime.family.seen


def test_several_such_questions_are_packed_as_each_alone(scattered, question):
    runtime, clip = scattered
    other = Question("q2", "what shape is first in the last scene?", ("ring", "ball"))
    asked = [Request(clip, item, AdaTP(p=0.6)) for item in (question, other)]
    with torch.inference_mode():
        pack = Pack(runtime.family, [runtime.pack_item(question) for question in asked])
    for index, one in enumerate(asked):
        alone = runtime.prefill(clip, one.question, one.method)
        torch.testing.assert_close(pack.logits(index), alone.logits, rtol=0, atol=5e-5)
