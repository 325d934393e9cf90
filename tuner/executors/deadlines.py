"""How long a batch may take: a worker that hangs is ended, and what it was doing goes to another."""

from __future__ import annotations

# Our choice, generous because what is ended in vain is done again: so many times what the slowest batch of
# its kind has taken in this run, but no less than so many seconds.
MULTIPLE = 10.0
LEAST = 600.0

# Seconds where none of its kind has been seen in this run.
FIRST = 7200.0


class Deadlines:
    """Learns from the batches of a run, by the kind of their calls."""

    def __init__(self, fixed: float | None = None) -> None:
        """fixed: seconds that the user named, for all batches."""
        self._fixed = fixed
        self._slowest: dict[str, float] = {}

    def took(self, kind: str, seconds: float) -> None:
        """A batch is done."""
        self._slowest[kind] = max(seconds, self._slowest.get(kind, 0.0))

    def seconds(self, kind: str) -> float:
        """How long a batch of this kind may take."""
        if self._fixed is not None:
            return self._fixed
        slowest = self._slowest.get(kind)
        return FIRST if slowest is None else max(LEAST, MULTIPLE * slowest)
