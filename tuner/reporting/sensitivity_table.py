"""What `tuner sensitivity` ends with: which knob matters, how far each may drift, where the report is. The
report has everything else.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from tuner.reporting.columns import Column, fitted
from tuner.reporting.overview import WIDEST
from tuner.reporting.summary import NOTHING
from tuner.sensitivity.in_short import in_short
from tuner.sensitivity.results import Index, Sensitivity
from tuner.sensitivity.sentences import value
from tuner.statistics.values import Interval
from tuner.statistics.wording import NOTHING_CHOSEN

if TYPE_CHECKING:
    from rich.text import Text


def render(found: Sensitivity, width: int) -> list[Text]:
    """At most 22 lines, none longer than `width` from 80 on: three sentences, a line for each knob, and what
    the curves must not be used for.
    """
    from rich.text import Text

    which = "AdaTP's defaults" if found.trial is None else f"trial {found.trial}"
    table = fitted(_columns(found), width, gap=2)
    below = (
        NOTHING_CHOSEN
        if found.split == "held_out"
        else "There are no held-out videos: the curves use the questions that chose the reference."
    )
    headline = f"{found.study}: {which} at budget {found.budget:g}; how far each knob may drift"
    lines = [textwrap.shorten(headline, width, placeholder="..."), ""]
    for sentence in in_short(found):
        lines += textwrap.wrap(sentence, min(width, WIDEST), initial_indent="- ", subsequent_indent="  ")
    lines += ["", *table.head, *table.body, "", *textwrap.wrap(below, min(width, WIDEST))]
    return [Text(line, style="bold" if place == 0 else "") for place, line in enumerate(lines)]


def _columns(found: Sensitivity) -> list[Column]:
    """By knob; then what is an input of the design and no knob: compute."""
    curves = {curve.knob: curve for curve in found.curves}
    output = next((output for output in found.outputs if output.name == "accuracy"), None)
    indices = {} if output is None else {index.input: index for index in output.indices}
    rows = [(name, curves.get(name), indices.get(name)) for name in dict.fromkeys((*curves, *indices))]
    what = "accuracy" if found.labelled else "agreement"

    def accuracies(shares: list[float]) -> str:
        return f"{100 * min(shares):.1f} to {100 * max(shares):.1f}"

    columns = [
        Column("knob", tuple(name for name, _, _ in rows), right=False),
        Column("chosen", tuple(NOTHING if item is None else f"{item.chosen:.4g}" for _, item, _ in rows)),
        Column(
            f"safe to\n{100 * found.margin:.1f} points",
            tuple(NOTHING if curve is None else _range(curve.safe) for _, curve, _ in rows),
        ),
        Column(
            "within\nbudget",
            tuple(NOTHING if item is None else _range(item.within_budget) for _, item, _ in rows),
        ),
        Column(
            f"{what}, %,\nover its range",
            tuple(
                NOTHING if item is None else accuracies([point.accuracy.value for point in item.points])
                for _, item, _ in rows
            ),
        ),
    ]
    if indices:
        columns += [
            Column("share of\nvariance", tuple(_total(index) for _, _, index in rows), rank=1),
            Column("95 %\ninterval", tuple(_interval(index) for _, _, index in rows), rank=2),
            Column(
                "share\nalone",
                tuple(NOTHING if index is None else f"{index.first.value:.2f}" for _, _, index in rows),
                rank=3,
            ),
            Column("PED-\nANOVA", tuple(_ped_anova(index) for _, _, index in rows), rank=4),
        ]
    points = tuple(
        NOTHING if item is None else f"{len(item.points)}{' (exact)' if item.exact else ''}"
        for _, item, _ in rows
    )
    return [*columns, Column("points of\nthe curve", points, rank=5)]


def _range(interval: Interval | None) -> str:
    return "none" if interval is None else f"{value(interval.low)} to {value(interval.high)}"


def _total(index: Index | None) -> str:
    """Alone and together with others."""
    return NOTHING if index is None else f"{index.total.value:.2f}"


def _interval(index: Index | None) -> str:
    if index is None or index.total.interval is None:
        return NOTHING
    return f"[{index.total.interval.low:.2f}, {index.total.interval.high:.2f}]"


def _ped_anova(index: Index | None) -> str:
    return NOTHING if index is None or index.ped_anova is None else f"{index.ped_anova:.2f}"
