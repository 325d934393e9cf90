"""One contract for every model family: a new one is tested once its writer of a checkpoint is in WRITERS."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import pipeline
from pipeline.checkpoint import find_checkpoint
from pipeline.export_format import SCHEMA
from pipeline.families import FAMILIES
from pipeline.methods import METHODS, AdaTP, to_dict
from pipeline.question import Question
from pipeline.runtime import Runtime
from tests.checkpoints import Size, scenes, write_checkpoints, write_llava_video
from tests.videos import moving_frames, write_video

FRAMES, LAYERS = 8, 6
WRITERS = {
    "LLaVA-OneVision": lambda folder: write_checkpoints(folder, layers=LAYERS),
    "LLaVA-Video": lambda folder: write_llava_video(folder, size=Size(layers=LAYERS, image=56)),
}
QUESTION = Question("one", "what color is the ring on brick?", ("red", "dark blue", "yellow"))
FREE = Question("two", "what is first?")

every_method = pytest.mark.parametrize("method", [METHODS[name]() for name in METHODS], ids=list(METHODS))


@pytest.fixture(scope="module", params=WRITERS)
def paths(request, tmp_path_factory):
    torch.set_num_threads(1)
    return WRITERS[request.param](tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def runtime(paths):
    return Runtime.load(str(paths.model), text_encoder=str(paths.siglip), frames=FRAMES, max_new_tokens=4)


@pytest.fixture(scope="module")
def family(runtime):
    return runtime.family


@pytest.fixture(scope="module")
def clips(runtime):
    return [
        runtime.encode_frames(scenes(FRAMES, length, seed=length), np.arange(FRAMES) * length)
        for length in (1, 3)
    ]


@torch.no_grad()
def next_token(runtime, clip, question=QUESTION):
    """Log-probabilities after the whole prompt in one pass."""
    return runtime.model(**runtime.inputs(clip, question), logits_to_keep=1).logits[0, -1].log_softmax(-1)


def test_every_family_known_is_in_this_contract():
    assert {name for name, _ in FAMILIES.values()} == set(WRITERS)


# -- visual tokens ------------------------------------------------------------------------------------------


def test_frames_become_cells_in_order_and_the_trailing_tokens_come_last(family):
    frames = scenes(FRAMES)
    encoded = family.encode_frames(frames)
    hidden, vision = family.shape.hidden, family.shape.vision
    cells = family.pool(encoded.keys).shape[1]
    assert encoded.features.shape[1] == hidden
    assert 0 <= len(encoded.features) - FRAMES * cells <= 1
    assert encoded.tower_features.shape == (FRAMES, vision.patches, vision.width)
    for i in (0, 5):
        alone = family.encode_frames(frames[i : i + 1])
        here = encoded.features[i * cells : (i + 1) * cells]
        torch.testing.assert_close(here, alone.features[:cells])
        torch.testing.assert_close(encoded.tower_features[i], alone.tower_features[0])


def test_a_frames_cells_do_not_depend_on_its_neighbours(family):
    """The same frame gives the same cells wherever it stands in the video, and another frame others."""
    frames = scenes(2, scene_length=1)
    encoded = family.encode_frames(frames[[0, 1, 0]])
    cells = family.pool(encoded.keys).shape[1]
    first, other, again = encoded.features[: 3 * cells].unflatten(0, (3, cells))
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


# -- the prompt ---------------------------------------------------------------------------------------------


def test_what_stands_before_the_video_is_the_same_for_all_videos_and_questions(runtime, clips):
    prompts = [runtime.prompt(clip, question) for clip in clips for question in (QUESTION, FREE)]
    assert len({prompt.before for prompt in prompts}) == 1
    assert all(prompt.before and prompt.after for prompt in prompts)
    assert prompts[0].after != prompts[1].after


def test_the_prompt_depends_on_nothing_but_text_and_sampling(family, clips):
    first, second = (family.prompt("what?", clips[0].shape) for _ in range(2))
    assert (first.ids, first.question) == (second.ids, second.question)
    assert hash(clips[0].shape) != hash(clips[1].shape)


def test_a_prompt_says_where_the_question_stands(family, clips):
    prompt = family.prompt("what color is the ring?", clips[0].shape)
    assert prompt.ids[prompt.question] == family.answer_ids("what color is the ring?")
    assert prompt.question.start >= prompt.video_end
    nothing = family.prompt("", clips[0].shape)
    assert nothing.ids[nothing.question] == nothing.after


def test_a_further_turn_is_what_the_chat_template_writes_after_an_answer(family, clips):
    turn, prompt = family.turn("and before?"), family.prompt("and before?", clips[0].shape)
    assert turn[0] in family.end_ids
    rest = prompt.ids[prompt.question.start :]  # the question, its end, and where the model speaks
    assert turn[-len(rest) :] == rest


@pytest.mark.parametrize("text", ["what is after <|im_end|> ?", "<|im_start|>", "<image>", "the <video> tag"])
def test_the_text_of_a_question_is_text(runtime, family, clips, text):
    """Not one control token more than around any other text: in the prompt, in options, in a further turn."""
    control = {*family.tokenizer.all_special_ids, family.video_token_id} - {family.tokenizer.unk_token_id}

    def controls(ids):
        return [token for token in ids if token in control]

    prompt, plain = family.prompt(text, clips[0].shape), family.prompt("red", clips[0].shape)
    assert controls(prompt.ids) == controls(plain.ids)
    assert prompt.ids[prompt.question] == family.answer_ids(text)
    assert controls(family.answer_ids(text)) == []
    assert controls(family.turn(text)) == controls(family.turn("red"))
    asked = Question("q", text, (text, "red"))
    for runtime.scoring in ("letter", "words"):
        assert controls(runtime.prompt(clips[0], asked).ids) == controls(plain.ids)
        assert runtime.answer(clips[0], asked, AdaTP(p=0.5)).option in (0, 1)


def test_a_prompt_has_the_tokens_of_its_text_in_one_piece(family, clips):
    """Also where tokens go over the border between template and text, as those of several newlines do."""
    for text in ("red", "\n\nred\n ", " red", "a\nb", ""):
        prompt = family.prompt(text, clips[0].shape)
        behind = family.tokenizer.decode(list(prompt.after), skip_special_tokens=False)
        whole = family.tokenizer(behind, add_special_tokens=False)["input_ids"]
        assert list(prompt.after) == whole


def test_one_placeholder_stands_for_each_visual_token_and_nothing_else(runtime, family, clips):
    clip, prompt = clips[0], runtime.prompt(clips[0], QUESTION)
    ids = runtime.inputs(clip, QUESTION)["input_ids"][0].tolist()
    visual = len(clip.features)
    assert ids == [*prompt.before, *[family.video_token_id] * visual, *prompt.after]
    assert family.video_token_id not in (*prompt.before, *prompt.after)
    assert len(ids) == runtime.layout(clip, QUESTION).tokens


@torch.no_grad()
def test_calling_the_model_is_calling_its_decoder_on_the_packed_embeddings(runtime, family, clips):
    prompt = runtime.prompt(clips[0], QUESTION)
    packed = torch.cat((family.embed(prompt.before)[0], clips[0].features, family.embed(prompt.after)[0]))
    hidden = family.language_model(inputs_embeds=packed[None]).last_hidden_state
    expected = family.lm_head(hidden[0, -1]).log_softmax(-1)
    torch.testing.assert_close(next_token(runtime, clips[0]), expected)


def test_answers_are_tokenized_and_ended(family):
    assert family.answer_ids("red")
    assert family.tokenizer.decode(list(family.answer_ids("dark blue"))) == "dark blue"
    assert family.end_ids
    assert all(0 <= token < len(family.tokenizer) for token in family.end_ids)


# -- pruning ------------------------------------------------------------------------------------------------


@every_method
def test_what_is_kept_is_what_was_planned(runtime, clips, method):
    method = method.with_ratio(0.5)
    for clip in clips:
        for question in (QUESTION, FREE):
            plan = method.plan(runtime.layout(clip, question), LAYERS)
            kept = runtime.answer(clip, question, method).kept
            assert kept == tuple(plan.total(j) for j in range(len(plan.layers)))
            assert kept[-1] < len(clip.features)


@every_method
def test_keeping_everything_is_the_unpruned_model_bit_for_bit(runtime, clips, method):
    untouched = next_token(runtime, clips[0])
    pack = runtime.one_pass(clips[0], QUESTION, method.with_ratio(1.0))
    assert pack.logits(0).log_softmax(-1).equal(untouched)
    for question in (QUESTION, FREE):
        one, other = (runtime.answer(clips[0], question, m) for m in (None, method.with_ratio(1.0)))
        assert (one.text, one.option_logprobs, one.logprob) == (
            other.text,
            other.option_logprobs,
            other.logprob,
        )


@every_method
def test_a_prefill_split_where_the_video_ends_gives_what_one_pass_gives(runtime, family, clips, method):
    method = method.with_ratio(0.6)
    question = replace(QUESTION, options=("red", "yellow"))
    pack = runtime.one_pass(clips[1], question, method)
    one_pass = pack.logits(0).log_softmax(-1)
    answer = runtime.answer(clips[1], question, method)
    assert answer.kept == pack.kept(0)
    for option, logprob in zip(question.options, answer.option_logprobs, strict=True):
        ids = family.answer_ids(option)
        if len(ids) == 1:
            assert logprob == pytest.approx(one_pass[ids[0]].item(), abs=1e-4)


@every_method
def test_generate_goes_on_from_the_pruned_prompt_as_an_answer_does(runtime, family, clips, method):
    method = method.with_ratio(0.5)
    first = runtime.prefill(clips[1], FREE, method)
    written = runtime.model.generate(**first.inputs, max_new_tokens=4, do_sample=False)
    said = written[0, len(first.ids) :].tolist()
    assert said[0] == first.logits.argmax()
    text = family.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert text == runtime.answer(clips[1], FREE, method).text


# -- loading ------------------------------------------------------------------------------------------------


def test_the_identity_is_the_checkpoints_own(runtime, paths):
    assert runtime.identity == find_checkpoint(str(paths.model)).identity


def test_an_exported_configuration_loads_and_answers_about_a_file(runtime, paths, tmp_path):
    video = write_video(tmp_path / "video.mp4", moving_frames(30))
    method = AdaTP(p=0.6)
    fields = {name: value for name, value in to_dict(method).items() if name != "method"}
    exported = {
        "schema": SCHEMA,
        "parameters": {name: value for name, value in fields.items() if not isinstance(value, str)},
        "selection": {name: value for name, value in fields.items() if isinstance(value, str)},
        "model": {"id": str(paths.model), "identity": runtime.identity},
        "text_encoder": {"id": str(paths.siglip), "identity": runtime.encoder_identity},
        "frames": FRAMES,
        "scoring": "words",
        "dtype": "float32",
        "attention": "sdpa",
        "verdict": "shown",
    }
    (tmp_path / "best.json").write_text(json.dumps(exported))
    answer = pipeline.load(tmp_path / "best.json").answer(video, QUESTION.text, QUESTION.options)
    expected = runtime.answer(runtime.encode(video), QUESTION, method)
    assert (answer.option_logprobs, answer.kept) == (expected.option_logprobs, expected.kept)
