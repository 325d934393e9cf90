"""A prompt with one video: token ids, where its visual tokens stand, and their positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline.layout import IntArray


@dataclass(frozen=True, eq=False)
class Prompt:
    """N tokens in the order in which the language model reads them.

    What stands before the end of the video is the same for all questions about it, so that its keys and
    values can be stored.
    """

    ids: tuple[int, ...]  # (N,) with a placeholder for each token that the vision side makes
    features: IntArray  # (F,) where the tokens of `Clip.features` stand, ascending
    visual: IntArray  # (frames * cells,) those of them that may be pruned; not always neighbours
    # (k, N) of the rotary embedding: k = 1, or 3 where time, row and column are told apart.
    positions: IntArray
    next_position: int  # of the first token of the answer
    question: slice  # the tokens of the question itself, after the video

    @property
    def video_end(self) -> int:
        """Where the video ends: the tokens from here on depend on the question."""
        return int(self.features[-1]) + 1

    @property
    def before(self) -> tuple[int, ...]:
        """Token ids in front of the video."""
        return self.ids[: int(self.features[0])]

    @property
    def after(self) -> tuple[int, ...]:
        """Token ids behind the video."""
        return self.ids[self.video_end :]

    @classmethod
    def around(
        cls,
        before: Sequence[int],
        after: Sequence[int],
        question: slice,
        *,
        visual: int,
        trailing: int,
        placeholder: int,
    ) -> Self:
        """A prompt whose visual tokens stand side by side and whose positions count up by one.

        visual: tokens that may be pruned; trailing: newline tokens right after them. question: which of
        `after` are the question's.
        """
        start, tokens = len(before), visual + trailing
        end = start + tokens
        ids = (*before, *[placeholder] * tokens, *after)
        return cls(
            ids,
            np.arange(start, end),
            np.arange(start, start + visual),
            np.arange(len(ids))[None],
            len(ids),
            slice(end + question.start, end + question.stop),
        )
