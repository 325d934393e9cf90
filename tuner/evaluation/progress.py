"""How a long run tells of itself: three calls, and an object that ignores them."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Watches a run; never steers it. Phases come one after another: encoding, baseline, trials, held-out,
    costs, inspection.
    """

    def started(self, phase: str, total: int) -> None:
        """A phase begins; `total` counts what is left to do in it (videos, questions or trials)."""

    def advanced(self, count: int = 1) -> None:
        """So many more of the running phase are done."""

    def message(self, text: str) -> None:
        """One line a person should read."""


class NoProgress:
    """Nobody is watching."""

    def started(self, phase: str, total: int) -> None:
        """Ignored."""

    def advanced(self, count: int = 1) -> None:
        """Ignored."""

    def message(self, text: str) -> None:
        """Ignored."""
