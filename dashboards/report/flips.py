"""The table of all regressions and gains, with what its filters and its order need."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dashboards.picture.picture import Picture
from tuner.reporting.inspection import Kind
from tuner.reporting.values import RegressionRow, RunSummary


@dataclass(frozen=True)
class Flip:
    """One row: a question that pruning decided."""

    kind: Kind
    row: RegressionRow
    # Id of its card in the page; None where it has none.
    card: str | None


@dataclass(frozen=True)
class Filter:
    """A tag to filter by: its key, and its values with the number of rows of each."""

    key: str
    values: tuple[tuple[str, int], ...]


def flips_of(summary: RunSummary, pictures: Sequence[Picture]) -> tuple[Flip, ...]:
    """All rows, the largest change of the margin first; free answers, which have no margin, last."""
    cards = {
        (row.kind, row.question): f"cards-{place}"
        for picture in pictures
        if picture.name == "cards"
        for place, row in enumerate(picture.table)
    }
    decided: tuple[tuple[Kind, tuple[RegressionRow, ...]], ...] = (
        ("regression", summary.regressions),
        ("gain", summary.gains),
    )
    rows = [Flip(kind, row, cards.get((kind, row.question))) for kind, rows in decided for row in rows]
    return tuple(sorted(rows, key=_by_change))


def _by_change(flip: Flip) -> float:
    change = flip.row.margin_change
    return math.inf if change is None else -abs(change)


def filters_of(flips: Sequence[Flip]) -> tuple[Filter, ...]:
    """One filter for each tag that tells rows apart, in the order of the tags' names."""
    counts: dict[str, Counter[str]] = {}
    for flip in flips:
        for key, value in flip.row.tags.items():
            counts.setdefault(key, Counter())[value] += 1
    return tuple(
        Filter(key, tuple(sorted(counted.items())))
        for key, counted in sorted(counts.items())
        if len(counted) > 1 or counted.total() < len(flips)
    )
