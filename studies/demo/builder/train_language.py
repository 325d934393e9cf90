"""Trains the demo's language model on the frozen tower, and says where in the network each reasoning step
happens.

The shipped model is the plain architecture; what is unusual is only the training loss. Left alone, a small
model moves what it needs from the video into the question in its first two layers, before anything is
pruned, and no pruning can hurt it. So the loss adds
- a penalty on the largest (over heads) attention mass from question to video in the layers `EARLY`;
- a guide that the attention mass of the prompt's last token lies on the tokens of each reasoning step in a
  fixed layer (`STEP_LAYERS`), by two of the heads;
- a weak guide on where the little early attention looks (`HINT_LAYERS`): what the question names, as in
  large models;
- read-outs of what a visual token should know of itself and its neighbours (the scene before, the object
  above), and of the question's words at the prompt's last token.
The projector starts as a whitening of the tower's states: in the raw ones a frame's background drowns its
objects.

Several questions share one copy of their video: `packed_attention` lets a question see the video and itself
only.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AttentionInterface,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipModel,
    SiglipVisionConfig,
)

from .data import training_set
from .questions import CELLS, TYPES, Asked, Asker, Window
from .scenes import BACKGROUNDS, COLORS, GRID, SAMPLED, SHAPES, STEP, Video
from .train_encoder import fast, normalise, tower_states
from .vocabulary import END, PAD, START, vocabulary, words_of

EARLY = (0, 1, 2)
HINT_LAYERS = {
    3: 0.05,
    4: 0.03,
}  # and its weight there; earlier layers stay as vague as they come, so that pruning is hard
STEP_LAYERS = {1: (5,), 2: (3, 5), 3: (3, 4, 5)}  # layer of each step, by the number of steps
WATCHED = {*EARLY, *HINT_LAYERS, *(layer for layers in STEP_LAYERS.values() for layer in layers)}
LENGTH = 20  # tokens of a question block, the answer's word included
BATCH = {2: 12, 4: 10, 8: 8, 16: 6, 32: 4}  # videos a step, by frames
PACKED = 14  # questions a video


@dataclass(frozen=True)
class Phase:
    """Training at one depth: a curriculum of ever more frames a video."""

    layers: int
    frames: tuple[int, ...]
    steps: int
    rate: float  # learning rate: constant, then linear to a fiftieth over the last `cooling` of the steps
    cooling: float


# Most is learned with half of the layers and of the frames, at an eighth of the cost. The second phase starts
# from the first one's weights, with layers added behind (`deepen`).
PHASES = (
    Phase(12, (2, 4, 8, 16), 2800, 8e-4, 0.35),
    Phase(24, (16, 32), 1300, 5e-4, 0.6),
)
CHECKED = (0, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20)  # drop before each of these layers: where answers move
TAIL = 3  # layers at the end of a trained model that `deepen` repeats
REPEATED = 0.3  # how much of its update a repeated layer adds at first


def language_config(siglip: SiglipModel, layers: int) -> LlavaOnevisionConfig:
    vision = siglip.config.vision_config.to_dict()
    vision = {
        k: vision[k]
        for k in ("hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size")
    }
    tower = SiglipVisionConfig(
        **vision, num_hidden_layers=siglip.config.vision_config.num_hidden_layers - 1, vision_use_head=False
    )
    text = Qwen2Config(
        vocab_size=len(vocabulary()),
        hidden_size=160,
        intermediate_size=320,
        num_hidden_layers=layers,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.07,  # 0.02 suits widths near 1000; here it leaves attention uniform for long
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    table = vocabulary()
    return LlavaOnevisionConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=table["<image>"],
        video_token_index=table["<video>"],
        tie_word_embeddings=True,
        image_grid_pinpoints=[[64, 64]],
    )


@dataclass
class Packed:
    """One copy of a video followed by its questions: what the attention function has to know, and what it
    leaves."""

    prefix: int = 0  # text and visual tokens before the questions
    visual: slice = field(default_factory=lambda: slice(0, 0))
    questions: int = 0
    rows: torch.Tensor | None = None  # (B, Q) index of the last prompt token within a block
    early: list[torch.Tensor] = field(default_factory=list)  # mean over rows of the largest mass over heads
    last_rows: dict[int, torch.Tensor] = field(
        default_factory=dict
    )  # layer -> (B, H, Q, visual) probabilities
    hints: dict[int, torch.Tensor] = field(
        default_factory=dict
    )  # layer -> (B, Q, visual), over visual tokens alone
    masses: dict[int, float] = field(default_factory=dict)


PACK = Packed()


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal over the prefix; a question block sees the prefix and, causally, itself. q, k, v: (B, H, N,
    d)."""
    pack, n = PACK, PACK.prefix
    b, h, total, d = query.shape
    # Split, not sliced: the gradient of a slice is a tensor of zeros as large as the whole.
    (q0, q1), (k0, k1), (v0, v1) = (x.split([n, total - n], dim=2) for x in (query, key, value))
    front = F.scaled_dot_product_attention(q0, k0, v0, is_causal=True, scale=scaling)
    q, k, v = (x.reshape(b, h, pack.questions, LENGTH, d) for x in (q1, k1, v1))
    to_prefix = torch.einsum("bhqld,bhnd->bhqln", q, k0) * scaling
    to_self = torch.einsum("bhqld,bhqmd->bhqlm", q, k) * scaling
    to_self = to_self + torch.full((LENGTH, LENGTH), -math.inf, dtype=to_self.dtype).triu(1)
    probabilities = torch.cat([to_prefix, to_self], -1).float().softmax(-1)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if layer in WATCHED:
        watch(pack, layer, to_prefix, probabilities)
    p0, p1 = probabilities.to(value.dtype).split([n, LENGTH], dim=-1)
    back = torch.einsum("bhqln,bhnd->bhqld", p0, v0) + torch.einsum("bhqlm,bhqmd->bhqld", p1, v)
    out = torch.cat([front, back.reshape(b, h, pack.questions * LENGTH, d)], 2)
    return out.transpose(1, 2), None


def watch(pack: Packed, layer: int, to_prefix: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Leaves what the loss needs of one layer's attention from questions to visual tokens in `pack`."""
    seen = probabilities[..., pack.visual]
    if layer in EARLY:
        mass = seen.sum(-1)  # (B, H, Q, L)
        pack.early.append(mass.amax(1).mean())
        pack.masses[layer] = float(mass.detach().mean())
    assert pack.rows is not None
    b, h, questions = seen.shape[:3]
    at = pack.rows[:, None, :, None, None].expand(b, h, questions, 1, seen.shape[-1])
    if any(layer in layers for layers in STEP_LAYERS.values()):
        pack.last_rows[layer] = seen.gather(3, at).squeeze(3)
    if layer in HINT_LAYERS:
        alone = to_prefix[..., pack.visual].gather(3, at).squeeze(3).float().softmax(-1)
        pack.hints[layer] = alone.mean(1)


AttentionInterface.register("demo-packed", packed_attention)


@dataclass(frozen=True)
class Batch:
    features: torch.Tensor  # (B, frames, 64, D)
    ids: torch.Tensor  # (B, Q, LENGTH)
    last: torch.Tensor  # (B, Q) index of the last prompt token
    answer: torch.Tensor  # (B, Q)
    options: torch.Tensor  # (B, Q, 4)
    kinds: np.ndarray  # (B, Q) index into TYPES
    steps: dict[int, tuple[torch.Tensor, torch.Tensor]]  # layer -> (weight (B, Q), tokens (B, Q, visual))
    union: torch.Tensor  # (B, Q, visual)
    known: tuple[
        torch.Tensor, ...
    ]  # per visual token: scene before, shape and colour above, and its own three


def surroundings(windows: list[Window]) -> tuple[torch.Tensor, ...]:
    """What a visual token can know of its frame and of the frames and cells before it. Each (B, frames *
    CELLS)."""
    before, above_shape, above_color, own_background, own_shape, own_color = [], [], [], [], [], []
    for window in windows:
        shots = window.shots
        names = [
            BACKGROUNDS.index(window.video.scenes[window.video.shots[s].scene].background) for s in shots
        ]
        previous, out = len(BACKGROUNDS), []
        for i, name in enumerate(names):
            if i and names[i - 1] != name:
                previous = names[i - 1]
            out.append(previous)
        before.append(np.repeat(np.array(out), CELLS))
        own_background.append(np.repeat(np.array(names), CELLS))
        shape, color = (
            np.zeros((window.frames, GRID, GRID), np.int64),
            np.zeros((window.frames, GRID, GRID), np.int64),
        )
        for i, s in enumerate(shots):
            for thing in window.video.scenes[window.video.shots[s].scene].things:
                row, column = divmod(window.video.cell_of(thing, (window.first + i) * STEP, s), GRID)
                shape[i, row, column] = 1 + SHAPES.index(thing.shape)
                color[i, row, column] = 1 + COLORS.index(thing.color)
        for grid, own, above in ((shape, own_shape, above_shape), (color, own_color, above_color)):
            own.append(grid.reshape(-1))
            above.append(np.concatenate([np.zeros_like(grid[:, :1]), grid[:, :-1]], 1).reshape(-1))
    every = (before, above_shape, above_color, own_background, own_shape, own_color)
    return tuple(torch.as_tensor(np.stack(x)).long() for x in every)


class Source:
    """Draws packed batches from videos whose tower states are in memory."""

    def __init__(self, videos: list[Video], features: torch.Tensor, rng: np.random.Generator) -> None:
        self.videos, self.features, self.rng = videos, features, rng
        self.weights = np.ones(len(TYPES))

    def batch(self, frames: int, count: int, which: np.ndarray | None = None) -> Batch:
        rng = self.rng
        chosen, windows, asked, rows = [], [], [], []
        tries = iter(which) if which is not None else None
        while len(chosen) < count:
            v = int(next(tries)) if tries is not None else int(rng.integers(len(self.videos)))
            first = int(rng.integers(SAMPLED - frames + 1))
            window = Window(self.videos[v], first, frames)
            asker = Asker(window, rng)
            if frames <= 4 and len(asker.runs) < 2 and rng.random() < 0.8 and tries is None:
                continue
            mine: list[Asked] = []
            p = self.weights / self.weights.sum()
            while len(mine) < PACKED:
                question = asker.ask(TYPES[int(rng.choice(len(TYPES), p=p))])
                if question is not None:
                    mine.append(question)
            chosen.append(v)
            windows.append(window)
            asked.append(mine)
            rows.append(np.arange(first, first + frames))
        features = torch.stack(
            [self.features[v][torch.as_tensor(r)] for v, r in zip(chosen, rows, strict=True)]
        )
        table = vocabulary()
        visual = frames * CELLS
        ids = torch.full((count, PACKED, LENGTH), PAD)
        last, answer = (
            torch.zeros(count, PACKED, dtype=torch.long),
            torch.zeros(count, PACKED, dtype=torch.long),
        )
        options = torch.zeros(count, PACKED, 4, dtype=torch.long)
        union = torch.zeros(count, PACKED, visual)
        weight = {layer: torch.zeros(count, PACKED) for layers in STEP_LAYERS.values() for layer in layers}
        steps = {layer: torch.zeros(count, PACKED, visual) for layer in weight}
        for b, mine in enumerate(asked):
            for q, question in enumerate(mine):
                block = [*words_of(question.text), END, START, table["assistant"]]
                last[b, q], answer[b, q] = len(block) - 1, table[question.answer]
                block.append(table[question.answer])
                ids[b, q, : len(block)] = torch.tensor(block)
                options[b, q] = torch.tensor([table[o] for o in question.options])
                for layer, hop in zip(STEP_LAYERS[len(question.hops)], question.hops, strict=True):
                    tokens = torch.as_tensor(hop).float()
                    weight[layer][b, q], steps[layer][b, q] = 1.0, tokens
                    union[b, q] = torch.maximum(union[b, q], tokens)
        kinds = np.array([[TYPES.index(x.type) for x in mine] for mine in asked])
        return Batch(
            features,
            ids,
            last,
            answer,
            options,
            kinds,
            {k: (weight[k], steps[k]) for k in weight},
            union,
            surroundings(windows),
        )


class Reader(nn.Module):
    """Read-outs of the visual tokens' states, used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [len(BACKGROUNDS) + 1, 7, 7, len(BACKGROUNDS), 7, 7]
        self.out = nn.Linear(width, sum(self.sizes))
        self.words = nn.Linear(width, len(vocabulary()))  # of the question, from the prompt's last token

    def forward(self, states: torch.Tensor) -> list[torch.Tensor]:
        return list(self.out(states).split(self.sizes, dim=-1))


@dataclass(frozen=True)
class Result:
    logits: torch.Tensor  # (B, Q, vocabulary) at the last prompt token
    loss: torch.Tensor
    parts: dict[str, float]
    right: np.ndarray  # (B, Q)


def step_forward(
    model: LlavaOnevisionForConditionalGeneration,
    reader: Reader,
    batch: Batch,
    *,
    drop_before: int | None = None,
    penalty: float = 0.3,
    guide: float = 1.0,
) -> Result:
    """One packed forward pass and its loss. `drop_before`: hide all visual tokens from the questions from
    that layer on."""
    inner = model.model
    language = inner.language_model
    b, frames = batch.features.shape[:2]
    with fast():
        projected = inner.multi_modal_projector(batch.features.flatten(0, 1).float())
        tokens = inner.apply_pooling(projected).reshape(b, frames * CELLS, -1)
        newline = inner.image_newline[None, None].expand(b, 1, -1)
        head = language.embed_tokens(torch.tensor([START, vocabulary()["user"]])).expand(b, 2, -1)
        words = language.embed_tokens(batch.ids.flatten(1))
        hidden = torch.cat([head, tokens, newline, words], 1).float()
        n = 2 + frames * CELLS + 1
        PACK.prefix, PACK.visual, PACK.questions, PACK.rows = (
            n,
            slice(2, n - 1),
            batch.ids.shape[1],
            batch.last,
        )
        PACK.early, PACK.last_rows, PACK.hints = [], {}, {}
        position = torch.cat([torch.arange(n), n + torch.arange(LENGTH).repeat(batch.ids.shape[1])])[
            None
        ].expand(b, -1)
        rope = language.rotary_emb(hidden, position)
        read = None
        for index, layer in enumerate(language.layers[: language.config.num_hidden_layers]):
            if index == 3 and drop_before is None:
                read = reader(hidden[:, 2 : n - 1])
                ends = (
                    hidden[:, n:]
                    .unflatten(1, (-1, LENGTH))
                    .gather(2, batch.last[..., None, None].expand(-1, -1, 1, hidden.shape[-1]))
                )
                asked = torch.zeros(*batch.last.shape, len(vocabulary())).scatter_(2, batch.ids, 1.0)
                asked = asked.scatter_(
                    2, batch.answer[..., None], 0.0
                )  # the block ends with the answer's word
                words_loss = (
                    F.binary_cross_entropy_with_logits(reader.words(ends.squeeze(2)).float(), asked) * 10
                )
            if drop_before is not None and index == drop_before:
                hidden = torch.cat([hidden[:, :2], hidden[:, n - 1 :]], 1)
                rope = tuple(torch.cat([x[:, :2], x[:, n - 1 :]], 1) for x in rope)
                PACK.prefix, PACK.visual = 3, slice(0, 0)
            hidden = layer(hidden, attention_mask=None, position_embeddings=rope)
        hidden = language.norm(hidden)[:, PACK.prefix :].reshape(b, batch.ids.shape[1], LENGTH, -1)
        at = batch.last[..., None, None].expand(-1, -1, 1, hidden.shape[-1])
        pair = torch.cat([hidden.gather(2, at), hidden.gather(2, at + 1)], 2)
        logits = model.lm_head(pair).float()
    answer_loss = F.cross_entropy(logits[:, :, 0].flatten(0, 1), batch.answer.flatten())
    end_loss = F.cross_entropy(logits[:, :, 1].flatten(0, 1), torch.full_like(batch.answer.flatten(), END))
    picked = logits[:, :, 0].gather(2, batch.options).argmax(-1)
    right = (batch.options.gather(2, picked[..., None]).squeeze(-1) == batch.answer).numpy()
    if drop_before is not None:
        return Result(logits[:, :, 0], answer_loss, {}, right)
    early = torch.stack(PACK.early).mean()
    step_losses = {}
    for layer, (weight, tokens_) in batch.steps.items():
        mass = (PACK.last_rows[layer][:, :2].mean(1) * tokens_).sum(-1)
        step_losses[layer] = (-(mass + 1e-3).log() * weight).sum() / weight.sum().clamp(min=1)
    step_loss = torch.stack(list(step_losses.values())).sum()
    final = batch.steps[max(batch.steps)][1]
    hints = {
        layer: sum(
            (
                -((PACK.hints[layer] * tokens_).sum(-1) + 1e-4).log().mean()
                for tokens_ in (batch.union, final)
            ),
            torch.zeros(()),
        )
        for layer in HINT_LAYERS
    }
    hint = torch.stack([hints[layer] * weight for layer, weight in HINT_LAYERS.items()]).sum()
    assert read is not None
    known = sum(
        (
            F.cross_entropy(r.float().flatten(0, 1), t.flatten())
            for r, t in zip(read, batch.known, strict=True)
        ),
        torch.zeros(()),
    )
    loss = (
        answer_loss
        + 0.02 * end_loss
        + penalty * early
        + guide * step_loss / 3
        + hint
        + 0.1 * known
        + 0.3 * words_loss
    )
    parts = dict(
        answer=answer_loss.item(),
        early=early.item(),
        **{f"step{i}": x.item() for i, x in sorted(step_losses.items())},
        **{f"hint{i}": x.item() for i, x in hints.items()},
        known=known.item(),
        words=words_loss.item(),
    )
    return Result(logits[:, :, 0], loss, parts, right)


def tower_features(siglip: SiglipModel, pixels: np.ndarray) -> torch.Tensor:
    """Tower outputs of all frames, kept as bfloat16. Shape: (videos, frames, 64, D)."""
    out = torch.empty(*pixels.shape[:2], 64, siglip.config.vision_config.hidden_size, dtype=torch.bfloat16)
    with torch.no_grad(), fast():
        for v in range(0, len(pixels), 16):
            chunk = normalise(np.ascontiguousarray(pixels[v : v + 16])).flatten(0, 1)
            out[v : v + 16] = (
                tower_states(siglip, chunk).to(torch.bfloat16).unflatten(0, (-1, pixels.shape[1]))
            )
    return out


def whiten_projector(projector: nn.Module, features: torch.Tensor, width: int) -> None:
    """Starts the projector as a random rotation of whitened tower states, with outputs of moderate size."""
    flat = features[::17].flatten(0, 2).float()
    mean, covariance = flat.mean(0), torch.cov(flat.T)
    values, vectors = torch.linalg.eigh(covariance)
    whitening = vectors @ torch.diag(values.clamp(min=1e-5 * float(values.max())).rsqrt()) @ vectors.T
    rotation = torch.linalg.qr(torch.randn(width, width)).Q[:, : flat.shape[1]]
    with torch.no_grad():
        projector.linear_1.weight.copy_(rotation @ whitening)  # type: ignore[union-attr, operator]
        projector.linear_1.bias.copy_(-(rotation @ whitening) @ mean)  # type: ignore[union-attr, operator]
        projector.linear_2.weight.copy_(torch.randn(width, width) * 0.3 / math.sqrt(width))  # type: ignore[union-attr, operator]


def by_type(right: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    return {t: round(float(right[kinds == i].mean()), 3) for i, t in enumerate(TYPES) if (kinds == i).any()}


def deepen(model: nn.Module, config: LlavaOnevisionConfig) -> LlavaOnevisionForConditionalGeneration:
    """A model of `config`, deeper than `model`, that begins with its weights.

    The last `TAIL` layers are repeated behind it. A repeated layer adds `REPEATED` of what its original adds:
    answers stay nearly what they were, and the layer has something to learn from.
    """
    deeper = LlavaOnevisionForConditionalGeneration(config)
    deeper.load_state_dict(model.state_dict(), strict=False)
    layers, had = deeper.model.language_model.layers, len(model.model.language_model.layers)  # type: ignore[union-attr]
    with torch.no_grad():
        for index in range(had, len(layers)):
            layers[index].load_state_dict(layers[had - TAIL + (index - had) % TAIL].state_dict())
        for layer in layers[had:]:
            layer.self_attn.o_proj.weight.mul_(REPEATED)
            layer.mlp.down_proj.weight.mul_(REPEATED)
    return deeper


def fresh(config: LlavaOnevisionConfig, features: torch.Tensor) -> LlavaOnevisionForConditionalGeneration:
    """An untrained model of `config`."""
    model = LlavaOnevisionForConditionalGeneration(config)
    whiten_projector(model.model.multi_modal_projector, features, config.text_config.hidden_size)
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.25)
    for layer in model.model.language_model.layers:
        layer.self_attn.o_proj.weight.data.mul_(0.5)
        layer.mlp.down_proj.weight.data.mul_(0.5)
    return model


def train_language(
    work: Path, siglip: SiglipModel, *, seed: int, videos: int, phases: tuple[Phase, ...] = PHASES
) -> LlavaOnevisionForConditionalGeneration:
    """Trains all phases; an unfinished one in `work` is resumed, a finished one is not repeated."""
    torch.manual_seed(seed)
    specs, pixels = training_set(work, seed, videos)
    stored = work / f"tower-{seed}-{videos}.pt"
    if not stored.exists():
        torch.save(tower_features(siglip, pixels), stored)
    features = torch.load(stored, mmap=True)
    model: LlavaOnevisionForConditionalGeneration | None = None
    for phase in phases:
        config = language_config(siglip, phase.layers)
        finished = work / f"language-{phase.layers}.pt"
        if finished.exists():
            model = LlavaOnevisionForConditionalGeneration(config)
            model.load_state_dict(torch.load(finished))
            continue
        model = fresh(config, features) if model is None else deepen(model, config)
        train_phase(work, model, phase, specs, features, seed)
        torch.save(model.state_dict(), finished)
    assert model is not None
    return model


def train_phase(
    work: Path,
    model: LlavaOnevisionForConditionalGeneration,
    phase: Phase,
    specs: list[Video],
    features: torch.Tensor,
    seed: int,
    *,
    advance: float = 0.75,
) -> None:
    """Trains `model`, which ends as the running average of its weights. An unfinished phase is resumed."""
    name = f"language-{phase.layers}"
    rng = np.random.default_rng([seed, 2, phase.layers])
    held = 64
    source = Source(specs[:-held], features[:-held], rng)
    check = Source(specs[-held:], features[-held:], np.random.default_rng([seed, 3]))
    fixed = check.batch(phase.frames[-1], held, np.arange(held))
    model.model.language_model.config._attn_implementation = "demo-packed"
    reader = Reader(model.config.text_config.hidden_size)
    trained = [
        *model.model.language_model.parameters(),
        *model.model.multi_modal_projector.parameters(),
        model.model.image_newline,
    ]
    params = [*trained, *reader.parameters()]
    average = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(params, lr=phase.rate, weight_decay=0.02, betas=(0.9, 0.98))
    state = work / f"{name}.partial.pt"
    stage, step, spent, running = 0, 0, 0.0, 0.0
    if state.exists():
        saved = torch.load(state, weights_only=False)
        model.load_state_dict(saved["model"])
        reader.load_state_dict(saved["reader"])
        optimizer.load_state_dict(saved["optimizer"])
        average, stage, step, spent, running = (
            saved[k] for k in ("average", "stage", "step", "spent", "running")
        )
        source.rng = np.random.default_rng([seed, 2, phase.layers, step])
    start = time.monotonic() - spent * 60
    accuracy = np.full(len(TYPES), 0.25)
    while step < phase.steps:
        fraction = step / phase.steps
        decay = min(1.0, max(0.02, (1 - fraction) / phase.cooling))
        for group in optimizer.param_groups:
            group["lr"] = phase.rate * min(1.0, (step + 1) / 100) * decay
        frames = (
            phase.frames[stage]
            if stage == 0 or source.rng.random() < 0.8
            else phase.frames[int(source.rng.integers(stage))]
        )
        batch = source.batch(frames, BATCH[frames])
        result = step_forward(model, reader, batch)
        optimizer.zero_grad()
        result.loss.backward()
        norm = nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        keep = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_mul_(average, keep)
            torch._foreach_add_(average, [p.detach() for p in trained], alpha=1 - keep)
        if frames == phase.frames[stage]:
            running = 0.97 * running + 0.03 * float(result.right.mean())
            for i in range(len(TYPES)):
                if (batch.kinds == i).any():
                    accuracy[i] = 0.97 * accuracy[i] + 0.03 * result.right[batch.kinds == i].mean()
            source.weights = np.clip(1.15 - accuracy, 0.15, 0.8)
            if stage < len(phase.frames) - 1 and running > advance:
                stage, running = stage + 1, 0.0
        step += 1
        if step % 25 == 0:
            print(
                f"{name} step {step} min {(time.monotonic() - start) / 60:.1f} frames {frames} "
                f"acc {result.right.mean():.3f} run {running:.3f} norm {float(norm):.1f} "
                + " ".join(f"{k} {v:.3f}" for k, v in result.parts.items())
                + " "
                + json.dumps(by_type(result.right, batch.kinds)),
                flush=True,
            )
        if step % 200 == 0 or step == phase.steps:
            partial = state.with_suffix(".partial")
            torch.save(
                {
                    "model": model.state_dict(),
                    "reader": reader.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average,
                    "stage": stage,
                    "step": step,
                    "spent": (time.monotonic() - start) / 60,
                    "running": running,
                },
                partial,
            )
            partial.replace(state)
        if step % 200 == 0:
            live = [p.detach().clone() for p in trained]
            with torch.no_grad():
                torch._foreach_copy_(trained, average)
                result = step_forward(model, reader, fixed)
                line = {"all": round(float(result.right.mean()), 3), **by_type(result.right, fixed.kinds)}
                curve = [
                    round(float(step_forward(model, reader, fixed, drop_before=i).right.mean()), 3)
                    for i in CHECKED
                    if i < phase.layers
                ]
                torch._foreach_copy_(trained, live)
            print(
                f"CHECK step {step} stage {stage} {json.dumps(line)} drop before {CHECKED} {curve} "
                f"masses {PACK.masses}",
                flush=True,
            )
    with torch.no_grad():
        torch._foreach_copy_(trained, average)
