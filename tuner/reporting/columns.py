"""Tables of plain text that fit a terminal: columns that say least are left out until the rest has room, and
no number is ever cut short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of a table: its title in up to two lines, its cells, and how soon it gives way."""

    title: str
    cells: tuple[str, ...]
    right: bool = True
    # Where there is no room, those with the highest are left out first; 0: never.
    rank: int = 0

    @property
    def width(self) -> int:
        """Of its widest cell or title."""
        return max(map(len, (*self.title.split("\n"), *self.cells)), default=0)


@dataclass(frozen=True)
class Fitted:
    """A table's lines, and the titles of the columns that have no room."""

    # Two lines of titles and a rule.
    head: tuple[str, ...]
    # A line for each row.
    body: tuple[str, ...]
    left_out: tuple[str, ...]


def fitted(columns: Sequence[Column], width: int | None, gap: int = 1) -> Fitted:
    """The columns side by side, `gap` spaces apart, in at most `width` characters (None: all of them), while
    those of rank 0 have room.

    By hand: rich takes seconds for a thousand rows.
    """
    shown, left_out = list(columns), []
    while width is not None and sum(frame.width + gap for frame in shown) - gap > width:
        last = max(shown, key=lambda frame: frame.rank)
        if not last.rank:
            break
        shown.remove(last)
        left_out.append(last.title.replace("_\n", "_").replace("\n", " "))
    titles = [["", *frame.title.split("\n")][-2:] for frame in shown]
    lines = [list(line) for line in zip(*titles, strict=True)]
    lines += [list(cells) for cells in zip(*(frame.cells for frame in shown), strict=True)]
    first, second, *body = (
        (" " * gap)
        .join(
            cell.rjust(frame.width) if frame.right else cell.ljust(frame.width)
            for cell, frame in zip(line, shown, strict=True)
        )
        .rstrip()
        for line in lines
    )
    rule = "-" * max(map(len, (first, second, *body)))
    return Fitted((first, second, rule), tuple(body), tuple(left_out))
