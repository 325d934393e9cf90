"""What the pipeline needs to know of a model family; each family is one file beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.clip import Sampling
from pipeline.flops import ModelShape
from pipeline.resizing import FrameSize


class Prompt(NamedTuple):
    """A prompt's token ids before and after its video."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class EncodedFrames:
    """What the vision part makes of a video's frames."""

    features: torch.Tensor  # (frames * cells + trailing, hidden) as the language model reads them
    tower_features: torch.Tensor  # (frames, patches, width) what the tower handed to the projector
    # Of the tower's layer that made those, float32. LLaVA's towers have no class token to rank patches by.
    received: torch.Tensor  # (frames, patches) attention received, mean over heads and queries
    keys: torch.Tensor  # (frames, patches, head) mean over heads


class Family(Protocol):
    """A loaded video language model whose decoder follows transformers' Qwen2 conventions.

    The decoder layers are called one after another with the same keyword arguments (position_embeddings,
    attention_mask, past_key_values), and each has a `self_attn` with `q_proj` and `scaling`.
    """

    model: Any  # the whole model, as transformers loads it
    language_model: Any  # its decoder, called with inputs_embeds
    layers: Sequence[Any]  # the decoder's layers
    lm_head: Any
    tokenizer: Any
    video_token_id: int  # stands for every visual token (newline tokens included) in input_ids
    image_token_id: int | None  # stands for every token of a picture; None where there are none
    frame_size: FrameSize  # what frames are resized to
    cells: int  # visual tokens per frame, newline tokens between its rows included
    trailing: int  # newline tokens after the last frame
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

    def prompt(self, text: str, sampling: Sampling) -> Prompt:
        """The chat prompt with a video and this text.

        What stands before the video is the same whatever is asked about whichever video: it is stored with
        the video. sampling: for families whose prompt says when the frames were taken.
        """
        ...

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """(1, len(ids), hidden) token embeddings."""
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
        """Keyword arguments that call `model` on a whole prompt with encoded frames."""
        ...

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ...
