"""Where one question's tokens sit, and how its frames relate: all a plan needs, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Layout:
    """The token sequence of one (video, question): text, frames x cells visual tokens, newline, text.

    Errors: ValueError when the arrays do not fit the number of frames or hold NaN.
    """

    frames: int
    cells: int  # visual tokens per frame
    trailing: int  # newline tokens after the last frame; never pruned
    text_before: int  # other tokens before the end of the video (system prompt, user tag)
    text_after: int  # tokens after the video (question, assistant tag)
    frame_similarity: FloatArray  # (frames - 1,) cosine of neighbouring frames' global visual tokens
    frame_relevance: FloatArray  # (frames,) cosine of the question's text embedding and each frame's token
    # Those of text_after that are the question itself; None: not recorded, all of them are taken for it.
    question_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.frames < 1 or self.cells < 1:
            raise ValueError(
                f"A layout has at least one frame and one cell, but got {self.frames=}, {self.cells=}."
            )
        for name, length in (("frame_similarity", self.frames - 1), ("frame_relevance", self.frames)):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if values.shape != (length,):
                raise ValueError(
                    f"{name} has shape ({length},) for {self.frames} frames, but got {values.shape}."
                )
            if not np.isfinite(values).all():
                raise ValueError(f"{name} holds finite numbers, but got {values}.")
            object.__setattr__(self, name, values)

    @property
    def visual(self) -> int:
        """Tokens that may be pruned."""
        return self.frames * self.cells

    @property
    def question(self) -> int:
        """Tokens of the question itself."""
        return self.text_after if self.question_tokens is None else self.question_tokens

    @property
    def text(self) -> int:
        """Tokens that are never pruned: text and newlines."""
        return self.text_before + self.trailing + self.text_after

    @property
    def tokens(self) -> int:
        """The whole prompt."""
        return self.visual + self.text


@dataclass(frozen=True, eq=False)
class Layouts:
    """Many layouts side by side in ragged arrays, so that a whole study is planned in a few numpy calls.

    L layouts, F frames of all of them one after another.
    """

    items: tuple[Layout, ...]

    @classmethod
    def of(cls, layouts: Layouts | Sequence[Layout]) -> Layouts:
        """Side by side; what already is goes through."""
        if isinstance(layouts, Layouts):
            return layouts
        if not layouts:
            raise ValueError("At least one layout is needed.")
        return cls(tuple(layouts))

    def __len__(self) -> int:
        return len(self.items)

    def _column(self, name: str) -> IntArray:
        return np.array([getattr(layout, name) for layout in self.items], dtype=np.int64)

    @cached_property
    def frames(self) -> IntArray:
        """(L,) one value per layout."""
        return self._column("frames")

    @cached_property
    def cells(self) -> IntArray:
        """(L,) one value per layout."""
        return self._column("cells")

    @cached_property
    def visual(self) -> IntArray:
        """(L,) one value per layout."""
        return self.frames * self.cells

    @cached_property
    def text(self) -> IntArray:
        """(L,) one value per layout."""
        return self._column("text_before") + self._column("trailing") + self._column("text_after")

    @cached_property
    def text_after(self) -> IntArray:
        """(L,) one value per layout."""
        return self._column("text_after")

    @cached_property
    def question(self) -> IntArray:
        """(L,) tokens of each question itself."""
        return np.array([layout.question for layout in self.items], dtype=np.int64)

    @cached_property
    def first_frame(self) -> IntArray:
        """(L,) where each layout's frames begin in the F axis."""
        return np.concatenate(([0], np.cumsum(self.frames)[:-1])).astype(np.int64)

    @cached_property
    def frame_layout(self) -> IntArray:
        """(F,) the layout each frame belongs to."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.frames)

    @cached_property
    def similarity_to_previous(self) -> FloatArray:
        """(F,) -inf for the first frame of a video."""
        similarity = np.full(int(self.frames.sum()), -np.inf)
        inner = np.ones(similarity.shape, dtype=bool)
        inner[self.first_frame] = False
        similarity[inner] = np.concatenate([layout.frame_similarity for layout in self.items])
        return similarity

    @cached_property
    def relevance(self) -> FloatArray:
        """(F,) cosine to the question."""
        return np.concatenate([layout.frame_relevance for layout in self.items])
