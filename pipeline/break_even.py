"""When pruning pays: a server that keeps each video's prefix, with the unpruned model and with a pruned one.

An unpruned prefix depends on the video alone. Once a server holds its keys and values, every further question
costs no more than its own few tokens. What is kept of a pruned video depends on the question, so only the
layers before the first pruning can be stored, and each question pays for the pruned rest of the video again.
With q questions about a video

    U(q) = V + P_full + q c_u              unpruned
    A(q) = V + E + P_k + q (c_p + t)       pruned

V: vision tower and projector. P_full, P_k: system prompt and video through all layers, and through those
before the first pruning. E, t: the aligned encoder's frame part and its text tower. c_u: the question against
the full cache. c_p: the question's own pruned pass. The accounting is our choice; the paper counts single
prefills.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from pipeline.flops import ModelShape, chunk_flops, layer_flops, pruned_by_question
from pipeline.layout import IntArray
from pipeline.plan import StudyPlans


@dataclass(frozen=True)
class Serving:
    """What one model costs a server, in multiply-adds or in seconds: three parts per video, two per
    question.
    """

    vision: float  # V
    frame_embedding: float  # E; 0 without an aligned encoder
    prefix: float  # P
    text_embedding: float  # t; 0 without an aligned encoder
    question: float  # c

    @property
    def per_video(self) -> float:
        """Paid once."""
        return self.vision + self.frame_embedding + self.prefix

    @property
    def per_question(self) -> float:
        """Paid for each question."""
        return self.text_embedding + self.question

    @classmethod
    def mean(cls, several: Sequence[Serving]) -> Serving:
        """Part by part. Errors: ValueError for none."""
        if not several:
            raise ValueError("A mean needs at least one cost.")
        columns = zip(*map(astuple, several), strict=True)
        return cls(*(math.fsum(column) / len(several) for column in columns))


def break_even(unpruned: Serving, pruned: Serving) -> float:
    """Questions per video below which the pruned model is cheaper, where both keep their prefixes.

    Infinite where a question costs the pruned model no more; 0 where it already loses with the video itself
    (the rare configuration that is dearer per video and cheaper per question counts as 0 too).
    """
    saved = unpruned.per_video - pruned.per_video
    extra = pruned.per_question - unpruned.per_question
    if saved <= 0:
        return 0.0
    return math.inf if extra <= 0 else saved / extra


def serving_flops(plans: StudyPlans, shape: ModelShape) -> tuple[Serving, Serving]:
    """Multiply-adds of the unpruned and of the pruned model, means over the questions.

    Counted as in `pipeline.flops`, full squares and the method's own scoring included, lm_head and the
    answer's own tokens left out. A prefix of n tokens and m more that follow it are a square and a rectangle,
    n^2 + m (n + m) instead of (n + m)^2. What is missing, n m in each layer that the prefix went through, is
    the prefix attending to what comes after it: a single pass computes that and masks it.
    Errors: ValueError when the shape has no vision part.
    """
    vision = shape.vision
    if vision is None:
        raise ValueError("What serving costs needs the shape of the vision tower, but shape.vision is None.")
    layouts = plans.layouts
    before, after = _prefix_tokens(plans), layouts.text_after
    stored = _stored_layers(plans, shape)
    chunk, whole = chunk_flops(shape, after, before), layer_flops(shape, before)
    # From the first pruning on the pruned sequence is whole, and counted as in a single pass.
    later = pruned_by_question(plans, shape) - stored * layer_flops(shape, before + after)
    frames = layouts.frames if plans.frames_encoded is None else plans.frames_encoded
    aligned = int(plans.aligned)
    unpruned = Serving(
        vision=_mean(layouts.frames * vision.frame(shape.hidden)),
        frame_embedding=0.0,
        prefix=_mean(shape.layers * whole),
        text_embedding=0.0,
        question=_mean(shape.layers * chunk),
    )
    pruned = Serving(
        vision=_mean(frames * vision.frame(shape.hidden)),
        frame_embedding=_mean(aligned * frames * vision.frame_embedding()),
        prefix=_mean(stored * whole),
        text_embedding=float(aligned * vision.text_embedding()),
        question=_mean(stored * chunk + later),
    )
    return unpruned, pruned


def stored_numbers(plans: StudyPlans, shape: ModelShape) -> tuple[float, float]:
    """Numbers a server keeps per video, unpruned and pruned, means over the questions; times the bytes of one
    for memory.

    Unpruned: keys and values of all layers. Pruned: those of the layers before the first pruning, and the
    hidden states from which a question goes on.
    """
    before, stored = _prefix_tokens(plans), _stored_layers(plans, shape)
    hidden = np.where(stored < shape.layers, shape.hidden, 0)
    return (
        _mean(before * 2 * shape.kv_width * shape.layers),
        _mean(before * (2 * shape.kv_width * stored + hidden)),
    )


def _prefix_tokens(plans: StudyPlans) -> IntArray:
    """(L,) system prompt, video and newlines."""
    layouts = plans.layouts
    tokens: IntArray = layouts.visual + layouts.text - layouts.text_after
    return tokens


def _stored_layers(plans: StudyPlans, shape: ModelShape) -> IntArray:
    """(L,) layers that do not depend on the question: all of them where its plan drops nothing."""
    drops = (plans.visual_by_stage[-1] < plans.layouts.visual).astype(np.int64)
    first = plans.layers[0] if plans.layers else shape.layers
    layers: IntArray = shape.layers + drops * (first - shape.layers)
    return layers


def _mean(values: IntArray) -> float:
    return float(values.mean())
