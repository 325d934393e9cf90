"""Loading, prompts and encoding of LLaVA-OneVision checkpoints."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.checkpoint import find_checkpoint
from pipeline.clip import ClipShape
from pipeline.errors import ModelError, UnsupportedError
from pipeline.families import load_family
from pipeline.flops import ModelShape
from pipeline.methods import AdaTP
from pipeline.question import Question
from pipeline.runtime import Runtime
from tests.checkpoints import Size, scenes, write_checkpoints
from tests.pipeline.conftest import FRAMES

SHAPE = ClipShape(2.0, (0.0, 1.0), 4, 1)


def load(folder):
    return load_family(find_checkpoint(str(folder)), device="cpu", dtype="auto", attention="sdpa")


@pytest.fixture
def copy(checkpoints, tmp_path):
    return shutil.copytree(checkpoints.model, tmp_path / "model")


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_sizes_come_from_the_configuration(runtime):
    family = runtime.family
    assert family.applied_vision_layers == 2
    shape = family.shape
    assert shape == ModelShape(layers=12, hidden=64, kv_width=32, mlp_width=96, heads=4, vision=shape.vision)
    assert (shape.vision.patches, shape.vision.patch_inputs, shape.vision.layers) == (16, 192, 2)


@torch.no_grad()
def test_encoded_frames_are_what_the_model_makes_of_the_pixels_itself(runtime, clip, question):
    inputs = runtime.inputs(clip, question)
    pixels = runtime.family.pixels(scenes(FRAMES))[None]
    from_pixels = runtime.model(input_ids=inputs["input_ids"], pixel_values_videos=pixels).logits
    from_features = runtime.model(**inputs).logits
    assert from_features.equal(from_pixels)


def test_many_frames_are_encoded_in_runs_with_one_newline_at_the_end(runtime):
    frames = scenes(20)
    together = runtime.family.encode_frames(frames)
    assert together.features.shape == (20 * 4 + 1, 64)
    assert together.tower_features.shape == (20, 16, 32)
    one = runtime.family.encode_frames(frames[17:18])
    torch.testing.assert_close(together.features[17 * 4 : 18 * 4], one.features[:4])
    assert together.features[-1].equal(runtime.model.model.image_newline.detach())


def test_pixels_are_resized_and_normalised_as_the_processor_files_say(runtime):
    grey = np.full((2, 50, 70, 3), 255, dtype=np.uint8)
    grey[1] = 0
    pixels = runtime.family.pixels(grey)
    assert pixels.shape == (2, 3, 32, 32)
    torch.testing.assert_close(pixels[0], torch.ones(3, 32, 32))
    torch.testing.assert_close(pixels[1], -torch.ones(3, 32, 32))


def test_pixels_equal_those_of_the_checkpoints_own_processor(runtime, checkpoints):
    pytest.importorskip("torchvision", reason="transformers' video processor needs torchvision")
    from transformers import LlavaOnevisionVideoProcessor

    processor = LlavaOnevisionVideoProcessor.from_pretrained(checkpoints.model)
    frames = scenes(4)
    expected = processor(torch.from_numpy(frames).permute(0, 3, 1, 2), return_tensors="pt")
    got = runtime.family.pixels(frames)
    assert (got - expected["pixel_values_videos"][0]).abs().max() < 2.1 / 127.5  # a step or two of 255


def test_the_prompt_is_the_chat_template_cut_at_the_video(runtime):
    prompt = runtime.family.prompt("what color?", SHAPE)
    tokens = runtime.family.tokenizer.convert_ids_to_tokens
    assert tokens(list(prompt.before)) == ["<|im_start|>", "user"]
    assert tokens(list(prompt.after)) == ["what", "color", "?", "<|im_end|>", "<|im_start|>", "assistant"]


@pytest.mark.parametrize("where", ["chat_template.json", "chat_template.jinja", "tokenizer"])
def test_the_chat_template_is_found_wherever_checkpoints_keep_it(copy, where, runtime):
    template = json.loads((copy / "chat_template.json").read_text())["chat_template"]
    if where != "chat_template.json":
        (copy / "chat_template.json").unlink()
    if where == "chat_template.jinja":
        (copy / where).write_text(template)
    if where == "tokenizer":
        change_json(copy / "tokenizer_config.json", chat_template=template)
    assert load(copy).prompt("what color?", SHAPE).ids == runtime.family.prompt("what color?", SHAPE).ids


@pytest.mark.parametrize(
    "where", ["processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"]
)
def test_processor_settings_are_found_wherever_checkpoints_keep_them(copy, where):
    settings = json.loads((copy / "preprocessor_config.json").read_text()) | {"image_mean": [0.1, 0.2, 0.3]}
    (copy / "video_preprocessor_config.json").unlink()
    if where == "processor_config.json":
        change_json(copy / where, video_processor=settings)
    else:
        (copy / where).write_text(json.dumps(settings))
    assert load(copy)._processor["image_mean"] == [0.1, 0.2, 0.3]


def test_the_filter_is_the_processors(copy):
    change_json(copy / "video_preprocessor_config.json", resample=2)
    assert load(copy).frame_size == (32, 2)
    change_json(copy / "video_preprocessor_config.json", resample="bicubic")
    with pytest.raises(UnsupportedError, match="resample is 'bicubic'; supported are 0 to 5"):
        load(copy)


def test_a_checkpoint_in_several_files_loads_alike(copy, runtime, clip, question):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, copy / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    family = load(copy)
    for (name, one), other in zip(runtime.model.named_parameters(), family.model.parameters(), strict=True):
        assert one.equal(other), name


def test_an_odd_grid_of_patches_is_pooled_up(tmp_path):
    """As the published towers: 27 x 27 patches become 14 x 14 cells."""
    paths = write_checkpoints(tmp_path, size=Size(layers=3, image=24))
    runtime = Runtime.load(str(paths.model), text_encoder=str(paths.siglip), frames=3)
    clip = runtime.encode_frames(scenes(3), np.arange(3))
    assert (clip.cells, len(clip.features)) == (4, 13)
    assert runtime.answer(clip, Question("q", "what color?", ("red", "blue")), AdaTP(p=0.4)).kept


@pytest.mark.parametrize("layers", [3, 24, 28])
def test_depths_are_pruned_where_the_plan_says(tmp_path, layers):
    paths = write_checkpoints(tmp_path, layers=layers)
    runtime = Runtime.load(str(paths.model), text_encoder=str(paths.siglip), frames=FRAMES)
    clip = runtime.encode_frames(scenes(FRAMES), np.arange(FRAMES))
    answer = runtime.answer(clip, Question("q", "what color?", ("red", "blue")), AdaTP(p=0.8))
    assert len(answer.kept) == {3: 1, 24: 11, 28: 15}[layers]


# -- checkpoints that are none ------------------------------------------------------------------------------


def test_another_kind_of_model_is_refused(checkpoints):
    with pytest.raises(
        ModelError,
        match=r"is no LLaVA-OneVision or LLaVA-Video checkpoint: its config\.json says model_type 'siglip'",
    ):
        load(checkpoints.siglip)


def test_missing_weights_are_refused(copy):
    weights = load_file(copy / "model.safetensors")
    del weights[min(weights)]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 weights"):
        load(copy)


def test_damaged_weights_are_refused(copy):
    (copy / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match="could not be loaded"):
        load(copy)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("model.safetensors", "holds no weights as safetensors"), ("tokenizer.json", "could not be loaded")],
)
def test_missing_files_are_refused(copy, missing, message):
    (copy / missing).unlink()
    with pytest.raises(ModelError, match=message):
        load(copy)


def test_code_that_comes_with_a_checkpoint_is_neither_run_nor_asked_about(copy, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    (copy / "mine.py").write_text("raise SystemExit('run')\n")
    change_json(copy / "config.json", auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"})
    assert load(copy).layers  # what is known here needs no other code
    change_json(
        copy / "tokenizer_config.json",
        tokenizer_class="MyTokenizer",
        auto_map={"AutoTokenizer": [None, "mine.MyTokenizer"]},
    )
    with pytest.raises(ModelError, match=r"needs code of its own \(auto_map in tokenizer_config\.json\)"):
        load(copy)


def test_of_several_chat_templates_the_default_is_taken(copy, runtime):
    template = json.loads((copy / "chat_template.json").read_text())["chat_template"]
    (copy / "chat_template.json").write_text(
        json.dumps({"chat_template": {"default": template, "tool_use": "{{ messages }}"}})
    )
    assert load(copy).prompt("what?", SHAPE).ids == runtime.family.prompt("what?", SHAPE).ids


def test_pooling_is_refused_where_there_is_one_way_only(checkpoints):
    found = find_checkpoint(str(checkpoints.model))
    with pytest.raises(ModelError, match=r"is a LLaVA-OneVision checkpoint, which pools in one way only"):
        load_family(found, device="cpu", dtype="auto", attention="sdpa", pooling="average")


def test_missing_processor_files_are_refused(copy):
    (copy / "preprocessor_config.json").unlink()
    (copy / "video_preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="has no processor"):
        load(copy)


def test_a_missing_chat_template_is_refused(copy):
    (copy / "chat_template.json").unlink()
    with pytest.raises(ModelError, match="has no chat template"):
        load(copy)
