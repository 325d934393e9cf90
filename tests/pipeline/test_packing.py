"""Several questions in one row: the answers of each alone, and nothing wasted."""

import numpy as np
import pytest
import torch

from pipeline.errors import UnsupportedError
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
from pipeline.packing import Pack, PackItem, build_prefix
from pipeline.question import Question
from pipeline.runtime import Request, Runtime
from tests.checkpoints import scenes
from tests.pipeline.conftest import FRAMES

METHODS = [
    None,
    AdaTP(p=0.6),
    AdaTP(p=0.7, tau_s=0.5),
    AdaTP(p=0.75, tau_t=0.0, alpha_boost=1.3, deduplicate="drop"),
    AdaTP(p=0.6, score_query="mean"),
    AdaTPOneShot(p=0.8),
    FastV(keep_ratio=0.3),
    PyramidDrop(keep_ratio=0.5),
    RandomTokens(keep_ratio=0.3),
    FewerFrames(keep_ratio=0.4),
    VisionZip(keep_ratio=0.4),
    FastVid(keep_ratio=0.4, segments=2),
]

# A row of several questions is multiplied in other blocks than one question alone: what float32
# log-probabilities of this model may differ by. docs/experiments.md gives it for the demo model.
TOLERANCE = 5e-5


def name(method):
    if method is None:
        return "unpruned"
    changed = [str(value) for key, value in vars(method).items() if value != getattr(type(method)(), key)]
    return f"{method.name}-{'-'.join(changed)}"


@pytest.fixture(scope="module")
def clips(runtime):
    return [runtime.encode_frames(scenes(n, seed=n), np.arange(n) / 2) for n in (FRAMES, 3, 5)]


@pytest.fixture(scope="module")
def questions():
    return [
        Question("a", "what color is the ring?", ("red", "dark blue", "top left of the scene")),
        Question("b", "is the red ball on sea?", ("yes", "no")),
        Question("c", "what shape is first in the last scene of red and blue?", ("ring", "ball", "cube")),
        Question("d", "what is before?"),
        Question("e", "what color?"),
    ]


def alone(runtime, one):
    return runtime.answer(one.clip, one.question, one.method, reference=one.reference)


def same(a, b):
    assert (a.question, a.text, a.option, a.kept) == (b.question, b.text, b.option, b.kept)
    assert a.logprob == pytest.approx(b.logprob, abs=TOLERANCE)
    if a.option_logprobs is not None:
        assert a.option_logprobs == pytest.approx(b.option_logprobs, abs=TOLERANCE)


@pytest.mark.parametrize("which", ["runtime", "eager"])
@pytest.mark.parametrize("method", METHODS, ids=name)
def test_packed_answers_are_those_of_each_question_alone(request, which, clips, questions, method):
    runtime = request.getfixturevalue(which)
    asked = [Request(clip, question, method) for clip in clips for question in questions]
    together = runtime.answer_many(asked)
    assert [item.question for item in together] == [question.question.id for question in asked]
    for one, answer in zip(asked, together, strict=True):
        same(answer, alone(runtime, one))


def test_every_question_may_have_its_own_method_and_reference(runtime, clips, questions):
    asked = [
        Request(
            clips[i % 3], questions[i % 5], method, "dark red" if questions[i % 5].options is None else None
        )
        for i, method in enumerate(METHODS * 2)
    ]
    for question, answer in zip(asked, runtime.answer_many(asked), strict=True):
        same(answer, alone(runtime, question))


def test_no_questions_have_no_answers(runtime):
    assert runtime.answer_many([]) == []


def test_what_stands_beside_a_question_does_not_reach_it(runtime, clips, questions):
    """Neighbours with other words and another video, of the same lengths: not one bit differs."""
    other = runtime.encode_frames(scenes(FRAMES, seed=99), np.arange(FRAMES) / 2)
    mine = Request(clips[0], questions[0], AdaTP(p=0.6))
    beside = Question("x", "what shape was the cube?", questions[0].options)
    assert len(runtime.prompt(clips[0], beside).after) == len(runtime.prompt(clips[0], questions[0]).after)
    plain = AdaTP(p=0.6, tau_s=-1.0)  # one segment: the same counts for both videos
    first = runtime.answer_many([mine, Request(clips[0], questions[0], plain)])[0]
    second = runtime.answer_many([mine, Request(other, beside, plain)])[0]
    assert first.option_logprobs == second.option_logprobs


def test_the_row_holds_the_planned_tokens_and_no_padding(runtime, clips, questions):
    method = AdaTP(p=0.6)
    asked = [Request(clip, question, method) for clip in clips for question in questions[:3]]
    rows = {}

    def note(layer, args):
        rows.setdefault(layer.self_attn.layer_idx, tuple(args[0].shape))

    hooks = [layer.register_forward_pre_hook(note) for layer in runtime.family.layers]
    try:
        runtime.answer_many(asked)
    finally:
        for hook in hooks:
            hook.remove()
    layouts = [runtime.layout(question.clip, question.question) for question in asked]
    planned = np.sum([method.plan(layout, 12).tokens_per_layer(12, layout) for layout in layouts], axis=0)
    own = sum(layout.text_after for layout in layouts)  # the rest of the first layers comes from the prefix
    assert [rows[i][1] for i in range(12)] == [own] * 2 + planned[2:].tolist()
    assert {shape[0] for shape in rows.values()} == {1}


@pytest.mark.parametrize("which", ["runtime", "eager"])
@pytest.mark.parametrize("method", METHODS[1:], ids=name)
def test_a_split_prefill_equals_a_single_pass_up_to_rounding(request, which, clips, questions, method):
    runtime = request.getfixturevalue(which)
    clip, question = clips[0], questions[0]
    single = runtime.one_pass(clip, question, method)
    split = runtime.prefill(clip, question, method)
    assert [a.tolist() for a in split.tokens] == [b.tolist() for b in single.tokens(0)]
    torch.testing.assert_close(split.logits, single.logits(0), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("method", [None, AdaTP(p=0.6)], ids=name)
def test_reading_an_answer_changes_nothing(runtime, clips, questions, method):
    with torch.inference_mode():
        pack = Pack(
            runtime.family, [runtime.pack_item(Request(clips[0], question, method)) for question in questions]
        )
        texts = {i: [(7, 8, 9), (10,)] for i in range(5)}
        first = pack.score(texts)
        said = pack.greedy([4, 0], 5, ())
        assert pack.score(texts) == first
        assert pack.greedy([4, 0], 5, ()) == said
    assert [len(said[i][0]) for i in (4, 0)] == [5, 5]
    with pytest.raises(ValueError, match="at least one token"):
        pack.score({0: [()]})


def test_prefixes_are_never_written_to(runtime, clips, questions):
    prefix = runtime.prefix(clips[0], 2)
    held = [tensor.clone() for tensor in (*prefix.keys, *prefix.values, prefix.hidden)]
    runtime.answer_many([Request(clips[0], question, AdaTP(p=0.5)) for question in questions])
    now = (*prefix.keys, *prefix.values, prefix.hidden)
    assert all(a.equal(b) for a, b in zip(held, now, strict=True))


def test_the_model_is_as_before_afterwards_also_after_an_error(runtime, clips, questions, monkeypatch):
    config = runtime.family.language_model.config
    runtime.answer(clips[0], questions[0], AdaTP(p=0.5))
    assert config._attn_implementation == "sdpa"
    monkeypatch.setattr(AdaTP, "select", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runtime.answer(clips[0], questions[0], AdaTP(p=0.5))
    assert config._attn_implementation == "sdpa"


def test_an_attention_backend_nobody_tried_is_refused(runtime, clips, questions, monkeypatch):
    monkeypatch.setattr(runtime.family.language_model.config, "_attn_implementation", "flex_attention")
    with pytest.raises(UnsupportedError, match="works with eager, sdpa, flash_attention_2"):
        runtime.answer(clips[0], questions[0], AdaTP(p=0.5))


def test_a_prefix_that_ends_after_the_first_pruning_is_refused(runtime, clips, questions):
    clip, question, method = clips[0], questions[0], AdaTP(p=0.5)
    layout, prompt = runtime.layout(clip, question), runtime.prompt(clip, question)
    prefix = build_prefix(runtime.family, prompt, clip.features, {}, 3)
    item = PackItem(prompt, layout, prefix, method, method.plan(layout, 12))
    with pytest.raises(ValueError, match="ends before layer 3, but the plan begins before 2"):
        Pack(runtime.family, [item])
    with pytest.raises(ValueError, match="At least one question"):
        Pack(runtime.family, [])


@pytest.mark.parametrize("layers", [0, 2, 12])
def test_a_prefix_computed_twice_is_the_same_bit_for_bit(runtime, clips, questions, layers):
    prompt = runtime.prompt(clips[0], questions[0])
    first, second = (build_prefix(runtime.family, prompt, clips[0].features, {}, layers) for _ in range(2))
    assert len(first.keys) == len(first.values) == layers
    assert all(
        a.equal(b) for a, b in zip(first.keys + first.values, second.keys + second.values, strict=True)
    )
    if layers < 12:
        assert first.hidden.equal(second.hidden)
    assert first.nbytes > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_packs_too(checkpoints, dtype):
    runtime = Runtime.load(
        str(checkpoints.model), text_encoder=str(checkpoints.siglip), frames=FRAMES, dtype=dtype
    )
    clip = runtime.encode_frames(scenes(FRAMES), np.arange(FRAMES))
    asked = [Request(clip, Question(c, f"what {c}?", ("red", "dark blue")), AdaTP(p=0.6)) for c in "abc"]
    for question, answer in zip(asked, runtime.answer_many(asked), strict=True):
        assert np.isfinite(answer.option_logprobs).all()
        assert answer.kept == alone(runtime, question).kept


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("words", [("red", "blue"), ("dark red", "dark blue")], ids=" or ".join)
def test_options_whose_logits_half_precision_rounds_to_the_same_differ(checkpoints, dtype, words):
    """Two words a rounding error of the logits apart: at ae20304 they were equal, the first was chosen."""
    runtime = Runtime.load(
        str(checkpoints.model), text_encoder=str(checkpoints.siglip), frames=FRAMES, dtype=dtype
    )
    clip = runtime.encode_frames(scenes(FRAMES), np.arange(FRAMES))
    first, second = (runtime._option_ids(word)[-1] for word in words)
    head = runtime.family.lm_head
    head.weight.data[second] = head.weight[first]
    seen = {}

    def ask():
        hook = head.register_forward_hook(lambda _, args, out: seen.update(hidden=args[0], logits=out))
        answer = runtime.answer(clip, Question("q", "what color is the ring?", words), None)
        hook.remove()
        return answer

    assert len(set(ask().option_logprobs)) == 1
    # A weight that counts for next to nothing moves by an eighth of itself. No rounded logit shows it: the
    # first such weight is taken for which that is so.
    terms = head.weight[first].float() * seen["hidden"][0].float()
    for place in terms.abs().argsort():
        head.weight.data[second] = head.weight[first]
        head.weight.data[second, place] *= 1 + 0.125 * terms[place].sign()
        answer = ask()
        if seen["logits"][0, first] == seen["logits"][0, second]:
            break
    else:
        pytest.fail("Every change shows in the rounded logit.")
    assert answer.option == 1
    assert answer.option_logprobs[1] > answer.option_logprobs[0]
