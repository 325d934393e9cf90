"""A finished sensitivity study as values, for everything that only reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.methods import AdaTP
from tuner.sensitivity.results import Curve, CurvePoint, FailureMode, Index, Output, PairMap, Sensitivity
from tuner.statistics.values import Interval, Measured
from tuner.study.values import Configuration

REFERENCE = AdaTP(tau_s=0.88, tau_t=0.72, alpha_boost=1.3, gamma_cap=0.95, p=0.62)
RANGES = {
    "tau_s": (0.5, 0.999),
    "tau_t": (0.0, 1.0),
    "alpha_boost": (1.0, 1.5),
    "gamma_cap": (0.62, 1.0),
    "p": (0.2, 1.0),
}
TAGS = {
    "type": {"order": 38, "color": 152, "place": 117, "background": 40},
    "when": {"start": 120, "middle": 300, "end": 180},
}


def measured(value: float, half: float) -> Measured:
    return Measured(value, Interval(value - half, value + half))


def make_point(value=0.5, until=None, change=-0.01, half=0.015, ratio=0.29, safe=True) -> CurvePoint:
    return CurvePoint(
        value=value,
        until=value if until is None else until,
        accuracy=measured(0.85 + change, 0.03),
        difference=measured(change, half),
        flops_ratio=ratio,
        regressions=round(80 - 600 * change),
        gained=7,
        logprob_change=-0.4 + change,
        safe=safe,
    )


def make_curve(knob="tau_t", tag=None, steep=1.0, questions=600, points=None, **changes: Any) -> Curve:
    """Falls with the distance from the chosen value; safe where it loses at most one point."""
    low, high = RANGES[knob]
    chosen = float(getattr(REFERENCE, knob))
    exact = knob in ("tau_s", "tau_t")
    edges = np.unique(np.append(np.linspace(low, high, 31 if exact else 9), chosen))
    rows = []
    for place, value in enumerate(edges[:-1] if exact else edges):
        far = (value - chosen) / (high - low)
        change = -0.2 * steep * far**2
        rows.append(
            make_point(
                float(value),
                float(np.nextafter(edges[place + 1], 0)) if exact else None,
                round(change, 4),
                0.012 + 0.02 * (tag is not None),
                0.29 + (0.5 if knob == "p" else 0.03) * far,
                change > -0.01,
            )
        )
    rows = rows if points is None else points
    safe = [row for row in rows if row.safe]
    values: dict[str, Any] = {
        "knob": knob,
        "exact": exact,
        "chosen": chosen,
        "points": tuple(rows),
        "safe": Interval(safe[0].value, safe[-1].until) if safe else None,
        "tag": tag,
        "questions": questions,
    }
    return Curve(**(values | changes))


def make_output(name="accuracy", r2=0.86, totals=(0.55, 0.25, 0.12, 0.02, 0.2)) -> Output:
    inputs = ("compute", "alpha_boost", "tau_t", "gamma_cap", "tau_s")
    return Output(
        name,
        r2,
        good=True,
        more_runs=None,
        indices=tuple(
            Index(input_, measured(0.8 * total, 0.3 * total), measured(total, 0.3 * total), ped)
            for input_, total, ped in zip(inputs, totals, (0.5, 0.2, 0.15, 0.05, 0.1), strict=True)
        ),
    )


def make_map(first="p", second="tau_t", flops=(0.15, 0.42), covered=(0.2, 0.4)) -> PairMap:
    """FLOPs rise along the first knob between these ends, and a little along the second."""
    values = [np.linspace(*RANGES[knob], 21) for knob in (first, second)]
    x, y = np.meshgrid(np.linspace(0, 1, 21), np.linspace(0, 1, 21), indexing="ij")
    ratio = flops[0] + (flops[1] - flops[0]) * (0.9 * x + 0.1 * y)
    accuracy = 0.6 + 0.25 * x - 0.1 * (y - 0.7) ** 2
    known = (ratio >= covered[0]) & (ratio <= covered[1])
    return PairMap(
        first,
        second,
        *(tuple(value.tolist()) for value in values),
        accuracy=tuple(map(tuple, np.where(known, accuracy, None).tolist())),
        flops_ratio=tuple(map(tuple, ratio.tolist())),
        reference=(float(getattr(REFERENCE, first)), float(getattr(REFERENCE, second))),
    )


def make_sensitivity(**changes: Any) -> Sensitivity:
    steep = {"order": 2.0, "middle": 1.6}
    study = Sensitivity(
        study="demo",
        study_hash="5f2c9d7be1a04c3388aa0b1f6f7d2e11",
        budget=0.3,
        split="held_out",
        reference=Configuration.from_method(REFERENCE),
        trial=4,
        binds="alpha_boost",
        accuracy=measured(0.85, 0.03),
        labelled=True,
        max_drop="0.02",
        margin=0.02,
        detectable=0.019,
        curves=tuple(make_curve(knob) for knob in RANGES),
        by_tag=tuple(
            make_curve(knob, (key, kind), steep.get(kind, 1.0), questions)
            for key, kinds in TAGS.items()
            for kind, questions in kinds.items()
            for knob in RANGES
        ),
        design_runs=64,
        inputs=("tau_s", "tau_t", "alpha_boost", "gamma_cap", "compute"),
        design_compute=Interval(0.2, 0.4),
        outputs=(
            make_output(),
            make_output("logprob", 0.93, (0.7, 0.3, 0.05, 0.01, 0.05)),
            Output("regressions", 0.31, good=False, more_runs=None, indices=()),
        ),
        maps=(make_map(), make_map("p", "tau_s"), make_map("tau_t", "alpha_boost", (0.28, 0.295))),
        failures=(
            FailureMode("middle frames over-pruned", True, "Middle questions lose 5.0 points more."),
            FailureMode("small things lost to deduplication", None, "No question carries a size."),
        ),
        sentences=("p matters most.", "tau_t makes no difference between 0.5 and 0.9."),
        tune_questions=600,
    )
    return replace(study, **changes)
