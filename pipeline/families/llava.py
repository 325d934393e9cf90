"""What LLaVA models with a SigLIP tower, a two-layer projector and a Qwen2 decoder share.

No family by itself: families differ in how frames become visual tokens, and in the prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import PipelineError, UnsupportedError
from pipeline.flops import ModelShape, VisionShape
from pipeline.prompt import Prompt
from pipeline.resizing import FrameSize, resized

# Frames go through the tower in runs of this many: bounds memory, and never changes the result.
FRAMES_PER_CALL = 8


class LlavaModel:
    """A loaded LlavaOnevisionForConditionalGeneration, the class in transformers that has these parts.

    processor: image_mean and image_std, and what differs from `resample` 3 (bicubic) and `rescale_factor`
    1 / 255. Errors: UnsupportedError when `resample` is no filter of Pillow's.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Mapping[str, Any]) -> None:
        config = model.config
        vision = config.vision_config
        self.model = model
        self.language_model = model.model.language_model
        self.layers: Sequence[Any] = self.language_model.layers
        self.lm_head = model.lm_head
        self.tokenizer = tokenizer
        self.video_token_id = int(config.video_token_id)
        self.adds_after: Collection[int] = ()
        self._processor = processor
        resample = processor.get("resample", 3)
        if resample not in range(6):
            raise UnsupportedError(f"The processor's resample is {resample!r}; supported are 0 to 5.")
        self.frame_size = FrameSize(int(vision.image_size), int(resample))
        self.grid = self.frame_size.side // int(vision.patch_size)  # patches along each side of a frame
        self.shape = _shape(config, self.grid**2, self.applied_vision_layers)
        self.attention = str(config._attn_implementation)
        self.pooling: str | None = None
        self.checkpoint_pooling: str | None = None

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

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """(1, len(ids), hidden) token embeddings."""
        embedded: torch.Tensor = self.model.get_input_embeddings()(
            torch.tensor([list(ids)], device=self.device)
        )
        return embedded

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer as the model would write it. Errors: as `written`."""
        return self._text_tokens(text)[0]

    def written(self, before: str, text: str, after: str) -> tuple[tuple[int, ...], slice]:
        """Token ids of a user's text inside a template, and which of them are the text's.

        before, after: the template's parts, whose control tokens are such. In `text` nothing is a control
        token, so that a question about `<|im_end|>` or `<video>` is asked as it was written. All that comes
        behind the last control token of `before` counts as the text's where the text has no token.
        Errors: PipelineError when the tokenizer reads a control token in the text all the same.
        """
        ids, where = self._tokens(before)
        head = max((i + 1 for i, token in enumerate(ids) if token in self._control), default=0)
        tail_ids, tail_where = self._tokens(after)
        tail = min((i for i, token in enumerate(tail_ids) if token in self._control), default=len(tail_ids))
        # Control tokens divide a text before anything else does: what lies between two is tokenized as in
        # one piece with the template.
        begin = before[where[head - 1][1] if head else 0 :]
        end = after[: tail_where[tail][0] if tail < len(tail_ids) else len(after)]
        middle, places = self._text_tokens(begin + text + end)
        first, last = len(begin), len(begin) + len(text)
        inside = [i for i, (one, two) in enumerate(places) if first <= one < two <= last]
        whole = (*ids[:head], *middle, *tail_ids[tail:])
        return whole, slice(head + inside[0], head + inside[-1] + 1) if inside else slice(head, len(whole))

    def rotary(self, hidden: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), each (1, N, head), of positions (1, N)."""
        cos, sin = self.language_model.rotary_emb(hidden, positions)
        return cos, sin

    def after_layer(
        self,
        layer: int,
        hidden: torch.Tensor,
        extra: Mapping[str, torch.Tensor],
        tokens: torch.Tensor,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """Nothing is added."""
        return hidden

    def video_inputs(self, prompt: Prompt, features: torch.Tensor) -> dict[str, Any]:
        """Keyword arguments that call the untouched `model` on a whole prompt with encoded frames."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if "mm_encoder_outputs" not in signature(self.model.forward).parameters:
            # Such a release would pass over the features in silence and answer about placeholders.
            raise UnsupportedError("Calling the model on encoded frames needs transformers 5.18 or newer.")
        return {
            "input_ids": torch.tensor([prompt.ids], device=self.device),
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

    @cached_property
    def _control(self) -> frozenset[int]:
        """Tokens that mean something else than their text."""
        config = self.model.config
        placeholders = {self.video_token_id, config.image_token_id}
        return frozenset((*self.tokenizer.all_special_ids, *self.end_ids, *placeholders)) - {
            self.tokenizer.unk_token_id  # of a text with unknown words
        }

    def _tokens(self, text: str, **options: Any) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """Token ids, and the characters (begin, end) that each stands for."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **options)
        return tuple(found["input_ids"]), found["offset_mapping"]

    def _text_tokens(self, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """As `_tokens`, without control tokens."""
        ids, where = self._tokens(text, split_special_tokens=True)
        for token, (begin, end) in zip(ids, where, strict=True):
            if token in self._control:
                raise PipelineError(
                    f"The tokenizer reads {text[begin:end]!r} as a control token: write it otherwise in "
                    f"{text!r}."
                )
        return ids, where

    @contextmanager
    def _watching_attention(self) -> Iterator[_TowerAttention]:
        """Collects, for every call of the tower inside the block, what its last layer read attends to."""
        attention = self.model.model.vision_tower.encoder.layers[self.applied_vision_layers - 1].self_attn
        watched = _TowerAttention(attention.scale, attention.num_heads)
        handles = [
            # Taken where the layer computes them: nothing is projected twice, whatever backend it runs.
            attention.q_proj.register_forward_hook(lambda *call: watched.queries(call[-1])),
            attention.k_proj.register_forward_hook(lambda *call: watched.take(call[-1])),
        ]
        try:
            yield watched
        finally:
            for handle in handles:
                handle.remove()

    def _runs(self, frames: NDArray[np.uint8]) -> Iterator[torch.Tensor]:
        """Pixels of a few frames at a time, (up to FRAMES_PER_CALL, 3, S, S)."""
        for start in range(0, len(frames), FRAMES_PER_CALL):
            yield self.pixels(frames[start : start + FRAMES_PER_CALL])

    def pixels(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """(n, 3, S, S) resized and normalised as the checkpoint's video processor does.

        Written out because transformers' own video processor needs torchvision, which nothing else here does.
        """
        processor, (side, resample) = self._processor, self.frame_size
        if frames.shape[1:3] != (side, side):
            frames = np.stack([resized(frame, side, resample) for frame in frames])
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).permute(0, 3, 1, 2).float()
        mean = torch.tensor(processor["image_mean"], device=self.device)[:, None, None]
        std = torch.tensor(processor["image_std"], device=self.device)[:, None, None]
        scale = float(processor.get("rescale_factor", 1 / 255))
        return pixels.sub_(mean / scale).div_(std / scale).to(self.dtype)


class _TowerAttention:
    """Attention that patches receive in one layer of a vision tower, and that layer's keys."""

    def __init__(self, scale: float, heads: int) -> None:
        self._scale = scale
        self._heads = heads
        self._queries: torch.Tensor | None = None
        self._received: list[torch.Tensor] = []
        self._keys: list[torch.Tensor] = []

    def queries(self, queries: torch.Tensor) -> None:
        """(n, patches, width) of a call whose keys come next."""
        self._queries = queries

    def take(self, keys: torch.Tensor) -> None:
        """(n, patches, width) of the same call."""
        assert self._queries is not None
        n, patches, _ = keys.shape
        key = keys.view(n, patches, self._heads, -1).transpose(1, 2).float()  # (n, heads, patches, head)
        query = self._queries.view(n, patches, self._heads, -1).transpose(1, 2).float()
        for q, k in zip(query, key, strict=True):  # frame by frame: heads x patches x patches is large
            self._received.append(((q * self._scale) @ k.transpose(1, 2)).softmax(dim=-1).mean(dim=(0, 1)))
        self._keys.append(key.mean(dim=1))
        self._queries = None

    @property
    def received(self) -> torch.Tensor:
        """(frames, patches) float32."""
        return torch.stack(self._received)

    @property
    def keys(self) -> torch.Tensor:
        """(frames, patches, head) float32."""
        return torch.cat(self._keys)


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
