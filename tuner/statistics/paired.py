"""Intervals and tests over videos: questions of one video answer alike, so the video is the unit.

A share of questions is the ratio of two sums over videos (questions that are so, questions); a difference is
that of answers gained minus answers lost. Their intervals, and the bound by which a configuration is shown to
lose no more than a margin, are Gaffke's: they hold however the questions of a video fail together, whole
videos included. Whether anything changed at all is tested by flipping signs of whole videos. The same answers
give the same numbers. docs/statistics.md gives the reasons and the simulated coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tuner.statistics.gaffke import upper_mean
from tuner.statistics.values import Interval, Measured

Floats = NDArray[np.float64]
Alternative = Literal["two-sided", "less", "greater"]

LEVEL = 0.95
PERMUTATIONS = 9999


@dataclass(frozen=True, eq=False)
class VideoCounts:
    """Questions of which something holds, counted within videos: one column per video with questions."""

    counts: Floats  # (K, V): of each of K properties
    questions: Floats  # (V,)

    @classmethod
    def of(cls, flags: ArrayLike, videos: Sequence[str]) -> VideoCounts:
        """Group K flags (0 or 1, one per question) by video; order and names of the videos do not matter.

        Errors: ValueError for no questions, a flag without a video, or values other than 0 and 1.
        """
        arrays = np.asarray(flags, dtype=np.float64)
        if arrays.ndim != 2 or arrays.shape[1] != len(videos):
            raise ValueError(
                f"Each value needs its video, but got values {arrays.shape[1:]} and {len(videos)} videos."
            )
        if not arrays.size:
            raise ValueError("At least one question is needed, but got none.")
        if not np.isin(arrays, (0.0, 1.0)).all():
            raise ValueError("All values must be 0 or 1.")
        names, index = np.unique(np.asarray(videos, dtype=object).astype(str), return_inverse=True)
        counts = np.stack(
            [np.bincount(index, weights=array, minlength=names.size) for array in arrays]
        ).astype(np.float64)
        questions = np.bincount(index, minlength=names.size).astype(np.float64)
        return cls(counts, questions)

    @classmethod
    def of_changes(cls, after: ArrayLike, before: ArrayLike, videos: Sequence[str]) -> VideoCounts:
        """Answers gained minus answers lost: `after` (K, Q) against `before` (Q,)."""
        now, was = np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64)
        if now.shape[1:] != was.shape:
            raise ValueError(f"Answers are compared in pairs, but got {now.shape[1:]} and {was.shape}.")
        found = cls.of(np.concatenate([now, was[None]]), videos)
        return cls(found.counts[:-1] - found.counts[-1], found.questions)

    def measured(self, low: Floats, high: Floats) -> list[Measured]:
        """Each row's mean over questions, with this interval."""
        values = (self.counts.sum(axis=1) / self.questions.sum()).tolist()
        if self.questions.size < 2:
            return [Measured(value) for value in values]
        ends = zip(values, low.tolist(), high.tolist(), strict=True)
        return [Measured(value, Interval(min(bottom, value), max(top, value))) for value, bottom, top in ends]


@dataclass(frozen=True)
class NonInferiority:
    """Whether a configuration is shown to lose no more accuracy than a margin."""

    margin: float  # absolute
    difference: float  # accuracy after minus before
    bound: float  # one-sided lower confidence bound of the difference, at 1 - level
    level: float  # probability of showing what is not so

    @property
    def shown(self) -> bool:
        """Whether the bound excludes a drop larger than the margin."""
        return self.bound >= -self.margin


def share(flags: ArrayLike, videos: Sequence[str], *, level: float = LEVEL) -> Measured:
    """The share of questions that are so (accuracy, agreement, regressions), with its interval over videos.

    The interval is None for fewer than two videos, which say nothing of how videos differ.
    """
    return shares(np.asarray(flags)[None], videos, level=level)[0]


def difference(
    after: ArrayLike, before: ArrayLike | None, videos: Sequence[str], *, level: float = LEVEL
) -> Measured:
    """Accuracy after minus accuracy before, paired on the same questions; interval as for `share`.

    before: None where it is right by definition, as the unpruned model is without labels. Nothing can be
    gained then: the difference is the share of right answers minus 1, and so is its interval.
    """
    return differences(np.asarray(after)[None], before, videos, level=level)[0]


def non_inferiority(
    after: ArrayLike, before: ArrayLike, videos: Sequence[str], margin: float, *, level: float = 0.05
) -> NonInferiority:
    """Tests that accuracy falls by no more than `margin` (absolute), with this probability of error."""
    found = difference(after, before, videos)
    bound = lower_bounds(np.asarray(after)[None], before, videos, level=level)[0]
    return NonInferiority(margin, found.value, float(bound), level)


def shares(flags: ArrayLike, videos: Sequence[str], *, level: float = LEVEL) -> list[Measured]:
    """`share` of each row of `flags` (S, Q)."""
    _check_level(level)
    found = VideoCounts.of(flags, videos)
    tail = (1 - level) / 2
    low = 1 - upper_mean(found.questions - found.counts, found.questions, tail)
    high = upper_mean(found.counts, found.questions, tail)
    return found.measured(low, high)


def differences(
    after: ArrayLike, before: ArrayLike | None, videos: Sequence[str], *, level: float = LEVEL
) -> list[Measured]:
    """`difference` of each row of `after` (S, Q) from `before` (Q,)."""
    _check_level(level)
    if before is None:
        return [share.minus(1.0) for share in shares(after, videos, level=level)]
    found = VideoCounts.of_changes(after, before, videos)
    tail = (1 - level) / 2
    low = -upper_mean(-found.counts, found.questions, tail)
    return found.measured(low, upper_mean(found.counts, found.questions, tail))


def lower_bounds(
    after: ArrayLike, before: ArrayLike, videos: Sequence[str], *, level: float = 0.05
) -> Floats:
    """(S,) the bound of `non_inferiority` for each row of `after` (S, Q)."""
    _check_level(level)
    found = VideoCounts.of_changes(after, before, videos)
    return -upper_mean(-found.counts, found.questions, level)


def provable_drop(videos: Sequence[str], *, level: float = 0.05) -> float:
    """The smallest margin that can be shown: by a configuration that loses nothing. videos: per question."""
    same = np.ones((1, len(videos)))
    return float(-lower_bounds(same, same[0], videos, level=level)[0])


def correlation(after: ArrayLike, before: ArrayLike, videos: Sequence[str]) -> float | None:
    """How alike the questions of a video lose their answers: 0 independently, 1 whole videos.

    The intraclass correlation of the losses over all pairs of questions of a video. None where nothing is
    lost, or no video has two questions: then it is not known.
    """
    now, was = np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64)
    found = VideoCounts.of((was * (1 - now))[None], videos)
    lost, questions = found.counts[0], found.questions
    rate = lost.sum() / questions.sum()
    pairs = (questions * (questions - 1)).sum()
    if not 0 < rate < 1 or not pairs:
        return None
    # Of the two questions of a pair: both lost, less what chance alone gives.
    together = (lost * (lost - 1)).sum() / pairs
    return float(np.clip((together - rate**2) / (rate * (1 - rate)), 0.0, 1.0))


def mcnemar_p_value(after: ArrayLike, before: ArrayLike) -> float:
    """McNemar's exact two-sided test on questions: how often as few are lost or gained, were both alike.

    It takes questions as independent, which those of one video are not: too small where videos matter.
    """
    from scipy.stats import binomtest

    now, was = np.asarray(after, dtype=bool), np.asarray(before, dtype=bool)
    lost, gained = int((was & ~now).sum()), int((now & ~was).sum())
    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def sign_flip_p_value(
    after: ArrayLike,
    before: ArrayLike,
    videos: Sequence[str],
    *,
    alternative: Alternative = "two-sided",
    seed: int = 0,
) -> float:
    """How often chance alone gives a difference this large: whole videos' differences flip their signs.

    Exact where all flips can be listed (13 videos that differ at most), else 9,999 random ones.
    """
    from scipy.stats import permutation_test

    change = VideoCounts.of_changes(np.asarray(after)[None], before, videos).counts[0]
    change = change[change != 0]  # a video without a difference is the same under either sign
    if not change.size:
        return 1.0
    if change.size == 1:  # scipy wants two observations; one can only be flipped or not
        return (
            1.0
            if alternative == "two-sided"
            else (0.5 if (change[0] > 0) == (alternative == "greater") else 1.0)
        )
    test = permutation_test(
        (change,),
        lambda flipped, axis: np.sum(flipped, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        # All at once they take 200 MiB for 500 videos; the p-value is the same.
        batch=1000,
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"The level must be between 0 and 1, but got {level}.")
