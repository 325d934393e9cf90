"""Intervals and tests over videos: questions of one video answer alike, so the video is the unit.

A mean over questions is treated as the ratio of two sums over videos (right answers, questions). Its
interval is a studentised bootstrap over videos; a difference is tested by flipping signs of whole videos.
Everything is seeded: the same answers give the same numbers. docs/statistics.md gives the reasons and the
simulated coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tuner.results import Interval, Measured

Floats = NDArray[np.float64]
Alternative = Literal["two-sided", "less", "greater"]

LEVEL = 0.95
RESAMPLES = 4000
PERMUTATIONS = 9999

# Weight of each pseudo-video, as a share of the mean video's. See `_interval`.
_PSEUDO_WEIGHT = 0.25
# Resamples are drawn in blocks of at most this many counts, so that 10,000 videos do not fill the memory.
_BLOCK = 4_000_000


@dataclass(frozen=True, eq=False)
class VideoSums:
    """A per-question quantity summed within videos: one row per video that has questions."""

    total: Floats  # (V,) sum of the quantity over the video's questions
    questions: Floats  # (V,) number of questions

    @classmethod
    def of(cls, values: ArrayLike, videos: Sequence[str]) -> VideoSums:
        """Group values, one per question, by video; the order of the videos does not matter."""
        array = np.asarray(values, dtype=np.float64)
        if array.shape != (len(videos),):
            raise ValueError(
                f"Each value needs its video, but got values {array.shape} and {len(videos)} videos."
            )
        if not array.size:
            raise ValueError("At least one question is needed, but got none.")
        if not np.isfinite(array).all():
            raise ValueError("All values must be finite.")
        names, index = np.unique(np.asarray(videos, dtype=object).astype(str), return_inverse=True)
        total = np.bincount(index, weights=array, minlength=names.size).astype(np.float64)
        questions = np.bincount(index, minlength=names.size).astype(np.float64)
        # Sorted by content: renaming videos, which says nothing of the data, must not change an interval.
        order = np.lexsort((questions, total))
        return cls(total[order], questions[order])

    @property
    def mean(self) -> float:
        """The mean over questions."""
        return float(self.total.sum() / self.questions.sum())


def share(flags: ArrayLike, videos: Sequence[str], *, seed: int = 0, level: float = LEVEL) -> Measured:
    """The share of questions that are so (accuracy, agreement, regressions); interval within [0, 1]."""
    return mean(flags, videos, bounds=(0.0, 1.0), seed=seed, level=level)


def difference(
    after: ArrayLike, before: ArrayLike, videos: Sequence[str], *, seed: int = 0, level: float = LEVEL
) -> Measured:
    """Accuracy after minus accuracy before, paired on the same questions; interval within [-1, 1]."""
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return mean(change, videos, bounds=(-1.0, 1.0), seed=seed, level=level)


def mean(
    values: ArrayLike,
    videos: Sequence[str],
    *,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Measured:
    """The mean over questions with an interval over videos; `bounds` are what a question can take at all.

    The interval is None for fewer than two videos, which say nothing of how videos differ.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"The level must be between 0 and 1, but got {level}.")
    sums = VideoSums.of(values, videos)
    return Measured(sums.mean, _interval(sums, bounds, level, resamples, np.random.default_rng(seed)))


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

    change = VideoSums.of(
        np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64), videos
    ).total
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
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _interval(
    sums: VideoSums,
    bounds: tuple[float, float] | None,
    level: float,
    resamples: int,
    rng: np.random.Generator,
) -> Interval | None:
    """Studentised bootstrap over videos of the ratio total / questions.

    Percentile and BCa intervals are too short at 15 and 30 videos (86 to 93 % where 95 % is promised), and
    a plain studentised one fails where few videos differ, because many resamples then show no variation at
    all. Two pseudo-videos at the two extremes a question can take, each of a quarter of a mean video's
    weight, repair that (the idea of Agresti and Coull's interval). Without them a part without any error
    would get an interval of width zero.
    """
    if sums.total.size < 2:
        return None
    estimate = sums.mean
    total, questions = sums.total, sums.questions
    if bounds is not None:
        weight = _PSEUDO_WEIGHT * questions.mean()
        total = np.append(total, [bounds[0] * weight, bounds[1] * weight])
        questions = np.append(questions, [weight, weight])
    products = np.stack([total * total, total * questions, questions * questions], axis=1)  # (V, 3)
    centre, error = _ratio(total.sum(), questions.sum(), products.sum(axis=0), total.size)
    if not error > 0:
        return Interval(estimate, estimate)
    studentised = []
    for size in _blocks(resamples, total.size):
        # (B, V) how often each video is drawn
        drawn = rng.multinomial(total.size, np.full(total.size, 1.0 / total.size), size).astype(np.float64)
        moments = (drawn @ products).T  # (3, B)
        resampled, errors = _ratio(drawn @ total, drawn @ questions, moments, total.size)
        varied = errors > 0
        studentised.append((resampled[varied] - centre) / errors[varied])
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(np.concatenate(studentised), [tail, 1.0 - tail])
    ends = np.array([centre - high * error, centre - low * error])
    if bounds is not None:
        ends = np.clip(ends, *bounds)
    # Where all answers agree the pseudo-videos pull the whole interval away from the estimate.
    return Interval(float(min(ends[0], estimate)), float(max(ends[1], estimate)))


def _ratio(total: Floats, questions: Floats, moments: Floats, videos: int) -> tuple[Floats, Floats]:
    """The ratio and its linearised standard error, from sums and second moments over videos."""
    ratio = total / questions
    squares = moments[0] - 2.0 * ratio * moments[1] + ratio * ratio * moments[2]  # sum of (t - ratio q)^2
    # Cancellation can leave a tiny remainder, of either sign, of what is exactly zero.
    squares = np.where(squares > 1e-12 * moments[2], squares, 0.0)
    return ratio, np.sqrt(videos / (videos - 1) * squares) / questions


def _blocks(resamples: int, videos: int) -> list[int]:
    block = max(1, min(resamples, _BLOCK // videos))
    return [block] * (resamples // block) + ([resamples % block] if resamples % block else [])
