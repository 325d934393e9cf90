"""generate() inside `pruned(...)`: every step equals a computation from scratch with the same kept tokens."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, StaticCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from pipeline.errors import UnsupportedError
from pipeline.methods import AdaTP, FastVid, FewerFrames, OneShot, RandomTokens, VisionZip
from pipeline.pruning import pruned
from tests.checkpoints import scenes
from tests.pipeline import reference
from tests.pipeline.methods.merging import of_clip

METHODS = [
    AdaTP(p=0.6),
    AdaTP(p=0.75, tau_t=0.0, alpha_boost=1.3, deduplicate="drop"),
    AdaTP(p=0.6, score_query="mean"),
    OneShot(keep_ratio=0.3),
    RandomTokens(keep_ratio=0.3),
    FewerFrames(keep_ratio=0.4),
]
SCORED = METHODS[:4]
EVERY = pytest.mark.parametrize("method", METHODS, ids=["adatp", "drop", "mean", "one", "random", "fewer"])
BOTH = pytest.mark.parametrize("which", ["runtime", "eager"])
PRUNE = AdaTP(p=0.5)

# One token at a time and a whole prompt multiply matrices of other shapes, and so round differently: of
# float32 logits of the order of 10, this much may differ.
TOLERANCE = 2e-5


def generate(runtime, inputs, **options):
    """Five tokens after a prompt, and the distribution each was taken from."""
    ids = inputs["input_ids"]
    settings = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": 5,
        "do_sample": False,
        "eos_token_id": None,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    return runtime.model.generate(**inputs, **(settings | options))


def said(out, inputs):
    return out.sequences[0, inputs["input_ids"].shape[1] :].tolist()


def kept_by(pruning):
    return [tokens.tolist() for tokens in pruning.tokens]


# -- greedy and sampled -------------------------------------------------------------------------------------


@BOTH
@EVERY
def test_greedy_decoding_equals_a_computation_from_scratch(request, eager, which, clip, question, method):
    runtime = request.getfixturevalue(which)
    inputs = runtime.inputs(clip, question)
    with pruned(runtime, method, clip, question) as pruning:
        out = generate(runtime, inputs)
    words = said(out, inputs)
    for step, got in enumerate(out.logits):
        args = (eager, clip, question, method)
        expected = reference.prefill(*args, following=words[:step], forced=kept_by(pruning))
        torch.testing.assert_close(got[0], expected.logits, rtol=0, atol=TOLERANCE)
        assert words[step] == expected.logits.argmax()


@EVERY
def test_sampled_tokens_are_drawn_from_the_recomputed_distributions(runtime, eager, clip, question, method):
    inputs = runtime.inputs(clip, question)
    with torch.random.fork_rng(), pruned(runtime, method, clip, question) as pruning:
        torch.manual_seed(3)
        sampling = {"do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 1.0}
        words = said(generate(runtime, inputs, **sampling, max_new_tokens=8), inputs)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for step, word in enumerate(words):
            args = (eager, clip, question, method)
            logits = reference.prefill(*args, following=words[:step], forced=kept_by(pruning)).logits
            drawn = (logits / 1.5).softmax(dim=-1).multinomial(1)
            assert word == drawn
    assert len(set(words)) > 3  # drawn, not the likeliest again and again


def test_a_method_that_scores_nothing_needs_no_cache(runtime, clip, question):
    inputs = runtime.inputs(clip, question)
    for method in (RandomTokens(keep_ratio=0.3), FewerFrames(keep_ratio=0.4)):
        with pruned(runtime, method, clip, question):
            with_cache = generate(runtime, inputs)
            without = generate(runtime, inputs, use_cache=False)
        assert said(with_cache, inputs) == said(without, inputs)
        torch.testing.assert_close(without.logits, with_cache.logits, rtol=0, atol=TOLERANCE)


# -- a follow-up turn ---------------------------------------------------------------------------------------


def more_words(runtime):
    return list(runtime.family.answer_ids("is the ball on brick ?"))


@BOTH
@EVERY
def test_a_follow_up_of_several_tokens_sees_the_tokens_chosen_first(
    request, eager, which, clip, question, method
):
    runtime = request.getfixturevalue(which)
    more = more_words(runtime)
    with torch.no_grad(), pruned(runtime, method, clip, question) as pruning:
        cache = runtime.model(**runtime.inputs(clip, question)).past_key_values
        kept = kept_by(pruning)
        got = runtime.model(input_ids=torch.tensor([more]), past_key_values=cache).logits[0, -1]
        assert kept_by(pruning) == kept
    expected = reference.prefill(eager, clip, question, method, following=more, forced=kept)
    torch.testing.assert_close(got, expected.logits, rtol=0, atol=TOLERANCE)


@BOTH
@pytest.mark.parametrize("method", SCORED, ids=["adatp", "drop", "mean", "one"])
def test_a_follow_up_turn_is_generated_from_the_returned_cache(request, eager, which, clip, question, method):
    runtime = request.getfixturevalue(which)
    inputs = runtime.inputs(clip, question)
    with pruned(runtime, method, clip, question) as pruning:
        first = generate(runtime, inputs)
        kept = kept_by(pruning)
        turn = {"input_ids": torch.cat((first.sequences, torch.tensor([more_words(runtime)])), dim=1)}
        second = generate(runtime, turn, past_key_values=first.past_key_values)
        assert kept_by(pruning) == kept
    asked = turn["input_ids"][0, inputs["input_ids"].shape[1] :].tolist()
    words = said(second, turn)
    for step, got in enumerate(second.logits):
        following = [*asked, *words[:step]]
        expected = reference.prefill(eager, clip, question, method, following=following, forced=kept)
        torch.testing.assert_close(got[0], expected.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("method", SCORED, ids=["adatp", "drop", "mean", "one"])
def test_a_follow_up_turn_may_come_in_a_block_of_its_own(runtime, clip, question, method):
    inputs = runtime.inputs(clip, question)
    with pruned(runtime, method, clip, question):
        first = generate(runtime, inputs)
        turn = {"input_ids": torch.cat((first.sequences, torch.tensor([more_words(runtime)])), dim=1)}
        copy = deepcopy(first.past_key_values)
        second = generate(runtime, turn, past_key_values=first.past_key_values)
    with pruned(runtime, method, clip, question):
        again = generate(runtime, turn, past_key_values=copy)
    assert again.sequences.equal(second.sequences)
    assert all(a.equal(b) for a, b in zip(again.logits, second.logits, strict=True))


@BOTH
@pytest.mark.parametrize(
    "method", [VisionZip(keep_ratio=0.4), FastVid(keep_ratio=0.4, segments=2)], ids=lambda m: m.name
)
def test_merged_tokens_are_what_is_gone_on_from(request, eager, which, clip, question, method):
    """By generate() one token at a time, with a cache and without, and by a turn of several tokens."""
    runtime = request.getfixturevalue(which)
    inputs, states = runtime.inputs(clip, question), of_clip(runtime, method, clip, question).hidden
    with torch.no_grad(), pruned(runtime, method, clip, question) as pruning:
        out = generate(runtime, inputs)
        kept = kept_by(pruning)
        without = generate(runtime, inputs, use_cache=False)
        cache = runtime.model(**inputs).past_key_values
        more = more_words(runtime)
        turn = runtime.model(input_ids=torch.tensor([more]), past_key_values=cache).logits[0, -1]
    words = said(out, inputs)
    steps = [*(words[:step] for step in range(len(words))), more]
    for following, got in zip(steps, (*out.logits, turn[None]), strict=True):
        expected = reference.prefill(
            eager, clip, question, method, following=following, forced=kept, states=states
        )
        torch.testing.assert_close(got[0], expected.logits, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(without.logits, out.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "method", [FewerFrames(keep_ratio=0.4), FastVid(keep_ratio=0.4)], ids=lambda m: m.name
)
def test_what_is_pruned_before_layer_0_goes_on_by_calling_the_model_and_not_by_generate(
    runtime, clip, question, method
):
    with pruned(runtime, method, clip, question):
        first = generate(runtime, runtime.inputs(clip, question))
        with pytest.raises(UnsupportedError, match="cannot go on through generate"):
            generate(runtime, {"input_ids": first.sequences}, past_key_values=first.past_key_values)


@pytest.mark.parametrize("count", [3, 8])
def test_a_follow_up_turn_with_another_video_is_refused(runtime, clip, question, count):
    other = runtime.encode_frames(scenes(count, seed=1), np.arange(float(count)))
    with torch.no_grad(), pruned(runtime, PRUNE, clip, question):
        cache = runtime.model(**runtime.inputs(clip, question)).past_key_values
        with pytest.raises(UnsupportedError, match="cannot bring another"):
            runtime.model(**runtime.inputs(other, question), past_key_values=cache)


def test_the_cache_of_another_conversation_is_refused(runtime, clip, question):
    with torch.no_grad():
        foreign = runtime.model(**runtime.inputs(clip, question)).past_key_values
        with pruned(runtime, PRUNE, clip, question):
            runtime.model(**runtime.inputs(clip, question))
            with pytest.raises(UnsupportedError, match="not the one that the pruned prompt filled"):
                runtime.model(input_ids=torch.tensor([[9]]), past_key_values=foreign)


@torch.no_grad()
def test_a_cache_cut_back_to_the_question_goes_on_from_there(runtime, clip, question):
    more = torch.tensor([more_words(runtime)])
    with pruned(runtime, PRUNE, clip, question):
        cache = runtime.model(**runtime.inputs(clip, question)).past_key_values
        expected = runtime.model(input_ids=more, past_key_values=deepcopy(cache)).logits
        runtime.model(input_ids=torch.tensor([[9, 10, 11]]), past_key_values=cache)
        cache.crop(-3)
        assert runtime.model(input_ids=more, past_key_values=cache).logits.equal(expected)


# -- pictures in the same prompt ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture(runtime):
    """Pixels of one picture as the processor would cut it, and what the model makes of them."""
    pixels = torch.rand((1, 2, 3, 32, 32), generator=torch.Generator().manual_seed(5)) * 2 - 1
    sizes = torch.tensor([[32, 32]])
    with torch.no_grad():
        features = runtime.model.model.get_image_features(pixels, sizes).pooler_output[0]
    return {"pixel_values": pixels, "image_sizes": sizes}, features


def with_picture(runtime, clip, question, features, place):
    """The prompt's inputs with a picture right before or right after the video."""
    inputs = runtime.inputs(clip, question)
    ids = inputs["input_ids"][0]
    video = (ids == runtime.family.video_token_id).nonzero()[:, 0]
    cut = int(video[0]) if place == "before" else int(video[-1]) + 1
    tokens = torch.full((features.shape[0],), runtime.family.image_token_id)
    return inputs | {"input_ids": torch.cat((ids[:cut], tokens, ids[cut:]))[None]}


@BOTH
@pytest.mark.parametrize("place", ["before", "after"])
@EVERY
def test_a_picture_in_the_prompt_is_neither_pruned_nor_ranked(
    request, eager, which, clip, question, picture, place, method
):
    runtime = request.getfixturevalue(which)
    pixels, features = picture
    inputs = with_picture(runtime, clip, question, features, place)
    nothing = features[:0]
    pictures = (features, nothing) if place == "before" else (nothing, features)
    args = (eager, clip, question, method)
    with pruned(runtime, method, clip, question) as pruning:
        out = generate(runtime, inputs | pixels)
    kept = kept_by(pruning)
    if not isinstance(method, RandomTokens):
        assert reference.prefill(*args, pictures=pictures).tokens == kept
    words = said(out, inputs)
    for step, got in enumerate(out.logits):
        expected = reference.prefill(*args, pictures=pictures, following=words[:step], forced=kept)
        torch.testing.assert_close(got[0], expected.logits, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_an_encoded_picture_counts_like_its_pixels(runtime, eager, clip, question, picture):
    _, features = picture
    inputs = with_picture(runtime, clip, question, features, "before")
    video = inputs["mm_encoder_outputs"]["video"]
    both = {"image": BaseModelOutputWithPooling(pooler_output=[features]), "video": video}
    with pruned(runtime, PRUNE, clip, question) as pruning:
        got = runtime.model(input_ids=inputs["input_ids"], mm_encoder_outputs=both).logits[0, -1]
    expected = reference.prefill(eager, clip, question, PRUNE, pictures=(features, features[:0]))
    assert kept_by(pruning) == expected.tokens
    torch.testing.assert_close(got, expected.logits, rtol=0, atol=TOLERANCE)


# -- refused rather than wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"num_beams": 2, "do_sample": True}, "beam sample"),
        ({"num_return_sequences": 2, "do_sample": True}, "2 returned sequences"),
        ({"prompt_lookup_num_tokens": 2}, "assisted generation"),
        ({"assistant_early_exit": 4}, "assisted generation"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
        ({"dola_layers": "low"}, "dola generation"),
        ({"custom_generate": lambda *_, **__: None}, "a custom_generate"),
        ({"prefill_chunk_size": 16}, "a prefill in chunks"),
        ({"guidance_scale": 1.5}, "classifier-free guidance"),
        ({"generation_config": GenerationConfig(num_beams=3)}, "beam search"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_other_ways_of_decoding_are_refused_by_name(runtime, clip, question, options, named):
    with (
        pytest.raises(UnsupportedError, match=f"decodes one sequence, greedily or by sampling.* {named}"),
        pruned(runtime, PRUNE, clip, question),
    ):
        generate(runtime, runtime.inputs(clip, question), **options)


@pytest.mark.parametrize("name", ["static", "quantized", "offloaded", "paged", "offloaded_static"])
def test_other_caches_are_refused_by_name(runtime, clip, question, name):
    with (
        pytest.raises(UnsupportedError, match=f"the cache implementation {name} was asked for"),
        pruned(runtime, PRUNE, clip, question),
    ):
        generate(runtime, runtime.inputs(clip, question), cache_implementation=name)


def test_an_assistant_model_is_refused(runtime, eager, clip, question):
    with (
        pytest.raises(UnsupportedError, match="assisted generation was asked for"),
        pruned(runtime, PRUNE, clip, question),
    ):
        generate(runtime, runtime.inputs(clip, question), assistant_model=eager.model)


def test_settings_of_the_checkpoint_count_like_arguments(runtime, clip, question, monkeypatch):
    monkeypatch.setattr(runtime.model.generation_config, "num_beams", 4)
    with (
        pytest.raises(UnsupportedError, match="beam search was asked for"),
        pruned(runtime, PRUNE, clip, question),
    ):
        generate(runtime, runtime.inputs(clip, question))
    with pruned(runtime, PRUNE, clip, question):
        generate(runtime, runtime.inputs(clip, question), num_beams=1)


def test_a_static_cache_of_ones_own_is_refused(runtime, clip, question):
    cache = StaticCache(config=runtime.model.config.text_config, max_cache_len=128)
    with (
        pytest.raises(UnsupportedError, match=r"needs the dynamic cache .* but got StaticCache"),
        pruned(runtime, PRUNE, clip, question),
    ):
        generate(runtime, runtime.inputs(clip, question), past_key_values=cache)


def test_a_call_without_cache_is_refused_where_scores_are_needed(runtime, clip, question):
    with pytest.raises(UnsupportedError, match="use_cache=True"), pruned(runtime, PRUNE, clip, question):
        generate(runtime, runtime.inputs(clip, question), use_cache=False)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_refused(runtime, clip, question, side):
    inputs = runtime.inputs(clip, question)
    padding = torch.zeros((1, 2), dtype=torch.long)
    ids, ones = inputs["input_ids"], torch.ones_like(inputs["input_ids"])
    order = (lambda a, b: (b, a)) if side == "left" else (lambda a, b: (a, b))
    inputs["input_ids"] = torch.cat(order(ids, padding), dim=1)
    mask = torch.cat(order(ones, padding), dim=1)
    with pytest.raises(UnsupportedError, match="without padding"), pruned(runtime, PRUNE, clip, question):
        generate(runtime, inputs, attention_mask=mask)


def test_a_mask_of_ones_own_is_refused(runtime, clip, question):
    inputs = runtime.inputs(clip, question)
    mask = torch.zeros((1, 1, inputs["input_ids"].shape[1], inputs["input_ids"].shape[1]))
    with pytest.raises(UnsupportedError, match="without padding"), pruned(runtime, PRUNE, clip, question):
        runtime.model(**inputs, attention_mask=mask)


@pytest.mark.parametrize("gap", [0, 2])
def test_two_videos_in_one_prompt_are_refused(runtime, clip, question, gap):
    """Two halves with text between them have as many tokens as the clip."""
    inputs = runtime.inputs(clip, question)
    ids = inputs["input_ids"][0]
    if gap:
        middle = int((ids == runtime.family.video_token_id).nonzero()[10, 0])
        ids = torch.cat((ids[:middle], torch.tensor([9, 10]), ids[middle:]))
        message = "One video per prompt is pruned, but the prompt has 2"
    else:
        video = ids[ids == runtime.family.video_token_id]
        ids = torch.cat((ids[:1], video, ids[1:]))
        message = "One video per prompt|has 66"
    with pytest.raises(UnsupportedError, match=message), pruned(runtime, PRUNE, clip, question):
        runtime.model(**(inputs | {"input_ids": ids[None]}))


def test_a_prompt_without_a_video_is_refused(runtime, clip, question):
    with pytest.raises(UnsupportedError, match="holds no video"), pruned(runtime, PRUNE, clip, question):
        runtime.model(input_ids=torch.tensor([more_words(runtime)]))


def test_a_prompt_of_embeddings_is_refused(runtime, clip, question):
    embeddings = runtime.family.embed(range(6, 40))
    with (
        pytest.raises(UnsupportedError, match="pass input_ids, not inputs_embeds"),
        pruned(runtime, PRUNE, clip, question),
    ):
        runtime.model(inputs_embeds=embeddings)


@torch.no_grad()
def test_the_decoder_by_itself_takes_the_prompt_of_the_layout_alone(runtime, clip, question):
    prompt = runtime._prompt(clip, question)
    parts = (runtime.family.embed(prompt.before), clip.features[None], runtime.family.embed(prompt.after))
    embeddings = torch.cat(parts, dim=1)
    with pruned(runtime, PRUNE, clip, question) as pruning:
        got = runtime.family.language_model(inputs_embeds=embeddings, use_cache=True).last_hidden_state
        kept = kept_by(pruning)
        expected = runtime.model(**runtime.inputs(clip, question), output_hidden_states=True)
        assert kept_by(pruning) == kept
        assert runtime.model.lm_head(got).equal(expected.logits)
        with pytest.raises(UnsupportedError, match="attaches to the whole model"):
            runtime.family.language_model(inputs_embeds=embeddings[:, 1:], use_cache=True)


def test_a_backend_changed_inside_the_block_is_refused(runtime, clip, question, monkeypatch):
    with pruned(runtime, PRUNE, clip, question):
        generate(runtime, runtime.inputs(clip, question))
        monkeypatch.setattr(runtime.family.language_model.config, "_attn_implementation", "flex_attention")
        with pytest.raises(UnsupportedError, match="but the model runs flex_attention"):
            runtime.model(**runtime.inputs(clip, question))


# -- compiled models ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_copy_without_hooks_is_not_passed_off_as_pruned(runtime, clip, question):
    """As a model is that was compiled before the block."""
    copy = deepcopy(runtime.model)
    with (
        pytest.raises(UnsupportedError, match="or a compiled copy was"),
        pruned(runtime, PRUNE, clip, question),
    ):
        copy(**runtime.inputs(clip, question))


@torch.no_grad()
def test_a_prefill_that_was_pruned_in_part_is_not_passed_off_as_pruned(runtime, clip, question):
    """As one is that was compiled in part, or that an error broke off."""

    def fail(*_):
        raise KeyError

    def run():
        with pruned(runtime, PRUNE, clip, question):
            runtime.model(**runtime.inputs(clip, question))
            hook = runtime.family.layers[5].register_forward_pre_hook(fail)
            with pytest.raises(KeyError):
                runtime.model(**runtime.inputs(clip, question))
            hook.remove()

    with pytest.raises(UnsupportedError, match="or a compiled copy was"):
        run()


def test_a_model_compiled_in_place_is_refused(runtime, clip, question, monkeypatch):
    monkeypatch.setattr(runtime.family.layers[5], "_compiled_call_impl", lambda *_, **__: None)
    with pytest.raises(UnsupportedError, match=r"torch\.compile"), pruned(runtime, PRUNE, clip, question):
        pass


def test_a_block_in_which_nothing_ran_says_so(runtime, clip, question):
    with (
        pytest.raises(UnsupportedError, match="was not called inside"),
        pruned(runtime, PRUNE, clip, question),
    ):
        pass


# -- nothing left behind ------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
def test_generate_is_the_models_own_again_afterwards(runtime, clip, question, own):
    model = runtime.model
    if own:
        model.generate = model.generate
    before = vars(model).get("generate")
    try:
        with pruned(runtime, PRUNE, clip, question):
            assert vars(model)["generate"] is not before
            generate(runtime, runtime.inputs(clip, question))
        assert vars(model).get("generate") is before
        untouched = generate(runtime, runtime.inputs(clip, question), num_beams=2)
        assert untouched.sequences.shape[0] == 1
    finally:
        vars(model).pop("generate", None)
