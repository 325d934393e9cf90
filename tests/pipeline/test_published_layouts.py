"""Checkpoints exactly as they are published: read as they are, and refused clearly where they are broken."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import LlavaOnevisionForConditionalGeneration, SiglipModel
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from pipeline.errors import ModelError
from pipeline.methods import AdaTP
from pipeline.question import Question, prompt_text
from pipeline.runtime import Runtime
from tests.checkpoints import scenes, write_checkpoints
from tests.published import HALF, IMAGE, SEVEN, SHARDED_HALF, TEXT_TEMPLATE, write_published

FRAMES = 6
QUESTION = Question("one", "What color is the ring on brick? (It's in the 1st scene.)", ("red", "dark blue"))
SHARD = "model-00002-of-00004.safetensors"


@pytest.fixture(scope="module", params=[HALF, SEVEN, SHARDED_HALF], ids=lambda variant: variant.name)
def published(request, tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published"), request.param)


@pytest.fixture(scope="module")
def runtime(published):
    return load(published)


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("seven"), SEVEN)


@pytest.fixture
def broken(seven, tmp_path):
    """A copy to break."""
    model = shutil.copytree(seven.model, tmp_path / "model")
    return type(seven)(model, shutil.copytree(seven.siglip, tmp_path / "siglip"), seven.original, seven.whole)


@pytest.fixture(scope="module")
def frames():
    """Frames of another size than the model's: narrowed and heightened, with sharp edges."""
    random = np.random.default_rng(3)
    noise = random.integers(0, 256, (2, 40, 96, 3), dtype=np.uint8)
    return np.concatenate((scenes(4, height=40, width=96), noise))


def load(published):
    return Runtime.load(str(published.model), text_encoder=str(published.siglip), frames=FRAMES)


# -- weights ------------------------------------------------------------------------------------------------


def test_every_stored_weight_finds_its_place_and_none_is_left_over(published):
    for model_class, folder in (
        (LlavaOnevisionForConditionalGeneration, published.model),
        (SiglipModel, published.siglip),
    ):
        _, report = model_class.from_pretrained(folder, output_loading_info=True)
        assert {name: len(found) for name, found in report.items() if found} == {}


@torch.no_grad()
def test_logits_are_those_of_the_module_that_was_stored(published, runtime, frames):
    clip = runtime.encode_frames(frames, np.arange(FRAMES) / 2)
    inputs = runtime.inputs(clip, QUESTION)
    got = runtime.model(**inputs).logits
    assert got.equal(published.original(**inputs).logits)
    assert got.std() > 0.5


def test_the_small_model_shares_its_embeddings_with_its_head_and_the_large_one_does_not(published, runtime):
    head, table = runtime.model.lm_head.weight, runtime.model.get_input_embeddings().weight
    assert (head is table) == published.original.config.text_config.tie_word_embeddings


@pytest.mark.parametrize("top", [True, False, None])
def test_shared_embeddings_are_found_where_only_the_language_models_settings_tell(tmp_path, top):
    published = write_published(tmp_path, HALF)
    config = json.loads((published.model / "config.json").read_text())
    del config["tie_word_embeddings"]
    if top is not None:
        config["tie_word_embeddings"] = top
    (published.model / "config.json").write_text(json.dumps(config))
    model = load(published).model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_planning_and_answering_work_on_it(runtime, frames):
    clip = runtime.encode_frames(frames, np.arange(FRAMES) / 2)
    assert (clip.cells, clip.trailing) == (4, 1)
    answer = runtime.answer(clip, QUESTION, AdaTP(p=0.6))
    assert answer.text in QUESTION.options
    assert 0 < answer.kept[-1] < clip.frames * clip.cells


# -- the prompt ---------------------------------------------------------------------------------------------


def test_the_prompt_is_the_processors_chat_template_and_not_the_language_models(published, runtime, frames):
    clip = runtime.encode_frames(frames, np.arange(FRAMES) / 2)
    text = prompt_text(QUESTION, runtime.scoring)
    tokenizer = Tokenizer.from_file(str(published.model / "tokenizer.json"))
    written = f"<|im_start|>user <video>\n{text}<|im_end|><|im_start|>assistant\n"
    ids = tokenizer.encode(written, add_special_tokens=False).ids
    place = ids.index(tokenizer.token_to_id("<video>"))
    visual = [ids[place]] * (FRAMES * 4 + 1)
    assert runtime.inputs(clip, QUESTION)["input_ids"][0].tolist() == [
        *ids[:place],
        *visual,
        *ids[place + 1 :],
    ]


def test_an_answer_ends_where_the_published_settings_say(published, runtime):
    tokenizer = Tokenizer.from_file(str(published.model / "tokenizer.json"))
    assert runtime.family.end_ids == (tokenizer.token_to_id("<|im_end|>"),)


def test_the_aligned_encoder_reads_text_without_case_and_punctuation_and_to_its_full_length(
    published, runtime
):
    pieces = SentencePieceProcessor(model_file=str(published.siglip / "spiece.model"))
    for text, plain in (
        ("What color?! (is it red.)", "what color is it red"),
        ("is the ball on sea, sand or brick? " * 9, "is the ball on sea sand or brick " * 9),
        ("", ""),
    ):
        end = pieces.eos_id()
        ids = [*pieces.encode(plain.strip())[:63], end]
        ids += [end] * (64 - len(ids))
        with torch.no_grad():
            expected = published.whole.text_model(input_ids=torch.tensor([ids])).pooler_output[0].numpy()
        np.testing.assert_allclose(runtime.encoder.embed_text(text), expected, rtol=0, atol=1e-6)


# -- pixels and frame embeddings ----------------------------------------------------------------------------


def by_the_siglip_processor(folder, frames):
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    return processor([Image.fromarray(frame) for frame in frames], return_tensors="pt")["pixel_values"]


def by_the_models_processor(folder, frames):
    """The whole picture, which comes before its cuttings."""
    processor = LlavaOnevisionImageProcessorPil.from_pretrained(folder)
    pictures = [processor(Image.fromarray(frame), return_tensors="pt")["pixel_values"] for frame in frames]
    return torch.stack([picture[0][0] for picture in pictures])


@pytest.mark.parametrize(
    ("processed", "folder"),
    [(by_the_siglip_processor, "siglip"), (by_the_models_processor, "model")],
    ids=["siglip", "model"],
)
def test_pixels_are_those_of_the_published_processors(published, runtime, frames, processed, folder):
    """Frames were resized by torch before: up to one value in a hundred was off by one step of 255."""
    expected = processed(getattr(published, folder), frames)
    got = runtime.family.pixels(frames)
    assert got.shape == expected.shape == (FRAMES, 3, IMAGE, IMAGE)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_frame_embedding_is_what_the_whole_siglip_gives_for_that_frame(published, runtime):
    frames = np.random.default_rng(1).integers(0, 256, (FRAMES, IMAGE, IMAGE, 3), dtype=np.uint8)
    clip = runtime.encode_frames(frames, np.arange(float(FRAMES)))
    pixels = by_the_siglip_processor(published.siglip, frames)
    whole = published.whole.get_image_features(pixels).pooler_output
    torch.testing.assert_close(clip.frame_embeddings, whole, rtol=0, atol=5e-6)
    assert whole.std() > 0.1  # far from all alike


@torch.no_grad()
def test_a_frame_of_another_size_has_the_embedding_of_the_published_processor(published, runtime, frames):
    clip = runtime.encode_frames(frames, np.arange(float(FRAMES)))
    pixels = by_the_siglip_processor(published.siglip, frames)
    whole = published.whole.get_image_features(pixels).pooler_output
    torch.testing.assert_close(clip.frame_embeddings, whole, rtol=0, atol=2e-3)


# -- broken checkpoints -------------------------------------------------------------------------------------


def lose(*names: str, of: str = "model"):
    def change(published):
        for name in names:
            (getattr(published, of) / name).unlink()

    return change


def cut(name: str, size: int, of: str = "model"):
    def change(published):
        file: Path = getattr(published, of) / name
        file.write_bytes(file.read_bytes()[:size])

    return change


def lose_every_template(published):
    lose("chat_template.json")(published)
    file = published.model / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    assert settings.pop("chat_template") == TEXT_TEMPLATE
    file.write_text(json.dumps(settings))


def forget_a_weight(published):
    """The index leads nowhere for one weight."""
    from safetensors.torch import load_file, save_file

    weights = load_file(published.model / SHARD)
    weights.pop(min(weights))
    save_file(weights, published.model / SHARD, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose(SHARD), f"model could not be loaded: No such file or directory: .*{SHARD}"),
        (cut(SHARD, -500), f"model could not be loaded: {SHARD} is damaged or incomplete"),
        (cut(SHARD, 20), f"model could not be loaded: {SHARD} is damaged or incomplete"),
        (cut(SHARD, 0), f"model could not be loaded: {SHARD} is damaged or incomplete"),
        (lose("model.safetensors.index.json"), "model could not be loaded: Error no file named"),
        (forget_a_weight, r"model lacks 1 weights, .* among them"),
        (lose("tokenizer.json", "vocab.json", "merges.txt"), "The tokenizer of .*model knows no words"),
        (
            lose("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"),
            "The tokenizer of .*model (could not be loaded|knows no words)",
        ),
        (cut("tokenizer.json", 40), "The tokenizer of .*model could not be loaded"),
        (lose("chat_template.json"), "chat template of .*model does not write the token of a video"),
        (lose_every_template, "model has no chat template"),
        (lose("preprocessor_config.json"), "model has no processor"),
        (lose("spiece.model", of="siglip"), "The tokenizer of .*siglip could not be loaded"),
        (lose("model.safetensors", of="siglip"), "siglip holds no weights as safetensors"),
        (cut("model.safetensors", -10, of="siglip"), r"model\.safetensors is damaged or incomplete"),
    ],
    ids=[
        "a shard is missing",
        "the end of a shard is missing",
        "a shard ends in its header",
        "a shard is empty",
        "the index is missing",
        "a weight is missing",
        "the words are missing",
        "the whole tokenizer is missing",
        "the tokenizer is cut",
        "the chat template is missing",
        "every chat template is missing",
        "the processor is missing",
        "the encoder's words are missing",
        "the encoder's weights are missing",
        "the encoder's weights are cut",
    ],
)
def test_a_broken_checkpoint_is_one_clear_message(broken, change, message):
    change(broken)
    with pytest.raises(ModelError, match=message) as caught:
        load(broken)
    assert "\n" not in str(caught.value)


def test_a_siglip_of_another_shape_is_refused(published, tmp_path):
    other = write_checkpoints(tmp_path).siglip
    with pytest.raises(ModelError, match="is not aligned with the model's vision tower"):
        Runtime.load(str(published.model), text_encoder=str(other), frames=FRAMES)


def test_the_two_checkpoints_taken_for_each_other_are_refused(published):
    with pytest.raises(ModelError, match="model is no SigLIP checkpoint"):
        Runtime.load(str(published.model), text_encoder=str(published.model), frames=FRAMES)
    with pytest.raises(ModelError, match="siglip is no LLaVA-OneVision"):
        Runtime.load(str(published.siglip), text_encoder=str(published.siglip), frames=FRAMES)
