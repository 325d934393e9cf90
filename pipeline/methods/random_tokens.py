"""Random pruning: what a score has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pipeline.layout import Layouts
from pipeline.methods.base import Method, choice, knob
from pipeline.methods.fastv import one_pruning
from pipeline.plan import Counts, Partition

if TYPE_CHECKING:
    import torch

    from pipeline.ranking import Stage


@dataclass(frozen=True)
class RandomTokens(Method):
    """Keeps a random share of the visual tokens, drawn once before layer 2, the same for a question every
    time.
    """

    keep_ratio: float = knob(0.25, 0.001, 1.0, "share of visual tokens kept from layer 2 on", "our choice")
    seed: int = choice(0, (), "changes the draw; it is mixed with the question's id", "our choice")

    name: ClassVar[str] = "random"
    ratio_field: ClassVar[str] = "keep_ratio"

    def count(self, layouts: Layouts, partition: Partition, num_layers: int) -> Counts:
        """ceil(keep_ratio n), once."""
        return one_pruning(partition, num_layers, self.keep_ratio)

    def select(
        self, stage: Stage, scores: torch.Tensor | None, tokens: torch.Tensor, seed: str
    ) -> torch.Tensor:
        """The same draw for a question every time."""
        from pipeline.ranking import best_in_groups, drawn_scores

        return best_in_groups(stage, drawn_scores(f"{self.seed}/{seed}", tokens), tokens, debias=False)
