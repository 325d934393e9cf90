"""FastV (arXiv 2403.06764, K = 2): one-shot pruning by attention, the simplest use of it as a score.

In records it is "one_shot": the name its answers are known by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.layout import Layouts
from pipeline.methods.base import Method, keep_count, knob
from pipeline.plan import Counts, Partition, ScoreRows

PRUNED_LAYER = 2  # FastV's K: scores from layer 1, counted from 0, drop tokens before layer 2


@dataclass(frozen=True)
class FastV(Method):
    """Keeps a share of the visual tokens by the last prompt token's attention in layer 1 (mean over heads),
    once, before layer 2.
    """

    keep_ratio: float = knob(0.25, 0.001, 1.0, "share of visual tokens kept from layer 2 on", "FastV")

    name: ClassVar[str] = "one_shot"
    ratio_field: ClassVar[str] = "keep_ratio"

    @property
    def score_rows(self) -> ScoreRows:
        """The last prompt token's."""
        return "last"

    def count(self, layouts: Layouts, partition: Partition, num_layers: int) -> Counts:
        """ceil(keep_ratio n), once."""
        return one_pruning(partition, num_layers, self.keep_ratio)


def one_pruning(partition: Partition, num_layers: int, ratio: float) -> Counts:
    """A single pruning before layer 2; models without such a layer are left alone."""
    if num_layers <= PRUNED_LAYER:
        return Counts((), np.zeros((0, partition.size.size), dtype=np.int64))
    return Counts((PRUNED_LAYER,), keep_count(partition.size, ratio)[None])
