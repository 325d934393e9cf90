"""AdaTP: attention-debiased token pruning (arXiv 2505.20100), read from its abstract, captions and digests.

No code was released. Each rule says where it comes from: the paper, a third-party reading of it, or our
choice where nothing was found. docs/method.md carries the same marks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from pipeline.layout import FloatArray, IntArray, Layouts
from pipeline.methods.base import Method, choice, keep_count, knob
from pipeline.plan import Counts, Partition, ScoreRows, pruning_layers

if TYPE_CHECKING:
    import torch

    from pipeline.ranking import Stage

KNOBS = ("tau_s", "tau_t", "alpha_boost", "gamma_cap", "p")


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of L videos, one after another (G of them), before any is boosted."""

    layout: IntArray  # (G,) the layout a segment belongs to
    first_group: IntArray  # (L,) where each layout's segments begin
    size: IntArray  # (G,) tokens
    relevance: FloatArray  # (G,) scaled; NaN where the video has no contrast

    def boosted_from(self, tau_t: float | FloatArray) -> Partition:
        """Boosted where the relevance is >= tau_t: a number, or (L,) one for each layout."""
        threshold = np.broadcast_to(tau_t, self.first_group.shape)[self.layout]
        return Partition(self.layout, self.first_group, self.size, self.relevance >= threshold)


@dataclass(frozen=True)
class AdaTP(Method):
    """Segments by frame similarity, boosts by text relevance, progressive pruning by attention, local
    deduplication.
    """

    tau_s: float = knob(
        0.95, 0.50, 0.999, "frame similarity below which a new segment begins", "third-party reading"
    )
    tau_t: float = knob(
        0.5, 0.0, 1.0, "relevance from which a segment is boosted; above 1 none is", "our choice"
    )
    alpha_boost: float = knob(1.1, 1.0, 1.5, "factor on p for relevant segments", "our choice")
    gamma_cap: float = knob(
        0.95, 0.0, 1.0, "ceiling of the boosted ratio; searched from p to 1", "our choice"
    )
    p: float = knob(
        0.85, 0.2, 1.0, "share of tokens kept at each pruning layer", "our choice, from the paper's 27 %"
    )

    deduplicate: Literal["demote", "drop", "off"] = choice(
        "demote",
        ("demote", "drop", "off"),
        "repeats of a position within a segment: ranked last, gone at the first pruning, or as others",
        "our choice",
    )
    relevance_norm: Literal["minmax", "raw", "zscore"] = choice(
        "minmax", ("minmax", "raw", "zscore"), "how relevance is scaled over a video's segments", "our choice"
    )
    score_query: Literal["last", "mean"] = choice(
        "last",
        ("last", "mean"),
        "whose attention scores a token: the last prompt token's, or the mean over the question's tokens",
        "our choice",
    )

    name: ClassVar[str] = "adatp"
    ratio_field: ClassVar[str] = "p"
    aligned: ClassVar[bool] = True

    def _limits(self) -> dict[str, tuple[float, float, bool]]:
        return {
            "tau_s": (-1.0, 2.0, True),  # a cosine; below -1 nothing, above 1 everything would be cut
            "tau_t": (-np.inf, np.inf, True),  # raw and z-scored relevance are not confined to [0, 1]
            "alpha_boost": (1.0, np.inf, True),
            "gamma_cap": (0.0, 1.0, True),
            "p": (0.0, 1.0, False),
        }

    @property
    def score_rows(self) -> ScoreRows:
        """The last prompt token's, or that of the question's tokens."""
        return "last" if self.score_query == "last" else "question"

    @property
    def boosted_ratio(self) -> float:
        """Ratio of a relevant segment: max(p, min(alpha_boost p, gamma_cap)).

        alpha_boost, gamma_cap and p are the paper's; the formula is our choice.
        """
        return max(self.p, min(self.alpha_boost * self.p, self.gamma_cap))

    @property
    def binds(self) -> Literal["alpha_boost", "gamma_cap"]:
        """Which of the two decides the boosted ratio; the other has no effect in this configuration."""
        return "alpha_boost" if self.alpha_boost * self.p <= self.gamma_cap else "gamma_cap"

    def partition(self, layouts: Layouts) -> Partition:
        """Segments and which of them are boosted: those whose scaled relevance is >= tau_t."""
        return self.segments(layouts).boosted_from(self.tau_t)

    def segments(self, layouts: Layouts, tau_s: FloatArray | None = None) -> Segments:
        """Segments and their relevance; `tau_s`: (L,) a threshold for each layout instead of the method's.

        A segment begins where cos(v_i, v_{i+1}) < tau_s (paper). Its relevance is the mean over its frames of
        the cosine to the question's embedding, min-max scaled over the video's segments (mean and scaling:
        our choice). A video with one segment has no contrast: nothing is boosted (our choice), nor where all
        its segments are equally relevant and scaling has nothing to work with.
        """
        threshold = self.tau_s if tau_s is None else tau_s[layouts.frame_layout]
        first_frame = np.flatnonzero(layouts.similarity_to_previous < threshold)  # first frames of segments
        layout = layouts.frame_layout[first_frame]  # (G,)
        frames = np.diff(np.append(first_frame, layouts.relevance.size))
        first_group = np.searchsorted(layout, np.arange(len(layouts))).astype(np.int64)
        relevance = np.add.reduceat(layouts.relevance, first_frame) / frames
        several = np.diff(np.append(first_group, layout.size)) > 1  # (L,)
        scaled, contrast = _scale(relevance, layout, first_group, self.relevance_norm)
        relevance = np.where((several & contrast)[layout], scaled, np.nan)
        return Segments(layout, first_group, frames * layouts.cells[layout], relevance)

    def count(self, layouts: Layouts, partition: Partition, num_layers: int) -> Counts:
        """At the j-th pruning a segment of n_s tokens keeps ceil(r_s^j n_s), never rounded on top of
        rounded.
        """
        layers = tuple(pruning_layers(num_layers))
        steps = np.arange(1, len(layers) + 1)[:, None]  # (J, 1)
        powers = np.power([[self.p, self.boosted_ratio]], steps)  # (J, 2) there are only two ratios
        kept = keep_count(partition.size, powers[:, partition.boosted.astype(np.int64)])  # (J, G)
        if self.deduplicate == "drop":
            # One token per position and segment survives the first pruning, and the counts follow (our
            # choice).
            kept = np.minimum(kept, layouts.cells[partition.layout])
        return Counts(layers, kept)

    def select(
        self, stage: Stage, scores: torch.Tensor | None, tokens: torch.Tensor, seed: str
    ) -> torch.Tensor:
        """Local debiasing: one representative per spatial position and segment (third-party reading).

        The best-scored token of a position represents it; representatives rank before repeats, each by score;
        the top k stay (our choice). Dropping instead of demoting differs in the counts alone.
        """
        from pipeline.ranking import best_in_groups

        assert scores is not None
        return best_in_groups(stage, scores, tokens, debias=self.deduplicate != "off")


def _scale(
    relevance: FloatArray, layout: IntArray, first_group: IntArray, how: str
) -> tuple[FloatArray, np.ndarray]:
    """Relevance (G,) scaled within each video, and (L,) whether the video's segments differ at all."""
    low = np.minimum.reduceat(relevance, first_group)
    high = np.maximum.reduceat(relevance, first_group)
    contrast = high > low
    if how == "raw":
        return relevance, np.ones_like(contrast)
    if how == "minmax":
        return (relevance - low[layout]) / np.where(contrast, high - low, 1.0)[layout], contrast
    size = np.diff(np.append(first_group, layout.size))
    centred = relevance - (np.add.reduceat(relevance, first_group) / size)[layout]
    spread = np.sqrt(np.add.reduceat(centred**2, first_group) / size)
    return centred / np.where(contrast, spread, 1.0)[layout], contrast
