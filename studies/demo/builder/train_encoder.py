"""Trains the demo's SigLIP pair: sigmoid loss over frames and captions, plus "what is in this cell" targets.

A caption is positive for every frame that it is true of. The cell targets are read from the layer that
becomes the
output of the LLaVA tower (SigLIP without its last layer): without them every token of a frame tells
everything.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SiglipConfig, SiglipModel

from .data import PIXELS, UNCLEAR, labels_of, training_set
from .scenes import BACKGROUNDS, COLORS, SAMPLED, SHAPES
from .vocabulary import PAD, TEXT_LENGTH, encode_words, vocabulary

LAYERS = 5  # the tower keeps all but the last


def fast() -> torch.autocast:
    """bfloat16 where the processor computes in it; elsewhere it is emulated, slower than float32."""
    native = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.autocast("cpu", torch.bfloat16, enabled=native)


def siglip_config() -> SiglipConfig:
    text = {
        "vocab_size": len(vocabulary()),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": TEXT_LENGTH,
        "projection_size": 128,
        "pad_token_id": PAD,
        "bos_token_id": PAD,
        "eos_token_id": PAD,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "image_size": PIXELS,
        "patch_size": 8,
    }
    return SiglipConfig(text_config=text, vision_config=vision)


def caption(
    rng: np.random.Generator, background: int, shape: int, color: int
) -> tuple[str, tuple[int, int, int]]:
    """A text about a frame, and (background, shape, color) that a frame must show for it to be true; -1 is
    any."""
    b, s, c = BACKGROUNDS[background], SHAPES[shape - 1], COLORS[color - 1]
    word = "after" if rng.random() < 0.5 else "before"
    forms = (
        (f"{b}", (background, -1, -1)),
        (f"what background comes {word} {b} ?", (background, -1, -1)),
        (f"in the scene {word} {b} , what color is the {SHAPES[rng.integers(6)]} ?", (background, -1, -1)),
        (
            f"in the scene {word} {b} , what shape is the {COLORS[rng.integers(6)]} one ?",
            (background, -1, -1),
        ),
        (f"what color is the {s} on {b} ?", (background, shape, -1)),
        (f"what shape is the {c} one on {b} ?", (background, -1, color)),
        (f"on {b} , what shape is below the {c} one ?", (background, -1, color)),
        (f"on {b} , what color is below the {s} ?", (background, shape, -1)),
        (f"where is the {c} {s} on {b} ?", (background, shape, color)),
        (f"on what background is the {c} {s} ?", (-1, shape, color)),
        (f"a {c} {s}", (-1, shape, color)),
        (f"a {c} {s} on {b}", (background, shape, color)),
    )
    return forms[int(rng.integers(len(forms)))]


class CellHeads(nn.Module):
    """Linear read-outs of one cell, used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, len(BACKGROUNDS) + 1 + len(SHAPES) + 1 + len(COLORS) + 16)

    def forward(self, cells: torch.Tensor) -> list[torch.Tensor]:
        return list(self.out(cells).split([len(BACKGROUNDS), 1 + len(SHAPES), 1 + len(COLORS), 16], dim=-1))


def pool_cells(patches: torch.Tensor) -> torch.Tensor:
    """(B, 64, D) patches to (B, 16, D) cells: the mean of 2 x 2, what bilinear pooling by two gives."""
    b, _, d = patches.shape
    return F.avg_pool2d(patches.transpose(1, 2).reshape(b, d, 8, 8), 2).flatten(2).transpose(1, 2)


def normalise(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 (..., H, W, 3) to float (..., 3, H, W) in -1 .. 1."""
    return torch.as_tensor(np.asarray(pixels)).movedim(-1, -3).float() / 127.5 - 1.0


def tower_states(model: SiglipModel, pixels: torch.Tensor) -> torch.Tensor:
    """What the LLaVA tower gives: patch states before SigLIP's last layer. Shape: (B, 64, D)."""
    hidden = model.vision_model.embeddings(pixels)
    for layer in model.vision_model.encoder.layers[:-1]:
        out = layer(hidden, None)
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden


def finish_states(model: SiglipModel, hidden: torch.Tensor) -> torch.Tensor:
    """The frame embedding from the tower's output. Shape: (B, D)."""
    out = model.vision_model.encoder.layers[-1](hidden, None)
    hidden = out[0] if isinstance(out, tuple) else out
    return model.vision_model.head(model.vision_model.post_layernorm(hidden))


def train_encoder(work: Path, *, seed: int, videos: int, minutes: float, batch: int = 160) -> SiglipModel:
    """Trains for `minutes` of this and earlier calls together; a checkpoint in `work` is resumed."""
    state = work / "encoder.pt"
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    specs, pixels = training_set(work, seed, videos)
    labels = labels_of(specs)
    model, heads = SiglipModel(siglip_config()), CellHeads(128)
    model.logit_scale.data.fill_(2.3)
    model.logit_bias.data.fill_(-4.0)
    params = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98))
    step, spent = 0, 0.0
    if state.exists():
        saved = torch.load(state)
        model.load_state_dict(saved["model"])
        heads.load_state_dict(saved["heads"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["spent"]
        rng = np.random.default_rng([seed, 1, step])
    start = time.monotonic() - spent * 60
    while (spent := (time.monotonic() - start) / 60) < minutes:
        fraction = spent / minutes
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * (1 - 0.95 * fraction)
        which, frame = rng.integers(0, videos - 64, batch), rng.integers(0, SAMPLED, batch)
        b, s, c = labels.background[which, frame], labels.shape[which, frame], labels.color[which, frame]
        texts, truths = [], []
        for i in range(batch):
            cells = np.flatnonzero(s[i] > 0)
            if len(cells):
                cell = cells[int(rng.integers(len(cells)))]
                text, truth = caption(rng, int(b[i]), int(s[i, cell]), int(c[i, cell]))
            else:  # everything in this frame is on the move
                text, truth = BACKGROUNDS[b[i]], (int(b[i]), -1, -1)
            texts.append(text)
            truths.append(truth)
        tb, ts, tc = np.array(truths).T
        match = ((ts[:, None, None] < 0) | (s[None] == ts[:, None, None])) & (
            (tc[:, None, None] < 0) | (c[None] == tc[:, None, None])
        )
        positive = ((tb[:, None] < 0) | (b[None] == tb[:, None])) & match.any(-1)
        image = normalise(pixels[which, frame])
        image = image + 0.03 * torch.randn_like(image)
        with fast():
            hidden = tower_states(model, image)
            frames = finish_states(model, hidden)
            ids = torch.tensor([encode_words(t, TEXT_LENGTH) for t in texts])
            words = model.text_model(input_ids=ids).pooler_output
            cells_out = heads(pool_cells(hidden))
        frames, words = F.normalize(frames.float(), dim=-1), F.normalize(words.float(), dim=-1)
        logits = words @ frames.T * model.logit_scale.exp() + model.logit_bias
        sign = torch.as_tensor(positive).float() * 2 - 1
        contrast = -F.logsigmoid(sign * logits).sum() / batch
        empty = torch.full((7,), 1.0)
        empty[0] = 0.3  # most cells hold nothing
        bt = torch.as_tensor(b).long()[:, None].expand(-1, 16)
        st, ct = torch.as_tensor(s).long(), torch.as_tensor(c).long()
        at = torch.arange(16).expand(batch, 16)
        dense = [
            F.cross_entropy(o.float().flatten(0, 1), t.flatten(), weight=w, ignore_index=UNCLEAR)
            for o, t, w in zip(cells_out, (bt, st, ct, at), (None, empty, empty, None), strict=True)
        ]
        loss = 0.2 * contrast + dense[0] + 2 * dense[1] + dense[2] + 0.5 * dense[3]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        if step % 25 == 0:
            with torch.no_grad():
                seen = st > 0
                right = [
                    (o.argmax(-1) == t)[seen].float().mean().item()
                    for o, t in zip(cells_out[1:3], (st, ct), strict=True)
                ]
            print(
                f"siglip step {step} min {spent:.1f} contrast {contrast.item():.3f} dense "
                + " ".join(f"{d.item():.3f}" for d in dense)
                + f" shape {right[0]:.3f} color {right[1]:.3f}",
                flush=True,
            )
        step += 1
        if step % 200 == 0 or (time.monotonic() - start) / 60 >= minutes:
            partial = state.with_suffix(".partial")
            torch.save(
                {
                    "model": model.state_dict(),
                    "heads": heads.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "spent": (time.monotonic() - start) / 60,
                },
                partial,
            )
            partial.replace(state)
    return model
