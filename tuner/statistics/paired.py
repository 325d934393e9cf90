"""Intervals and tests over videos: questions of one video answer alike, so the video is the unit.

A share of questions is the ratio of two sums over videos (questions that are so, questions). Its interval
comes from a bootstrap over videos on the logit scale; that of a difference is put together from those of
the answers lost and gained. A difference is tested by flipping signs of whole videos; that a configuration
loses no more than a margin is shown by a one-sided bound. Everything is seeded: the same answers give the
same numbers. docs/statistics.md gives the reasons and the simulated coverage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tuner.statistics.values import Interval, Measured

Floats = NDArray[np.float64]
Alternative = Literal["two-sided", "less", "greater"]

LEVEL = 0.95
RESAMPLES = 4000
PERMUTATIONS = 9999

FIXED_SEQUENCE = (0.04, 0.005, 0.005)
"""Error levels of the candidates that are tested on the held-out part, in the tune part's order.

A fixed sequence with weights (Wiens 2003): whichever candidates are too bad, that any of them passes has at
most the sum of their levels as its probability, so the search may go on after a failure.
"""

# Weight of each pseudo-video, as a share of the mean video's; see `_share_ends`. An interval describes and
# should cover 95 times in 100, neither less nor more. A test promises that it errs no more often than its
# level, on the skewed tail that matters to it, and so takes more.
_INTERVAL_WEIGHT = 0.09
_TEST_WEIGHT = 0.2
# Resamples are drawn in blocks of at most this many counts, so that 10,000 videos do not fill the memory.
_BLOCK = 4_000_000
# Rows of `shares` and its like that are resampled at once, for the same reason.
_ROWS = 64

# `provable_drop`: studies that are simulated (fewer where there are many videos), resamples of each, and
# the correlation between two questions of one video as to whether pruning changes their answers.
_SIMULATED = 1000
_SIMULATED_COUNTS = 4_000_000
_SIMULATED_RESAMPLES = 500
_SIMULATED_CORRELATION = 0.05


@dataclass(frozen=True, eq=False)
class VideoCounts:
    """Questions of which something holds, counted within videos: one column per video with questions."""

    counts: Floats  # (K, V): of each of K properties
    questions: Floats  # (V,)

    @classmethod
    def of(cls, flags: Sequence[ArrayLike], videos: Sequence[str]) -> VideoCounts:
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
        counts = np.stack([np.bincount(index, weights=one, minlength=names.size) for one in arrays]).astype(
            np.float64
        )
        questions = np.bincount(index, minlength=names.size).astype(np.float64)
        # Sorted by content: renaming videos, which says nothing of the data, must not change an interval.
        order = np.lexsort((questions, *counts))
        return cls(counts[:, order], questions[order])

    @classmethod
    def of_flips(cls, after: ArrayLike, before: ArrayLike, videos: Sequence[str]) -> VideoCounts:
        """Answers lost and gained, the two rows of `counts`."""
        now, was = np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64)
        if now.shape != was.shape:
            raise ValueError(f"Answers are compared in pairs, but got {now.shape} and {was.shape}.")
        return cls.of([was * (1 - now), now * (1 - was)], videos)


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


def share(flags: ArrayLike, videos: Sequence[str], *, seed: int = 0, level: float = LEVEL) -> Measured:
    """The share of questions that are so (accuracy, agreement, regressions), with its interval over videos.

    The interval is None for fewer than two videos, which say nothing of how videos differ.
    """
    _check_level(level)
    found = VideoCounts.of([flags], videos)
    value = float(found.counts.sum() / found.questions.sum())
    if found.questions.size < 2:
        return Measured(value)
    low, high = _share_ends(
        found.counts[0], found.questions, (1 - level) / 2, RESAMPLES, seed, _INTERVAL_WEIGHT
    )
    return Measured(value, Interval(float(low), float(high)))


def difference(
    after: ArrayLike, before: ArrayLike, videos: Sequence[str], *, seed: int = 0, level: float = LEVEL
) -> Measured:
    """Accuracy after minus accuracy before, paired on the same questions; interval as for `share`."""
    _check_level(level)
    found = VideoCounts.of_flips(after, before, videos)
    if found.questions.size < 2:
        return Measured(_change(found))
    lost, gained = found.counts
    low, high = _difference_ends(
        lost, gained, found.questions, (1 - level) / 2, RESAMPLES, seed, _INTERVAL_WEIGHT
    )
    return Measured(_change(found), Interval(float(low), float(high)))


def non_inferiority(
    after: ArrayLike,
    before: ArrayLike,
    videos: Sequence[str],
    margin: float,
    *,
    level: float = 0.05,
    seed: int = 0,
) -> NonInferiority:
    """Tests that accuracy falls by no more than `margin` (absolute), with this probability of error.

    The bound is made as the lower end of the two-sided interval at 1 - 2 level, but a little lower, so that
    the error stays within the level with few videos too. One video shows nothing.
    """
    _check_level(level)
    found = VideoCounts.of_flips(after, before, videos)
    bound = -1.0
    if found.questions.size >= 2:
        lost, gained = found.counts
        low, _ = _difference_ends(lost, gained, found.questions, level, RESAMPLES, seed, _TEST_WEIGHT)
        bound = float(low)
    return NonInferiority(margin, _change(found), bound, level)


def shares(flags: ArrayLike, videos: Sequence[str], *, seed: int = 0) -> list[Measured]:
    """`share` of each row of `flags` (S, Q), all from the same draws: the same numbers, much faster."""
    found: list[Measured] = []
    for counts, questions in _stacked(np.asarray(flags, dtype=np.float64)[None], videos):
        values = counts[0].sum(axis=-1) / questions.sum(axis=-1)
        if questions.shape[-1] < 2:
            found += [Measured(float(value)) for value in values]
            continue
        tail = (1 - LEVEL) / 2
        low, high = _share_ends(counts[0], questions, tail, RESAMPLES, seed, _INTERVAL_WEIGHT)
        found += _measured(values, low, high)
    return found


def differences(
    after: ArrayLike, before: ArrayLike, videos: Sequence[str], *, seed: int = 0, level: float = LEVEL
) -> list[Measured]:
    """`difference` of each row of `after` (S, Q) from `before` (Q,); as `shares`."""
    _check_level(level)
    found: list[Measured] = []
    for (lost, gained), questions in _stacked(_flips(after, before), videos):
        values = (gained - lost).sum(axis=-1) / questions.sum(axis=-1)
        if questions.shape[-1] < 2:
            found += [Measured(float(value)) for value in values]
            continue
        tail = (1 - level) / 2
        low, high = _difference_ends(lost, gained, questions, tail, RESAMPLES, seed, _INTERVAL_WEIGHT)
        found += _measured(values, low, high)
    return found


def lower_bounds(
    after: ArrayLike, before: ArrayLike, videos: Sequence[str], *, level: float = 0.05, seed: int = 0
) -> Floats:
    """(S,) the bound of `non_inferiority` for each row of `after` (S, Q); as `shares`."""
    _check_level(level)
    bounds: list[Floats] = []
    for (lost, gained), questions in _stacked(_flips(after, before), videos):
        if questions.shape[-1] < 2:
            bounds.append(np.full(len(questions), -1.0))
            continue
        low, _ = _difference_ends(lost, gained, questions, level, RESAMPLES, seed, _TEST_WEIGHT)
        bounds.append(low)
    return np.concatenate(bounds) if bounds else np.zeros(0)


def provable_drop(
    videos: Sequence[str], *, flips: float = 0.05, power: float = 0.8, level: float = 0.04, seed: int = 0
) -> float:
    """The smallest margin that a configuration which loses nothing shows with this power; inf for one video.

    videos: of each question. Pruning is taken to change a share `flips` of the answers, as many gained as
    lost, slightly alike within a video; `level` is that of the test. From simulated studies.
    """
    if not 0 < flips <= 1 or not 0 < power < 1:
        raise ValueError(f"`0 < flips <= 1` and `0 < power < 1` must hold, but got {flips} and {power}.")
    _check_level(level)
    _, questions = np.unique(np.asarray(videos, dtype=object).astype(str), return_counts=True)
    if questions.size < 2:
        return math.inf
    questions = np.sort(questions)
    studies = min(_SIMULATED, max(100, _SIMULATED_COUNTS // questions.size))
    rng = np.random.default_rng(seed)
    # Dirichlet-multinomial counts of answers lost, gained and kept: alike within a video by the correlation.
    shares = np.array([flips / 2, flips / 2, 1 - flips]) * (1 / _SIMULATED_CORRELATION - 1)
    rates = rng.dirichlet(np.maximum(shares, 1e-9), (studies, questions.size))  # (studies, V, 3)
    flipped = rng.multinomial(questions, rates).astype(np.float64)
    bounds, _ = _difference_ends(
        flipped[..., 0],
        flipped[..., 1],
        questions.astype(np.float64),
        level,
        _SIMULATED_RESAMPLES,
        seed,
        _TEST_WEIGHT,
    )
    return float(-np.quantile(bounds, 1 - power))


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

    lost, gained = VideoCounts.of_flips(after, before, videos).counts
    change = gained - lost
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


def _flips(after: ArrayLike, before: ArrayLike) -> Floats:
    """(2, S, Q): lost, gained."""
    now, was = np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64)
    return np.stack([was * (1 - now), now * (1 - was)])


def _stacked(flags: Floats, videos: Sequence[str]) -> Iterator[tuple[Floats, Floats]]:
    """`VideoCounts.of` for each of S rows of flags (K, S, Q), some rows at a time: (K, S', V), (S', V)."""
    names, index = np.unique(np.asarray(videos, dtype=object).astype(str), return_inverse=True)
    member = np.zeros((index.size, names.size))
    member[np.arange(index.size), index] = 1.0
    for start in range(0, flags.shape[1], _ROWS):
        counts = flags[:, start : start + _ROWS] @ member
        questions = np.broadcast_to(member.sum(axis=0), counts.shape[1:])
        # By content, as there: `lexsort` sorts each row by itself.
        order = np.lexsort((questions, *counts), axis=-1)
        yield np.take_along_axis(counts, order[None], -1), np.take_along_axis(questions, order, -1)


def _measured(values: Floats, low: Floats, high: Floats) -> list[Measured]:
    return [
        Measured(float(one), Interval(float(bottom), float(top)))
        for one, bottom, top in zip(values, low, high, strict=True)
    ]


def _change(found: VideoCounts) -> float:
    lost, gained = found.counts.sum(axis=1)
    return float((gained - lost) / found.questions.sum())


def _share_ends(
    counts: Floats, questions: Floats, tail: float, resamples: int, seed: int, pseudo_weight: float
) -> tuple[Floats, Floats]:
    """Both ends of the interval of sum(counts) / sum(questions); each misses with probability `tail`.

    counts: (..., V); questions: (..., V) or (V,); V >= 2. Leading axes are studies of their own, for
    simulations. Returns two arrays (...).

    A t interval with the bootstrap's standard error, on the logit scale: a share near 1 is skewed, and at 15
    and 30 videos percentile, BCa and symmetric intervals are too short (86 to 93 % where 95 % is promised).
    Two pseudo-videos, one all right and one all wrong, keep a part without any error from getting an interval
    of width zero (the idea of Agresti and Coull's interval).
    """
    from scipy.special import expit, logit, stdtrit

    questions = np.broadcast_to(questions, counts.shape)
    weight = pseudo_weight * questions.mean(axis=-1, keepdims=True)
    numerators = np.concatenate([counts, np.zeros_like(weight), weight], axis=-1)
    denominators = np.concatenate([questions, weight, weight], axis=-1)
    centre = numerators.sum(axis=-1) / denominators.sum(axis=-1)
    error = _bootstrap_error(numerators, denominators, centre, resamples, seed)
    reach = stdtrit(counts.shape[-1] - 1, 1 - tail) * error / (centre * (1 - centre))
    estimate = counts.sum(axis=-1) / questions.sum(axis=-1)
    # Where all answers agree the pseudo-videos pull the whole interval away from the estimate.
    low = np.minimum(expit(logit(centre) - reach), estimate)
    return low, np.maximum(expit(logit(centre) + reach), estimate)


def _bootstrap_error(
    numerators: Floats, denominators: Floats, centre: Floats, resamples: int, seed: int
) -> Floats:
    """Standard error of the ratio of sums over the last axis, by drawing from it with replacement."""
    size = numerators.shape[-1]
    first, second = np.zeros_like(centre), np.zeros_like(centre)
    for block in _drawn(size, resamples, seed):
        drawn = block.astype(np.float64)
        deviations = (numerators @ drawn) / (denominators @ drawn) - centre[..., None]
        first += deviations.sum(axis=-1)
        second += (deviations * deviations).sum(axis=-1)
    variance = second / resamples - (first / resamples) ** 2
    return np.asarray(np.sqrt(size / (size - 1) * variance))


@lru_cache(maxsize=8)
def _drawn(size: int, resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    """Blocks (V, B): how often each of V videos is drawn in each of B resamples. The same for every number of
    a study, and drawing takes ten times as long as all else.
    """
    rng = np.random.default_rng(seed)
    even = np.full(size, 1.0 / size)
    smallest = np.uint8 if size < 256 else np.uint16
    return tuple(rng.multinomial(size, even, block).T.astype(smallest) for block in _blocks(resamples, size))


def _difference_ends(
    lost: Floats,
    gained: Floats,
    questions: Floats,
    tail: float,
    resamples: int,
    seed: int,
    pseudo_weight: float,
) -> tuple[Floats, Floats]:
    """Both ends of the interval of (gained - lost) / questions; arguments and returns as of `_share_ends`.

    From the intervals of the two shares, by the square-and-add method for correlated shares (Newcombe 1998;
    Zou and Donner 2008): flips are rare and their shares skewed, which a symmetric interval of the
    difference, or a bootstrap of resamples that hold hardly any flip, does not see.
    """
    total = np.broadcast_to(questions, lost.shape).sum(axis=-1)
    losing, gaining = lost.sum(axis=-1) / total, gained.sum(axis=-1) / total
    (lost_low, gained_low), (lost_high, gained_high) = _share_ends(
        np.stack([lost, gained]), questions, tail, resamples, seed, pseudo_weight
    )
    correlation = _correlation(lost - losing[..., None] * questions, gained - gaining[..., None] * questions)
    low = _root(gaining - gained_low, lost_high - losing, correlation)
    high = _root(gained_high - gaining, losing - lost_low, correlation)
    change = gaining - losing
    return np.maximum(change - low, -1.0), np.minimum(change + high, 1.0)


def _correlation(one: Floats, other: Floats) -> Floats:
    """Over the last axis, of residuals; 0 where one of them is always 0."""
    scale = np.sqrt((one * one).sum(axis=-1) * (other * other).sum(axis=-1))
    return np.asarray((one * other).sum(axis=-1) / np.where(scale > 0, scale, 1.0))


def _root(one: Floats, other: Floats, correlation: Floats) -> Floats:
    """Length of the difference of two vectors with these lengths and this cosine."""
    return np.sqrt(np.maximum(one * one + other * other - 2 * correlation * one * other, 0.0))


def _blocks(resamples: int, videos: int) -> list[int]:
    block = max(1, min(resamples, _BLOCK // videos))
    return [block] * (resamples // block) + ([resamples % block] if resamples % block else [])
