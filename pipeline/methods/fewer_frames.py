"""Fewer frames: the plainest way to save, and often a hard one to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from pipeline.layout import Layouts
from pipeline.methods.base import Method, keep_count, knob
from pipeline.plan import Counts, Partition

if TYPE_CHECKING:
    import torch

    from pipeline.ranking import Stage


@dataclass(frozen=True)
class FewerFrames(Method):
    """Keeps n uniformly spaced frames, as if only they had been sampled: before layer 0, positions
    renumbered.
    """

    keep_ratio: float = knob(0.25, 0.001, 1.0, "share of frames kept", "our choice")

    name: ClassVar[str] = "fewer_frames"
    ratio_field: ClassVar[str] = "keep_ratio"
    positions: ClassVar[Literal["original", "compact"]] = "compact"

    def count(self, layouts: Layouts, partition: Partition, num_layers: int) -> Counts:
        """Whole frames: ceil(keep_ratio frames), before layer 0."""
        frames = keep_count(layouts.frames, self.keep_ratio)  # (L,) one group per layout
        return Counts((0,), (frames * layouts.cells)[None], frames)

    def select(
        self, stage: Stage, scores: torch.Tensor | None, tokens: torch.Tensor, seed: str
    ) -> torch.Tensor:
        """All tokens of uniformly spaced frames."""
        import torch

        # The field's own sampling rule, over the frames that were sampled by the same rule.
        frames = np.linspace(0, stage.frames - 1, stage.total // stage.cells, dtype=int)
        kept = (frames[:, None] * stage.cells + np.arange(stage.cells)).reshape(-1)
        return torch.from_numpy(kept).to(tokens.device, non_blocking=True)
