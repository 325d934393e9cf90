"""The text and frame encoder aligned with a model's vision tower.

AdaTP compares a frame's global visual token with a text embedding, so both come from the same SigLIP. LLaVA
towers lack SigLIP's last layer and pooling head; they are taken from the SigLIP checkpoint and applied to the
tower's features, which gives what the whole SigLIP gives for that frame where the tower's weights are
SigLIP's. Published models trained theirs on a little (LLaVA-OneVision's paper), so weights are not compared.
That the global token is the pooling head's output is our choice, as FastVID by the same authors does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.checkpoint import LOADING, Checkpoint, describe, load_tokenizer, load_weights
from pipeline.errors import ModelError
from pipeline.families.base import Family
from pipeline.flops import ModelShape


class AlignedEncoder:
    """SigLIP's text tower and the part of its vision tower that the language model's tower lacks.

    Kept in float32 on every device: frame similarities cluster near 1, where bfloat16 knows three digits.
    """

    def __init__(self, siglip: Any, tokenizer: Any, applied_layers: int) -> None:
        config = siglip.config
        self.text_length = int(config.text_config.max_position_embeddings)
        self._config = config
        self._tokenizer = tokenizer
        self._text = siglip.text_model
        self._layers = list(siglip.vision_model.encoder.layers[applied_layers:])
        self._norm = siglip.vision_model.post_layernorm
        self._head = siglip.vision_model.head

    @torch.inference_mode()
    def embed_frames(self, tower_features: torch.Tensor) -> torch.Tensor:
        """tower_features: (frames, patches, width). Returns (frames, E) float32."""
        hidden = tower_features.float()
        for layer in self._layers:
            hidden = layer(hidden, attention_mask=None)
        pooled: torch.Tensor = self._head(self._norm(hidden))
        return pooled

    @torch.inference_mode()
    def pooling_attention(self, tower_features: torch.Tensor) -> torch.Tensor:
        """(frames, patches, width) to (frames, patches) float32: attention of the pooling head's probe.

        Mean over heads, rows sum to one. The head reads the tower's own output, without the layers that the
        tower lacks: so does the official code of FastVID, for which this is.
        """
        hidden = self._norm(tower_features.float())
        probe = self._head.probe.expand(len(hidden), -1, -1)
        weights: torch.Tensor = self._head.attention(probe, hidden, hidden)[1]
        return weights[:, 0]

    @torch.inference_mode()
    def embed_text(self, text: str) -> NDArray[np.float32]:
        """(E,) embedding, the text cut at (and padded to) the encoder's length, 64 tokens for SigLIP."""
        tokens = self._tokenizer(
            text, padding="max_length", max_length=self.text_length, truncation=True, return_tensors="pt"
        )
        # SigLIP was trained without an attention mask: padding is part of what it reads.
        ids = tokens["input_ids"].to(self._head.probe.device)
        embedding: NDArray[np.float32] = self._text(input_ids=ids).pooler_output[0].cpu().numpy()
        return embedding

    def extend(self, shape: ModelShape) -> ModelShape:
        """`shape` with this encoder's parts filled in."""
        if shape.vision is None:
            return shape
        text = self._config.text_config
        vision = replace(
            shape.vision,
            extra_layers=len(self._layers),
            text_layers=text.num_hidden_layers,
            text_width=text.hidden_size,
            text_mlp_width=text.intermediate_size,
            text_tokens=self.text_length,
            embedding=text.projection_size or text.hidden_size,
        )
        return replace(shape, vision=vision)


def load_encoder(checkpoint: Checkpoint, family: Family) -> AlignedEncoder:
    """What the model's vision tower lacks of the SigLIP checkpoint that goes with it, on the model's device.

    Of the vision tower's own layers nothing is read. Errors: ModelError when it is no SigLIP, or its vision
    tower is not the model's.
    """
    from transformers import SiglipConfig, SiglipModel

    stored = checkpoint.read_json("config.json")
    if stored.get("model_type") != "siglip":
        raise ModelError(
            f"{checkpoint.name} is no SigLIP checkpoint: its config.json says model_type {describe(stored)}."
        )
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
    return AlignedEncoder(siglip, load_tokenizer(checkpoint), applied)
