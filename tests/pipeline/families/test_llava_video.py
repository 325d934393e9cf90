"""LLaVA-Video as published, against a second writing of its vision part and its packing in plain torch.

The reference reads the weights by their published names and uses nothing of the pipeline, and of transformers
nothing but Qwen2ForCausalLM.
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from pipeline.cache import FeatureCache
from pipeline.checkpoint import find_checkpoint
from pipeline.clip import ClipShape
from pipeline.errors import ModelError, UnsupportedError
from pipeline.families import load_family
from pipeline.flops import ModelShape, unpruned_flops
from pipeline.methods import AdaTP
from pipeline.question import Question
from pipeline.runtime import Runtime
from tests.checkpoints import Checkpoints, Size, scenes, write_checkpoints, write_llava_video
from tests.pipeline.conftest import FRAMES
from tests.videos import moving_frames, write_video

QUESTION = Question("q", "What color is the ring?", ("red", "dark blue"))
SHAPE = ClipShape(4.25, (0.0, 1.5, 4.2083), 12, 0)


def load(folder):
    return load_family(find_checkpoint(str(folder)), device="cpu", dtype="auto", attention="sdpa")


def load_runtime(paths, **kwargs):
    return Runtime.load(str(paths.model), text_encoder=str(paths.siglip), **({"frames": FRAMES} | kwargs))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_llava_video(tmp_path_factory.mktemp("llava_video"))


@pytest.fixture(scope="module")
def runtime(paths):
    return load_runtime(paths)


@pytest.fixture(scope="module")
def frames():
    """Of the tower's own size: resizing has a test of its own."""
    return scenes(FRAMES, height=56, width=56)


@pytest.fixture(scope="module")
def clip(runtime, frames):
    return runtime.encode_frames(frames, np.arange(FRAMES) / 2, seconds=4.25)


@pytest.fixture
def copy(paths, tmp_path):
    shutil.copytree(paths.siglip, tmp_path / "siglip")
    return shutil.copytree(paths.model, tmp_path / "model")


def change_settings(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# -- the reference ------------------------------------------------------------------------------------------


def published_weights(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    files = {name: load_file(folder / name) for name in set(index.values())}
    return {name: files[file][name] for name, file in index.items()}


def reference_tower(weights, pixels, layers, heads, patch):
    """pixels: (n, 3, S, S). Returns (n, patches, width), before SigLIP's last norm."""
    tower = {
        name.split("vision_model.")[1]: weight for name, weight in weights.items() if "vision_model." in name
    }

    def linear(x, name):
        return x @ tower[f"{name}.weight"].T + tower[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * tower[f"{name}.weight"] + tower[f"{name}.bias"]

    x = torch.conv2d(
        pixels,
        tower["embeddings.patch_embedding.weight"],
        tower["embeddings.patch_embedding.bias"],
        stride=patch,
    )
    x = x.flatten(2).transpose(1, 2) + tower["embeddings.position_embedding.weight"]
    for layer in range(layers):
        name = f"encoder.layers.{layer}"
        given = norm(x, f"{name}.layer_norm1")
        q, k, v = (
            linear(given, f"{name}.self_attn.{item}_proj").unflatten(-1, (heads, -1)).transpose(1, 2)
            for item in "qkv"
        )
        attention = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + linear((attention @ v).transpose(1, 2).flatten(2), f"{name}.self_attn.out_proj")
        inner = linear(norm(x, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + linear(inner, f"{name}.mlp.fc2")
    return x


def reference_taps(grid, mode):
    """For each row (and column) of tokens, which rows of patches it is made of, and their weights."""
    if mode == "average":
        return [((first, 0.5), (first + 1, 0.5)) for first in range(0, grid - 1, 2)]
    side = (grid + 1) // 2
    taps = []
    for i in range(side):  # centres of tokens laid over the patches, clamped at the border
        centre = max((i + 0.5) * grid / side - 0.5, 0)
        low = int(centre)
        taps.append(((low, low + 1 - centre), (min(low + 1, grid - 1), centre - low)))
    return taps


def reference_tokens(weights, patches, grid, mode="average"):
    """patches: (n, grid * grid, width). The video's tokens one by one, frame after frame, row after row."""
    projector = {name.removeprefix("model.mm_projector."): weight for name, weight in weights.items()}
    hidden = patches @ projector["0.weight"].T + projector["0.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    hidden = hidden @ projector["2.weight"].T + projector["2.bias"]
    tokens = []
    taps = reference_taps(grid, mode)
    for frame in hidden:
        for rows in taps:
            for columns in taps:
                corners = [
                    frame[row * grid + column] * down * right
                    for row, down in rows
                    for column, right in columns
                ]
                tokens.append(sum(corners))
            tokens.append(weights["model.image_newline"])
    return torch.stack(tokens)


@pytest.fixture(scope="module")
def expected(paths, frames):
    weights = published_weights(paths.model)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    return reference_tokens(weights, reference_tower(weights, pixels, layers=2, heads=4, patch=8), grid=7)


# -- visual tokens ------------------------------------------------------------------------------------------


def test_a_video_becomes_the_references_tokens_in_its_order(clip, expected):
    assert clip.features.shape == (FRAMES * 12, 64)
    torch.testing.assert_close(clip.features, expected, rtol=1e-4, atol=1e-4)


def test_a_newline_token_ends_each_row_and_nothing_follows_the_last_frame(runtime, paths, clip):
    newline = published_weights(paths.model)["model.image_newline"]
    is_newline = (clip.features == newline).all(dim=1).reshape(FRAMES, 3, 4)
    assert is_newline[..., 3].all()
    assert not is_newline[..., :3].any()
    assert (clip.cells, clip.trailing) == (12, 0)


def test_the_published_grid_gives_the_references_182_tokens_a_frame_or_210(tmp_path):
    paths = write_llava_video(tmp_path, size=Size(layers=3, image=378, patch=14, vision_layers=2))
    weights = published_weights(paths.model)
    for pooling, cells in (("average", 182), ("bilinear", 210)):
        runtime = load_runtime(paths, frames=2, pooling=pooling)
        encoded = runtime.family.encode_frames(scenes(2))
        expected = reference_tokens(weights, encoded.tower_features, 27, pooling)
        torch.testing.assert_close(encoded.features, expected, rtol=1e-4, atol=1e-4)
        clip = runtime.encode_frames(scenes(2), np.arange(2))
        layout = runtime.layout(clip, QUESTION)
        assert (runtime.shape.vision.patches, clip.cells, layout.visual) == (729, cells, 2 * cells)
        ids = runtime.inputs(clip, QUESTION)["input_ids"][0]
        assert (ids == runtime.family.video_token_id).sum() == 2 * cells
        assert layout.tokens == layout.visual + layout.text_before + layout.text_after == len(ids)


# -- pooling ------------------------------------------------------------------------------------------------


@pytest.fixture
def bilinear(copy):
    """As LLaVA-NeXT's training writes it unless told otherwise."""
    change_settings(copy, mm_spatial_pool_mode="bilinear")
    return load_runtime(Checkpoints(copy, copy.parent / "siglip"))


def test_bilinear_pooling_gives_the_references_tokens(bilinear, paths, frames):
    """At ae20304 such a checkpoint was refused: average pooling was the only way."""
    weights = published_weights(paths.model)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    patches = reference_tower(weights, pixels, layers=2, heads=4, patch=8)
    clip = bilinear.encode_frames(frames, np.arange(FRAMES))
    assert (clip.cells, clip.features.shape) == (20, (FRAMES * 20, 64))  # rows of 4 and a newline
    expected = reference_tokens(weights, patches, 7, "bilinear")
    torch.testing.assert_close(clip.features, expected, rtol=1e-4, atol=1e-4)
    assert np.isfinite(bilinear.answer(clip, QUESTION, AdaTP(p=0.6)).option_logprobs).all()


def test_values_of_patches_are_pooled_as_features_are_and_newlines_get_their_rows_mean(bilinear):
    """A plane's values: interpolating keeps it, but for the border, where nothing lies beyond."""
    plane = torch.arange(7.0)[:, None] * 10 + torch.arange(7.0)
    rows = bilinear.family.pool(plane.reshape(1, 49, 1)).reshape(4, 5)
    taps = reference_taps(7, "bilinear")
    expected = [
        [sum(plane[r, c] * a * b for r, a in down for c, b in right) for right in taps] for down in taps
    ]
    torch.testing.assert_close(rows[:, :4], torch.tensor(expected))
    torch.testing.assert_close(rows[:, 4], rows[:, :4].mean(dim=1))


def test_the_largest_of_four_patches(paths):
    family = load_family(
        find_checkpoint(str(paths.model)), device="cpu", dtype="auto", attention="sdpa", pooling="max"
    )
    rows = family.pool(torch.arange(49.0).reshape(1, 49, 1)).reshape(3, 4)
    assert rows[:, :3].tolist() == [[8, 10, 12], [22, 24, 26], [36, 38, 40]]


def test_pooling_is_the_checkpoints_unless_another_is_asked_for_and_part_of_the_encoding(
    bilinear, runtime, copy
):
    paths = Checkpoints(copy, copy.parent / "siglip")
    average = load_runtime(paths, pooling="average")
    assert (average.family.pooling, average.family.checkpoint_pooling) == ("average", "bilinear")
    assert average.identity == bilinear.identity
    assert average.encoding != bilinear.encoding
    assert load_runtime(paths, pooling="bilinear").encoding == bilinear.encoding


def test_another_pooling_than_those_is_refused(paths):
    with pytest.raises(ValueError, match="pooling is one of average, bilinear, max, but got 'sum'"):
        load_runtime(paths, pooling="sum")


def test_the_vision_towers_settings_are_part_of_the_models_identity(copy):
    """They are read from another folder than the model's, and change its answers."""
    before, as_it_was = (
        find_checkpoint(str(copy)).identity,
        (copy.parent / "siglip" / "config.json").read_text(),
    )
    config = json.loads(as_it_was)
    config["vision_config"]["layer_norm_eps"] = 1e-3
    (copy.parent / "siglip" / "config.json").write_text(json.dumps(config))
    assert find_checkpoint(str(copy)).identity != before
    (copy.parent / "siglip" / "config.json").write_text(as_it_was)
    assert find_checkpoint(str(copy)).identity == before


def test_many_frames_are_encoded_in_runs(runtime):
    together = runtime.family.encode_frames(scenes(20))
    one = runtime.family.encode_frames(scenes(20)[17:18])
    assert together.tower_features.shape == (20, 49, 32)
    torch.testing.assert_close(together.features[17 * 12 : 18 * 12], one.features)


def test_frames_are_resized_and_scaled_as_the_published_processor_does(runtime):
    """Pillow's bicubic, which that processor calls, then to [-1, 1]."""
    frames = scenes(3, height=48, width=80)
    resized = [
        np.asarray(Image.fromarray(frame).resize((56, 56), Image.Resampling.BICUBIC)) for frame in frames
    ]
    expected = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(runtime.family.pixels(frames), expected, rtol=0, atol=1e-6)


def test_sizes_come_from_the_configuration_and_the_vision_tower_named_there(runtime):
    family = runtime.family
    shape = family.shape
    assert shape == ModelShape(layers=12, hidden=64, kv_width=32, mlp_width=96, heads=4, vision=shape.vision)
    vision = shape.vision
    assert (vision.patches, vision.patch_inputs, vision.width, vision.layers) == (49, 192, 32, 2)
    assert family.applied_vision_layers == 2
    assert runtime.shape.vision.extra_layers == 1


def test_flops_count_every_row_newline(runtime, clip):
    layout = runtime.layout(clip, QUESTION)
    tokens = FRAMES * 12 + layout.text_before + layout.text_after
    by_hand = 12 * (tokens * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96) + 2 * tokens**2 * 64)
    assert unpruned_flops(layout, runtime.shape) == by_hand


# -- the prompt ---------------------------------------------------------------------------------------------

PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<image>\nThe video lasts for 4.25 seconds, and 3 frames are uniformly sampled from it. These frames are "
    "located at 0.00s,1.50s,4.21s.Please answer the following questions related to this video.\n"
    "What color is the ring?<|im_end|>\n<|im_start|>assistant\n"
)


def test_the_prompt_is_the_published_conversation_with_the_time_instruction(runtime):
    prompt = runtime.family.prompt(QUESTION.text, SHAPE)
    decode = runtime.family.tokenizer.decode
    assert decode(list(prompt.before)) + "<image>" + decode(list(prompt.after)) == PROMPT


def test_input_ids_are_the_tokens_of_the_prompt_around_one_placeholder_per_visual_token(runtime, clip):
    """As the published code: the prompt is cut at the image tag, and each part tokenized by itself."""
    times = ",".join(f"{time / 2:.2f}s" for time in range(FRAMES))
    text = PROMPT.replace("3 frames", f"{FRAMES} frames").replace("0.00s,1.50s,4.21s", times)
    before, after = (runtime.family.tokenizer(part)["input_ids"] for part in text.split("<image>"))
    ids = runtime.inputs(clip, QUESTION)["input_ids"][0].tolist()
    placeholder = runtime.family.video_token_id
    assert ids == [*before, *[placeholder] * (FRAMES * 12), *after]


def test_the_placeholder_is_a_row_of_the_embedding_that_no_token_uses(runtime):
    vocabulary = runtime.family.tokenizer.get_vocab().values()
    assert max(vocabulary) < runtime.family.video_token_id < len(runtime.model.get_input_embeddings().weight)


def test_a_model_trained_without_the_time_instruction_is_asked_without_it(tmp_path):
    for value in (False, None):
        family = load(
            write_llava_video(tmp_path / str(value), settings={"add_time_instruction": value}).model
        )
        after = family.tokenizer.decode(list(family.prompt("What?", SHAPE).after))
        assert after == "\nWhat?<|im_end|>\n<|im_start|>assistant\n"


def test_two_videos_of_other_times_are_told_apart_and_share_what_stands_before(runtime, clip, frames):
    later = runtime.encode_frames(frames, np.arange(FRAMES) * 100.0, seconds=900.0)
    first, second = runtime.prompt(clip, QUESTION), runtime.prompt(later, QUESTION)
    assert first.before == second.before
    assert "lasts for 900.00 seconds" in runtime.family.tokenizer.decode(list(second.after))
    assert len(first.after) < len(second.after)
    assert runtime.layout(later, QUESTION).text_after == len(second.after)
    assert runtime.answer(clip, QUESTION, None).option_logprobs != (
        runtime.answer(later, QUESTION, None).option_logprobs
    )


def test_the_length_told_is_the_files_also_from_stored_features(paths, tmp_path):
    video = write_video(tmp_path / "video.mp4", moving_frames(60))  # at 24 frames a second
    said = []
    for _ in range(2):  # decoded, then from disk
        runtime = load_runtime(paths, cache=FeatureCache(tmp_path / "cache", 2**20), frames=4)
        prompt = runtime.prompt(runtime.encode(video), QUESTION)
        said.append(runtime.family.tokenizer.decode(list(prompt.after)))
    assert said[0] == said[1]
    assert "lasts for 2.50 seconds, and 4 frames" in said[0]
    assert "located at 0.00s,0.79s,1.62s,2.46s." in said[0]


# -- the whole model ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_models_logits_are_those_of_qwen2_fed_with_the_packed_embeddings(runtime, paths, clip, expected):
    weights = published_weights(paths.model)
    decoder = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(weights["lm_head.weight"]),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=12,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        )
    ).eval()
    vision = ("model.vision_tower.", "model.mm_projector.", "model.image_newline")
    decoder.load_state_dict({name: weight for name, weight in weights.items() if not name.startswith(vision)})
    inputs = runtime.inputs(clip, QUESTION)
    ids = inputs["input_ids"][0]
    start = ids.tolist().index(runtime.family.video_token_id)
    embed = decoder.get_input_embeddings()
    packed = torch.cat((embed(ids[:start]), expected, embed(ids[start + len(expected) :])))
    torch.testing.assert_close(
        runtime.model(**inputs).logits, decoder(inputs_embeds=packed[None]).logits, rtol=1e-3, atol=1e-3
    )


def test_a_tied_checkpoint_has_one_table(tmp_path):
    family = load(write_llava_video(tmp_path, size=Size(layers=3, image=56, tied=True)).model)
    assert family.lm_head.weight is family.model.get_input_embeddings().weight


@pytest.mark.parametrize("model_type", ["llava", "llava_qwen"])
def test_either_name_of_the_model_type_loads(copy, model_type, runtime):
    change_settings(copy, model_type=model_type)
    family = load(copy)
    for (name, one), other in zip(runtime.model.named_parameters(), family.model.parameters(), strict=True):
        assert one.equal(other), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_loads_and_answers(paths, dtype):
    runtime = load_runtime(paths, dtype=dtype)
    clip = runtime.encode_frames(scenes(FRAMES), np.arange(FRAMES))
    assert str(clip.features.dtype) == f"torch.{dtype}"
    assert np.isfinite(runtime.answer(clip, QUESTION, AdaTP(p=0.6)).option_logprobs).all()


# -- checkpoints that are none, or of another kind ----------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("architectures", ["LlavaLlamaForCausalLM"], "(supported: ['LlavaQwenForCausalLM'])"),
        ("mm_projector_type", "linear", "mm_projector_type is 'linear' (supported: 'mlp2x_gelu')"),
        ("mm_patch_merge_type", "flat", "mm_patch_merge_type is 'flat' (supported: 'spatial_unpad')"),
        ("mm_newline_position", "frame", "mm_newline_position is 'frame' (supported: 'grid')"),
        ("mm_newline_position", None, "mm_newline_position is not set (supported: 'grid')"),
        (
            "mm_spatial_pool_mode",
            "median",
            "mm_spatial_pool_mode is 'median' (supported: 'average' or 'bilinear' or 'max')",
        ),
        ("mm_spatial_pool_stride", 4, "mm_spatial_pool_stride is 4 (supported: 2)"),
        ("add_faster_video", True, "add_faster_video is True (supported: False)"),
        ("mm_use_im_start_end", True, "mm_use_im_start_end is True (supported: False)"),
    ],
)
def test_a_setting_that_is_not_supported_is_named(tmp_path, key, value, message):
    paths = write_llava_video(tmp_path, settings={key: value})
    with pytest.raises(UnsupportedError) as caught:
        load(paths.model)
    assert message in str(caught.value)
    assert str(caught.value).count("supported:") == 1


def test_all_settings_that_are_not_supported_are_named_together(copy):
    change_settings(copy, mm_newline_position="one_token", mm_spatial_pool_mode="sum", add_faster_video=True)
    with pytest.raises(UnsupportedError, match=r"'one_token'.*'sum'.*add_faster_video") as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_settings_that_say_what_is_done_anyway_may_be_missing(tmp_path):
    settings = {"mm_spatial_pool_mode": None, "mm_spatial_pool_stride": None, "add_faster_video": None}
    assert load(write_llava_video(tmp_path, settings=settings).model).pooling == "average"


def test_a_llava_of_transformers_own_format_is_refused(copy):
    (copy / "config.json").write_text(
        json.dumps({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]})
    )
    with pytest.raises(UnsupportedError, match=r"architectures is \['LlavaForConditionalGeneration'\]"):
        load(copy)


def test_missing_sizes_are_named_together(tmp_path):
    paths = write_llava_video(tmp_path, settings={"num_attention_heads": None, "mm_vision_tower": None})
    with pytest.raises(ModelError, match=r"config\.json of .* lacks num_attention_heads, mm_vision_tower\.$"):
        load(paths.model)


def test_a_size_that_is_no_number_is_refused(copy):
    change_settings(copy, hidden_size="wide")
    with pytest.raises(ModelError, match=r"settings of .* could not be read: .*hidden_size"):
        load(copy)


def rewrite(folder, change):
    """Changes one of the files of weights."""
    file = folder / "model-00001-of-00002.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def test_a_missing_weight_is_refused(copy):
    rewrite(copy, lambda weights: weights.pop("model.image_newline"))
    with pytest.raises(ModelError, match=r"lacks 1 weights, model\.image_newline among them"):
        load(copy)


def test_a_weight_of_another_model_is_refused(copy):
    rewrite(copy, lambda weights: weights.update({"model.faster_token": torch.zeros(64)}))
    with pytest.raises(ModelError, match=r"holds 1 weights of another model, model\.faster_token among them"):
        load(copy)


def test_weights_of_another_size_are_refused(copy):
    change_settings(copy, intermediate_size=128)
    with pytest.raises(ModelError, match="could not be loaded"):
        load(copy)


def test_a_tokenizer_that_leaves_no_row_unused_is_refused(copy):
    tokenizer = Qwen2Tokenizer.from_pretrained(copy)
    tokenizer.add_tokens([f"<{i}>" for i in range(13)])
    tokenizer.save_pretrained(copy)
    with pytest.raises(UnsupportedError, match="uses all 272 rows of the embedding"):
        load(copy)


def test_a_vision_tower_is_found_beside_the_model_or_by_its_whole_path(copy, paths):
    change_settings(copy, mm_vision_tower=str(paths.siglip))
    shutil.rmtree(copy.parent / "siglip")
    assert load(copy).pooling == "average"


def test_of_the_vision_tower_nothing_but_its_settings_is_read(copy):
    (copy.parent / "siglip" / "model.safetensors").unlink()
    assert load(copy).pooling == "average"


def test_a_vision_tower_that_is_not_there_is_named(copy):
    change_settings(copy, mm_vision_tower="../nowhere")
    with pytest.raises(ModelError, match=r"vision tower that .* names cannot be read: There is no folder"):
        load(copy)


def test_a_vision_tower_that_is_no_siglip_is_refused(copy, tmp_path):
    other = write_checkpoints(tmp_path / "other", layers=2)
    change_settings(copy, mm_vision_tower=str(other.model))
    with pytest.raises(UnsupportedError, match="as vision tower; a SigLIP is supported"):
        load(copy)
