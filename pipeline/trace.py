"""What one prefill looked at and what it kept, for people to see: nothing in here changes an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.layout import FloatArray, IntArray, Layout, Layouts
from pipeline.methods.adatp import AdaTP

if TYPE_CHECKING:
    from pipeline.clip import Clip
    from pipeline.methods.base import Method
    from pipeline.question import Question
    from pipeline.runtime import Runtime

# Counted from 0: the layer whose attention the first pruning of every method here ranks by.
ATTENTION_LAYER = 1


@dataclass(frozen=True)
class Grid:
    """How a frame's visual tokens lie in the picture: row after row, each with a newline token or without."""

    rows: int
    columns: int  # newline token not counted
    newlines: bool

    @classmethod
    def of(cls, cells: int) -> Self:
        """The grid of a frame of so many tokens: n x n (LLaVA-OneVision) or n x (n + 1) (LLaVA-Video).

        No number is both. One that is neither belongs to a family nobody described here: one row.
        """
        side = math.isqrt(cells)
        if side * side == cells:
            return cls(side, side, False)
        if side * (side + 1) == cells:
            return cls(side, side, True)
        return cls(1, cells, False)

    def picture(self, values: NDArray[Any]) -> NDArray[Any]:
        """(..., cells) one value per token, as (..., rows, columns), without those of newline tokens.

        Both families squeeze the whole frame into a square, so the picture covers the frame; LLaVA-Video's
        average leaves out the last of 27 rows and columns of patches, which no drawing shows.
        """
        width = self.columns + self.newlines
        return values.reshape(*values.shape[:-1], self.rows, width)[..., : self.columns]


@dataclass(frozen=True)
class Segment:
    """A run of frames that AdaTP treats as one: frames `first` to `last`, both included, counted from 0."""

    first: int
    last: int
    # To the question, scaled as the method scales it: what tau_t is compared with. None: the video has no
    # contrast, and nothing is compared.
    relevance: float | None
    boosted: bool


def segments(method: AdaTP, layout: Layout) -> tuple[Segment, ...]:
    """The segments of one question's video, in order."""
    found = method.segments(Layouts((layout,)))
    ends = np.cumsum(found.size // layout.cells).tolist()
    boosted = found.boosted_from(method.tau_t).boosted.tolist()
    relevance = [None if math.isnan(value) else value for value in found.relevance.tolist()]
    return tuple(map(Segment, [0, *ends[:-1]], [end - 1 for end in ends], relevance, boosted))


@dataclass(frozen=True, eq=False)
class Trace:
    """One question's prefill, as it went."""

    # Layers before which tokens were dropped; empty where the plan keeps everything.
    layers: tuple[int, ...]
    # After each of them: the visual tokens left, as ascending indices into the video's sequence.
    tokens: tuple[IntArray, ...]
    # (visual,) from the last prompt token to each visual token in layer `ATTENTION_LAYER`, before anything is
    # pruned: softmax row, mean over heads, so that text and newlines have the rest of the sum of 1.
    attention: FloatArray

    @property
    def kept(self) -> tuple[int, ...]:
        """Visual tokens left after each pruning: what an answer records."""
        return tuple(len(tokens) for tokens in self.tokens)


def trace(runtime: Runtime, clip: Clip, question: Question, method: Method) -> Trace:
    """The question's prefill once more, by the same way as `Runtime.answer`, with a look at it.

    Where a method prunes before that layer, or ranks by the attention of others than the last token, the
    attention is the unpruned model's. Errors: as `Runtime.answer`.
    """
    import torch

    from pipeline.packing import Pack
    from pipeline.runtime import Request

    with torch.inference_mode():
        item = runtime.pack_item(Request(clip, question, method))
        pack, plan = Pack(runtime.family, [item], observe=ATTENTION_LAYER), item.plan
        tokens = tuple(token.cpu().numpy().astype(np.int64) for token in pack.tokens(0))
        if plan is not None and (plan.layers[0] <= ATTENTION_LAYER or plan.score_rows == "question"):
            whole = runtime.pack_item(Request(clip, question, None))
            pack = Pack(runtime.family, [whole], observe=ATTENTION_LAYER)
        attention = pack.observed(0).double().cpu().numpy()
    return Trace(() if plan is None else plan.layers, tokens, attention)
