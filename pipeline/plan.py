"""How many visual tokens stay, layer by layer: pure arithmetic from embeddings and knobs, before the model
runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.layout import IntArray, Layout, Layouts

# Whose attention ranks visual tokens: nobody's, the last prompt token's, or that of the question's tokens.
ScoreRows = Literal["none", "last", "question"]


@dataclass(frozen=True, eq=False)
class Partition:
    """Groups of the visual sequences of L layouts, one after another (G of them); independent of the keep
    ratio.
    """

    layout: IntArray  # (G,) the layout a group belongs to
    first_group: IntArray  # (L,) where each layout's groups begin
    size: IntArray  # (G,) tokens
    boosted: NDArray[np.bool_]  # (G,)

    @classmethod
    def whole(cls, layouts: Layouts) -> Partition:
        """One group per layout, for methods without segments."""
        index = np.arange(len(layouts), dtype=np.int64)
        return cls(index, index, layouts.visual, np.zeros(len(layouts), dtype=bool))


@dataclass(frozen=True, eq=False)
class Counts:
    """Kept tokens for the groups of a Partition."""

    layers: tuple[int, ...]  # (J,) pruning layers
    kept: IntArray  # (J, G)
    frames_encoded: IntArray | None = None  # (L,)


def pruning_layers(num_layers: int) -> range:
    """The decoder layers (counted from 0) before which AdaTP prunes.

    2..N-12 inclusive for N >= 24 layers, so 2..16 of 28 and 2..12 of 24 (third-party reading of the paper);
    2..round(4N/7) for shallower models (our choice: the same depth as 16 of 28).
    """
    last = num_layers - 12 if num_layers >= 24 else round(4 * num_layers / 7)
    return range(2, last + 1)


@dataclass(frozen=True)
class Plan:
    """Kept-token counts of one question: groups are contiguous runs of the visual sequence."""

    method: str
    groups: tuple[int, ...]  # tokens of each group, in the order of the visual sequence
    layers: tuple[int, ...]  # decoder layers before which tokens are dropped, ascending
    kept: tuple[tuple[int, ...], ...]  # kept[j][g]: tokens of group g that stay from layers[j] on
    boosted: tuple[bool, ...]  # groups that keep more because of their relevance to the question
    frames_encoded: int | None = None  # frames the vision tower has to see; None: all of the layout's
    score_rows: ScoreRows = "none"
    aligned: bool = False  # whether frame and text embeddings were needed (end-to-end FLOPs)

    def total(self, j: int) -> int:
        """Visual tokens that stay from layers[j] on; -1 stands for the whole video before any pruning."""
        return sum(self.groups) if j == -1 else sum(self.kept[j])

    @property
    def keeps_everything(self) -> bool:
        """Whether nothing is dropped anywhere: the pruned model is then the untouched one."""
        return all(kept == self.groups for kept in self.kept)

    def key(self) -> str:
        """Stable text for fingerprints: equal for plans that keep the same tokens given the same scores.

        Which groups were boosted is left out: only its effect, the counts, reaches the model.
        """
        return _key(self.method, self.layers, [self.groups, *self.kept], self.frames_encoded, self.score_rows)

    def tokens_per_layer(self, num_layers: int, layout: Layout) -> tuple[int, ...]:
        """All tokens (text, newlines, kept visual) that each decoder layer sees in a prefill."""
        tokens = [layout.tokens] * num_layers
        for layer, kept in zip(self.layers, self.kept, strict=True):
            tokens[layer:] = [layout.text + sum(kept)] * (num_layers - layer)
        return tuple(tokens)


def _key(
    method: str,
    layers: Sequence[int],
    counts: Sequence[Sequence[int]],
    frames_encoded: int | None,
    score_rows: ScoreRows,
) -> str:
    """counts: the groups' tokens, and what is kept of them from each of `layers` on.

    Scores over the question's rows are named, because those over all rows after the video once were not.
    """
    groups, *kept = (",".join(map(str, row)) for row in counts)
    rows = ";".join(f"{layer}:{row}" for layer, row in zip(layers, kept, strict=True))
    return f"{method}|{groups}|{rows}|{frames_encoded}{'|question' if score_rows == 'question' else ''}"


def unpruned_plan(layout: Layout) -> Plan:
    """The plan of the untouched model: one group, no pruning layer."""
    return Plan("unpruned", (layout.visual,), (), (), (False,))


@dataclass(frozen=True, eq=False)
class StudyPlans:
    """The plans of one configuration for many questions at once. L layouts, G groups of all of them, J
    prunings.
    """

    method: str
    layouts: Layouts
    partition: Partition
    layers: tuple[int, ...]  # (J,)
    kept: IntArray  # (J, G)
    frames_encoded: IntArray | None  # (L,)
    score_rows: ScoreRows
    aligned: bool

    def __len__(self) -> int:
        return len(self.layouts)

    @cached_property
    def visual_by_stage(self) -> IntArray:
        """(J + 1, L) visual tokens before any pruning and after each."""
        kept = (
            np.add.reduceat(self.kept, self.partition.first_group, axis=1)
            if self.layers
            else self.kept[:, :0]
        )
        kept = kept.reshape(len(self.layers), len(self))
        return np.concatenate((self.layouts.visual[None], kept), axis=0)

    def plan(self, index: int) -> Plan:
        """The plan of the question at `index`."""
        start = int(self.partition.first_group[index])
        stop = (
            int(self.partition.first_group[index + 1]) if index + 1 < len(self) else self.partition.size.size
        )
        return Plan(
            method=self.method,
            groups=tuple(self.partition.size[start:stop].tolist()),
            layers=self.layers,
            kept=tuple(tuple(row) for row in self.kept[:, start:stop].tolist()),
            boosted=tuple(self.partition.boosted[start:stop].tolist()),
            frames_encoded=None if self.frames_encoded is None else int(self.frames_encoded[index]),
            score_rows=self.score_rows,
            aligned=self.aligned,
        )

    def keys(self) -> tuple[str | None, ...]:
        """`Plan.key` of every plan, None where it keeps everything; written once for equal ones.

        Questions about one video mostly share their segments and often their boosts.
        """
        columns = np.concatenate((self.partition.size[None], self.kept)).T.copy()  # (G, J + 1)
        borders = [*self.partition.first_group.tolist(), len(columns)]
        encoded = [None] * len(self) if self.frames_encoded is None else self.frames_encoded.tolist()
        known: dict[tuple[bytes, int | None], str | None] = {}
        result = []
        for start, stop, frames in zip(borders[:-1], borders[1:], encoded, strict=True):
            block = columns[start:stop]
            same = (block.tobytes(), frames)
            if same not in known:
                counts = block.T.tolist()
                whole = all(kept == counts[0] for kept in counts[1:])
                known[same] = (
                    None if whole else _key(self.method, self.layers, counts, frames, self.score_rows)
                )
            result.append(known[same])
        return tuple(result)

    def plans(self) -> tuple[Plan, ...]:
        """One by one."""
        return tuple(self.plan(index) for index in range(len(self)))
