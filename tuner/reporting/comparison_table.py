"""What `tuner compare` found, as the table a person reads at its end and the one that MLflow shows."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuner.records.measurements import Timed
from tuner.reporting.columns import Column, fitted
from tuner.reporting.overview import WIDEST
from tuner.reporting.summary import NOTHING, percent, signed
from tuner.reporting.values import Compared, Comparison, EndToEnd
from tuner.statistics.values import Measured
from tuner.statistics.wording import NOTHING_CHOSEN

if TYPE_CHECKING:
    from rich.text import Text

# File name of the table.
TABLE = "comparison.json"


def headline(comparison: Comparison) -> str:
    """One line above the first table."""
    count = len(comparison.rows)
    return f"{comparison.study}: {count} ways to prune at an LLM prefill FLOPs ratio of {comparison.budget:g}"


def end_to_end_headline(found: EndToEnd) -> str:
    """One line above the second table."""
    return (
        f"At equal end-to-end FLOPs, what you pay: those of {found.rows[0].name}, a ratio of "
        f"{found.flops_ratio:.3f}"
    )


def _table(
    rows: Sequence[Compared],
    width: int | None,
    unpruned: tuple[Measured, Timed | None] | None,
    *,
    labelled: bool,
) -> list[Text]:
    """A line for each way to prune, in at most so many columns where that is possible; the best accuracy is
    bold. unpruned: accuracy and time for a line at the top.
    """
    from rich.text import Text

    names, about = [row.name for row in rows], [row.about for row in rows]
    cells = [_cells(row, labelled=labelled) for row in rows]
    if unpruned is not None:
        names, about = ["unpruned", *names], ["", *about]
        cells.insert(0, _unpruned_cells(*unpruned))
    columns = [Column("", tuple(names), right=False)]
    columns += [
        Column(title, column, rank=rank)
        for (title, rank), column in zip(_columns(labelled=labelled), zip(*cells, strict=True), strict=True)
        if set(column) != {NOTHING}
    ]
    table = fitted([*columns, Column("", tuple(about), right=False, rank=9)], width)
    best = max((row.held_out.accuracy.value for row in rows), default=None)
    bold = [row.held_out.accuracy.value == best for row in rows]
    bold = bold if unpruned is None else [False, *bold]
    lines = [Text(line) for line in table.head]
    return lines + [
        Text(line, style="bold" if strong else "") for line, strong in zip(table.body, bold, strict=True)
    ]


def _columns(*, labelled: bool) -> tuple[tuple[str, int], ...]:
    """Titles, and how soon each gives way where there is no room."""
    return (
        ("held-out\naccuracy" if labelled else "held-out\nagreement", 0),
        ("95 %\ninterval", 5),
        ("change, points", 0),
        ("lost /\ngained" if labelled else "answers\nchanged", 0),
        ("LLM\nFLOPs", 4),
        ("end to\nend", 0),
        ("time", 0),
        ("ms", 6),
    )


def _cells(row: Compared, *, labelled: bool) -> tuple[str, ...]:
    accuracy, outcome = row.held_out.accuracy, row.held_out.outcome
    return (
        percent(Measured(accuracy.value)),
        _interval(accuracy),
        signed(row.held_out.difference),
        f"{outcome.regressions} / {outcome.gained}" if labelled else str(outcome.regressions),
        f"{outcome.flops_ratio:.3f}",
        f"{outcome.flops_ratio_end_to_end:.3f}",
        NOTHING if row.timed is None else f"{row.timed.ratio:.2f}",
        NOTHING if row.timed is None else f"{1000 * row.timed.seconds:.3g}",
    )


def _unpruned_cells(baseline: Measured, timed: Timed | None) -> tuple[str, ...]:
    return (
        percent(Measured(baseline.value)), _interval(baseline), "", "", "1", "1",
        NOTHING if timed is None else "1",
        NOTHING if timed is None else f"{1000 * timed.baseline_seconds:.3g}",
    )  # fmt: skip


def _interval(measured: Measured) -> str:
    interval = measured.interval
    return NOTHING if interval is None else f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def remarks(comparison: Comparison) -> tuple[str, ...]:
    """Sentences below the tables: what the columns are, and what could not be compared."""
    lines = []
    if comparison.rows:
        outcome = comparison.rows[0].held_out.outcome
        lines.append(
            f"Held out: {outcome.questions} questions about {outcome.videos} videos; %, 95 % intervals; "
            f"change{', lost and gained' if comparison.labelled else ''} against the unpruned model on the "
            "same questions; FLOPs and time as a share of the unpruned model's."
        )
    time = time_taken(comparison)
    lines += [] if time is None else [time]
    lines += [
        f"{name} cannot reach the budget: its smallest FLOPs ratio is {smallest:.4f}."
        for name, smallest in comparison.unreachable.items()
    ]
    lines += end_to_end_unreachable(comparison)
    lines += [NOTHING_CHOSEN] if comparison.rows else []
    return tuple(lines)


def end_to_end_unreachable(comparison: Comparison) -> list[str]:
    """A sentence for each peer that cannot come down to AdaTP's end-to-end FLOPs."""
    found = comparison.end_to_end
    if found is None:
        return []
    return [
        f"{name} cannot come down to the end-to-end FLOPs of {found.rows[0].name}: even with everything "
        f"dropped that it may drop, its ratio is {smallest:.4f}."
        for name, smallest in found.unreachable.items()
    ]


def time_taken(comparison: Comparison) -> str | None:
    """What the times are; None where none were taken."""
    timed = _timed(comparison)
    if timed is None:
        return None
    return (
        f"Time: prefill and answer of {timed.questions} questions, one at a time and all ways in turn, "
        f"on {timed.device}; nothing kept from before, vision tower and embeddings left out."
    )


def render(comparison: Comparison, width: int) -> list[Text]:
    """Headlines, tables and remarks, no line longer than `width` from 80 on."""
    from rich.text import Text

    labelled = comparison.labelled
    lines = [*_bold(headline(comparison), width), Text("")]
    lines += _table(comparison.rows, width, (comparison.baseline, _timed(comparison)), labelled=labelled)
    found = comparison.end_to_end
    if found is not None:
        lines += [Text(""), *_bold(end_to_end_headline(found), width), Text("")]
        lines += _table(found.rows, width, None, labelled=labelled)
    lines.append(Text(""))
    for remark in remarks(comparison):
        lines += [Text(line) for line in textwrap.wrap(remark, min(width, WIDEST))]
    return lines


def _bold(text: str, width: int) -> list[Text]:
    from rich.text import Text

    return [Text(line, style="bold") for line in textwrap.wrap(text, width)]


def to_json(comparison: Comparison) -> str:
    """Both tables as one, in the form MLflow's interface shows: pandas' "split". Fractions, seconds; the
    configuration as canonical JSON. equal: which FLOPs a row shares with AdaTP's.
    """
    columns = (
        "name", "equal", "about", "method", "questions", "videos", "accuracy", "accuracy_low",
        "accuracy_high", "difference", "difference_low", "difference_high", "regressions", "gained",
        "flops_ratio", "flops_ratio_end_to_end", "seconds", "seconds_ratio", "device", "configuration",
    )  # fmt: skip
    timed, baseline = _timed(comparison), comparison.baseline
    outcome = comparison.rows[0].held_out.outcome if comparison.rows else None
    rows: list[list[object]] = [
        [
            "unpruned", "", "", "", *((outcome.questions, outcome.videos) if outcome else (None, None)),
            *_ends(baseline), 0.0, None, None, 0, 0, 1.0, 1.0,
            *((timed.baseline_seconds, 1.0, timed.device) if timed else (None, None, None)), "",
        ]
    ]  # fmt: skip
    found = () if comparison.end_to_end is None else comparison.end_to_end.rows
    compared = [*((row, "LLM prefill") for row in comparison.rows), *((item, "end to end") for item in found)]
    for one, equal in compared:
        held_out, outcome, timed = one.held_out, one.held_out.outcome, one.timed
        rows.append(
            [
                one.name, equal, one.about, held_out.configuration.method, outcome.questions, outcome.videos,
                *_ends(held_out.accuracy), *_ends(held_out.difference), outcome.regressions, outcome.gained,
                outcome.flops_ratio, outcome.flops_ratio_end_to_end,
                *((timed.seconds, timed.ratio, timed.device) if timed else (None, None, None)),
                json.dumps(held_out.configuration.as_dict(), sort_keys=True),
            ]
        )  # fmt: skip
    return json.dumps({"columns": columns, "data": rows}, ensure_ascii=False)


def _ends(measured: Measured) -> tuple[float | None, ...]:
    """The value and its interval; without one, nothing."""
    interval = measured.interval
    ends = (None, None) if interval is None else (interval.low, interval.high)
    return (measured.value, *ends)


def _timed(comparison: Comparison) -> Timed | None:
    return next((row.timed for row in comparison.rows if row.timed is not None), None)
