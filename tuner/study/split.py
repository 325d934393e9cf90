"""Which videos are held out: by video, never by question, and decided before anything is decoded.

A video's split depends only on its name, the seed and the other names, so that the same study is split in
the same way on every machine, in whatever order its lines are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection


def hold_out(videos: Collection[str], fraction: float, seed: int) -> frozenset[str]:
    """Names of the held-out videos: `fraction` of them, rounded, with at least one in each split."""
    if len(videos) < 2:
        raise ValueError(f"a split needs at least 2 videos, but got {len(videos)}")
    if not 0 < fraction < 1:
        raise ValueError(f"the held-out fraction lies between 0 and 1, but got {fraction}")
    count = min(max(round(fraction * len(videos)), 1), len(videos) - 1)
    return frozenset(sorted(videos, key=lambda name: _rank(name, seed))[:count])


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "surrogateescape")).digest()
