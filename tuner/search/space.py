"""The search space: the parameters that a sampler proposes, and the way to a configuration and back.

segments  tau_s, half by its value and half by its effect: see `SearchSpace`
tau_t     as it is
boost     what a relevant segment keeps over an ordinary one, on a log scale
compute   a FLOPs target; p is solved for it on the plans. Every reachable proposal lands on its target, so
          the sampler spends nothing on finding the budget's border, and compute is an axis of the search.

There is one more parameter, by its name, for each choice (`Search.choices`) that the study lists several
values of: see `Bins`. Ranges derive from the fields of `AdaTP`, narrowed by what the study fixes or bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from pipeline.keep_ratio import Unreachable
from pipeline.layout import FloatArray
from pipeline.methods import KNOBS, AdaTP, choices, knobs
from tuner.errors import UserError
from tuner.planning.planner import Planner
from tuner.records.values import Goal
from tuner.study import CHOICES, Search
from tuner.study.values import Configuration

Point = dict[str, float]

# How far above the budget a ratio may lie without being over it: the noise of floating point.
TOLERANCE = 1e-9

# What a target may gain on its way through the parameters and back. The smallest step of a ratio, one token
# at one layer of a study of a thousand questions, is thousands of times larger.
_SLACK = 1e-12

# A gamma_cap above its default is a multiple of one in so many.
_CAP_STEPS = 1e6


@dataclass(frozen=True)
class Range:
    """The closed interval of one parameter."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def clip(self, value: float) -> float:
        """The value of the interval closest to this one."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Bins(Range):
    """Values without an order: the k-th of them is the bin [k, k + 1) of [0, high], and stands at k + 1/2.

    A `Point` stays a row of numbers, which the records keep and a Sobol sequence fills; a sampler that knows
    categories is told of one for each place, so that it takes no value for a neighbour of another.
    """

    @property
    def places(self) -> tuple[float, ...]:
        """Where each value stands."""
        return tuple(index + 0.5 for index in range(round(self.high)))

    def index(self, value: float) -> int:
        """Which value lies here."""
        return min(int(super().clip(value)), round(self.high) - 1)

    def __contains__(self, value: float) -> bool:
        return value in self.places

    def clip(self, value: float) -> float:
        """The place of the value that lies here."""
        return self.places[self.index(value)]


@dataclass(frozen=True)
class Candidate:
    """A configuration made from a point; over the budget when `binding_ratio` says so."""

    configuration: Configuration
    binding_ratio: float


def knob_ranges(search: Search, similarities: np.ndarray) -> dict[str, Range]:
    """The range of each knob in this study; one that is fixed has a range of one value.

    `similarities`: the study's sorted cosines of neighbouring frames; tau_s changes nothing outside of them.
    Errors: UserError for an unknown knob, a reversed range or a value the method does not take.
    """
    known = knobs(AdaTP)
    ranges = {name: Range(bounds.low, bounds.high) for name, bounds in known.items()}
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


def choice_values(search: Search) -> dict[str, tuple[str, ...]]:
    """The values that this study searches of each of `CHOICES`, at least one: AdaTP's default where it lists
    none.

    Errors: UserError for another choice, a value that the method does not take, none or one twice.
    """
    known = choices(AdaTP)
    found: dict[str, tuple[str, ...]] = {name: (str(known[name].default),) for name in CHOICES}
    problems = []
    for name, values in search.choices:
        if name not in CHOICES:
            problems.append(
                f"The study lists values of {name!r}, but the choices searched are {', '.join(CHOICES)}."
            )
        elif not values or len(set(values)) < len(values) or not set(values) <= set(known[name].values):
            problems.append(
                f"Each value of {name} is one of {', '.join(map(repr, known[name].values))}, and there is at "
                f"least one and none twice, but got {', '.join(map(repr, values)) or 'none'}."
            )
        else:
            found[name] = values
    if problems:
        raise UserError(problems)
    return found


def allows(search: Search, configuration: Configuration) -> bool:
    """Whether the study's search may come to this configuration of AdaTP: each knob is at its fixed value or
    within its bounds, each choice among those listed (AdaTP's default where none is).

    Errors: as `choice_values`.
    """
    values = dict(configuration.parameters)
    knobs_fit = all(
        low - TOLERANCE <= float(values[name]) <= high + TOLERANCE
        for name, (low, high) in (*((name, (value, value)) for name, value in search.fixed), *search.bounds)
    )
    return knobs_fit and all(values[name] in listed for name, listed in choice_values(search).items())


def default_choices(search: Search) -> dict[str, Any]:
    """Of what a study searches of each choice AdaTP's default, or the first where that is not listed."""
    default = choices(AdaTP)
    return {
        name: str(default[name].default) if default[name].default in values else values[0]
        for name, values in choice_values(search).items()
    }


def cheapest(planner: Planner, search: Search) -> Candidate:
    """The configuration with the smallest FLOPs ratio of all that this study searches.

    p and the boost at their lowest; and the fewest segments, because every segment's tokens are rounded up.
    Of the choices what then needs least.
    """
    ranges = knob_ranges(search, planner.similarities)
    low = {name: range_.low for name, range_ in ranges.items()}
    # Below p a cap does nothing but look wrong.
    low |= {"tau_t": ranges["tau_t"].high, "gamma_cap": ranges["gamma_cap"].clip(low["p"])}
    values = choice_values(search)
    return min(
        (
            _candidate(planner, _with(AdaTP(), low | dict(zip(values, chosen, strict=True))))
            for chosen in product(*values.values())
        ),
        key=lambda configuration: configuration.binding_ratio,
    )


def smallest_reachable(planner: Planner, search: Search) -> float:
    """The smallest FLOPs ratio of any configuration searched in this study, that of `cheapest`."""
    return cheapest(planner, search).binding_ratio


class SearchSpace:
    """The parameters over one study; `search` is what its definition fixes and bounds.

    budget: the largest FLOPs ratio, in (0, 1]; 1 for goal "max_drop".
    Errors: UserError as `knob_ranges` and `choice_values`.

    Of alpha_boost and gamma_cap one binds in a configuration and the other does nothing, so together they are
    one degree of freedom: the boosted ratio r = max(p, min(alpha_boost p, gamma_cap)). After J prunings a
    boosted segment keeps (r / p)^J of what an ordinary one keeps, so `boost` is the logarithm of r / p,
    scaled to [0, 1]. It is realised by alpha_boost, under a gamma_cap that does not bind as far as the study
    allows; and by a gamma_cap that binds where the study keeps alpha_boost above r / p. Both fixed: no
    `boost`. p fixed: no `compute`.

    `compute` runs from the smallest reachable FLOPs ratio to `budget`. For goal "budget" it is dense near the
    budget, for "max_drop" (whose budget is 1) even on a log scale.
    """

    def __init__(self, planner: Planner, search: Search, budget: float, goal: Goal = "budget") -> None:
        self._planner = planner
        self._search = search
        self._budget = budget
        self._goal = goal
        self._knobs = knob_ranges(search, planner.similarities)
        self._choices = choice_values(search)
        # The choices that the sampler proposes values of.
        self._bins = {
            name: Bins(0.0, float(len(values))) for name, values in self._choices.items() if len(values) > 1
        }
        tau_s, gamma_cap = self._knobs["tau_s"], self._knobs["gamma_cap"]
        excluding = dict(search.fixed) | dict(search.bounds)
        self._gamma_open = "gamma_cap" not in excluding
        # The narrowing to the similarities seen excludes nothing: beyond them nothing changes.
        self._tau_s_excludes = "tau_s" in excluding
        # r / p where p and gamma_cap do not cut it. A gamma_cap that can move takes any boost down to 1.
        self._boosts = Range(
            self._knobs["alpha_boost"].low if _single(gamma_cap) is not None else 1.0,
            self._knobs["alpha_boost"].high,
        )
        self._reachable = Range(min(smallest_reachable(planner, search), budget), budget)
        # What the sampler may propose, by parameter.
        self.ranges: dict[str, Range] = {
            "segments": Range(0.0, 0.0 if _single(tau_s) is not None else 1.0),
            "tau_t": self._knobs["tau_t"],
        }
        if _single(self._boosts) is None:
            self.ranges["boost"] = Range(0.0, 1.0)
        if _single(self._knobs["p"]) is None:
            self.ranges["compute"] = Range(0.0, 1.0)
        self.ranges |= self._bins

    def candidate(self, point: Point) -> Candidate:
        """The configuration at a point, with the largest p that stays at or below its target; where
        the target cannot be reached, the closest configuration that can.
        """
        boost = self._boost(point.get("boost", 0.0))
        # Where p is fixed there is nothing to solve, and no target.
        target = min(1.0, self._target(point.get("compute", 1.0)) + _SLACK)
        uncapped = AdaTP(
            self._tau_s(point["segments"]),
            point["tau_t"],
            boost,
            gamma_cap=self._knobs["gamma_cap"].high,
            **self._chosen(point),
        )
        method = self._solved(uncapped, target)
        found = self._boosted(method, boost)
        if found.boosted_ratio > method.boosted_ratio:  # the study lets gamma_cap go no lower
            found = self._solved(found, target)
        return _candidate(self._planner, found)

    def point(self, configuration: Configuration, binding_ratio: float) -> Point | None:
        """The point whose candidate has this configuration's plans, or those closest to them; None where it
        lies outside this space.
        """
        method = self._searched(configuration)
        low, high = self._reachable.low - TOLERANCE, self._reachable.high + TOLERANCE
        if method is None or not low <= binding_ratio <= high or method.p not in self._knobs["p"]:
            return None
        if self._tau_s_excludes and method.tau_s not in self._knobs["tau_s"]:
            return None
        boost = self._boosts.clip(
            method.alpha_boost if method.binds == "alpha_boost" else method.boosted_ratio / method.p
        )
        if abs(self._boosted(method, boost).boosted_ratio - method.boosted_ratio) > TOLERANCE:
            return None
        point = {
            "segments": self._segments(method.tau_s),
            "tau_t": method.tau_t,
            "boost": self._boost_inverse(boost),
            "compute": self._compute(binding_ratio),
            **self._places(method),
        }
        point = {name: point[name] for name in self.ranges}
        return point if _inside(point, self.ranges) else None

    def covers(self, point: Point, configuration: Configuration) -> bool:
        """Whether a point that once made this configuration is one of this space: what the study fixes,
        bounds or lists may have changed since.
        """
        if point.keys() != self.ranges.keys() or not _inside(point, self.ranges):
            return False
        return all(configuration.get(name) == value for name, value in self._chosen(point).items())

    def _chosen(self, point: Point) -> dict[str, Any]:
        """The choices at a point."""
        return {
            name: values[self._bins[name].index(point[name]) if name in self._bins else 0]
            for name, values in self._choices.items()
        }

    def _places(self, method: AdaTP) -> Point:
        """The inverse of `_chosen`: the parameters that are choices."""
        return {
            name: bin_.places[self._choices[name].index(getattr(method, name))]
            for name, bin_ in self._bins.items()
        }

    def _searched(self, configuration: Configuration) -> AdaTP | None:
        """The method, when it differs from those searched here in knobs only."""
        method = configuration.build()
        if not isinstance(method, AdaTP):
            return None
        allowed = {**{name: (value,) for name, value in AdaTP().selection_options().items()}, **self._choices}
        options = method.selection_options()
        return method if all(value in allowed[name] for name, value in options.items()) else None

    def defaults(self) -> Candidate:
        """AdaTP's defaults at the budget: what the study leaves open at its default, p solved.

        Where no budget is given (goal "max_drop") p is at its default too.
        """
        method = _defaults(self._search)
        if self._goal == "budget":
            method = self._solved(method, self._budget)
        return _candidate(self._planner, method)

    def above(self, configuration: Configuration, target: float) -> Candidate:
        """This configuration of AdaTP with p solved for another FLOPs ratio in (0, 1], its other knobs and
        its choices as they are; as it stands where the study fixes p.
        """
        method = configuration.build()
        if not isinstance(method, AdaTP):
            raise TypeError(f"a configuration of AdaTP has a p to solve, but got one of {method.name}")
        fixed = _single(self._knobs["p"]) is not None
        return _candidate(self._planner, method if fixed else self._solved(method, target))

    def _solved(self, method: AdaTP, target: float) -> AdaTP:
        """With the largest p that stays at or below the target, or the searched p closest to it."""
        p = self._knobs["p"]
        if p.low == p.high:
            return method.with_ratio(p.low)
        solved = self._planner.solve(method, target)
        return method.with_ratio(p.low if isinstance(solved, Unreachable) else p.clip(solved.ratio))

    @cached_property
    def _tau_s_scale(self) -> tuple[FloatArray, FloatArray]:
        """Values of tau_s from its lowest to its highest, and where on [0, 1] each lies.

        Half of the scale is the value itself, half its effect, the share of the study's frame pairs that are
        less similar. By effect alone a gap between two similarities, in which nothing changes and the best
        value often lies, has no width; by value alone the similarities near 1, where everything changes, have
        none.
        """
        low, high = self._knobs["tau_s"].low, self._knobs["tau_s"].high
        similarities = self._planner.similarities
        inside = similarities[(similarities > low) & (similarities < high)]
        values = np.unique(np.concatenate((np.linspace(low, high, 257), inside)))
        by_value = (values - low) / (high - low or 1.0)
        if not inside.size:
            return values, by_value
        by_effect = np.searchsorted(inside, values) / inside.size
        return values, (by_effect + by_value) / 2

    def _segments(self, tau_s: float) -> float:
        """Where tau_s lies on the scale of `_tau_s_scale`."""
        return float(np.interp(tau_s, *self._tau_s_scale))

    def _tau_s(self, segments: float) -> float:
        """The inverse of `_segments`."""
        values, places = self._tau_s_scale
        return self._knobs["tau_s"].clip(float(np.interp(segments, places, values)))

    def _boost(self, boost: float) -> float:
        """What r / p is at this value of `boost`, where neither 1 nor the study's gamma_cap cuts it."""
        low, high = self._boosts.low, self._boosts.high
        return self._boosts.clip(low * (high / low) ** boost)

    def _boost_inverse(self, ratio: float) -> float:
        """The inverse of `_boost`."""
        low, high = self._boosts.low, self._boosts.high
        return 0.0 if low == high else Range(0.0, 1.0).clip(math.log(ratio / low) / math.log(high / low))

    def _boosted(self, method: AdaTP, boost: float) -> AdaTP:
        """The method with r = boost p, as close as p (never above 1) and the study's gamma_cap allow."""
        alpha, gamma = self._knobs["alpha_boost"], self._knobs["gamma_cap"]
        wanted = boost * method.p
        if boost < alpha.low:
            gamma_cap = gamma.clip(wanted)
        elif self._gamma_open:
            default = knobs(AdaTP)["gamma_cap"].default
            gamma_cap = default if wanted <= default else min(1.0, _rounded_up(wanted))
        else:
            gamma_cap = gamma.high
        return replace(method, alpha_boost=max(boost, alpha.low), gamma_cap=gamma_cap)

    def _target(self, compute: float) -> float:
        """The FLOPs ratio aimed at: 0 is the smallest reachable, 1 the budget.

        Within a budget cubic, so that half of a uniform sample lies in the last eighth below it: what is
        asked for is the best configuration there, and the cheaper end of the front is context. Where the
        cheapest configuration that holds is asked for, nobody knows where it lies: even in the logarithm.
        """
        low, high = self._reachable.low, self._reachable.high
        if self._goal == "budget":
            return high - (high - low) * float((1 - compute) ** 3)
        return high * float((low / high) ** (1 - compute))

    def _compute(self, ratio: float) -> float:
        """The inverse of `_target`."""
        low, high = self._reachable.low, self._reachable.high
        if low == high:
            return 1.0
        ratio = self._reachable.clip(ratio)
        if self._goal == "budget":
            return 1 - float(((high - ratio) / (high - low)) ** (1 / 3))
        return 1 - math.log(ratio / high) / math.log(low / high)


def _with(method: AdaTP, parameters: Mapping[str, Any]) -> AdaTP:
    return replace(method, **parameters)


def _single(range_: Range) -> float | None:
    return range_.low if range_.low == range_.high else None


def _inside(point: Point, ranges: Mapping[str, Range]) -> bool:
    return all(point[name] in range_ for name, range_ in ranges.items())


def _candidate(planner: Planner, method: AdaTP) -> Candidate:
    return Candidate(Configuration.from_method(method), planner.binding_ratio(method))


def _rounded_up(value: float) -> float:
    # The division can end just below.
    return max(value, math.ceil(value * _CAP_STEPS) / _CAP_STEPS)


def _defaults(search: Search) -> AdaTP:
    """AdaTP's defaults as far as the study's own fixed values, bounds and choices allow.

    The narrowing of tau_s to the similarities seen is not the study's wish and leaves its default alone.
    """
    method = AdaTP()
    return _with(
        method,
        dict(search.fixed)
        | {name: Range(low, high).clip(float(getattr(method, name))) for name, (low, high) in search.bounds}
        | default_choices(search),
    )
