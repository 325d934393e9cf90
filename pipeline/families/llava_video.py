"""LLaVA-Video as published: LLaVA-NeXT's names of weights and settings, read without a conversion step.

The layout of lmms-lab/LLaVA-Video-7B-Qwen2. A frame of 27 x 27 patches is pooled to 13 x 13 tokens by the
mean (or maximum) of 2 x 2, which drops the odd row and column, or to 14 x 14 by bilinear interpolation; a
newline token ends each row: 182 or 210 tokens a frame, none after the last. The prompt tells when the frames
were taken. Source of every rule here: the authors' code, LLaVA-NeXT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.checkpoint import Checkpoint, load_pretrained
from pipeline.clip import ClipShape
from pipeline.errors import ModelError, UnsupportedError
from pipeline.families import POOLINGS
from pipeline.families.base import EncodedFrames, Family
from pipeline.families.llava import LlavaModel
from pipeline.prompt import Prompt

# Published names of weights -> those of transformers' LLaVA-OneVision, which has the same parts.
RENAMED = {
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.embed_tokens\.": "model.language_model.embed_tokens.",
    r"^model\.layers\.": "model.language_model.layers.",
    r"^model\.norm\.": "model.language_model.norm.",
}

# Settings under which the published code computes something else than this file: the values that it may have.
# None is a key that is not there, where the published code then does what is done here.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "architectures": (["LlavaQwenForCausalLM"],),
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_patch_merge_type": ("spatial_unpad",),
    "mm_newline_position": ("grid",),
    # Their training writes "bilinear" unless told otherwise; their evaluations set "average" over it.
    "mm_spatial_pool_mode": (*POOLINGS, None),
    # Fixed to 2 in their code, whatever the key says.
    "mm_spatial_pool_stride": (2, None),
    "add_faster_video": (False, None),
    "mm_use_im_start_end": (False, None),
}

# Of the flat settings, those of the language model. rope_scaling is left out: the published code sets it to
# none.
TEXT_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "tie_word_embeddings",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
)

# Constants of the published code, which reads no processor file.
PROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "rescale_factor": 1 / 255}

# Conversation "qwen_1_5" of the published code, which does not use the tokenizer's chat template.
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
AFTER = ("\n", "<|im_end|>\n<|im_start|>assistant\n")  # around the text
TURN = ("<|im_end|>\n<|im_start|>user\n", AFTER[1])


class LlavaVideo(LlavaModel):
    """A loaded LLaVA-Video model.

    tells_times: whether it was trained with the time instruction. pooling: one of POOLINGS instead of the
    checkpoint's own, checkpoint_pooling.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        tells_times: bool,
        checkpoint_pooling: str = "average",
        pooling: str | None = None,
    ) -> None:
        super().__init__(model, tokenizer, PROCESSOR)
        self.pooling = pooling or checkpoint_pooling
        self.checkpoint_pooling = checkpoint_pooling
        self._rows = math.ceil(self.grid / 2) if self.pooling == "bilinear" else self.grid // 2
        self._tells_times = tells_times

    def prompt(self, text: str, clip: ClipShape) -> Prompt:
        """The chat prompt with a video, the time instruction and this text."""
        first, last = AFTER
        times = f"{time_instruction(clip)}\n" if self._tells_times else ""
        # Cut first and tokenized then, as the published code does.
        after, asked = self.written(first + times, text, last)
        return Prompt.around(
            self._tokens(BEFORE)[0],
            after,
            asked,
            visual=clip.visual,
            trailing=clip.trailing,
            placeholder=self.video_token_id,
        )

    def video_tokens(self, frames: int) -> int:
        """Tokens that stand for a video of that many frames."""
        return frames * self._rows * (self._rows + 1)

    def turn(self, text: str) -> tuple[int, ...]:
        """Token ids of a further question, from the end of the answer before it."""
        return self.written(TURN[0], text, TURN[1])[0]

    @torch.inference_mode()
    def encode_frames(self, frames: NDArray[np.uint8]) -> EncodedFrames:
        """Through tower, projector and pooling; a newline token follows each row."""
        inner = self.model.model
        tower_features: list[torch.Tensor] = []
        features: list[torch.Tensor] = []
        with self._watching_attention() as attention:
            for pixels in self._runs(frames):
                tower = inner.vision_tower(pixels, output_hidden_states=True)
                patches = tower.hidden_states[self.applied_vision_layers]  # before SigLIP's last norm
                tower_features.append(patches)
                features.append(self._with_newlines(inner.multi_modal_projector(patches)))
        return EncodedFrames(
            torch.cat(features), torch.cat(tower_features), attention.received, attention.keys
        )

    def pool(self, patches: torch.Tensor) -> torch.Tensor:
        """(frames, patches, C) to (frames, cells, C), float32, pooled as the features are.

        A newline token has no patches; it gets the mean of the row it ends (our choice), so it stays where
        its row would.
        """
        rows = self._pooled(patches.float())
        return torch.cat((rows, rows.mean(dim=2, keepdim=True)), dim=2).flatten(1, 2)

    def _with_newlines(self, projected: torch.Tensor) -> torch.Tensor:
        """projected: (n, patches, hidden). Returns (n * cells, hidden), row after row."""
        rows = self._pooled(projected)
        n, _, _, hidden = rows.shape
        newline = self.model.model.image_newline.to(rows).expand(n, self._rows, 1, hidden)
        return torch.cat((rows, newline), dim=2).flatten(0, 2)

    def _pooled(self, patches: torch.Tensor) -> torch.Tensor:
        """(n, patches, C) to (n, rows, rows, C)."""
        n, _, width = patches.shape
        maps = patches.transpose(1, 2).reshape(n, width, self.grid, self.grid)
        if self.pooling == "bilinear":
            side = (self._rows, self._rows)
            pooled = torch.nn.functional.interpolate(maps, side, mode="bilinear", align_corners=False)
        elif self.pooling == "max":
            pooled = torch.nn.functional.max_pool2d(maps, 2)
        else:
            pooled = torch.nn.functional.avg_pool2d(maps, 2)
        return pooled.permute(0, 2, 3, 1)


def time_instruction(clip: ClipShape) -> str:
    """What the model is told of the video's length and its frames' times, in the words of its training."""
    times = ",".join(f"{time:.2f}s" for time in clip.times)
    return (
        f"The video lasts for {clip.seconds:.2f} seconds, and {len(clip.times)} frames are uniformly "
        f"sampled from it. These frames are located at {times}.Please answer the following questions related "
        "to this video."
    )


def load(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    attention: str,
    pooling: str | None = None,
) -> Family:
    """The model on its device. pooling: one of POOLINGS instead of the checkpoint's own.

    Errors: UnsupportedError naming every setting that is not supported. ModelError when weights, tokenizer or
    the vision tower's settings are missing, or weights and settings do not fit.
    """
    from transformers import LlavaOnevisionForConditionalGeneration

    settings = checkpoint.read_json("config.json")
    _refuse_unsupported(checkpoint, settings)
    model, tokenizer = load_pretrained(
        checkpoint,
        LlavaOnevisionForConditionalGeneration,
        config=_config(checkpoint, settings),
        key_mapping=RENAMED,
        dtype=dtype,
        device=device,
        attn_implementation=attention,
    )
    if max(tokenizer.get_vocab().values()) >= model.config.video_token_id:
        raise UnsupportedError(
            f"The tokenizer of {checkpoint.name} uses all {settings['vocab_size']} rows of the embedding, "
            "but one unused row is needed to stand for visual tokens."
        )
    return LlavaVideo(
        model,
        tokenizer,
        tells_times=bool(settings.get("add_time_instruction")),
        # Where the key is not there the published evaluations, which set it, are the only ones that run.
        checkpoint_pooling=settings.get("mm_spatial_pool_mode") or "average",
        pooling=pooling,
    )


def _refuse_unsupported(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    wrong = []
    for key, supported in SUPPORTED.items():
        value = settings.get(key)
        if value not in supported:
            found = f"{key} is {value!r}" if key in settings else f"{key} is not set"
            wrong.append(
                f"{found} (supported: {' or '.join(repr(value) for value in supported if value is not None)})"
            )
    if wrong:
        raise UnsupportedError(
            f"{checkpoint.name} is no LLaVA-Video checkpoint of a supported kind: {'; '.join(wrong)}."
        )


def _config(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Any:
    """The same settings as a configuration of transformers.

    Errors: ModelError when sizes are missing or no numbers, or the vision tower cannot be read.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import LlavaOnevisionConfig

    text = {key: settings[key] for key in TEXT_SETTINGS if settings.get(key) is not None}
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    missing = [key for key in (*needed, "mm_vision_tower") if not settings.get(key)]
    if missing:
        raise ModelError(f"The config.json of {checkpoint.name} lacks {', '.join(missing)}.")
    try:
        return LlavaOnevisionConfig(
            text_config={"model_type": "qwen2", **text},
            vision_config=_vision_config(checkpoint),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            # The published tokenizer has no token for a visual token: its code puts a number below zero into
            # the ids and takes it out again. transformers looks the id up in the embedding before it replaces
            # the result, so the id has to be a row. The last row is one that no token uses (the vocabulary is
            # padded to a round number), so no text can be mistaken for a visual token.
            video_token_index=int(settings["vocab_size"]) - 1,
            image_token_index=int(settings["vocab_size"]) - 2,  # no images are ever given
        )
    except StrictDataclassError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"The settings of {checkpoint.name} could not be read: {reason}") from error


def _vision_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The tower's settings: those of the SigLIP named, without its last layer and its head.

    The published config.json holds no sizes of the tower.
    """
    tower = checkpoint.vision_tower
    config = tower.read_json("config.json") if tower else {}
    if config.get("model_type") != "siglip" or not isinstance(config.get("vision_config"), dict):
        named = tower.name if tower else "its own vision_config"
        raise UnsupportedError(f"{checkpoint.name} names {named} as vision tower; a SigLIP is supported.")
    vision = dict(config["vision_config"])
    layers = int(vision.get("num_hidden_layers", 12))  # SigLIP's default, as transformers has it
    return vision | {
        "model_type": "siglip_vision_model",
        "num_hidden_layers": layers - 1,
        "vision_use_head": False,
    }
