"""LLaVA-OneVision: a SigLIP tower, a two-layer projector, 2 x 2 pooling, a Qwen2 language model.

The layout of llava-hf/llava-onevision-qwen2-0.5b-ov-hf and -7b-ov-hf. A video of n frames is n x c visual
tokens in order of frames and rows, then one newline token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.checkpoint import Checkpoint, load_pretrained
from pipeline.errors import ModelError, PipelineError, UnsupportedError
from pipeline.families.base import EncodedFrames, Prompt
from pipeline.flops import ModelShape, VisionShape

FRAMES_PER_CALL = (
    8  # frames go through the tower in runs of this many: bounds memory, and never changes the result
)


class LlavaOnevision:
    """A loaded LLaVA-OneVision model."""

    def __init__(self, checkpoint: Checkpoint, model: Any, tokenizer: Any) -> None:
        config = model.config
        self.model = model
        self.language_model = model.model.language_model
        self.layers: Sequence[Any] = self.language_model.layers
        self.lm_head = model.lm_head
        self.tokenizer = tokenizer
        self.video_token_id = int(config.video_token_id)
        self.trailing = 1
        self._checkpoint = checkpoint
        self._processor = _video_processor(checkpoint)
        self._chat_template = _chat_template(checkpoint, tokenizer)
        self._video_token = tokenizer.convert_ids_to_tokens(self.video_token_id)
        vision = config.vision_config
        grid = vision.image_size // vision.patch_size
        self.cells = math.ceil(grid / 2) ** 2
        self._image_size = int(vision.image_size)
        self.shape = _shape(config, grid * grid, self.applied_vision_layers)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def applied_vision_layers(self) -> int:
        """Vision layers whose output the projector reads (the published towers: all 26 of SigLIP's 27)."""
        index = self.model.config.vision_feature_layer
        layers = int(self.model.config.vision_config.num_hidden_layers)
        return int(index) if index >= 0 else layers + 1 + int(index)

    def prompt(self, text: str) -> Prompt:
        """The chat prompt with a video and this text, cut where the video stands.

        Errors: PipelineError when the text itself holds the video token.
        """
        content = [{"type": "video"}, {"type": "text", "text": text}]
        ids = self.tokenizer(
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=self._chat_template,
                tokenize=False,
                add_generation_prompt=True,
            ),
            add_special_tokens=False,
        )["input_ids"]
        if ids.count(self.video_token_id) != 1:
            raise PipelineError(f"A question must not hold the token {self._video_token}, but got {text!r}.")
        place = ids.index(self.video_token_id)
        return Prompt(tuple(ids[:place]), tuple(ids[place + 1 :]))

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """(1, len(ids), hidden) token embeddings."""
        embedded: torch.Tensor = self.model.get_input_embeddings()(
            torch.tensor([list(ids)], device=self.device)
        )
        return embedded

    @torch.inference_mode()
    def encode_frames(self, frames: NDArray[np.uint8]) -> EncodedFrames:
        """Through tower, projector and pooling; a newline token follows the last frame."""
        tower_features: list[torch.Tensor] = []
        features: list[torch.Tensor] = []
        # The projector's input is exactly what the tower gives: taken there, nothing has to be computed
        # again.
        hook = self.model.model.multi_modal_projector.register_forward_pre_hook(
            lambda _, args: tower_features.append(args[0])
        )
        try:
            for start in range(0, len(frames), FRAMES_PER_CALL):
                pixels = self._pixels(frames[start : start + FRAMES_PER_CALL])
                pooled = self.model.model.get_video_features(pixels[None]).pooler_output[0]
                features.append(
                    pooled[: len(pixels) * self.cells]
                )  # releases differ in adding the newline here
        finally:
            hook.remove()
        newline = self.model.model.image_newline.to(features[0])[None]
        return EncodedFrames(torch.cat([*features, newline]), torch.cat(tower_features))

    def _pixels(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """(n, 3, S, S) resized and normalised as the checkpoint's video processor does.

        Written out because transformers' own video processor needs torchvision, which nothing else here does.
        """
        processor, size = self._processor, self._image_size
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).permute(0, 3, 1, 2).float()
        if pixels.shape[-2:] != (size, size):
            mode = {2: "bilinear", 3: "bicubic"}[processor.get("resample", 3)]
            pixels = torch.nn.functional.interpolate(
                pixels, (size, size), mode=mode, align_corners=False, antialias=True
            )
            pixels = pixels.round().clamp(0, 255)
        mean = torch.tensor(processor["image_mean"], device=self.device)[:, None, None]
        std = torch.tensor(processor["image_std"], device=self.device)[:, None, None]
        scale = float(processor.get("rescale_factor", 1 / 255))
        return ((pixels - mean / scale) / (std / scale)).to(self.dtype)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer as the model would write it."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def video_inputs(self, prompt: Prompt, features: torch.Tensor) -> dict[str, Any]:
        """Keyword arguments that call `model` on a whole prompt with encoded frames."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if "mm_encoder_outputs" not in signature(self.model.forward).parameters:
            # Such a release would pass over the features in silence and answer about placeholders.
            raise UnsupportedError("Calling the model on encoded frames needs transformers 5.23 or newer.")
        ids = [*prompt.before, *[self.video_token_id] * features.shape[0], *prompt.after]
        return {
            "input_ids": torch.tensor([ids], device=self.device),
            "mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=features[None])},
        }

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ids = self.model.generation_config.eos_token_id
        if ids is None:
            ids = self.tokenizer.eos_token_id
        if ids is None:
            return ()
        return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)


def load(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, attention: str
) -> LlavaOnevision:
    """The model on its device.

    Errors: ModelError when weights or tokenizer are missing or do not fit the configuration.
    """
    from transformers import LlavaOnevisionForConditionalGeneration

    model, tokenizer = load_pretrained(
        checkpoint, LlavaOnevisionForConditionalGeneration, dtype=dtype, attn_implementation=attention
    )
    if not isinstance(model.config.vision_feature_layer, int):
        raise UnsupportedError(f"{checkpoint.name} reads several vision layers; one is supported.")
    if model.config.vision_feature_select_strategy != "full":
        raise UnsupportedError(f"{checkpoint.name} drops a class token; SigLIP towers have none.")
    return LlavaOnevision(checkpoint, model.to(device), tokenizer)


def _shape(config: Any, patches: int, applied_layers: int) -> ModelShape:
    text, vision = config.text_config, config.vision_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if head * text.num_attention_heads != text.hidden_size:
        raise UnsupportedError("The FLOPs formulas hold where heads x head size equals the hidden size.")
    return ModelShape(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        kv_width=text.num_key_value_heads * head,
        mlp_width=text.intermediate_size,
        heads=text.num_attention_heads,
        vision=VisionShape(
            patches=patches,
            patch_inputs=vision.num_channels * vision.patch_size**2,
            width=vision.hidden_size,
            mlp_width=vision.intermediate_size,
            layers=applied_layers,
        ),
    )


def _video_processor(checkpoint: Checkpoint) -> dict[str, Any]:
    """The video processor's settings, looked for where transformers looks for them, in the same order."""
    nested = checkpoint.read_json("processor_config.json").get("video_processor")
    settings = (
        nested
        or checkpoint.read_json("video_preprocessor_config.json")
        or checkpoint.read_json("preprocessor_config.json")
    )
    if not settings or not {"image_mean", "image_std"} <= set(settings):
        raise ModelError(f"{checkpoint.name} has no processor: no file of it names image_mean and image_std.")
    return dict(settings)


def _chat_template(checkpoint: Checkpoint, tokenizer: Any) -> str:
    """The processor's chat template: its own file (either format), else the tokenizer's."""
    file = checkpoint.folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = checkpoint.read_json("chat_template.json").get("chat_template") or tokenizer.chat_template
    if not template:
        raise ModelError(f"{checkpoint.name} has no chat template.")
    return str(template)
