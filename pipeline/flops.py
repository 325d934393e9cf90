"""Exact FLOPs of a plan, in multiply-adds, before the model runs.

One decoder layer with n tokens, hidden D, key-value width K, MLP width M (grouped-query attention and a
three-matrix MLP, as Qwen2 has): `2nD^2 + 2nDK + 2n^2 D + 3nDM`. lm_head is left out. torch counts two per
multiply-add, and its FlopCounterMode counts sdpa on the CPU as zero: compare under eager attention.

Scoring for one pruning recomputes R query rows of the layer before, n tokens long: `R (D^2 + nD)`, and only
where something is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.layout import FloatArray, IntArray, Layout, Layouts
from pipeline.plan import Plan, StudyPlans

Number = Any  # int, float or an array of either: the formulas are the same


@dataclass(frozen=True)
class VisionShape:
    """The encoder side: the model's vision tower and projector, and the aligned encoder's remaining parts."""

    patches: int  # per frame
    patch_inputs: int  # channels x patch height x patch width
    width: int
    mlp_width: int
    layers: int  # of the tower, up to the layer whose features the model reads
    extra_layers: int = 0  # SigLIP layers the tower lacks, run for the frame embeddings
    text_layers: int = 0
    text_width: int = 0
    text_mlp_width: int = 0
    text_tokens: int = 0  # the text tower runs at its full padded length
    embedding: int = 0  # width of the shared embedding
    aligned_frame: int = 0  # one frame through an aligned encoder of its own; 0: it goes on from the tower

    def frame(self, hidden: int) -> int:
        """One frame through patch embedding, tower and projector (into a language model of width
        `hidden`).
        """
        n, width = self.patches, self.width
        embed = n * self.patch_inputs * width
        project = n * (width * hidden + hidden * hidden)
        return embed + self.layers * encoder_layer_flops(n, width, self.mlp_width) + project

    def frame_embedding(self) -> int:
        """One frame from tower features to its global visual token: remaining layers and attention-pooling
        head; or through the whole of another encoder.
        """
        if self.aligned_frame:
            return self.aligned_frame
        n, width = self.patches, self.width
        # The probe's query and output rows, keys and values of all patches, one row of attention, the head's
        # MLP.
        head = 2 * width**2 + 2 * n * width**2 + 2 * n * width + 2 * width * self.mlp_width
        return self.extra_layers * encoder_layer_flops(n, width, self.mlp_width) + head

    def text_embedding(self) -> int:
        """One question through the text tower."""
        layer = encoder_layer_flops(self.text_tokens, self.text_width, self.text_mlp_width)
        return self.text_layers * layer + self.text_width * self.embedding


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the language model (and of the encoders, for the end-to-end count)."""

    layers: int
    hidden: int  # D
    kv_width: int  # K = key-value heads x head size
    mlp_width: int  # M
    heads: int
    vision: VisionShape | None = None


# The shapes of the published checkpoints, for documentation and for reproducing published figures.
LLAVA_ONEVISION_7B = ModelShape(
    layers=28,
    hidden=3584,
    kv_width=512,
    mlp_width=18944,
    heads=28,
    vision=VisionShape(
        patches=729,
        patch_inputs=3 * 14 * 14,
        width=1152,
        mlp_width=4304,
        layers=26,
        extra_layers=1,
        text_layers=27,
        text_width=1152,
        text_mlp_width=4304,
        text_tokens=64,
        embedding=1152,
    ),
)


def layer_flops(shape: ModelShape, tokens: Number) -> Number:
    """One decoder layer over `tokens` tokens (a number or an array, whole or not)."""
    d, k, m = shape.hidden, shape.kv_width, shape.mlp_width
    return tokens * (2 * d * d + 2 * d * k + 3 * d * m) + 2 * tokens * tokens * d


def chunk_flops(shape: ModelShape, new: Number, cached: Number) -> Number:
    """One decoder layer over `new` tokens that attend to `cached` earlier ones and to each other.

    A split pass counts less than the same tokens at once: `layer_flops(n + m)` is `layer_flops(n) +
    chunk_flops(m, n)` and 2 n m D more, for the n rows' attention to the m tokens after them, which a mask
    takes out again.
    """
    return layer_flops(shape, new) + 2 * new * cached * shape.hidden


def encoder_layer_flops(tokens: int, width: int, mlp_width: int) -> int:
    """One ViT-style layer: four square projections, full attention, a two-matrix MLP."""
    return 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * mlp_width


def scoring_flops(shape: ModelShape, tokens: Number, rows: Number) -> Number:
    """`rows` query rows multiplied with the keys of `tokens` tokens; both are there from the layer itself."""
    return rows * tokens * shape.hidden


def prefill_flops(shape: ModelShape, tokens_per_layer: Sequence[float] | NDArray[Any]) -> Number:
    """The language model's prefill with its own number of tokens in each layer, scoring not included."""
    if len(tokens_per_layer) != shape.layers:
        raise ValueError(
            f"The model has {shape.layers} layers, but got {len(tokens_per_layer)} token counts."
        )
    return sum(layer_flops(shape, tokens) for tokens in tokens_per_layer)


def unpruned_flops(layout: Layout, shape: ModelShape) -> int:
    """The untouched model's prefill of one question."""
    return int(shape.layers * layer_flops(shape, layout.tokens))


def _staged_flops(
    shape: ModelShape, layers: Sequence[int], tokens: IntArray, rows: int | IntArray
) -> IntArray:
    """(L,) a prefill of tokens[j + 1] tokens from layers[j] on; `rows` query rows score the tokens before it.

    tokens: (J + 1, L).
    """
    lasts = np.diff(np.array([0, *layers, shape.layers], dtype=np.int64))[:, None]  # decoder layers
    scoring = (tokens[1:] < tokens[:-1]) * scoring_flops(shape, tokens[:-1], rows)
    total: IntArray = (lasts * layer_flops(shape, tokens)).sum(axis=0) + scoring.sum(axis=0)
    return total


def plan_flops(plan: Plan, layout: Layout, shape: ModelShape) -> int:
    """The pruned prefill of one question, text, newlines and the method's own scoring included."""
    tokens = [layout.text + plan.total(j) for j in range(-1, len(plan.layers))]
    rows = layout.question if plan.score_rows == "question" else int(plan.score_rows == "last")
    return int(_staged_flops(shape, plan.layers, np.array(tokens)[:, None], rows)[0])


def pruned_by_question(plans: StudyPlans, shape: ModelShape) -> IntArray:
    """(L,) pruned prefill of each question, scoring included."""
    rows = plans.layouts.question if plans.score_rows == "question" else int(plans.score_rows == "last")
    return _staged_flops(shape, plans.layers, plans.visual_by_stage + plans.layouts.text, rows)


def unpruned_by_question(layouts: Layouts, shape: ModelShape) -> IntArray:
    """(L,) the untouched model's prefill of each question."""
    result: IntArray = shape.layers * layer_flops(shape, layouts.visual + layouts.text)
    return result


def question_ratios(plans: StudyPlans, shape: ModelShape) -> FloatArray:
    """(L,) each question's own pruned / unpruned prefill."""
    return pruned_by_question(plans, shape) / unpruned_by_question(plans.layouts, shape)


def flops_ratio(plans: StudyPlans, shape: ModelShape) -> float:
    """What `--budget` binds: pruned over unpruned prefill, both summed over the questions."""
    pruned = int(pruned_by_question(plans, shape).sum())
    return pruned / int(unpruned_by_question(plans.layouts, shape).sum())


def visual_only_ratio(plans: StudyPlans, shape: ModelShape) -> float:
    """The paper's way of counting: as if the visual tokens were alone in the language model."""
    pruned = int(_staged_flops(shape, plans.layers, plans.visual_by_stage, 0).sum())
    return pruned / int((shape.layers * layer_flops(shape, plans.layouts.visual)).sum())


def encoder_flops(plans: StudyPlans, shape: ModelShape) -> tuple[IntArray, IntArray]:
    """(L,) encoder FLOPs of the pruned and of the unpruned model: every question encodes its video anew.

    Errors: ValueError when the shape has no vision part.
    """
    vision = shape.vision
    if vision is None:
        raise ValueError("End-to-end FLOPs need the shape of the vision tower, but shape.vision is None.")
    frames = plans.layouts.frames
    seen = frames if plans.frames_encoded is None else plans.frames_encoded
    aligned = int(plans.aligned) * (seen * vision.frame_embedding() + vision.text_embedding())
    return seen * vision.frame(shape.hidden) + aligned, frames * vision.frame(shape.hidden)


def end_to_end_ratio(plans: StudyPlans, shape: ModelShape) -> float:
    """Vision tower, projector and (where the method needs them) the aligned encoder's parts included."""
    encode, encode_unpruned = encoder_flops(plans, shape)
    pruned = int(pruned_by_question(plans, shape).sum()) + int(encode.sum())
    return pruned / (int(unpruned_by_question(plans.layouts, shape).sum()) + int(encode_unpruned.sum()))


@dataclass(frozen=True)
class Compute:
    """All ratios a report shows beside an accuracy; every one is pruned over unpruned, so lower is
    cheaper.
    """

    flops_ratio: float
    flops_ratio_end_to_end: float
    flops_ratio_visual: float
    flops_ratio_p95: float  # over questions
    flops_ratio_max: float  # over questions


def compute(plans: StudyPlans, shape: ModelShape) -> Compute:
    """All ratios of one configuration; the shape needs its vision part."""
    ratios = question_ratios(plans, shape)
    return Compute(
        flops_ratio=flops_ratio(plans, shape),
        flops_ratio_end_to_end=end_to_end_ratio(plans, shape),
        flops_ratio_visual=visual_only_ratio(plans, shape),
        flops_ratio_p95=float(np.quantile(ratios, 0.95)),
        flops_ratio_max=float(ratios.max()),
    )
