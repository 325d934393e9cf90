"""The pruner: a trial that others confidently beat at no higher cost is stopped before it is complete.

After each batch of videos the trial is compared with a weighted mean of completed trials that costs as much
as it does: the three best that cost no more, and the three best that cost a little more, weighted so that the
mean cost is the trial's. (Three, because a single best one owes part of its score to luck and would stop
better trials; a little more, because otherwise a trial would rarely find another at its own cost.) The
comparison is paired on the questions that all of them have answered, on the graded signal
(`scoring.graded`), and a video is one observation.

The comparisons are the interim analyses of a group-sequential test: all use the same p-value, chosen so that
a trial as good as the mean is pruned with a probability of `LEVEL` over all of them together (Pocock's
boundary). The best trial of a study is better than what it is compared with and is lost far less often; the
tests simulate how often, with effects of the demo's design. The reference and the level are our choice
(docs/statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, stdtr

# Probability that a trial as good as those it is compared with is pruned, over all interim analyses.
LEVEL = 0.15

# A trial is compared with so many of the best that cost no more, and so many that cost a little more.
REFERENCE_TRIALS = 3

# How many times the trial's cost the weighted mean may cost (a difference that buys next to nothing), and how
# many times a single trial in it may.
SAME_COST = 1.015
DEARER = 1.05

# An interim analysis needs that many videos: variances of fewer are guesses.
FEWEST_VIDEOS = 5

# The tune videos are answered in so many batches, of FEWEST_VIDEOS at least: more analyses find little more.
BATCHES = 16

# Simulated tests that `boundary` is read from.
_SIMULATIONS = 50_000

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
class InterimAnalysis:
    """The mean difference, trial minus reference; the p-value of its being zero or above; and the level."""

    difference: float
    p_value: float
    level: float

    @property
    def inferior(self) -> bool:
        """Whether the trial is to be pruned."""
        return self.p_value <= self.level


def reference_weights(costs: Floats, scores: Floats, cost: float) -> Floats | None:
    """The weight of each completed trial in the mean that a trial of this cost is compared with.

    costs, scores: (T,) of the completed trials. None where none of them costs as little.
    """
    allowed = cost * SAME_COST
    order = np.argsort(-scores, kind="stable")
    cheaper = [candidate for candidate in order if costs[candidate] <= allowed][:REFERENCE_TRIALS]
    if not cheaper:
        return None
    best = [candidate for candidate in order if costs[candidate] <= cost * DEARER][:REFERENCE_TRIALS]
    low, high = costs[cheaper].mean(), costs[best].mean()
    share = 1.0 if high <= allowed else (allowed - low) / (high - low)
    weights = np.zeros(costs.size)
    np.add.at(weights, cheaper, (1.0 - share) / len(cheaper))
    np.add.at(weights, best, share / len(best))
    return weights


def batch_videos(total_videos: int) -> int:
    """Videos between two interim analyses."""
    return max(FEWEST_VIDEOS, math.ceil(total_videos / BATCHES))


@cache
def boundary(total_videos: int, batch: int, level: float = LEVEL) -> float:
    """The p-value for every interim analysis with which all together err with probability `level`.

    From seeded simulations; 1 where there is no interim analysis.
    """
    seen = [videos for videos in range(batch, total_videos, batch) if videos >= FEWEST_VIDEOS]
    if not seen:
        return 1.0
    steps = np.diff(seen, prepend=0)
    rng = np.random.default_rng(0)
    statistics = np.cumsum(rng.standard_normal((_SIMULATIONS, len(seen))) * np.sqrt(steps), axis=1) / np.sqrt(
        seen
    )
    return float(ndtr(np.quantile(statistics.min(axis=1), level)))


def interim_analysis(
    change: VideoSums, total_videos: int, batch: int, level: float = LEVEL
) -> InterimAnalysis | None:
    """None where too few videos were answered, or all of them.

    change: graded signal of the trial minus that of the reference, on the questions all answered.
    total_videos: of the whole tune split. batch: videos between two interim analyses.
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
        return InterimAnalysis(mean, 1.0, here)
    statistic = mean * float(change.questions.sum()) / math.sqrt(variance)
    return InterimAnalysis(mean, float(stdtr(seen - 1, statistic)), here)
