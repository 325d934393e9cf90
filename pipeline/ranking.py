"""Selecting tokens on the device: one vectorised ranking for all groups of a layer, and no synchronisation.

How many stay is planned beforehand, so where each group's block of ranked tokens ends is known on the host;
which tokens those are is found by two sorts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.layout import Layout
from pipeline.plan import Plan


@dataclass(frozen=True, eq=False)
class Stage:
    """One pruning of one question, as tensors on the device."""

    total: int  # visual tokens that stay
    frames: int
    cells: int
    # (visual,) of each original visual token: group x cells + cell, a number for each position of each group.
    slot: torch.Tensor
    slots: int  # how many there are
    kept_ranks: torch.Tensor  # (total,) which ranks stay when tokens are ordered by group, then by rank
    groups: tuple[int, ...]  # on the host: tokens of each group before any pruning,
    kept: tuple[int, ...]  # and what stays of them


def stages(plan: Plan, layout: Layout, device: torch.device) -> tuple[Stage, ...]:
    """The prunings of a plan, prepared on the host and sent to the device in one copy."""
    groups = np.array(plan.groups, dtype=np.int64)
    visual = np.arange(layout.visual, dtype=np.int64)
    slot = np.repeat(np.arange(groups.size), groups) * layout.cells + visual % layout.cells
    takes, before = [], groups
    for kept in np.array(plan.kept, dtype=np.int64).reshape(len(plan.kept), groups.size):
        starts = (
            np.cumsum(before) - before
        )  # where a group's block begins among the tokens that are still there
        takes.append(np.repeat(starts - (np.cumsum(kept) - kept), kept) + np.arange(kept.sum()))
        before = kept
    packed = torch.from_numpy(np.concatenate([slot, *takes])).to(device)
    parts = torch.split(packed, [layout.visual, *(take.size for take in takes)])
    slots = groups.size * layout.cells
    return tuple(
        Stage(take.shape[0], layout.frames, layout.cells, parts[0], slots, take, plan.groups, kept)
        for take, kept in zip(parts[1:], plan.kept, strict=True)
    )


def best_in_groups(stage: Stage, scores: torch.Tensor, tokens: torch.Tensor, *, debias: bool) -> torch.Tensor:
    """The planned number of best-scored tokens of each group.

    With `debias`, the best-scored token of a cell within a group ranks before every repeat of any cell; among
    themselves representatives and repeats rank by score. Ties go to the earlier token. scores, tokens: (n,)
    of the visual tokens still there. Returns (stage.total,) indices into them, ascending.
    """
    n = tokens.shape[0]
    by_score = scores.argsort(descending=True, stable=True)
    slot = stage.slot[tokens]
    rank = torch.empty_like(by_score)
    rank[by_score] = torch.arange(n, device=rank.device)
    key = slot.div(stage.cells, rounding_mode="floor")  # the group
    if debias:
        best = torch.full((stage.slots,), n, dtype=rank.dtype, device=rank.device)
        best.scatter_reduce_(0, slot, rank, "amin")  # ranks are unique: exactly one representative
        key = 2 * key + (best[slot] != rank)
    in_order = (key * n + rank).argsort()
    return in_order[stage.kept_ranks].sort().values


def drawn_scores(seed: str, tokens: torch.Tensor) -> torch.Tensor:
    """(n,) uniform scores that depend on the seed alone, on every machine and device."""
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    )
    return torch.rand(tokens.shape[0], generator=generator).to(tokens.device, non_blocking=True)
