"""The text and frame encoders aligned with each other, from which AdaTP's similarities come.

AdaTP compares a frame's global visual token with a text embedding, so both come from the same SigLIP. LLaVA
towers lack SigLIP's last layer and pooling head; `TowerEncoder` takes them from the SigLIP checkpoint and
applies them to the tower's features, which gives what the whole SigLIP gives for that frame where the tower's
weights are SigLIP's. Published models trained theirs on a little (LLaVA-OneVision's paper), so weights are
not compared. A model whose tower is no SigLIP needs `WholeEncoder`, which sees the same frames by itself.
That the global token is the pooling head's output is our choice, as FastVID by the same authors does.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.checkpoint import (
    LOADING,
    Checkpoint,
    describe,
    load_pretrained,
    load_tokenizer,
    load_weights,
)
from pipeline.errors import ModelError
from pipeline.families.base import Family
from pipeline.flops import ModelShape, VisionShape
from pipeline.resizing import resized

BICUBIC = 3  # Pillow's number of the filter that SigLIP's processor files name


class AlignedEncoder(Protocol):
    """Embeds frames and texts into one space."""

    text_length: int  # tokens of a text that are read

    def embed_frames(self, frames: NDArray[np.uint8], tower_features: torch.Tensor) -> torch.Tensor:
        """(n, E) float32, the global visual token of each frame.

        frames: (n, H, W, 3) RGB. tower_features: (n, patches, width) what the model's tower made of them.
        """
        ...

    def pooling_attention(self, frames: NDArray[np.uint8], tower_features: torch.Tensor) -> torch.Tensor:
        """(n, patches) float32: attention of the pooling head's probe to the model's patches.

        Mean over heads, rows sum to one. For methods that rank patches by it.
        """
        ...

    def embed_text(self, text: str) -> NDArray[np.float32]:
        """(E,) embedding of a text."""
        ...

    def extend(self, shape: ModelShape) -> ModelShape:
        """`shape` with what this encoder costs filled in."""
        ...


class _Siglip:
    """A SigLIP's text tower, and the pooling head of its vision tower.

    Kept in float32 on every device: frame similarities cluster near 1, where bfloat16 knows three digits.
    """

    def __init__(self, siglip: Any, tokenizer: Any) -> None:
        config = siglip.config
        self.text_length = int(config.text_config.max_position_embeddings)
        self._config = config
        self._tokenizer = tokenizer
        self._text = siglip.text_model
        self._norm = siglip.vision_model.post_layernorm
        self._head = siglip.vision_model.head

    def _pooling(self, features: torch.Tensor) -> torch.Tensor:
        """(frames, patches, width) to (frames, patches): attention of the pooling head's probe."""
        hidden = self._norm(features.float())
        probe = self._head.probe.expand(len(hidden), -1, -1)
        weights: torch.Tensor = self._head.attention(probe, hidden, hidden)[1]
        return weights[:, 0]

    def _extended(self, shape: ModelShape, **frame: int) -> ModelShape:
        if shape.vision is None:
            return shape
        text = self._config.text_config
        vision = replace(
            shape.vision,
            text_layers=text.num_hidden_layers,
            text_width=text.hidden_size,
            text_mlp_width=text.intermediate_size,
            text_tokens=self.text_length,
            embedding=text.projection_size or text.hidden_size,
            **frame,
        )
        return replace(shape, vision=vision)

    @torch.inference_mode()
    def embed_text(self, text: str) -> NDArray[np.float32]:
        """(E,) embedding, the text cut at (and padded to) the encoder's length, 64 tokens for SigLIP."""
        tokens = self._tokenizer(
            text,
            padding="max_length",
            max_length=self.text_length,
            truncation=True,
            return_tensors="pt",
            split_special_tokens=True,  # "</s>" in a question is text
        )
        # SigLIP was trained without an attention mask: padding is part of what it reads.
        ids = tokens["input_ids"].to(self._head.probe.device)
        embedding: NDArray[np.float32] = self._text(input_ids=ids).pooler_output[0].cpu().numpy()
        return embedding


class TowerEncoder(_Siglip):
    """SigLIP's text tower and the part of its vision tower that the language model's tower lacks."""

    def __init__(self, siglip: Any, tokenizer: Any, applied_layers: int) -> None:
        super().__init__(siglip, tokenizer)
        self._layers = list(siglip.vision_model.encoder.layers[applied_layers:])

    @torch.inference_mode()
    def embed_frames(self, frames: NDArray[np.uint8], tower_features: torch.Tensor) -> torch.Tensor:
        """Goes on from the tower's features; the frames are not looked at."""
        hidden = tower_features.float()
        for layer in self._layers:
            hidden = layer(hidden, attention_mask=None)
        embeddings: torch.Tensor = self._head(self._norm(hidden))
        return embeddings

    @torch.inference_mode()
    def pooling_attention(self, frames: NDArray[np.uint8], tower_features: torch.Tensor) -> torch.Tensor:
        """To the tower's own output, without the layers that it lacks: so does the official code of FastVID,
        for which this is.
        """
        return self._pooling(tower_features)

    def extend(self, shape: ModelShape) -> ModelShape:
        """`shape` with this encoder's parts filled in."""
        return self._extended(shape, extra_layers=len(self._layers))


class WholeEncoder(_Siglip):
    """A whole SigLIP beside the model, for one whose own vision tower is none."""

    def __init__(self, siglip: Any, tokenizer: Any) -> None:
        super().__init__(siglip, tokenizer)
        self._vision = siglip.vision_model

    @torch.inference_mode()
    def embed_frames(self, frames: NDArray[np.uint8], tower_features: torch.Tensor) -> torch.Tensor:
        """Sees the frames by itself; the tower's features are not looked at."""
        embeddings: torch.Tensor = self._vision(pixel_values=self._pixels(frames)).pooler_output
        return embeddings

    @torch.inference_mode()
    def pooling_attention(self, frames: NDArray[np.uint8], tower_features: torch.Tensor) -> torch.Tensor:
        """To its own patches, carried over to the model's grid by bilinear interpolation (our choice)."""
        output = self._vision(pixel_values=self._pixels(frames), output_hidden_states=True)
        own = self._pooling(output.hidden_states[-1])
        side, wanted = (math.isqrt(patches) for patches in (own.shape[1], tower_features.shape[1]))
        carried = torch.nn.functional.interpolate(
            own.view(-1, 1, side, side), (wanted, wanted), mode="bilinear"
        ).flatten(1)
        return carried / carried.sum(dim=1, keepdim=True)

    def _pixels(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """(n, 3, S, S) as SigLIP's published processor prepares frames."""
        side, device = int(self._config.vision_config.image_size), self._head.probe.device
        pixels = np.stack([resized(frame, side, BICUBIC) for frame in frames])
        return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1

    def extend(self, shape: ModelShape) -> ModelShape:
        """`shape` with this encoder's own tower filled in."""
        config = self._config.vision_config
        own = VisionShape(
            patches=(config.image_size // config.patch_size) ** 2,
            patch_inputs=config.num_channels * config.patch_size**2,
            width=config.hidden_size,
            mlp_width=config.intermediate_size,
            layers=config.num_hidden_layers,
        )
        return self._extended(shape, aligned_frame=own.frame(0) + own.frame_embedding())


def load_whole_encoder(checkpoint: Checkpoint, device: torch.device) -> WholeEncoder:
    """A whole SigLIP on a device. Errors: ModelError when the checkpoint is none."""
    from transformers import SiglipModel

    _check_siglip(checkpoint)
    siglip, tokenizer = load_pretrained(checkpoint, SiglipModel, dtype=torch.float32, device=device)
    return WholeEncoder(siglip, tokenizer)


def _check_siglip(checkpoint: Checkpoint) -> None:
    stored = checkpoint.read_json("config.json")
    if stored.get("model_type") != "siglip":
        raise ModelError(
            f"{checkpoint.name} is no SigLIP checkpoint: its config.json says model_type {describe(stored)}."
        )


def load_encoder(checkpoint: Checkpoint, family: Family) -> TowerEncoder:
    """What the model's vision tower lacks of the SigLIP checkpoint that goes with it, on the model's device.

    Of the vision tower's own layers nothing is read. Errors: ModelError when it is no SigLIP, or its vision
    tower is not the model's.
    """
    from transformers import SiglipConfig, SiglipModel

    _check_siglip(checkpoint)
    try:
        config: Any = SiglipConfig.from_pretrained(checkpoint.folder)
    except LOADING as error:
        raise ModelError(f"The settings of {checkpoint.name} could not be read: {error}") from error
    vision, tower = config.vision_config, family.shape.vision
    layers, applied = vision.num_hidden_layers, family.applied_vision_layers
    patches = (vision.image_size // vision.patch_size) ** 2
    patch_inputs = vision.num_channels * vision.patch_size**2
    here = (vision.hidden_size, patches, patch_inputs, vision.intermediate_size)
    there = (tower.width, tower.patches, tower.patch_inputs, tower.mlp_width) if tower else ()
    if here != there or layers < applied:
        raise ModelError(
            f"{checkpoint.name} is not aligned with the model's vision tower: width, patches, numbers in a "
            f"patch, MLP width and layers are {(*here, layers)}, the model's are "
            f"{(*there, applied) if tower else None} (layers may be more, not fewer)."
        )

    unread = rf"^vision_model\.(embeddings|encoder\.layers\.({'|'.join(map(str, range(applied)))}))\."

    class Rest(SiglipModel):  # type: ignore[no-untyped-call]
        """SigLIP without the part of its vision tower that the model has."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self._keys_to_ignore_on_load_unexpected = {unread}
            self.vision_model.embeddings = torch.nn.Identity()
            for index in range(applied):
                self.vision_model.encoder.layers[index] = torch.nn.Identity()

    siglip, _ = load_weights(checkpoint, Rest, dtype=torch.float32, device=family.device, unread=unread)
    return TowerEncoder(siglip, load_tokenizer(checkpoint), applied)
