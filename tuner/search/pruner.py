"""The race: a trial that others confidently beat at no higher cost is stopped before it is complete.

After each batch the trial is compared with a mixture of completed trials that costs as much as it does: the
best three that cost no more, and the best three that cost a little more, in such parts that the mixture costs
what the trial costs. (Three, because the luck that made one the best would stop better ones; a little more,
because else every trial would be alone at its own cost.) The comparison is paired on the questions all of
them have answered, on the graded signal (`scoring.graded`), and a video is one observation. A trial just as
good as the mixture is stopped with a probability of `LEVEL` over all looks together: each look asks for the
same p-value, chosen so that a random walk gets below it at any of them with that probability (Pocock's
boundary for group-sequential tests). The best trial of a study is better than what it is compared with, and
is lost far less often; the tests simulate how often, with effects of the demo's design. All of this is our
choice (docs/statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtr

# Probability that a trial as good as those it is compared with is stopped, over all looks.
LEVEL = 0.15

# So many of the best trials on either side of a trial's cost it is compared with.
RIVALS = 3

# The mixture may cost this factor more than the trial, a difference that buys next to nothing; single trials
# in it this one.
SAME_COST = 1.015
DEARER = 1.05

# A look needs that many videos: variances of fewer are guesses.
FEWEST_VIDEOS = 5

# A batch is this share of the tune videos, but not fewer than FEWEST_VIDEOS: more looks find little more.
BATCHES = 16

# Random walks that `boundary` is read from.
_WALKS = 50_000

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VideoSums:
    """A per-question quantity summed within videos. V videos."""

    total: Floats  # (V,)
    questions: Floats  # (V,) number of questions

    @classmethod
    def of(cls, values: ArrayLike, videos: Sequence[str]) -> VideoSums:
        """Groups values, one per question, by video."""
        names, index = np.unique(np.asarray(videos), return_inverse=True)
        total = np.bincount(index, np.asarray(values, dtype=np.float64), names.size).astype(np.float64)
        return cls(total, np.bincount(index, minlength=names.size).astype(np.float64))

    @property
    def mean(self) -> float:
        """Over questions."""
        return float(self.total.sum() / self.questions.sum())


@dataclass(frozen=True)
class Look:
    """One comparison: the mean difference (trial minus the other), and how sure it is to stay below zero."""

    difference: float
    p_value: float
    level: float

    @property
    def beaten(self) -> bool:
        """Whether the trial is stopped."""
        return self.p_value <= self.level


def rivals(costs: Floats, scores: Floats, cost: float) -> Floats | None:
    """What share each completed trial has in the mixture that a trial of this cost is compared with.

    costs, scores: (T,) of the completed trials. None where none of them costs as little.
    """
    allowed = cost * SAME_COST
    order = np.argsort(-scores, kind="stable")
    cheaper = [one for one in order if costs[one] <= allowed][:RIVALS]
    if not cheaper:
        return None
    best = [one for one in order if costs[one] <= cost * DEARER][:RIVALS]
    low, high = costs[cheaper].mean(), costs[best].mean()
    share = 1.0 if high <= allowed else (allowed - low) / (high - low)
    weights = np.zeros(costs.size)
    np.add.at(weights, cheaper, (1.0 - share) / len(cheaper))
    np.add.at(weights, best, share / len(best))
    return weights


def batch_videos(total_videos: int) -> int:
    """Videos between two looks."""
    return max(FEWEST_VIDEOS, math.ceil(total_videos / BATCHES))


@cache
def boundary(total_videos: int, batch: int, level: float = LEVEL) -> float:
    """The p-value each look asks for, so that all together err with probability `level`.

    From seeded random walks; 1 where there is no look.
    """
    seen = [videos for videos in range(batch, total_videos, batch) if videos >= FEWEST_VIDEOS]
    if not seen:
        return 1.0
    steps = np.diff(seen, prepend=0)
    rng = np.random.default_rng(0)
    walks = np.cumsum(rng.standard_normal((_WALKS, len(seen))) * np.sqrt(steps), axis=1) / np.sqrt(seen)
    return float(ndtr(np.quantile(walks.min(axis=1), level)))


def look(change: VideoSums, total_videos: int, batch: int, level: float = LEVEL) -> Look | None:
    """One comparison; None where too few videos were seen, or all of them.

    change: graded signal of the trial minus that of the other, on the questions both answered. total_videos:
    of the whole tune part. batch: videos between two looks.
    """
    seen = change.total.size
    if seen < FEWEST_VIDEOS or seen >= total_videos:
        return None
    mean = change.mean
    residual = change.total - mean * change.questions
    variance = float(residual @ residual) * seen / (seen - 1)
    here = boundary(total_videos, batch, level)
    if not variance > 0:
        # The same answers everywhere: nothing says that one of the two is better.
        return Look(mean, 1.0, here)
    statistic = mean * float(change.questions.sum()) / math.sqrt(variance)
    return Look(mean, float(stdtr(seen - 1, statistic)), here)
