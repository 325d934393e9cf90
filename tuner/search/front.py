"""Whether a search still improves its front of accuracy against FLOPs ratio."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


def trials_since_growth(trials: Iterable[tuple[float, float] | None], reference: tuple[float, float]) -> int:
    """How many of the latest trials added nothing to the hypervolume of the front.

    trials: (FLOPs ratio, score) in order of number, None for a trial without a result. reference: the ratio
    above which, and the score below which, nothing counts. A trial adds area exactly where no earlier one
    costs as little and scores as high, so only the front is kept: n trials take O(n log n).
    """
    since = 0
    ratios, scores = list[float](), list[float]()  # the front: both rise
    for trial in trials:
        since += 1
        if trial is None or trial[0] >= reference[0] or trial[1] <= reference[1]:
            continue
        ratio, score = trial
        cheaper = bisect_right(ratios, ratio)
        if cheaper and scores[cheaper - 1] >= score:
            continue
        since = 0
        # All that cost as much or more and score no higher are dominated now.
        first, last = bisect_left(ratios, ratio), bisect_right(scores, score)
        ratios[first:last], scores[first:last] = [ratio], [score]
    return since
