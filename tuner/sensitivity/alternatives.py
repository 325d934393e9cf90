"""Whether another `deduplicate` than the reference's is better at the same FLOPs.

Measured on the tune split, since it recommends what to search next, and held-out videos only judge. The
reference is the best of many configurations on that split, so a slightly better alternative may be missed,
but none is made up.

Each other value is a comparison on the same answers, so the intervals are simultaneous: the probability that
any of them excludes the true change is at most 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from pipeline.methods import AdaTP
from tuner.planning.planner import Planner
from tuner.search.space import choice_values, knob_ranges
from tuner.sensitivity.curves import Compared, Flags
from tuner.sensitivity.results import Alternative
from tuner.statistics import paired
from tuner.study import Search

_ERROR = 0.05
_VALUES: tuple[Literal["demote", "drop", "off"], ...] = ("demote", "drop", "off")


def others(planner: Planner, reference: AdaTP) -> dict[str, AdaTP]:
    """The reference with each other `deduplicate` and p solved for its FLOPs, if they can be reached."""
    target = min(1.0, planner.binding_ratio(reference) + 1e-12)
    found: dict[str, AdaTP] = {}
    for other in _VALUES:
        if other != reference.deduplicate:
            solved = planner.solve(replace(reference, deduplicate=other), target)
            if isinstance(solved, AdaTP):
                found[other] = solved
    return found


def alternatives(
    planner: Planner,
    search: Search,
    methods: Mapping[str, AdaTP],
    correct: Mapping[str, Flags],
    split: Compared,
) -> tuple[Alternative, ...]:
    """The configurations of `others` with their results, best first.

    correct: (Q,) right or not under each. Configurations whose p the study's search excludes are left out.
    """
    p = knob_ranges(search, np.zeros(0))["p"]
    listed = choice_values(search)["deduplicate"]
    methods = {name: method for name, method in methods.items() if method.p in p}
    level = 1 - _ERROR / max(len(methods), 1)
    found = [
        Alternative(
            deduplicate=name,
            p=method.p,
            flops_ratio=planner.binding_ratio(method),
            difference=paired.difference(correct[name], split.reference, split.videos, level=level),
            level=level,
            searched=name in listed,
        )
        for name, method in methods.items()
    ]
    return tuple(sorted(found, key=lambda change: -change.difference.value))
