"""Measured values with their intervals, and what tests on the held-out videos found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Whether the chosen configuration loses no more held-out accuracy than the margin: shown; tested and not
# shown; or never tested, because nothing fits or nothing was measured there.
Verdict = Literal["shown", "not_shown", "untested"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval; 95 % unless its maker says otherwise."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"`low <= high` must hold, but got (low={self.low}, high={self.high}).")


@dataclass(frozen=True)
class Measured:
    """A measured value and, where one is meaningful, its interval."""

    value: float
    interval: Interval | None = None

    def minus(self, known: float) -> Measured:
        """Less a number that is known exactly, with the interval moved by it."""
        interval = self.interval
        moved = None if interval is None else Interval(interval.low - known, interval.high - known)
        return Measured(self.value - known, moved)


@dataclass(frozen=True)
class Tested:
    """One candidate's test on the held-out part; the candidates are in the order they were tested in."""

    trial: int
    # Absolute, as are difference and bound: fractions of the questions.
    margin: float
    difference: float
    # One-sided lower confidence bound of the difference, at 1 - level.
    bound: float
    level: float
    shown: bool


@dataclass(frozen=True)
class Noise:
    """The noise floor: the unpruned model against itself, asked in packs of another size.

    `logprob_mean`, `logprob_max`: size of the change in the right answer's log-probability.
    """

    questions: int
    videos: int
    flips: int
    logprob_mean: float
    logprob_max: float

    @property
    def flip_rate(self) -> float:
        """Share of the answers that changed."""
        return self.flips / self.questions


@dataclass(frozen=True)
class Guessing:
    """The unpruned model against guessing, on all labelled questions with options."""

    questions: int
    videos: int
    right: int
    # Mean over these questions of one over the number of options.
    chance: float
    # One-sided 95 % lower bound of the accuracy; the video is the unit, so one video gives none.
    bound: float | None

    @property
    def accuracy(self) -> float:
        """Share that it has right."""
        return self.right / self.questions

    @property
    def no_better(self) -> bool:
        """Whether it has no more right than guessing would on average."""
        return self.right <= self.chance * self.questions + 1e-9  # a sum of thirds is rounded

    @property
    def shown_better(self) -> bool:
        """Whether so many videos tell it from guessing."""
        return self.bound is not None and self.bound > self.chance
