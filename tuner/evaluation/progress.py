"""How a long run reports its progress: a few calls, and an object that ignores them."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Watches a run and never steers it. Phases follow each other: encoding, baseline, noise floor, search,
    above the budget, held-out, serving, pictures.
    """

    def started(self, phase: str, total: int | None) -> None:
        """A phase begins; `total` counts what is left to do in it (videos, questions or trials), None where
        nothing is counted.
        """

    def advanced(self, count: int = 1) -> None:
        """So many more steps of the current phase are done."""

    def now(self, text: str) -> None:
        """What the current phase is at, or has come to so far: shown until the next text or phase."""

    def message(self, text: str) -> None:
        """A line that the user should read."""


class NoProgress:
    """Nobody is watching."""

    def started(self, phase: str, total: int | None) -> None:
        """Ignored."""

    def advanced(self, count: int = 1) -> None:
        """Ignored."""

    def now(self, text: str) -> None:
        """Ignored."""

    def message(self, text: str) -> None:
        """Ignored."""
