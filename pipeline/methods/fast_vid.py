"""FastVID (arXiv 2503.11187): dynamic segments, salient tokens, and density-chosen anchors that take in the
rest of their segment.

After the official code, github.com/LunarShen/FastVID: of its two forms the one for LLaVA-Video, which spreads
counts to the last token. Our choices: frame similarities are those of the whole SigLIP, as AdaTP's are (the
official code leaves out the layer that LLaVA's tower lacks), a segment's count is rounded up to the plan's,
anchors never take more than their frame has left, ties go to the earlier token instead of being drawn, and
LLaVA-Video's newline tokens are visual tokens like any other (the official code keeps those of every row in
which something stays, so its counts cannot be planned).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pipeline.layout import Layouts
from pipeline.methods.base import Method, choice, keep_count, knob
from pipeline.plan import Counts, Partition

if TYPE_CHECKING:
    import torch

    from pipeline.merging import Merged, VisualTokens
    from pipeline.ranking import Stage

NEIGHBOURS = 4  # whose distances make a token's density, itself counted in; the official code's


@dataclass(frozen=True)
class FastVid(Method):
    """Keeps a share of every segment, once, before layer 0, at its own positions: the tokens that SigLIP's
    pooling head looks at, and density peaks of some frames, into which the segment's other tokens are merged.
    """

    keep_ratio: float = knob(0.1, 0.001, 1.0, "share of visual tokens kept (the paper's r)", "paper")
    tau: float = knob(0.9, 0.5, 1.0, "frame similarity below which a new segment begins", "paper")
    context_share: float = knob(0.4, 0.0, 1.0, "share of kept tokens that are merged ones (d)", "paper")
    anchor_weight: float = knob(
        0.6, 0.0, 1.0, "least weight of an anchor's own state (beta)", "official code"
    )
    segments: int = choice(8, (), "least number of segments (c)", "paper")
    anchor_step: int = choice(4, (), "every so many frames of a segment one has anchors (p)", "paper")

    name: ClassVar[str] = "fast_vid"
    ratio_field: ClassVar[str] = "keep_ratio"
    aligned: ClassVar[bool] = True  # for the frames; that it reads no text is left out of account
    merges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("segments", "anchor_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, but got {getattr(self, name)!r}.")

    def _limits(self) -> dict[str, tuple[float, float, bool]]:
        return {
            **super()._limits(),
            "tau": (-1.0, 2.0, True),  # a cosine; below -1 nothing, above 1 everything would be cut
            "context_share": (0.0, 1.0, True),
            "anchor_weight": (0.0, 1.0, True),
        }

    def selection_options(self) -> dict[str, str | int | float]:
        """With the two shares that do not show in the counts."""
        merging = {"context_share": self.context_share, "anchor_weight": self.anchor_weight}
        return {**super().selection_options(), **merging}

    def partition(self, layouts: Layouts) -> Partition:
        """A segment begins after each of the c - 1 least similar pairs of frames, and where the similarity is
        below tau.
        """
        similarity, layout = layouts.similarity_to_previous, layouts.frame_layout  # (F,)
        rank = np.empty(similarity.size, dtype=np.int64)  # within its video; the first frame has 0
        rank[np.lexsort((similarity, layout))] = np.arange(similarity.size)
        rank -= layouts.first_frame[layout]
        first_frame = np.flatnonzero((rank < self.segments) | (similarity < self.tau))
        group_layout = layout[first_frame]
        frames = np.diff(np.append(first_frame, similarity.size))
        first_group = np.searchsorted(group_layout, np.arange(len(layouts))).astype(np.int64)
        size = frames * layouts.cells[group_layout]
        return Partition(group_layout, first_group, size, np.zeros(size.size, dtype=bool))

    def count(self, layouts: Layouts, partition: Partition, num_layers: int) -> Counts:
        """ceil(keep_ratio n) of each segment, before layer 0 (our choice; the official code rounds down per
        frame).
        """
        return Counts((0,), keep_count(partition.size, self.keep_ratio)[None])

    def _shares(self, total: int, frames: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
        """Salient and anchor tokens of each of a segment's frames, `total` in all.

        Anchors stand in the last frame and every anchor_step-th before it, and are never more than the
        salient tokens leave: where they would be, more tokens are salient (our choice).
        """
        anchors = np.arange(frames - 1, -1, -self.anchor_step)
        salient = total - int(total * self.context_share)
        if len(anchors) < frames:  # enough to begin with, but for rounding
            salient = max(salient, ceil(frames * (total - len(anchors) * cells) / (frames - len(anchors))))
        while True:
            by_frame, by_anchor = _spread(salient, frames), _spread(total - salient, len(anchors))
            if (by_anchor <= cells - by_frame[anchors]).all():
                break
            salient += 1
        context = np.zeros(frames, dtype=np.int64)
        context[anchors] = by_anchor
        return by_frame, context

    def merge(self, stage: Stage, visual: VisualTokens) -> Merged:
        """Segment by segment: salient tokens stay as they are; an anchor that was given m tokens becomes w of
        itself and 1 - w of their mean, with w = max(1 / (m + 1), beta).

        Every frame with anchors is given all tokens of its segment that are neither salient nor its own
        anchors, each to the anchor whose state is most like its own.
        """
        import torch

        from pipeline.merging import Merged, ranks, true_places

        hidden = visual.hidden.float()
        cells, width, device = stage.cells, hidden.shape[2], hidden.device
        frames = [tokens // cells for tokens in stage.groups]
        parts = zip(stage.kept, frames, strict=True)
        shares = [self._shares(kept, length, cells) for kept, length in parts]
        salient_counts = np.concatenate([share for share, _ in shares])[:, None]
        salient = ranks(visual.saliency.pooling) < torch.from_numpy(salient_counts).to(
            device, non_blocking=True
        )
        by_density = density_peaks(hidden, ~salient).argsort(dim=1, descending=True, stable=True)
        unit = torch.nn.functional.normalize(hidden, dim=-1)
        merged, stays, first = hidden.clone(), salient.clone(), 0
        for length, (_, context) in zip(frames, shares, strict=True):
            own = slice(first, first + length)
            states, directions = hidden[own].reshape(-1, width), unit[own].reshape(-1, width)
            for i in np.flatnonzero(context).tolist():
                count, frame = int(context[i]), first + i
                anchors = by_density[frame, :count]
                given = (~salient[own].flatten()).index_fill(0, anchors + i * cells, False)
                nearest = (directions @ unit[frame, anchors].T).argmax(dim=1)
                to = (nearest[:, None] == torch.arange(count, device=device)) * given[:, None].float()
                number = to.sum(dim=0)[:, None]
                weight = (1 / (number + 1)).clamp(min=self.anchor_weight)
                mean = to.T @ states / number.clamp(min=1)
                # An anchor that was given nothing has weight 1.
                merged[frame].index_copy_(0, anchors, weight * hidden[frame, anchors] + (1 - weight) * mean)
                stays[frame].index_fill_(0, anchors, True)
            first += length
        kept = true_places(stays.flatten(), stage.total)
        return Merged(kept, merged.flatten(0, 1)[kept].to(visual.hidden.dtype))


def _spread(total: int, parts: int) -> np.ndarray:
    """(parts,) summing to `total`, differing by at most one, the larger first: the official code's rule."""
    return total // parts + (np.arange(parts) < total % parts).astype(np.int64)


def density_peaks(hidden: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """How much each token is the centre of a cluster of its own: density times distance to the next denser.

    hidden: (frames, cells, D). among: (frames, cells), the tokens to look at. Returns (frames, cells), -1 for
    the others. DPC-kNN within each frame, distances over sqrt(D); the densest token's distance is the largest
    of the frame. Of equally dense tokens the earlier one counts as denser (our choice; the official code
    draws).
    """
    import torch

    cells = hidden.shape[1]
    pairs = among[:, :, None] & among[:, None, :]
    distance = torch.cdist(hidden, hidden) / hidden.shape[2] ** 0.5  # (frames, cells, cells)
    nearest = distance.masked_fill(~pairs, torch.inf).topk(min(NEIGHBOURS, cells), largest=False).values
    there = nearest.isfinite()  # a frame may have fewer left
    squares = nearest.square().masked_fill(~there, 0).sum(dim=2) / there.sum(dim=2).clamp(min=1)
    density = (-squares).exp()
    order = torch.arange(cells, device=hidden.device)
    one, other = density[:, :, None], density[:, None, :]
    denser = (other > one) | ((other == one) & (order < order[:, None]))
    largest = distance.masked_fill(~pairs, 0).amax(dim=(1, 2))[:, None, None]
    parent = distance.where(denser & pairs, largest).amin(dim=2)
    score: torch.Tensor = (parent * density).masked_fill(~among, -1)
    return score
