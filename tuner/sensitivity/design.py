"""The space-filling design of a sensitivity study: its configurations and their results.

The trials of a search concentrate where accuracy is high, which biases importances computed from them. So the
design is a scrambled Sobol sequence of its own. It uses the tune split, because the held-out split only
judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np

from pipeline.keep_ratio import Unreachable
from pipeline.methods import AdaTP
from tuner.planning.planner import Planner
from tuner.search.space import Range, default_choices, knob_ranges, smallest_reachable
from tuner.sensitivity.results import OutputName
from tuner.statistics.paired import Floats
from tuner.study import Search
from tuner.study.values import Configuration

SEED = 0

# Compute ranges between these shares of the budget, as far as they can be reached.
_LEAST_COMPUTE, _MOST_COMPUTE = 1 / 3, 4 / 3


@dataclass(frozen=True, eq=False)
class Plane:
    """Configurations over A values of one knob and B of another, the other knobs at the reference."""

    knobs: tuple[str, str]
    values: tuple[Floats, Floats]  # (A,) and (B,), ascending
    unit: Floats  # (A, B, D) as `DesignSpace.unit`; outside [0, 1] the design has no runs
    flops_ratio: Floats  # (A, B) the ratio that the budget limits, from the plans
    reference: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Design:
    """R configurations over D independent inputs, answered on one split of the study.

    unit: (R, D) in [0, 1], a scrambled Sobol sequence; outputs: each (R,); plane: the reference with the
    knobs of two inputs changed.
    """

    inputs: tuple[str, ...]
    unit: Floats
    outputs: Mapping[OutputName, Floats]
    plane: Callable[[str, str], Plane]


class DesignSpace:
    """The inputs of a design, which vary independently.

    tau_s        scaled half by its value and half by its effect (the share of the tune split's frame pairs
                 below it), as in the search: near 1 everything changes, elsewhere little
    tau_t        its value
    alpha_boost  its value
    gamma_cap    its position between p and 1: below p it has no effect
    compute      FLOPs target, from a third to four thirds of the budget as far as the study's knobs reach, at
                 most 1; p is solved for it

    Knobs that the study fixes are no inputs; without a free p there is no compute. Choices are no inputs
    either: if `search` lists several values, all configurations have the default.

    Compute goes beyond the budget because drifting knobs do, too, and both sides of the budget are shown only
    if there are runs on both. A third of the budget is our choice: more would spend runs on configurations
    that nobody ships.
    """

    def __init__(self, planner: Planner, search: Search, budget: float) -> None:
        self._planner = planner
        self._chosen = default_choices(search)
        search = replace(search, choices=tuple((name, (value,)) for name, value in self._chosen.items()))
        self._knobs = knob_ranges(search, planner.similarities)
        self._ranges = {name: self._knobs[name] for name in ("tau_s", "tau_t", "alpha_boost")}
        self._ranges["gamma_cap"] = Range(0.0, float(_free(self._knobs["gamma_cap"])))
        self._ranges["compute"] = self._reachable(search, budget)
        self.inputs = tuple(name for name, range_ in self._ranges.items() if _free(range_))
        self._tau_s = self._tau_s_scale()

    @property
    def compute(self) -> Range | None:
        """The range of compute as FLOPs ratios; None if it is not an input."""
        return self._ranges["compute"] if "compute" in self.inputs else None

    def sample(self, runs: int) -> Floats:
        """(runs, D) the first points of a scrambled Sobol sequence; more runs extend it."""
        from scipy.stats import qmc

        if not runs or not self.inputs:
            return np.zeros((0, len(self.inputs)))
        sequence = qmc.Sobol(len(self.inputs), rng=np.random.default_rng(SEED))
        return np.asarray(sequence.random_base2(math.ceil(math.log2(runs)))[:runs], dtype=np.float64)

    def values(self, unit: Floats) -> Floats:
        """Unit points (N, D) as values of the inputs."""
        columns = [
            np.interp(column, self._tau_s[1], self._tau_s[0])
            if name == "tau_s"
            else self._ranges[name].low + column * (self._ranges[name].high - self._ranges[name].low)
            for name, column in zip(self.inputs, unit.T, strict=True)
        ]
        return np.stack(columns, axis=1) if columns else np.zeros(unit.shape)

    def unit(self, configuration: Configuration, binding_ratio: float) -> Floats:
        """(D,) the point of an AdaTP configuration; outside [0, 1] where it leaves the design's range.

        Values without effect (a tau_s beyond all similarities, a gamma_cap below p) lie at the end of the
        range.
        """
        method = configuration.build()
        assert isinstance(method, AdaTP)
        room = 1 - method.p
        values = {
            "tau_s": method.tau_s,
            "tau_t": method.tau_t,
            "alpha_boost": method.alpha_boost,
            "gamma_cap": max(0.0, (method.gamma_cap - method.p) / room) if room > 0 else 0.0,
            "compute": binding_ratio,
        }
        point = []
        for name in self.inputs:
            range_ = self._ranges[name]
            place = (values[name] - range_.low) / (range_.high - range_.low)
            if name == "tau_s":
                place = float(np.interp(values[name], *self._tau_s))
            point.append(place)
        return np.array(point)

    def configuration(self, point: Floats) -> Configuration:
        """The configuration at a unit point (D,): p solved for its compute, or the closest searched p."""
        method, target = self._uncapped(point)
        if _free(self._knobs["p"]):
            solved = self._planner.solve(method, target)
            ratio = self._knobs["p"].low if isinstance(solved, Unreachable) else solved.ratio
            method = method.with_ratio(self._knobs["p"].clip(ratio))
        return Configuration.from_method(method.plain())

    def _reachable(self, search: Search, budget: float) -> Range:
        """The range of compute; a single value where the study fixes p."""
        p = self._knobs["p"]
        if not _free(p):
            return Range(budget, budget)
        # The most expensive configuration has the most segments, all of them boosted.
        largest = self._planner.binding_ratio(
            AdaTP(
                self._knobs["tau_s"].high,
                self._knobs["tau_t"].low,
                self._knobs["alpha_boost"].high,
                self._knobs["gamma_cap"].high,
                p.high,
                **self._chosen,
            )
        )
        high = min(_MOST_COMPUTE * budget, largest, 1.0)
        return Range(min(max(_LEAST_COMPUTE * budget, smallest_reachable(self._planner, search)), high), high)

    def _uncapped(self, point: Floats) -> tuple[_Capped, float]:
        values = {name: range_.low for name, range_ in self._ranges.items()}
        values |= zip(self.inputs, self.values(point[None])[0].tolist(), strict=True)
        gamma = self._knobs["gamma_cap"]
        method = _Capped(
            values["tau_s"],
            values["tau_t"],
            values["alpha_boost"],
            gamma.low,
            self._knobs["p"].low,
            headroom=values["gamma_cap"],
            highest=gamma.high,
            **self._chosen,
        )
        return method, values["compute"]

    def _tau_s_scale(self) -> tuple[Floats, Floats]:
        """Values of tau_s, ascending, and their positions on [0, 1]."""
        range_ = self._knobs["tau_s"]
        inside = self._planner.similarities
        inside = inside[(inside > range_.low) & (inside < range_.high)]
        values = np.unique(np.concatenate((np.linspace(range_.low, range_.high, 257), inside)))
        by_value = (values - range_.low) / ((range_.high - range_.low) or 1.0)
        if not inside.size:
            return values, by_value
        return values, (by_value + np.searchsorted(inside, values) / inside.size) / 2


@dataclass(frozen=True)
class _Capped(AdaTP):
    """AdaTP whose cap moves with p, so that p can be solved at a fixed position between p and 1."""

    headroom: float = 1.0
    highest: float = 1.0

    name: ClassVar[str] = AdaTP.name

    @property
    def boosted_ratio(self) -> float:
        return self.plain().boosted_ratio

    def plain(self) -> AdaTP:
        """The plain AdaTP at this p."""
        own = {field.name: getattr(self, field.name) for field in fields(AdaTP)}
        cap = Range(self.gamma_cap, self.highest).clip(self.p + self.headroom * (1 - self.p))
        return AdaTP(**own | {"gamma_cap": cap})


def _free(range_: Range) -> bool:
    return range_.low < range_.high
