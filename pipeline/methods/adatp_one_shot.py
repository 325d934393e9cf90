"""AdaTP without its progression: what it keeps in the end, kept from its first pruning on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.layout import Layouts
from pipeline.methods.adatp import AdaTP
from pipeline.plan import Counts, Partition


@dataclass(frozen=True)
class AdaTPOneShot(AdaTP):
    """AdaTP's segments, boosts and ranking, but a single pruning: an ablation (our choice).

    The knobs mean what they mean in AdaTP, so a boost weighs as much: r^J is kept before the first pruning
    layer, not r before each of J.
    """

    name: ClassVar[str] = "adatp_one_shot"

    def count(self, layouts: Layouts, partition: Partition, num_layers: int) -> Counts:
        """At the first pruning layer, AdaTP's counts at its last."""
        counts = super().count(layouts, partition, num_layers)
        return Counts(counts.layers[:1], counts.kept[-1:])
