"""Coordinates of the search: what the sampler sees, and the way from there to a configuration and back.

"budget"  the share of frame pairs that are cuts, tau_t, alpha_boost, how far gamma_cap lies above p, and a
          compute target, dense near the budget; p is solved for it on the plans. Every reachable proposal
          lands on its target, so the sampler spends nothing on finding the budget's border, and compute is an
          axis of the search.
"knobs"   the five knobs themselves; a proposal over the budget is refused after its plans are counted.

Ranges derive from the fields of `AdaTP`, narrowed by what the study fixes or bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from pipeline.methods import KNOBS, AdaTP, knobs
from pipeline.solve import Unreachable
from tuner.errors import UserError
from tuner.planning import Planner
from tuner.results import Configuration
from tuner.study import Search

Coordinates = Literal["budget", "knobs"]
COORDINATES: tuple[Coordinates, ...] = ("budget", "knobs")

Point = dict[str, float]

# How far above the budget a ratio may lie without being over it: the noise of floating point.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Range:
    """A closed interval of one coordinate."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def clip(self, value: float) -> float:
        """The value of the interval closest to this one."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Candidate:
    """A configuration made from a point; over the budget when `binding_ratio` says so."""

    configuration: Configuration
    binding_ratio: float


class Space(Protocol):
    """Coordinates of one search."""

    @property
    def ranges(self) -> Mapping[str, Range]:
        """What the sampler may propose, per coordinate."""

    def candidate(self, point: Point) -> Candidate:
        """The configuration at a point; where its target cannot be reached, the closest one that can."""

    def point(self, configuration: Configuration, binding_ratio: float) -> Point | None:
        """The point of a configuration that was evaluated; None when it lies outside this space."""

    def defaults(self) -> Candidate:
        """AdaTP's defaults at the budget: what the study leaves open at its default, p solved."""


def knob_ranges(search: Search, similarities: np.ndarray) -> dict[str, Range]:
    """The range of each knob in this study; one that is fixed has a range of one value.

    `similarities`: the study's sorted cosines of neighbouring frames; tau_s changes nothing outside of them.
    Errors: UserError for an unknown knob, a reversed range or a value the method does not take.
    """
    known = knobs(AdaTP)
    ranges = {name: Range(one.low, one.high) for name, one in known.items()}
    if similarities.size:
        # Just above the highest similarity every pair is a cut; at the lowest none is.
        seen = (float(similarities[0]), float(similarities[-1]) + 1e-6)
        ranges["tau_s"] = Range(*map(ranges["tau_s"].clip, seen))
    problems = []
    for name, (low, high) in (*((name, (value, value)) for name, value in search.fixed), *search.bounds):
        if name not in known:
            problems.append(f"The study fixes or bounds {name!r}, but AdaTP's knobs are {', '.join(KNOBS)}.")
            continue
        if not low <= high:
            problems.append(f"`low <= high` must hold for the bounds of {name}, but got [{low}, {high}].")
            continue
        try:
            for value in (low, high):
                _with(AdaTP(), {name: value})
        except ValueError as error:
            problems.append(f"The study's value for {name} does not fit AdaTP: {error}")
            continue
        ranges[name] = Range(low, high)
    if problems:
        raise UserError(problems)
    return ranges


def smallest_reachable(planner: Planner, search: Search) -> float:
    """The smallest FLOPs ratio of any configuration searched in this study.

    p and the boost at their lowest; and the fewest segments, because every segment's tokens are rounded up.
    """
    ranges = knob_ranges(search, planner.similarities)
    low = {name: one.low for name, one in ranges.items()}
    return planner.binding_ratio(_with(AdaTP(), low | {"tau_t": ranges["tau_t"].high}))


class KnobSpace:
    """The five knobs, gamma_cap as the share of the way from p to 1 so that every point is meaningful."""

    def __init__(self, planner: Planner, search: Search, budget: float) -> None:
        self._planner = planner
        self._search = search
        self._budget = budget
        self._knobs = knob_ranges(search, planner.similarities)
        self._gamma_fixed = _single(self._knobs["gamma_cap"])
        self.ranges: dict[str, Range] = {
            name: self._knobs[name] for name in ("tau_s", "tau_t", "alpha_boost", "p")
        }
        if self._gamma_fixed is None:
            self.ranges["headroom"] = Range(0.0, 1.0)

    def candidate(self, point: Point) -> Candidate:
        """The knobs as they stand, whatever they cost."""
        p = point["p"]
        gamma_cap = self._gamma_fixed
        if gamma_cap is None:
            gamma_cap = self._knobs["gamma_cap"].clip(p + point["headroom"] * (1 - p))
        method = AdaTP(point["tau_s"], point["tau_t"], point["alpha_boost"], gamma_cap, p)
        return Candidate(Configuration.from_method(method), self._planner.binding_ratio(method))

    def point(self, configuration: Configuration, binding_ratio: float) -> Point | None:
        """Where `candidate` would have made it."""
        method = _adatp(configuration)
        if method is None:
            return None
        point = {name: float(getattr(method, name)) for name in ("tau_s", "tau_t", "alpha_boost", "p")}
        if self._gamma_fixed is None:
            point["headroom"] = _share(method.gamma_cap, method.p)
        return point if _inside(point, self.ranges) else None

    def defaults(self) -> Candidate:
        """See `Space.defaults`."""
        return _defaults_at_budget(self._planner, self._search, self._knobs["p"], self._budget)


class BudgetSpace:
    """Compute as a coordinate: p is solved for it, and tau_s is asked for by its effect."""

    def __init__(self, planner: Planner, search: Search, budget: float) -> None:
        self._planner = planner
        self._search = search
        self._budget = budget
        self._knobs = knob_ranges(search, planner.similarities)
        self._gamma_fixed = _single(self._knobs["gamma_cap"])
        tau_s = self._knobs["tau_s"]
        self.ranges: dict[str, Range] = {
            "cuts": Range(self._cuts(tau_s.low), self._cuts(tau_s.high)),
            "tau_t": self._knobs["tau_t"],
            "alpha_boost": self._knobs["alpha_boost"],
        }
        if self._gamma_fixed is None:
            self.ranges["headroom"] = Range(0.0, 1.0)
        self._points: dict[Configuration, Point | None] = {}
        self._reachable = Range(min(smallest_reachable(planner, search), budget), budget)
        self.ranges["compute"] = Range(0.0, 1.0)

    def _cuts(self, tau_s: float) -> float:
        """The share of neighbouring frames that are less similar than tau_s."""
        similarities = self._planner.similarities
        return (
            float(np.interp(tau_s, similarities, np.linspace(0, 1, similarities.size)))
            if similarities.size
            else 0.0
        )

    def _tau_s(self, cuts: float) -> float:
        similarities = self._planner.similarities
        if not similarities.size:
            return knobs(AdaTP)["tau_s"].default
        if cuts >= self.ranges["cuts"].high:
            return self._knobs["tau_s"].high
        return self._knobs["tau_s"].clip(
            float(np.interp(cuts, np.linspace(0, 1, similarities.size), similarities))
        )

    def _target(self, compute: float) -> float:
        """The FLOPs ratio aimed at: 0 is the smallest reachable, 1 the budget.

        Cubic, so that half of a uniform sample lies in the last eighth below the budget: what is asked for is
        the best configuration there, and the cheaper end of the front is context.
        """
        low, high = self._reachable.low, self._reachable.high
        return high - (high - low) * (1 - compute) ** 3

    def _compute(self, ratio: float) -> float:
        """The inverse of `_target`."""
        low, high = self._reachable.low, self._reachable.high
        return 1.0 if low == high else 1 - min(max((high - ratio) / (high - low), 0.0), 1.0) ** (1 / 3)

    def _unboosted_p(self, target: float) -> float:
        """The p that reaches the target when nothing is boosted: no useful gamma_cap lies below it."""
        solved = self._planner.solve(AdaTP(tau_s=-1.0, alpha_boost=1.0), target)
        return self._knobs["p"].low if isinstance(solved, Unreachable) else solved.ratio

    def candidate(self, point: Point) -> Candidate:
        """The largest p that stays at or below the target."""
        target = self._target(point["compute"])
        gamma_cap = self._gamma_fixed
        if gamma_cap is None:
            unboosted = self._unboosted_p(target)
            gamma_cap = self._knobs["gamma_cap"].clip(unboosted + point["headroom"] * (1 - unboosted))
        method = AdaTP(self._tau_s(point["cuts"]), point["tau_t"], point["alpha_boost"], gamma_cap)
        return _solved(self._planner, method, self._knobs["p"], target)

    def point(self, configuration: Configuration, binding_ratio: float) -> Point | None:
        """Where `candidate` would have made it."""
        # Every proposal asks for the points of all trials before it, and each takes a solve.
        if configuration not in self._points:
            self._points[configuration] = self._point(configuration, binding_ratio)
        return self._points[configuration]

    def _point(self, configuration: Configuration, binding_ratio: float) -> Point | None:
        method = _adatp(configuration)
        if method is None or binding_ratio not in self._reachable:
            return None
        point = {
            "cuts": self._cuts(method.tau_s),
            "tau_t": method.tau_t,
            "alpha_boost": method.alpha_boost,
            "compute": self._compute(binding_ratio),
        }
        if self._gamma_fixed is None:
            point["headroom"] = _share(method.gamma_cap, self._unboosted_p(binding_ratio))
        return point if _inside(point, self.ranges) else None

    def defaults(self) -> Candidate:
        """See `Space.defaults`."""
        return _defaults_at_budget(self._planner, self._search, self._knobs["p"], self._budget)


def make_space(coordinates: Coordinates, planner: Planner, search: Search, budget: float) -> Space:
    """The space of these coordinates over one study; `search` is what its definition fixes and bounds."""
    if coordinates not in COORDINATES:
        raise UserError(
            f"The coordinates of a search are {' or '.join(COORDINATES)}, but got {coordinates!r}."
        )
    return (BudgetSpace if coordinates == "budget" else KnobSpace)(planner, search, budget)


def _with(method: AdaTP, knobs: Mapping[str, float]) -> AdaTP:
    changed: dict[str, Any] = dict(knobs)
    return replace(method, **changed)


def _single(one: Range) -> float | None:
    return one.low if one.low == one.high else None


def _share(value: float, low: float) -> float:
    """How far `value` lies on the way from `low` to 1, cut to [0, 1]."""
    return 0.0 if low >= 1 else min(max((value - low) / (1 - low), 0.0), 1.0)


def _inside(point: Point, ranges: Mapping[str, Range]) -> bool:
    return all(point[name] in one for name, one in ranges.items())


def _adatp(configuration: Configuration) -> AdaTP | None:
    """The method, when it differs from the searched ones in knobs only."""
    method = configuration.build()
    if not isinstance(method, AdaTP):
        return None
    return method if method.selection_options() == AdaTP().selection_options() else None


def _solved(planner: Planner, method: AdaTP, p: Range, target: float) -> Candidate:
    if p.low == p.high:
        found = method.with_ratio(p.low)
    else:
        solved = planner.solve(method, target)
        found = (
            method.with_ratio(p.low)
            if isinstance(solved, Unreachable)
            else method.with_ratio(p.clip(solved.ratio))
        )
    return Candidate(Configuration.from_method(found), planner.binding_ratio(found))


def _defaults_at_budget(planner: Planner, search: Search, p: Range, budget: float) -> Candidate:
    """AdaTP's defaults as far as the study's own fixed values and bounds allow.

    The narrowing of tau_s to the similarities seen is not the study's wish and leaves its default alone.
    """
    method = AdaTP()
    changed = {name: value for name, value in search.fixed if name != "p"} | {
        name: Range(low, high).clip(float(getattr(method, name)))
        for name, (low, high) in search.bounds
        if name != "p"
    }
    return _solved(planner, _with(method, changed), p, budget)
