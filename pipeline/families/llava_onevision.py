"""LLaVA-OneVision: a SigLIP tower, a two-layer projector, 2 x 2 pooling, a Qwen2 language model.

The layout of llava-hf/llava-onevision-qwen2-0.5b-ov-hf and -7b-ov-hf. A video of n frames is n x c visual
tokens in order of frames and rows, then one newline token.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray

from pipeline.checkpoint import Checkpoint, load_pretrained
from pipeline.clip import ClipShape
from pipeline.errors import ModelError, UnsupportedError
from pipeline.families.base import EncodedFrames, Family
from pipeline.families.llava import LlavaModel
from pipeline.prompt import Prompt

# Stands for a text in what the chat template writes.
PLACE = "\N{OBJECT REPLACEMENT CHARACTER}"


class LlavaOnevision(LlavaModel):
    """A loaded LLaVA-OneVision model."""

    def __init__(self, checkpoint: Checkpoint, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer, _video_processor(checkpoint))
        self._side = math.ceil(self.grid / 2)  # pooled rows, and columns, of a frame
        self._chat_template = _chat_template(checkpoint, tokenizer)
        self._check_template(checkpoint)

    def prompt(self, text: str, clip: ClipShape) -> Prompt:
        """The chat prompt with a video and this text. It does not tell when the frames were taken.

        Errors: as `written`.
        """
        before, _, after = self._chat(_user(PLACE, video=True)).partition(PLACE)
        ids, asked = self.written(before, text, after)
        place = ids.index(self.video_token_id)
        return Prompt.around(
            ids[:place],
            ids[place + 1 :],
            slice(asked.start - place - 1, asked.stop - place - 1),
            visual=clip.visual,
            trailing=clip.trailing,
            placeholder=self.video_token_id,
        )

    def video_tokens(self, frames: int) -> int:
        """Tokens that stand for a video of that many frames."""
        return frames * self._side**2 + 1

    def turn(self, text: str) -> tuple[int, ...]:
        """Token ids of a further question, from the end of the answer before it."""
        answer = {"role": "assistant", "content": [{"type": "text", "text": PLACE}]}
        _, before, after = self._chat(_user("", video=True), answer, _user(PLACE)).split(PLACE)
        return self.written(before, text, after)[0]

    def _chat(self, *messages: dict[str, Any]) -> str:
        chat: str = self.tokenizer.apply_chat_template(
            list(messages), chat_template=self._chat_template, tokenize=False, add_generation_prompt=True
        )
        return chat

    def _check_template(self, checkpoint: Checkpoint) -> None:
        """A language model's own template, which its tokenizer may hold, knows nothing of videos."""
        try:
            videos = self._tokens(self._chat(_user("", video=True)))[0].count(self.video_token_id)
        except (TemplateError, TypeError):
            videos = 0  # it takes texts alone
        if videos != 1:
            raise ModelError(
                f"The chat template of {checkpoint.name} does not write the token of a video: is its "
                "chat_template.json (or chat_template.jinja) there?"
            )

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
            with self._watching_attention() as attention:
                for pixels in self._runs(frames):
                    pooled = self.model.model.get_video_features(pixels[None]).pooler_output[0]
                    # Releases differ in adding the newline here.
                    features.append(pooled[: len(pixels) * self._side**2])
        finally:
            hook.remove()
        newline = self.model.model.image_newline.to(features[0])[None]
        return EncodedFrames(
            torch.cat([*features, newline]), torch.cat(tower_features), attention.received, attention.keys
        )

    def pool(self, patches: torch.Tensor) -> torch.Tensor:
        """(frames, patches, C) to (frames, cells, C), float32: bilinear, as the features."""
        frames, _, width = patches.shape
        maps = patches.float().transpose(1, 2).reshape(frames, width, self.grid, self.grid)
        pooled = torch.nn.functional.interpolate(maps, (self._side, self._side), mode="bilinear")
        return pooled.flatten(2).transpose(1, 2)


def _user(text: str, *, video: bool = False) -> dict[str, Any]:
    """A user's message as chat templates take it."""
    content: list[dict[str, str]] = [{"type": "video"}] if video else []
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, attention: str) -> Family:
    """The model on its device.

    Errors: ModelError when weights or tokenizer are missing or do not fit the configuration.
    """
    from transformers import LlavaOnevisionForConditionalGeneration

    model, tokenizer = load_pretrained(
        checkpoint,
        LlavaOnevisionForConditionalGeneration,
        dtype=dtype,
        device=device,
        attn_implementation=attention,
    )
    if not isinstance(model.config.vision_feature_layer, int):
        raise UnsupportedError(f"{checkpoint.name} reads several vision layers; one is supported.")
    if model.config.vision_feature_select_strategy != "full":
        raise UnsupportedError(f"{checkpoint.name} drops a class token; SigLIP towers have none.")
    return LlavaOnevision(checkpoint, model, tokenizer)


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
    if isinstance(template, dict):  # several by name; transformers too takes this one
        template = template.get("default")
    if not template:
        raise ModelError(f"{checkpoint.name} has no chat template.")
    return str(template)
