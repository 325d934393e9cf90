"""generate() from a pruned prompt: every step equals a computation from scratch with the same kept tokens."""

import pytest
import torch
from transformers import TextStreamer

from pipeline.errors import UnsupportedError
from pipeline.methods import AdaTP, FastV, FastVid, FewerFrames, RandomTokens, VisionZip
from pipeline.question import Question
from tests.pipeline import reference
from tests.pipeline.methods.merging import of_clip

METHODS = [
    None,
    AdaTP(p=0.6),
    AdaTP(p=0.75, tau_t=0.0, alpha_boost=1.3, deduplicate="drop"),
    AdaTP(p=0.6, score_query="mean"),
    FastV(keep_ratio=0.3),
    RandomTokens(keep_ratio=0.3),
    FewerFrames(keep_ratio=0.4),
    VisionZip(keep_ratio=0.4),
    FastVid(keep_ratio=0.4, segments=2),
]
EVERY = pytest.mark.parametrize(
    "method", METHODS, ids=["unpruned", "adatp", "drop", "mean", "one", "random", "fewer", "zip", "vid"]
)

# One token at a time and a whole prompt multiply matrices of other shapes, and so round differently: of
# float32 logits of the order of 10, this much may differ.
TOLERANCE = 2e-5
FREE = Question("q", "what color is the ring?")


def generate(runtime, prefill, **options):
    """Five tokens after a prompt, and the distribution each was taken from."""
    settings = {
        "max_new_tokens": 5,
        "do_sample": False,
        "eos_token_id": None,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    return runtime.model.generate(**prefill.inputs, **(settings | options))


def said(out, prefill):
    return out.sequences[0, len(prefill.ids) :].tolist()


def written_out(eager, clip, method, prefill, following):
    """(vocabulary,) logits after the prompt and `following`, with the tokens kept by `prefill`."""
    forced = None if method is None else [tokens.tolist() for tokens in prefill.tokens]
    states = None
    if method is not None and method.merges:
        states = of_clip(eager, method, clip, FREE).hidden
    return reference.prefill(
        eager, clip, FREE, method, following=following, forced=forced, states=states
    ).logits


@EVERY
def test_greedy_decoding_equals_a_computation_from_scratch(runtime, eager, clip, method):
    """At ae20304 `generate` had a prefill of its own, by hooks of 485 lines."""
    prefill = runtime.prefill(clip, FREE, method)
    out = generate(runtime, prefill)
    words = said(out, prefill)
    for step, got in enumerate(out.logits):
        expected = written_out(eager, clip, method, prefill, words[:step])
        torch.testing.assert_close(got[0], expected, rtol=0, atol=TOLERANCE)
        assert words[step] == expected.argmax()
    torch.testing.assert_close(out.logits[0][0], prefill.logits, rtol=0, atol=TOLERANCE)


@EVERY
def test_sampled_tokens_are_drawn_from_the_recomputed_distributions(runtime, eager, clip, method):
    prefill = runtime.prefill(clip, FREE, method)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        sampling = {"do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 1.0}
        words = said(generate(runtime, prefill, **sampling, max_new_tokens=8), prefill)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for step, word in enumerate(words):  # the first token, too, is generate's own draw
            logits = written_out(eager, clip, method, prefill, words[:step])
            assert word == (logits / 1.5).softmax(dim=-1).multinomial(1)
    assert len(set(words)) > 3  # drawn, not the likeliest again and again


@EVERY
def test_a_follow_up_turn_sees_the_tokens_chosen_first(runtime, eager, clip, method):
    first = runtime.prefill(clip, FREE, method)
    out = generate(runtime, first, max_new_tokens=3)
    with pytest.raises(ValueError, match="as token ids, but got the text 'red'"):
        first.follow_up("red", "is the ball on brick ?")
    second = first.follow_up(out.sequences, "is the ball on brick ?")
    answer = said(out, first)
    while answer and answer[-1] in runtime.family.end_ids:
        answer.pop()
    asked = [*answer, *runtime.family.turn("is the ball on brick ?")]
    assert second.kept == first.kept
    assert second.ids == (*first.ids, *asked)
    expected = written_out(eager, clip, method, first, asked)
    torch.testing.assert_close(second.logits, expected, rtol=0, atol=TOLERANCE)
    more = generate(runtime, second)
    words = said(more, second)
    for step, got in enumerate(more.logits):
        expected = written_out(eager, clip, method, first, [*asked, *words[:step]])
        torch.testing.assert_close(got[0], expected, rtol=0, atol=TOLERANCE)
    # And once more, from the ids of the answer alone.
    third = second.follow_up(words, "what shape is first ?")
    expected = written_out(eager, clip, method, first, third.ids[len(first.ids) :])
    torch.testing.assert_close(third.logits, expected, rtol=0, atol=TOLERANCE)


@EVERY
def test_a_free_answer_says_what_generate_says(runtime, clip, method):
    prefill = runtime.prefill(clip, FREE, method)
    written = runtime.model.generate(**prefill.inputs, max_new_tokens=runtime.max_new_tokens, do_sample=False)
    text = runtime.family.tokenizer.decode(written[0, len(prefill.ids) :], skip_special_tokens=True).strip()
    answer = runtime.answer(clip, FREE, method)
    assert (answer.text, answer.kept) == (text, prefill.kept)


def test_going_on_leaves_a_prefill_as_it_was(runtime, clip):
    prefill = runtime.prefill(clip, FREE, AdaTP(p=0.6))
    held = {layer: [tensor.clone() for tensor in pair] for layer, pair in prefill.keys_values.items()}
    first = generate(runtime, prefill).sequences
    prefill.follow_up(first, "is it red ?")
    assert generate(runtime, prefill).sequences.equal(first)
    for layer, pair in prefill.keys_values.items():
        assert all(now.equal(then) for now, then in zip(pair, held[layer], strict=True))


def test_a_streamer_is_handed_every_token(runtime, clip, capsys):
    prefill = runtime.prefill(clip, FREE, AdaTP(p=0.6))
    out = generate(runtime, prefill, streamer=TextStreamer(runtime.family.tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip() == runtime.family.tokenizer.decode(said(out, prefill)).strip()


def test_a_backend_whose_masks_do_not_fit_is_refused_by_name(eager, clip):
    prefill = eager.prefill(clip, FREE, AdaTP(p=0.6))
    with pytest.raises(UnsupportedError, match="sdpa and flash_attention_2, but the model runs eager"):
        _ = prefill.inputs


def test_several_sequences_are_refused(runtime, clip):
    prefill = runtime.prefill(clip, FREE, AdaTP(p=0.6))
    with pytest.raises(ValueError, match=r"One sequence goes on, \(1, tokens\), but got the shape \(2, 3\)"):
        prefill.follow_up(torch.zeros(2, 3), "and?")


@pytest.mark.parametrize(
    "options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}], ids=str
)
def test_beams_and_several_answers_are_refused_by_name(runtime, clip, options):
    prefill = runtime.prefill(clip, FREE, AdaTP(p=0.6))
    with pytest.raises(UnsupportedError, match="num_beams and num_return_sequences are 1"):
        runtime.model.generate(**prefill.inputs, max_new_tokens=3, **options)
