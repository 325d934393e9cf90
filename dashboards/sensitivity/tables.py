"""The tables behind a sensitivity study's pictures, and how both drawings of them call and place things."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from dashboards.picture.picture import BLUE, GREY, VERMILION
from tuner.search.space import TOLERANCE
from tuner.sensitivity.maps import place_of
from tuner.sensitivity.results import Curve, CurvePoint, OutputName, Sensitivity
from tuner.statistics.values import Interval, Measured

COLUMNS = 2


@dataclass(frozen=True)
class IndexRow:
    """An input's share in one output's variance; without an input: an output whose surrogate is too poor."""

    output: OutputName
    runs: int
    r2: float
    good: bool
    more_runs: int | None
    input: str | None = None
    first: float | None = None
    first_low: float | None = None
    first_high: float | None = None
    total: float | None = None
    total_low: float | None = None
    total_high: float | None = None
    ped_anova: float | None = None


@dataclass(frozen=True)
class CurveRow:
    """One knob at one value, or from `value` until `until`, the others as in the reference."""

    knob: str
    exact: bool
    chosen: float
    tag: str | None
    kind: str | None
    questions: int
    value: float
    until: float
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    difference: float
    difference_low: float | None
    difference_high: float | None
    flops_ratio: float
    regressions: int
    gained: int
    logprob_change: float
    safe: bool
    in_safe_range: bool


@dataclass(frozen=True)
class MapRow:
    """The exact FLOPs ratio at one cell of a pairwise map, and the surrogate's accuracy where it has one."""

    first: str
    second: str
    first_value: float
    second_value: float
    accuracy: float | None
    flops_ratio: float
    within_budget: bool


def index_rows(found: Sensitivity) -> tuple[IndexRow, ...]:
    """Every output's inputs, the most important first; one row for an output that has no indices."""
    rows: list[IndexRow] = []
    for output in found.outputs:
        common = (output.name, found.design_runs, output.r2, output.good, output.more_runs)
        rows += [
            IndexRow(
                *common, one.input, *_measured(one.first), *_measured(one.total), ped_anova=one.ped_anova
            )
            for one in sorted(output.indices, key=lambda one: -one.total.value)
        ] or [IndexRow(*common)]
    return tuple(rows)


def curve_rows(curves: Iterable[Curve]) -> tuple[CurveRow, ...]:
    """Every point of the curves, in their order."""
    return tuple(_curve_row(curve, point) for curve in curves for point in curve.points)


def map_rows(found: Sensitivity) -> tuple[MapRow, ...]:
    """Every cell of the maps."""
    return tuple(
        MapRow(
            one.first,
            one.second,
            first,
            second,
            one.accuracy[i][j],
            one.flops_ratio[i][j],
            one.flops_ratio[i][j] <= found.budget + TOLERANCE,
        )
        for one in found.maps
        for i, first in enumerate(one.first_values)
        for j, second in enumerate(one.second_values)
    )


INDEX_KINDS = (
    # attribute, label, color, plotly and matplotlib marker, shift along the input's row
    ("total", "total: with its interactions (95 % interval)", VERMILION, "diamond", "D", 0.22),
    ("first", "first order: alone (95 % interval)", BLUE, "circle", "o", 0.0),
    ("ped_anova", "PED-ANOVA: share in being among the best quarter", GREY, "square-open", "s", -0.22),
)


def panels_of(rows: Sequence[IndexRow]) -> list[list[IndexRow]]:
    """Rows of one output each, those with indices; inputs in the order of the first output's."""
    shown = [list(group) for _, group in groupby((one for one in rows if one.input), lambda one: one.output)]
    order = [one.input for one in shown[0]]
    for group in shown:
        group.sort(key=lambda one: order.index(one.input) if one.input in order else len(order))
    return shown


def panel_title(row: IndexRow, found: Sensitivity) -> str:
    """What stands above an output."""
    return f"{output_label(row.output, found)}: R² {row.r2:.2f}, {row.runs} runs"


def index_values(rows: Sequence[IndexRow], name: str) -> tuple[list[float | None], list[float], list[float]]:
    """The values and how far their intervals reach below and above them."""
    at = [getattr(one, name) for one in rows]
    if name == "ped_anova":
        return at, [], []
    ends = [(getattr(one, f"{name}_low"), getattr(one, f"{name}_high")) for one in rows]
    low = [0.0 if end[0] is None else value - end[0] for value, end in zip(at, ends, strict=True)]
    high = [0.0 if end[1] is None else end[1] - value for value, end in zip(at, ends, strict=True)]
    return at, low, high


def index_range(rows: Iterable[IndexRow]) -> tuple[float, float]:
    """Of the axis: 0 to 1, and all intervals, which may reach beyond; with some room."""
    ends = [
        value
        for one in rows
        for value in (one.first_low, one.first_high, one.total_low, one.total_high)
        if value is not None
    ]
    return min([0.0, *ends]) - 0.03, max([1.0, *ends]) + 0.03


def range_text(safe: Interval | None) -> str:
    """A safe range in words."""
    return "nothing shown" if safe is None else f"{number(safe.low)} to {number(safe.high)}"


def curve_title(curve: Curve) -> str:
    """What stands above a knob; its name in <b>."""
    safe = "no safe range shown" if curve.safe is None else f"safe {range_text(curve.safe)}"
    return f"<b>{curve.knob}</b>: chosen {number(curve.chosen)}, {safe}"


_SIMILARITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)


def ticks_of(knob: str, low: float, high: float, most: int = 8) -> tuple[list[float], list[str]] | None:
    """Places and texts where they are not the axis's own: of values from `low` to `high`."""
    if knob != "tau_s":
        return None
    within = [one for one in _SIMILARITIES if low <= one <= high]
    within = within[:: -(-len(within) // most)] if within else [low]
    return [place_of(knob, one) for one in within], [number(one) for one in within]


def knob_label(knob: str) -> str:
    """A knob as its axis is labelled."""
    return "tau_s (scale: logarithm of 1 - tau_s)" if knob == "tau_s" else knob


def vertices(rows: Sequence[CurveRow], name: str) -> dict[str, list[float]]:
    """In per cent: both ends of every step, or every point. A value without an interval is its own."""
    drawn: dict[str, list[float]] = {"x": [], "y": []}
    for one in rows:
        height = getattr(one, name)
        for value in (one.value, one.until) if one.exact else (one.value,):
            drawn["x"].append(place_of(one.knob, value))
            drawn["y"].append(100 * (one.difference if height is None else height))
    return drawn


def _curve_row(curve: Curve, point: CurvePoint) -> CurveRow:
    accuracy, difference = _measured(point.accuracy), _measured(point.difference)
    return CurveRow(
        knob=curve.knob,
        exact=curve.exact,
        chosen=curve.chosen,
        tag=None if curve.tag is None else curve.tag[0],
        kind=None if curve.tag is None else curve.tag[1],
        questions=curve.questions,
        value=point.value,
        until=point.until,
        accuracy=accuracy[0],
        accuracy_low=accuracy[1],
        accuracy_high=accuracy[2],
        difference=difference[0],
        difference_low=difference[1],
        difference_high=difference[2],
        flops_ratio=point.flops_ratio,
        regressions=point.regressions,
        gained=point.gained,
        logprob_change=point.logprob_change,
        safe=point.safe,
        in_safe_range=inside(point, curve.safe),
    )


def inside(point: CurvePoint, safe: Interval | None) -> bool:
    """Whether a point's values reach into the safe range."""
    return safe is not None and point.until >= safe.low and point.value <= safe.high


def _measured(one: Measured) -> tuple[float, float | None, float | None]:
    interval = one.interval
    return (one.value, None, None) if interval is None else (one.value, interval.low, interval.high)


def number(value: float) -> str:
    """Four digits."""
    # The step right above 0 begins at the smallest number there is.
    return f"{0.0 if abs(value) < 1e-9 else value:.4g}"


def accuracy_label(found: Sensitivity) -> str:
    """What accuracy is in this study."""
    return "accuracy" if found.labelled else "agreement with the unpruned model"


def output_label(name: OutputName, found: Sensitivity) -> str:
    """An output in words."""
    words = {
        "accuracy": accuracy_label(found),
        "logprob": "log-probability of the right answer",
        "regressions": "regressions",
    }
    return words[name]


def input_label(name: str) -> str:
    """An input's name, and what its values are where that is not the knob's own value."""
    return {"gamma_cap": "gamma_cap (from p to 1)", "compute": "compute (FLOPs)"}.get(name, name)


def compute_label(found: Sensitivity) -> str | None:
    """What compute ranges over in the design; None where it is no input."""
    over = found.design_compute
    return (
        None if over is None else f"{100 * over.low:.3g} % to {100 * over.high:.3g} % of the unpruned FLOPs"
    )
