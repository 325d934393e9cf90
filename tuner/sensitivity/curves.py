"""One knob at a time: accuracy along its range, for all questions and by tag.

For tau_s and tau_t the rows cover every step. Neighbouring steps with the same right and wrong answers are
one row, so nothing is interpolated and no bad step is skipped. For the other knobs there is a row for each
configuration of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.methods import AdaTP
from tuner.planning.planner import Planner
from tuner.records.values import Pair
from tuner.search.space import TOLERANCE, Range
from tuner.sensitivity.breakpoints import Steps
from tuner.sensitivity.results import Curve, CurvePoint
from tuner.statistics import paired
from tuner.statistics.paired import Floats
from tuner.statistics.values import Interval
from tuner.study.values import QuestionResult

Flags = NDArray[np.bool_]

# Configurations of a grid, including the reference.
GRID = 9

# Most rows of a curve, and of a curve by tag: a large study has more steps than a figure can show.
MOST_POINTS = 1000
MOST_POINTS_BY_TAG = 60

LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Compared:
    """The Q questions of a split in the study's order, with the results that each row is compared with."""

    questions: tuple[str, ...]
    videos: tuple[str, ...]
    baseline: tuple[QuestionResult, ...]
    reference: Flags  # (Q,) right with the reference

    @property
    def unpruned(self) -> Flags:
        """(Q,) right without pruning."""
        return np.array([answer.correct for answer in self.baseline])

    def only(self, mask: Flags) -> Compared:
        """Restricted to some of the questions."""
        keep = np.flatnonzero(mask).tolist()
        return Compared(
            tuple(self.questions[index] for index in keep),
            tuple(self.videos[index] for index in keep),
            tuple(self.baseline[index] for index in keep),
            self.reference[mask],
        )


@dataclass(frozen=True, eq=False)
class Track:
    """Answers along one knob: T rows, Q questions."""

    knob: str
    exact: bool
    chosen: float
    # The row of the chosen value: the reference itself, or plans with the same answers.
    at: int
    values: Floats  # (T,) as in `CurvePoint`
    until: Floats  # (T,)
    flops_ratio: Floats  # (T,)
    correct: Flags  # (T, Q)
    # (T, Q) right in every step of the row; safety is judged by it. Equals `correct` unless rows were merged.
    always: Flags
    logprob: Floats  # (T, Q) change of the right answer's from the unpruned model; NaN if unknown
    # (T,) whether every question's plan equals the reference's.
    same: Flags
    within_budget: Interval | None

    def only(self, mask: Flags) -> Track:
        """Of some of the questions; rows that become equal are merged."""
        narrowed = replace(
            self, correct=self.correct[:, mask], always=self.always[:, mask], logprob=self.logprob[:, mask]
        )
        if not self.exact:
            return narrowed
        return _merged(narrowed, _runs(narrowed.correct))


def exact_track(
    found: Steps, chosen: float, budget: float, split: Compared, judged: Mapping[Pair, QuestionResult]
) -> Track:
    """Every step of tau_s or tau_t, from the answers to its plans."""
    place = {question: index for index, question in enumerate(split.questions)}
    before = [answer.logprob_right for answer in split.baseline]
    correct, logprob = np.zeros(len(place), dtype=bool), np.full(len(place), math.nan)
    starts: list[int] = []
    rows: list[Flags] = []
    changes: list[Floats] = []
    for step, pieces in found.changes():
        mine = [found.pieces[index] for index in pieces if found.pieces[index].question in place]
        if not mine:
            continue
        for piece in mine:
            index = place[piece.question]
            one = judged[piece.question, piece.fingerprint]
            correct[index] = one.correct
            logprob[index] = _change(one.logprob_right, before[index])
        starts.append(step)
        rows.append(correct.copy())
        changes.append(logprob.copy())
    begin = np.array(starts)
    track = Track(
        knob=found.knob,
        exact=True,
        chosen=chosen,
        at=int(np.searchsorted(begin, found.step_of(chosen), side="right")) - 1,
        values=found.values[begin],
        until=found.until[np.append(begin[1:], found.until.size) - 1],
        flops_ratio=np.maximum.reduceat(found.flops_ratio, begin),
        correct=np.array(rows),
        always=np.array(rows),
        logprob=np.array(changes),
        same=np.zeros(begin.size, dtype=bool),
        within_budget=found.within(budget, chosen),
    )
    return _merged(track, _runs(track.correct))


def grid_track(
    knob: str,
    chosen: float,
    budget: float,
    configurations: Sequence[AdaTP],
    planner: Planner,
    split: Compared,
    judged: Mapping[Pair, QuestionResult],
) -> Track:
    """The answers of these configurations, ascending in the knob; one of them is the reference."""
    values = np.array([float(getattr(configuration, knob)) for configuration in configurations])
    before = [answer.logprob_right for answer in split.baseline]
    rows, changes, prints = [], [], []
    for item in configurations:
        found = planner.fingerprints(item, split.questions)
        answers = [judged[pair] for pair in zip(split.questions, found, strict=True)]
        rows.append([answer.correct for answer in answers])
        changes.append(
            [_change(answer.logprob_right, was) for answer, was in zip(answers, before, strict=True)]
        )
        prints.append(found)
    at = int(np.flatnonzero(values == chosen)[0])
    flops = np.array([planner.binding_ratio(configuration) for configuration in configurations])
    correct = np.array(rows)
    return Track(
        knob=knob,
        exact=False,
        chosen=chosen,
        at=at,
        values=values,
        until=values,
        flops_ratio=flops,
        correct=correct,
        always=correct,
        logprob=np.array(changes),
        same=np.array([print_ == prints[at] for print_ in prints]),
        within_budget=_around(flops <= budget + TOLERANCE, at, values, values),
    )


def grid(method: AdaTP, knob: str, range_: Range, prunings: int) -> list[AdaTP]:
    """The reference with one ratio changed: `GRID` values over the range, including the chosen one.

    The grid is dense near the chosen value and logarithmic, because after J prunings a ratio r keeps r^J. A
    gamma_cap below p has no effect, so its grid begins at p.
    """
    chosen = float(getattr(method, knob))
    least = method.p if knob == "gamma_cap" else range_.low
    centre = max(chosen, least)
    low, high = min(max(range_.low, least), centre), max(range_.high, centre)
    reach = {-1: prunings * math.log(centre / low), 1: prunings * math.log(high / centre)}
    weight = {side: math.sqrt(distance) for side, distance in reach.items()}
    values = {chosen}
    for side, item in reach.items():
        count = round((GRID - 1) * weight[side] / (sum(weight.values()) or 1.0))
        count = max(count, 1) if item > 0 else 0
        for k in range(1, count):
            values.add(round(centre * math.exp(side * item * (k / count) ** 3 / prunings), 6))
        if count:
            values.add(low if side < 0 else high)
    # From the value where the other knob of the pair begins to bind nothing changes: a corner of the curve.
    corner = {"gamma_cap": method.alpha_boost * method.p, "alpha_boost": method.gamma_cap / method.p}.get(
        knob
    )
    if corner is not None and low < corner < high:
        values.add(corner)
    changed: list[dict[str, Any]] = [{knob: value} for value in sorted(values)]
    return [replace(method, **change) for change in changed]


def curve(
    track: Track, split: Compared, margin: float, most: int, tag: tuple[str, str] | None = None
) -> Curve:
    """A track as a curve: accuracy and differences with their intervals, and the safe range.

    A row is safe if the one-sided 95 % lower bound of its paired difference from the reference is above
    -margin. The safe range extends from the chosen value to the last safe row before an unsafe one.
    """
    track = _coarse(track, most)
    accuracy = paired.shares(track.correct, split.videos)
    difference = paired.differences(track.correct, split.reference, split.videos)
    bounds = paired.lower_bounds(track.always, split.reference, split.videos, level=LEVEL)
    safe = (bounds >= -margin) | track.same
    safe[track.at] = True  # it is the reference
    lost = (split.unpruned & ~track.correct).sum(axis=1)
    gained = (track.correct & ~split.unpruned).sum(axis=1)
    points = tuple(
        CurvePoint(
            value=float(track.values[row]),
            until=float(track.until[row]),
            accuracy=accuracy[row],
            difference=difference[row],
            flops_ratio=float(track.flops_ratio[row]),
            regressions=int(lost[row]),
            gained=int(gained[row]),
            logprob_change=_mean(track.logprob[row]),
            safe=bool(safe[row]),
        )
        for row in range(len(track.values))
    )
    return Curve(
        knob=track.knob,
        exact=track.exact,
        chosen=track.chosen,
        points=points,
        safe=_around(safe, track.at, track.values, track.until),
        tag=tag,
        questions=len(split.questions),
        within_budget=track.within_budget,
    )


def _around(holds: Flags, at: int, values: Floats, until: Floats) -> Interval | None:
    """The values of the rows around `at` where all hold; None if row `at` does not."""
    if not holds[at]:
        return None
    low = high = at
    while low > 0 and holds[low - 1]:
        low -= 1
    while high + 1 < holds.size and holds[high + 1]:
        high += 1
    return Interval(float(values[low]), float(until[high]))


def _runs(correct: Flags) -> list[int]:
    """The first row of each run of equal rows."""
    return [0, *(np.flatnonzero((correct[1:] != correct[:-1]).any(axis=1)) + 1).tolist()]


def _coarse(track: Track, most: int) -> Track:
    """About `most` rows at most: neighbours are merged and represented by the worst of them.

    The row of the reference is not merged. A merged row counts a question as right for safety only if it is
    right in all its rows, which is conservative.
    """
    rows = len(track.values)
    if not track.exact or rows <= most:
        return track
    size = math.ceil(rows / (most - 2))
    begin = [*range(0, track.at, size), track.at, *range(track.at + 1, rows, size)]
    return _merged(track, begin)


def _merged(track: Track, begin: Sequence[int]) -> Track:
    """Neighbouring rows merged; each group starts at a row of `begin`."""
    first = np.asarray(begin)
    ends = np.append(first[1:], len(track.values))
    # A step at a single value has no width but may be a group of its own.
    width = np.maximum(track.until - track.values, 1e-12)[:, None]
    right = track.correct.sum(axis=1)
    worst = [start + int(np.argmin(right[start:end])) for start, end in zip(first, ends, strict=True)]
    return replace(
        track,
        at=int(np.searchsorted(first, track.at, side="right")) - 1,
        values=track.values[first],
        until=track.until[ends - 1],
        flops_ratio=np.maximum.reduceat(track.flops_ratio, first),
        correct=track.correct[worst],
        always=np.logical_and.reduceat(track.always, first, axis=0),
        logprob=np.add.reduceat(track.logprob * width, first, axis=0) / np.add.reduceat(width, first, axis=0),
        same=np.logical_and.reduceat(track.same, first),
    )


def _change(now: float | None, before: float | None) -> float:
    return math.nan if now is None or before is None else now - before


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0
