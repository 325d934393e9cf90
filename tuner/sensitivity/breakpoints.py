"""tau_s and tau_t act in steps: every plan over a range of values, each answered once per question.

A segment begins where a similarity is below tau_s, and a segment is boosted if its relevance is at least
tau_t. So with the other knobs fixed, a question's plan changes only where the knob passes one of the
question's own similarities or relevances; between two of these (including the upper one) it is constant. This
is exact, and costs one answer per distinct plan, usually a handful per question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.methods import AdaTP
from tuner.planning.planner import SPLITS, Planner
from tuner.search.space import TOLERANCE, Range
from tuner.statistics.paired import Floats
from tuner.statistics.values import Interval

Indices = NDArray[np.int64]
Threshold = Literal["tau_s", "tau_t"]


@dataclass(frozen=True)
class Piece:
    """A piece of a knob's range, between two breakpoints of a question."""

    question: str
    # The plan is constant above `low` (from `low` on in a question's first piece) up to and including
    # `high`.
    low: float
    high: float
    fingerprint: str

    @property
    def inside(self) -> float:
        """A value away from both ends, so that rounding on another machine cannot change the plan."""
        middle = self.low + (self.high - self.low) / 2
        return middle if self.low < middle else self.high


@dataclass(frozen=True, eq=False)
class Steps:
    """One threshold over its range, the other knobs at the reference: S steps, N pieces of all questions."""

    knob: Threshold
    method: AdaTP
    # (S,) the first value of each step, ascending; and (S,) its last value.
    values: Floats
    until: Floats
    # (S,) exact FLOPs ratio that the budget limits: the larger of both splits' ratios.
    flops_ratio: Floats
    # By question, ascending within a question; and (N,) the step at which each begins.
    pieces: tuple[Piece, ...]
    begins: Indices

    def configuration_at(self, value: float) -> AdaTP:
        """The reference with the knob at `value`."""
        return _at(self.method, self.knob, value)

    def step_of(self, value: float) -> int:
        """The step that contains `value`."""
        return int(np.searchsorted(self.until, value))

    def changes(self) -> Iterator[tuple[int, list[int]]]:
        """(step, indices of the pieces that begin there) for each step where any begins."""
        order = np.argsort(self.begins, kind="stable")
        starts = np.flatnonzero(np.diff(self.begins[order], prepend=-1))
        for chunk in np.split(order, starts[1:]):
            yield int(self.begins[chunk[0]]), chunk.tolist()

    def within(self, budget: float, chosen: float) -> Interval | None:
        """The values around `chosen` within the budget; None if `chosen` is over it."""
        fits = self.flops_ratio <= budget + TOLERANCE
        low = high = self.step_of(chosen)
        if not fits[low]:
            return None
        while low > 0 and fits[low - 1]:
            low -= 1
        while high + 1 < fits.size and fits[high + 1]:
            high += 1
        return Interval(float(self.values[low]), float(self.until[high]))


def steps(planner: Planner, method: AdaTP, knob: Threshold, range_: Range) -> Steps:
    """All steps of a knob over a closed range, for the questions of both splits."""
    thresholds = planner.thresholds(method, knob)
    names: list[str] = []
    lows: list[float] = []
    highs: list[float] = []
    for question in planner.questions:
        own = thresholds[question.id]
        inner = own[(own >= range_.low) & (own < range_.high)].tolist()
        names += [question.id] * (len(inner) + 1)
        lows += [range_.low, *inner]
        highs += [*inner, range_.high]
    blank = [Piece(*piece, "") for piece in zip(names, lows, highs, strict=True)]
    inside = np.array([piece.inside for piece in blank])
    other = np.full(inside.size, getattr(method, "tau_t" if knob == "tau_s" else "tau_s"))
    pair = (inside, other) if knob == "tau_s" else (other, inside)
    found = planner.variants(method, names, *pair)
    pieces = tuple(
        replace(piece, fingerprint=fingerprint)
        for piece, fingerprint in zip(blank, found.fingerprints, strict=True)
    )
    low, high = np.array(lows), np.array(highs)
    until = np.unique(high)
    # The first step includes the low end of the range; the others begin just above a breakpoint.
    values = np.concatenate(([range_.low], np.nextafter(until[:-1], np.inf)))
    first = np.append(True, np.array(names[1:], dtype=object) != np.array(names[:-1], dtype=object))
    begins = np.where(first, 0, np.searchsorted(until, low) + 1).astype(np.int64)
    return Steps(
        knob,
        method,
        values,
        until,
        _ratios(planner, names, begins, first, found.flops, until.size),
        pieces,
        begins,
    )


def _ratios(
    planner: Planner, names: list[str], begins: Indices, first: NDArray[np.bool_], flops: Indices, size: int
) -> Floats:
    """(S,) the larger of both splits' ratios; sums of integers, so exact at every step."""
    change = np.where(first, flops, flops - np.concatenate(([0], flops[:-1])))
    split_of = {question.id: question.split for question in planner.questions}
    splits = np.array([split_of[name] for name in names])
    ratios = []
    for split in SPLITS:
        if split in planner.unpruned_flops:
            mine = splits == split
            added = np.zeros(size, dtype=np.int64)
            np.add.at(added, begins[mine], change[mine])
            ratios.append(np.cumsum(added) / planner.unpruned_flops[split])
    return np.asarray(np.max(ratios, axis=0), dtype=np.float64)


def _at(method: AdaTP, knob: Threshold, value: float) -> AdaTP:
    return replace(method, tau_s=value) if knob == "tau_s" else replace(method, tau_t=value)
