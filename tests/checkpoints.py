"""Small checkpoints with random weights, in the layout real ones are published in.

The model folder looks like llava-hf/llava-onevision-qwen2-0.5b-ov-hf: LlavaOnevisionForConditionalGeneration
with a SigLIP tower that lacks its last layer and its head, a Qwen2 language model with grouped-query
attention, processor files and chat template. The SigLIP folder looks like google/siglip-so400m-patch14-384:
the whole SiglipModel, whose first layers are the tower's, with a tokenizer of its own.

`write_llava_video` writes the other family, in the layout of lmms-lab/LLaVA-Video-7B-Qwen2.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

TEXT = """
what color is the ring ball cube star on sea sand brick grass in first last scene and of shape place
red green blue yellow white black dark light top left right bottom before after yes no
user assistant system a b c d e f answer with option s letter from given choices directly . , : ? ! '
"""
WORDS = tuple(TEXT.split())

SPECIAL = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + part['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """Sizes of a small model; the defaults make 8 frames 32 visual tokens."""

    layers: int = 12
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 96
    image: int = 32
    patch: int = 8
    vision_width: int = 32
    vision_mlp: int = 48
    vision_layers: int = 3  # of the whole SigLIP; the tower has one less
    text_layers: int = 2
    text_length: int = 16
    vision_heads: int = 4  # of both SigLIP towers
    vocabulary: int = 0  # the language model's; 0: the tokenizer's own words
    tied: bool = False  # whether lm_head is the table of token embeddings


@dataclass(frozen=True)
class Checkpoints:
    model: Path
    siglip: Path


def build_tokenizer(words: Sequence[str] = WORDS, **kwargs: Any) -> PreTrainedTokenizerFast:
    """A fast tokenizer of whole words and punctuation marks, in lower case, with the special tokens of a
    chat.
    """
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys((*SPECIAL, *words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
        **kwargs,
    )


def build_siglip(size: Size, vocabulary: int) -> SiglipModel:
    config = SiglipConfig(
        text_config=SiglipTextConfig(
            vocab_size=vocabulary,
            hidden_size=size.vision_width,
            intermediate_size=size.vision_mlp,
            num_hidden_layers=size.text_layers,
            num_attention_heads=size.vision_heads,
            max_position_embeddings=size.text_length,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=3,
        ).to_dict(),
        vision_config=vision_config(size, size.vision_layers).to_dict(),
    )
    return SiglipModel(config).eval()


def vision_config(size: Size, layers: int, *, head: bool = True) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=size.vision_mlp,
        num_hidden_layers=layers,
        num_attention_heads=size.vision_heads,
        image_size=size.image,
        patch_size=size.patch,
        vision_use_head=head,
    )


def build_model(
    size: Size, tokenizer: PreTrainedTokenizerFast, siglip: SiglipModel
) -> LlavaOnevisionForConditionalGeneration:
    """The video model; its tower takes the SigLIP's weights, all but the last layer and the head."""
    text = Qwen2Config(
        vocab_size=size.vocabulary or len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=8192,
        initializer_range=0.15,  # random attention that is far from uniform
        tie_word_embeddings=size.tied,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=3,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision_config(size, size.vision_layers - 1, head=False).to_dict(),
        text_config=text.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[size.image, size.image]],
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    tower = model.model.vision_tower
    report = tower.load_state_dict(siglip.vision_model.state_dict(), strict=False)
    assert not report.missing_keys
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def write_processor(folder: Path, image: int, patch: int) -> None:
    """Processor files as the published checkpoints have them (written out: saving them needs torchvision)."""
    processor = {
        "image_token": "<image>",
        "num_image_tokens": (image // patch) ** 2,
        "processor_class": "LlavaOnevisionProcessor",
        "video_token": "<video>",
        "vision_feature_select_strategy": "full",
    }
    pictures = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": [[image, image]],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": image, "width": image},
    }
    image_file = pictures | {"image_processor_type": "LlavaOnevisionImageProcessor"}
    video_file = pictures | {"video_processor_type": "LlavaOnevisionVideoProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))
    (folder / "preprocessor_config.json").write_text(json.dumps(image_file, indent=2))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video_file, indent=2))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}, indent=2))


def write_checkpoints(
    folder: Path,
    *,
    size: Size | None = None,
    words: Sequence[str] = WORDS,
    seed: int = 0,
    layers: int | None = None,
) -> Checkpoints:
    """Both folders below `folder`; the same seed gives the same weights."""
    size = size or Size()
    if layers is not None:
        size = Size(**{**vars(size), "layers": layers})
    paths = Checkpoints(folder / "model", folder / "siglip")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(words)
        siglip = build_siglip(size, len(tokenizer))
        for (
            parameter
        ) in siglip.text_model.parameters():  # a fresh text tower maps all texts to almost one point
            if parameter.dim() > 1:
                parameter.data.normal_(std=0.2)
        model = build_model(size, tokenizer, siglip)
        for module in model.model.multi_modal_projector.children():
            if isinstance(module, torch.nn.Linear):
                module.weight.data.normal_(std=0.3)
    model.save_pretrained(paths.model)
    tokenizer.save_pretrained(paths.model)
    write_processor(paths.model, size.image, size.patch)
    siglip.save_pretrained(paths.siglip)
    build_tokenizer(words, model_max_length=size.text_length).save_pretrained(paths.siglip)
    return paths


def build_qwen_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's kind of tokenizer, without its vocabulary: every byte is a token, so no text is lost."""
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return tokenizer


def write_llava_video(
    folder: Path, *, size: Size | None = None, seed: int = 0, settings: Mapping[str, Any] | None = None
) -> Checkpoints:
    """Both folders as lmms-lab/LLaVA-Video-7B-Qwen2 and its SigLIP are published. `settings` change the
    former's config.json; None takes a key away.

    LLaVA-NeXT's names of weights in two files with an index, flat settings, tokenizer files without a chat
    template, no processor files.
    """
    size = size or Size(image=56)  # 7 x 7 patches, an odd grid as the published one
    paths = Checkpoints(folder / "model", folder / "siglip")
    tokenizer = build_qwen_tokenizer()
    text = Qwen2Config(
        vocab_size=len(tokenizer) + 13,  # padded, as the published vocabulary
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,  # neither this nor the next is the default: whoever drops settings is found out
        rope_theta=500.0,
        initializer_range=0.15,
        tie_word_embeddings=size.tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        siglip = build_siglip(size, len(tokenizer))
        decoder = Qwen2ForCausalLM(text)
        projector = [
            torch.nn.Linear(size.vision_width, size.hidden),
            torch.nn.Linear(size.hidden, size.hidden),
        ]
        for layer in projector:
            layer.weight.data.normal_(std=0.3)
        weights = dict(decoder.state_dict())
        for place, layer in zip((0, 2), projector, strict=True):
            weights |= {
                f"model.mm_projector.{place}.{name}": item for name, item in layer.state_dict().items()
            }
        weights["model.image_newline"] = torch.randn(size.hidden)
    left_out = ("head.", f"encoder.layers.{size.vision_layers - 1}.")
    weights |= {
        f"model.vision_tower.vision_tower.vision_model.{name}": item
        for name, item in siglip.vision_model.state_dict().items()
        if not name.startswith(left_out)
    }
    paths.model.mkdir(parents=True)
    names = sorted(weights)
    shards = {
        f"model-0000{i + 1}-of-00002.safetensors": {name: weights[name].clone() for name in names[i::2]}
        for i in range(2)
    }
    for file, held in shards.items():
        save_file(held, paths.model / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(weight.nbytes for weight in weights.values())},
        "weight_map": {name: file for file, held in shards.items() for name in held},
    }
    (paths.model / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    config = {
        "architectures": ["LlavaQwenForCausalLM"],
        "add_faster_video": False,
        "add_time_instruction": True,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "force_sample": True,
        "hidden_act": "silu",
        "hidden_size": size.hidden,
        "image_aspect_ratio": "anyres_max_9",
        "image_token_index": len(tokenizer),
        "initializer_range": 0.15,
        "intermediate_size": size.mlp,
        "max_position_embeddings": 8192,
        "max_window_layers": size.layers,
        "mm_hidden_size": size.vision_width,
        "mm_newline_position": "grid",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": "average",
        "mm_spatial_pool_stride": 2,
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "../siglip",
        "model_type": "llava",
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "num_key_value_heads": size.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 500.0,
        "sliding_window": 8192,
        "tie_word_embeddings": size.tied,
        "tokenizer_model_max_length": 32768,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0.dev0",
        "use_cache": True,
        "use_mm_proj": True,
        "use_sliding_window": False,
        "vocab_size": text.vocab_size,
    } | dict(settings or {})
    published = {
        key: value for key, value in config.items() if key not in (settings or {}) or value is not None
    }
    (paths.model / "config.json").write_text(json.dumps(published, indent=2))
    generation = {"eos_token_id": [tokenizer.eos_token_id], "do_sample": False}
    (paths.model / "generation_config.json").write_text(json.dumps(generation))
    tokenizer.save_pretrained(paths.model)
    siglip.save_pretrained(paths.siglip)
    tokenizer.save_pretrained(paths.siglip)
    return paths


def scenes(
    frames: int, scene_length: int = 2, height: int = 48, width: int = 64, seed: int = 0
) -> np.ndarray:
    """(frames, height, width, 3) uint8: runs of nearly equal frames with hard cuts between them."""
    random = np.random.default_rng(seed)
    count = -(-frames // scene_length)
    coarse = random.integers(0, 256, (count, height // 8, width // 8, 3))
    still = coarse.repeat(8, axis=1).repeat(8, axis=2).repeat(scene_length, axis=0)[:frames]
    return (still + random.integers(-3, 4, still.shape)).clip(0, 255).astype(np.uint8)
