"""Merging visual tokens before the language model: what a method that merges is given, and what it returns.

How many tokens stay is planned, so every shape is known on the host. Sums over merged tokens are products
with matrices of ones and zeros: scattered additions would round differently from run to run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from pipeline.clip import Saliency


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """The visual tokens of one video before layer 0."""

    hidden: torch.Tensor  # (frames, cells, D) as the language model would read them
    saliency: Saliency  # on the same device


class Merged(NamedTuple):
    """What stays of them."""

    kept: torch.Tensor  # (total,) indices into the visual sequence, ascending
    hidden: torch.Tensor  # (total, D) the states that stand in their places


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """(frames, cells) rank of each cell within its frame, 0 for the highest score; ties go to the earlier
    cell.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def true_places(mask: torch.Tensor, total: int) -> torch.Tensor:
    """(..., total) where the last axis is true, ascending, of masks known to be true `total` times.

    Where one is true less often, places follow at which it is false.
    """
    return (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[..., :total]
