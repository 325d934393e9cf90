"""VisionZip (arXiv 2412.04467), after pooling: what the vision tower looks at, and merged rests beside it.

After the official code, github.com/dvlab-research/VisionZip, which prunes pictures inside a CLIP tower. Our
choices are what carries that over to videos: it works on the pooled tokens that the language model would read
(as the comparisons in FastVID's paper do), the attention that a patch receives from all patches stands in for
the class token's, which SigLIP has none of, and the counts are made to sum to the plan's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from pipeline.layout import Layouts
from pipeline.methods.base import Method, keep_count, knob
from pipeline.plan import Counts, Partition

if TYPE_CHECKING:
    import torch

    from pipeline.merging import Merged, VisualTokens
    from pipeline.ranking import Stage


@dataclass(frozen=True)
class VisionZip(Method):
    """Keeps each frame's most attended ("dominant") tokens, and merges the rest into a few ("contextual")
    ones, once, before layer 0; positions renumbered.
    """

    keep_ratio: float = knob(0.25, 0.001, 1.0, "share of visual tokens kept", "FastVID's comparison")
    contextual: float = knob(
        0.15625, 0.0, 1.0, "share of a frame's kept tokens that are merged ones", "paper: 10 of 64, 30 of 192"
    )

    name: ClassVar[str] = "vision_zip"
    ratio_field: ClassVar[str] = "keep_ratio"
    positions: ClassVar[Literal["original", "compact"]] = "compact"
    merges: ClassVar[bool] = True

    def _limits(self) -> dict[str, tuple[float, float, bool]]:
        return {**super()._limits(), "contextual": (0.0, 1.0, True)}

    def selection_options(self) -> dict[str, str | int | float]:
        """The share of merged tokens: it does not show in the counts."""
        return {**super().selection_options(), "contextual": self.contextual}

    def count(self, layouts: Layouts, partition: Partition, num_layers: int) -> Counts:
        """ceil(keep_ratio n) of the whole video, before layer 0 (our choice; the official code has whole
        numbers per picture).
        """
        return Counts((0,), keep_count(partition.size, self.keep_ratio)[None])

    def _shares(self, total: int, frames: int) -> np.ndarray:
        """(2, frames) dominant and contextual tokens of each frame, `total` in all, as even as can be."""
        kept = np.diff(np.arange(frames + 1) * total // frames)
        contextual = np.floor(kept * self.contextual + 0.5).astype(np.int64)
        return np.stack((kept - contextual, contextual))

    def merge(self, stage: Stage, visual: VisualTokens) -> Merged:
        """Frame by frame, as the official code does picture by picture.

        Of the tokens that are not dominant, in order, every floor(rest / contextual)-th is a target; each
        other one is given to the target whose key is most like its own. A contextual token is its target plus
        the mean of what it was given. All stay in the order of the video (our choice; the official code puts
        contextual tokens last).
        """
        import torch

        from pipeline.merging import Merged, ranks, true_places

        hidden, saliency = visual.hidden.float(), visual.saliency
        cells, device = stage.cells, hidden.device
        shares = self._shares(stage.total, stage.frames)
        most = int(shares[1].max())  # contextual tokens of a frame
        dominant, contextual = torch.from_numpy(shares).to(device, non_blocking=True)[..., None]
        stays = ranks(saliency.received) < dominant
        place = (~stays).cumsum(dim=1) - 1  # among the rest
        step = ((cells - dominant) // contextual.clamp(min=1)).clamp(min=1)
        target = ~stays & (place % step == 0) & (place // step < contextual)
        if most > 0:
            given = (~stays & ~target).float()  # (frames, cells)
            # (frames, most) cells of the targets; a frame with fewer has places left over.
            slots, used = true_places(target, most), torch.arange(most, device=device) < contextual
            keys = torch.nn.functional.normalize(saliency.keys, dim=-1)
            similarity = keys @ _at(keys, slots).transpose(1, 2)  # (frames, cells, most)
            nearest = similarity.masked_fill(~used[:, None], -torch.inf).argmax(dim=2)
            to = (nearest[..., None] == torch.arange(most, device=device)) * given[..., None] * used[:, None]
            mean = to.transpose(1, 2) @ hidden / to.sum(dim=1).clamp(min=1)[..., None]
            index = slots[..., None].expand(-1, -1, hidden.shape[2])
            hidden = hidden.scatter(1, index, _at(hidden, slots) + mean)
        kept = true_places((stays | target).flatten(), stage.total)
        return Merged(kept, hidden.flatten(0, 1)[kept].to(visual.hidden.dtype))


def _at(values: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """(frames, cells, C) at (frames, k) cells: (frames, k, C)."""
    return values.gather(1, cells[..., None].expand(-1, -1, values.shape[2]))
