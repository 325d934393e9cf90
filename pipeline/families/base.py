"""What the pipeline needs to know of a model family; each family is one file beside this one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.clip import ClipShape
from pipeline.flops import ModelShape
from pipeline.prompt import Prompt
from pipeline.resizing import FrameSize


@dataclass(frozen=True, eq=False)
class EncodedFrames:
    """What the vision part makes of a video's frames."""

    features: torch.Tensor  # (frames * cells + newline tokens, hidden) as the language model reads them
    tower_features: torch.Tensor  # (frames, patches, width) what the tower handed to the projector
    # Of the tower's layer that made those, float32. LLaVA's towers have no class token to rank patches by.
    received: torch.Tensor  # (frames, patches) attention received, mean over heads and queries
    keys: torch.Tensor  # (frames, patches, head) mean over heads
    # What the decoder reads beside the features: `Family.after_layer` is given it again.
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Family(Protocol):
    """A loaded video language model whose decoder follows transformers' Qwen2 conventions.

    The decoder layers are called one after another with the same keyword arguments (position_embeddings,
    attention_mask), and the attention of each goes through transformers' AttentionInterface.
    """

    model: Any  # the whole model, as transformers loads it
    language_model: Any  # its decoder, called with inputs_embeds
    layers: Sequence[Any]  # the decoder's layers
    lm_head: Any
    tokenizer: Any
    video_token_id: int  # stands for every visual token (newline tokens included) in input_ids
    # Layers after which the decoder adds something: `after_layer` is called there. Empty in LLaVA.
    adds_after: Collection[int]
    frame_size: FrameSize  # what frames are resized to
    shape: ModelShape  # the aligned encoder's parts not included
    attention: str  # the transformers attention implementation it was loaded with
    # How patches are pooled, and how the checkpoint says they are; None where a family has one way only.
    pooling: str | None
    checkpoint_pooling: str | None

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        ...

    @property
    def applied_vision_layers(self) -> int:
        """Vision layers whose output the projector reads: the aligned encoder goes on from there."""
        ...

    def video_tokens(self, frames: int) -> int:
        """At most so many tokens stand for a video of that many frames: for plans before it is encoded."""
        ...

    def prompt(self, text: str, clip: ClipShape) -> Prompt:
        """The chat prompt with a video of this shape and this text.

        Up to the end of the video it is the same whatever is asked about it: that part is stored with the
        video. Errors: PipelineError where the text would be read as something else than text.
        """
        ...

    def turn(self, text: str) -> tuple[int, ...]:
        """Token ids of a further question in a conversation, from the end of the answer before it."""
        ...

    def rotary(self, hidden: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary embeddings (cos, sin), each (..., N, head), for the dtype of `hidden`.

        positions: (k, N), or (1, N) where all k are equal, as those of text are.
        """
        ...

    def after_layer(
        self,
        layer: int,
        hidden: torch.Tensor,
        extra: Mapping[str, torch.Tensor],
        tokens: torch.Tensor,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """What goes on after `layer`, one of `adds_after`: hidden (1, n, D) of one prompt, changed.

        extra: of the clip, on the model's device. tokens: (v,) which of the clip's visual tokens are left,
        rows: (v,) where they stand in `hidden`.
        """
        ...

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """(1, len(ids), hidden) token embeddings."""
        ...

    def pixels(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """(n, 3, S, S) what the vision tower reads of frames (n, H, W, 3) RGB."""
        ...

    def encode_frames(self, frames: NDArray[np.uint8]) -> EncodedFrames:
        """frames: (n, H, W, 3) RGB, of any size; those of `frame_size` are taken as they are."""
        ...

    def pool(self, patches: torch.Tensor) -> torch.Tensor:
        """(frames, patches, C) to (frames, cells, C), float32: any value of a patch, as features are pooled.

        What stands between rows gets the mean of the row before it.
        """
        ...

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer as the model would write it."""
        ...

    def video_inputs(self, prompt: Prompt, features: torch.Tensor) -> dict[str, Any]:
        """Keyword arguments that call the untouched `model` on a whole prompt with encoded frames."""
        ...

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ...
