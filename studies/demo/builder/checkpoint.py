"""Writes the trained models in the layout in which real checkpoints are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast, SiglipModel

from .data import PIXELS
from .vocabulary import END, PAD, PATTERN, TEXT_LENGTH, vocabulary

CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """One token a word."""
    words = Tokenizer(models.WordLevel(dict(vocabulary()), unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
        **options,
    )


def _write_processor(folder: Path, patch: int) -> None:
    """The processor's files, written out: its own saving needs torchvision, which has no CPU build
    everywhere."""
    pictures = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": [[PIXELS, PIXELS]],
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": PIXELS, "width": PIXELS},
    }
    files: dict[str, dict[str, Any]] = {
        "processor_config.json": {
            "image_token": "<image>",
            "num_image_tokens": (PIXELS // patch) ** 2,
            "video_token": "<video>",
            "processor_class": "LlavaOnevisionProcessor",
            "vision_feature_select_strategy": "full",
        },
        "preprocessor_config.json": pictures | {"image_processor_type": "LlavaOnevisionImageProcessor"},
        "video_preprocessor_config.json": pictures | {"video_processor_type": "LlavaOnevisionVideoProcessor"},
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def save(folder: Path, model: LlavaOnevisionForConditionalGeneration, siglip: SiglipModel) -> None:
    """`folder`/model and `folder`/siglip in half precision, as large checkpoints ship."""
    tower = model.model.vision_tower
    report = tower.load_state_dict(siglip.vision_model.state_dict(), strict=False)
    assert not report.missing_keys
    model.model.language_model.config._attn_implementation = "sdpa"
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, PAD
    model.to(torch.float16).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    _write_processor(folder / "model", siglip.config.vision_config.patch_size)
    siglip.to(torch.float16).save_pretrained(folder / "siglip")
    tokenizer(model_max_length=TEXT_LENGTH).save_pretrained(folder / "siglip")
