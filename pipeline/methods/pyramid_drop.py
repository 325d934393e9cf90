"""PyramidDrop (arXiv 2410.17247): the same share is dropped at the end of each of four stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.layout import Layouts
from pipeline.methods.base import Method, keep_count, knob
from pipeline.plan import Counts, Partition, ScoreRows

STAGES = 4


@dataclass(frozen=True)
class PyramidDrop(Method):
    """Keeps a share of the visual tokens from each quarter of the model to the next, ranked over the whole
    video by the last prompt token's attention in a quarter's last layer.
    """

    keep_ratio: float = knob(
        0.5, 0.001, 1.0, "share of visual tokens kept from one stage to the next (lambda)", "PyramidDrop"
    )

    name: ClassVar[str] = "pyramid_drop"
    ratio_field: ClassVar[str] = "keep_ratio"

    @property
    def score_rows(self) -> ScoreRows:
        """The last prompt token's."""
        return "last"

    def count(self, layouts: Layouts, partition: Partition, num_layers: int) -> Counts:
        """ceil(keep_ratio^s n) after stage s."""
        layers = stage_borders(num_layers)
        ratios = np.power(self.keep_ratio, np.arange(1, len(layers) + 1))[:, None]  # (J, 1)
        return Counts(layers, keep_count(partition.size, ratios))


def stage_borders(num_layers: int) -> tuple[int, ...]:
    """The decoder layers (counted from 0) with which the second, third and fourth stage begin.

    8, 16 and 24 of 32 (PyramidDrop); the same depths in other models (our choice). A score needs a layer
    before it, so where a model is too shallow for four stages there are fewer.
    """
    borders = {round(stage * num_layers / STAGES) for stage in range(1, STAGES)}
    return tuple(sorted(border for border in borders if 1 <= border < num_layers))
