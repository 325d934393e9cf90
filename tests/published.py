"""Small checkpoints with random weights, file by file in the layout of the published repositories.

Of llava-hf/llava-onevision-qwen2-0.5b-ov-hf and -7b-ov-hf, as published in 2024 and not saved again since:
settings and names of weights are those of the transformers of then, not what the installed one would write.
Of google/siglip-so400m-patch14-384: a config.json with nothing but what differs from the defaults, and a
SentencePiece tokenizer. Sizes are small, and token ids follow the small vocabulary; everything else is as
published.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)

from tests.checkpoints import TEXT

# In the published order: the tokenizer's own words come first.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")

# Words are cut as Qwen2 cuts them.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

# Pictures first, then videos, then text; what the assistant said is marked for training.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{# pictures #}{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{# videos #}{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}"
    "{# text #}{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% if message['role'] != 'assistant' %}{{ '\n' + part['text'] }}"
    "{% else %}{% generation %}{{ '\n' + part['text'] }}{% endgeneration %}{% endif %}{% endfor %}"
    "{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The language model's own template, for text alone, stays in the tokenizer's settings.
TEXT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)

WIDTH, MLP, HEADS, IMAGE, PATCH, LAYERS = 32, 48, 4, 56, 14, 3  # of SigLIP's vision part


@dataclass(frozen=True)
class Variant:
    """What differs between the published sizes."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    tied: bool  # whether lm_head is the table of token embeddings, and therefore not stored
    shards: int  # files that hold the weights
    text: dict[str, Any] = field(default_factory=dict)  # other settings of the language model


HALF = Variant("0.5b", 48, 4, 6, 2, 96, tied=True, shards=1, text={"sliding_window": 32768})
SEVEN = Variant("7b", 64, 4, 8, 2, 96, tied=False, shards=4, text={"sliding_window": 131072})
SHARDED_HALF = Variant("0.5b in parts", 48, 4, 6, 2, 96, tied=True, shards=2)


@dataclass(frozen=True)
class Published:
    model: Path
    siglip: Path
    original: LlavaOnevisionForConditionalGeneration  # with the very weights that were stored, float32
    whole: SiglipModel


def write_published(folder: Path, variant: Variant, seed: int = 0) -> Published:
    """Both folders below `folder`; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        whole = _siglip(folder / "siglip")
        tokenizer = _write_tokenizer(folder / "model")
        original = _model(folder / "model", variant, tokenizer, whole)
    _write_processor(folder / "model")
    return Published(folder / "model", folder / "siglip", original, whole)


# -- the model ----------------------------------------------------------------------------------------------


def _model(
    folder: Path, variant: Variant, tokenizer: Tokenizer, whole: SiglipModel
) -> LlavaOnevisionForConditionalGeneration:
    config = _config(variant, tokenizer)
    _write_json(folder / "config.json", config)
    ends = {
        "bos_token_id": tokenizer.token_to_id(SPECIAL[0]),
        "eos_token_id": tokenizer.token_to_id(SPECIAL[2]),
    }
    generation = {"_from_model_config": True, **ends, "transformers_version": "4.45.0.dev0"}
    _write_json(folder / "generation_config.json", generation)
    model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**json.loads(json.dumps(config))))
    model.model.vision_tower.load_state_dict(whole.vision_model.state_dict(), strict=False)
    for module in model.model.multi_modal_projector.children():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(std=0.3)
    _round(model.eval())
    weights = {_published_name(name): value.half() for name, value in model.state_dict().items()}
    if variant.tied:
        del weights["language_model.lm_head.weight"]
    _write_weights(folder, weights, variant.shards)
    return model


def _round(model: torch.nn.Module) -> None:
    """To the half precision that is published; buffers, which are not stored, stay as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()


def _config(variant: Variant, tokenizer: Tokenizer) -> dict[str, Any]:
    size = tokenizer.get_vocab_size()
    text = {
        "_name_or_path": f"Qwen/Qwen2-{variant.name.upper()}-Instruct",
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": tokenizer.token_to_id(SPECIAL[0]),
        "eos_token_id": tokenizer.token_to_id(SPECIAL[2]),
        "hidden_size": variant.hidden,
        "initializer_range": 0.15,  # of the small model alone: random attention that is far from uniform
        "intermediate_size": variant.mlp,
        "max_window_layers": variant.layers,
        "model_type": "qwen2",
        "num_attention_heads": variant.heads,
        "num_hidden_layers": variant.layers,
        "num_key_value_heads": variant.kv_heads,
        "rope_theta": 1000000.0,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": (size // 64 + 1) * 64,  # padded, and so longer than the tokenizer
        **variant.text,
    }
    if variant.tied:
        text["tie_word_embeddings"] = True
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": _pinpoints(),
        "image_token_index": tokenizer.token_to_id("<image>"),
        "model_type": "llava_onevision",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": variant.tied,
        "torch_dtype": "float16",
        "transformers_version": "4.45.0.dev0",
        "use_image_newline_parameter": True,
        "video_token_index": tokenizer.token_to_id("<video>"),
        "vision_aspect_ratio": "anyres_max_9",
        "vision_config": {
            "hidden_size": WIDTH,
            "image_size": IMAGE,
            "intermediate_size": MLP,
            "model_type": "siglip_vision_model",
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS - 1,  # SigLIP's last layer is left out
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def _published_name(name: str) -> str:
    for now, then in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.", ""),  # projector and newline
    ):
        if name.startswith(now):
            return then + name.removeprefix(now)
    return name


def _write_weights(folder: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    weights = {name: value.contiguous() for name, value in weights.items()}
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(weights)
    places = {name: i * shards // len(names) + 1 for i, name in enumerate(names)}
    files = {name: f"model-{place:05}-of-{shards:05}.safetensors" for name, place in places.items()}
    for file in set(files.values()):
        held = {name: weights[name] for name in names if files[name] == file}
        save_file(held, folder / file, metadata={"format": "pt"})
    total = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_tokenizer(folder: Path) -> Tokenizer:
    """A byte-level BPE as Qwen2's, trained on a few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    plain = {token: {"content": token, **flags} for token in SPECIAL}
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(ids[t]): {**plain[t], "special": True} for t in SPECIAL},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": TEXT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "processor_class": "LlavaOnevisionProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    special = {
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "eos_token": plain["<|im_end|>"],
        "pad_token": plain["<|endoftext|>"],
    }
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "added_tokens.json", ids)
    return tokenizer


def _write_processor(folder: Path) -> None:
    pictures = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": _pinpoints(),
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": IMAGE, "width": IMAGE},
    }
    processor = {
        "image_token": "<image>",
        "num_image_tokens": (IMAGE // PATCH) ** 2,
        "processor_class": "LlavaOnevisionProcessor",
        "video_token": "<video>",
        "vision_feature_select_strategy": "full",
    }
    _write_json(folder / "preprocessor_config.json", pictures)
    _write_json(folder / "processor_config.json", processor)
    _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})


def _pinpoints() -> list[list[int]]:
    """Every size of one to six images a side."""
    sides = [IMAGE * count for count in range(1, 7)]
    return [[height, width] for height in sides for width in sides]


# -- SigLIP -------------------------------------------------------------------------------------------------


def _siglip(folder: Path) -> SiglipModel:
    folder.mkdir(parents=True, exist_ok=True)
    towers = {
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
    }
    config = {
        "architectures": ["SiglipModel"],
        "initializer_factor": 1.0,
        "model_type": "siglip",
        # Vocabulary and length are the defaults, and therefore left out.
        "text_config": {**towers, "model_type": "siglip_text_model"},
        "torch_dtype": "float32",
        "transformers_version": "4.37.0.dev0",
        "vision_config": {
            **towers,
            "image_size": IMAGE,
            "model_type": "siglip_vision_model",
            "patch_size": PATCH,
        },
    }
    _write_json(folder / "config.json", config)
    parts = {name: config[name] for name in ("text_config", "vision_config")}
    model = SiglipModel(SiglipConfig(**json.loads(json.dumps(parts))))
    for parameter in model.text_model.parameters():
        if parameter.dim() > 1:  # a fresh text tower maps all texts to almost one point
            parameter.data.normal_(std=0.2)
    _round(model.eval())  # as the tower of the video model, so that both are the same
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_siglip_tokenizer(folder)
    return model


def _write_siglip_tokenizer(folder: Path) -> None:
    words = folder / "words.txt"
    words.write_text(TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input=str(words),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    words.unlink()
    (folder / "spiece.vocab").unlink()
    flags = {"lstrip": True, "normalized": False, "rstrip": True, "single_word": False}
    end, unknown = {"content": "</s>", **flags}, {"content": "<unk>", **flags}
    settings = {
        "added_tokens_decoder": {"1": {**end, "special": True}, "2": {**unknown, "special": True}},
        "additional_special_tokens": [],
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "eos_token": "</s>",
        "model_input_names": ["input_ids"],
        "model_max_length": 64,
        "pad_token": "</s>",
        "processor_class": "SiglipProcessor",
        "sp_model_kwargs": {},
        "tokenizer_class": "SiglipTokenizer",
        "unk_token": "<unk>",
    }
    pictures = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "SiglipProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": IMAGE, "width": IMAGE},
    }
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(
        folder / "special_tokens_map.json", {"eos_token": end, "pad_token": end, "unk_token": unknown}
    )
    _write_json(folder / "preprocessor_config.json", pictures)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")
