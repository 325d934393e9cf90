"""How a long run reports its progress: three calls, and an object that ignores them."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Watches a run and never steers it. Phases follow each other: encoding, baseline, noise floor, trials,
    held-out, ad hoc, costs, inspection.
    """

    def started(self, phase: str, total: int) -> None:
        """A phase begins; `total` counts what is left to do in it (videos, questions or trials)."""

    def advanced(self, count: int = 1) -> None:
        """So many more steps of the current phase are done."""

    def message(self, text: str) -> None:
        """A line that the user should read."""


class NoProgress:
    """Nobody is watching."""

    def started(self, phase: str, total: int) -> None:
        """Ignored."""

    def advanced(self, count: int = 1) -> None:
        """Ignored."""

    def message(self, text: str) -> None:
        """Ignored."""
