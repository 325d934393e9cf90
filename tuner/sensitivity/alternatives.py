"""Whether AdaTP does better with another `deduplicate` than with the reference's, at the same FLOPs.

On the tune part: it recommends what to search next, and held-out videos only judge. The reference is the best
of many there, which hides an alternative that is a little better, and never makes one up.

Each other value is one look at the same answers, so the intervals are those of all looks together: that any
of them excludes a change there is not, has a probability of at most 5 %.
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
    """The reference with each other `deduplicate` and p solved for its FLOPs, where they can be reached."""
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
    """What `others` answered, the best first. correct: (Q,) of each, right or not.

    One whose p the study's search excludes is no alternative.
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
    return tuple(sorted(found, key=lambda one: -one.difference.value))
