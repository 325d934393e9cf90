"""What `tuner compare` found, as the table a person reads at its end and the one that MLflow shows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tuner.records.measurements import Timed
from tuner.reporting.summary import NOTHING, percent, signed
from tuner.reporting.values import Compared, Comparison
from tuner.statistics.values import Measured
from tuner.statistics.wording import NOTHING_CHOSEN

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

# File name of the table.
TABLE = "comparison.json"


def headline(comparison: Comparison) -> str:
    """One line above the table."""
    count = len(comparison.rows)
    return f"{comparison.study}: {count} ways to prune at a FLOPs ratio of {comparison.budget:g}"


def table(comparison: Comparison) -> Table:
    """A row for the unpruned model and for each way to prune; the best accuracy of these is bold."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    what = "accuracy" if comparison.labelled else "agreement"
    drawn = Table("", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = (f"held-out {what}", "change", "lost", "gained", "FLOPs", "end to\nend", "ms", "time")
    for name in columns:
        drawn.add_column(name, justify="right", no_wrap=True)
    timed = _timed(comparison)
    before = NOTHING if timed is None else f"{1000 * timed.baseline_seconds:.3g}"
    drawn.add_row(
        "unpruned", percent(comparison.baseline), NOTHING, NOTHING, NOTHING, "1", "1", before,
        NOTHING if timed is None else "1",
    )  # fmt: skip
    best = max((row.held_out.accuracy.value for row in comparison.rows), default=None)
    for one in comparison.rows:
        style = "bold" if one.held_out.accuracy.value == best else ""
        # Text: a string in brackets might be taken for markup.
        drawn.add_row(*(Text(cell, style=style) for cell in (one.name, *_cells(one))))
    return drawn


def _cells(one: Compared) -> tuple[str, ...]:
    outcome = one.held_out.outcome
    return (
        percent(one.held_out.accuracy),
        signed(one.held_out.difference),
        str(outcome.regressions),
        str(outcome.gained),
        f"{outcome.flops_ratio:.4f}",
        f"{outcome.flops_ratio_end_to_end:.4f}",
        NOTHING if one.timed is None else f"{1000 * one.timed.seconds:.3g}",
        NOTHING if one.timed is None else f"{one.timed.ratio:.2f}",
    )


def remarks(comparison: Comparison) -> tuple[str, ...]:
    """Sentences below the table: what the columns are, and what could not be compared."""
    lines = []
    if comparison.rows:
        outcome = comparison.rows[0].held_out.outcome
        lines.append(
            f"Held out: {outcome.questions} questions about {outcome.videos} videos; %, 95 % intervals; "
            "change, lost and gained against the unpruned model on the same questions; FLOPs and time as a "
            "share of the unpruned model's."
        )
    time = time_taken(comparison)
    lines += [] if time is None else [time]
    lines += [
        f"{name} cannot reach the budget: its smallest FLOPs ratio is {smallest:.4f}."
        for name, smallest in comparison.unreachable.items()
    ]
    lines += [NOTHING_CHOSEN] if comparison.rows else []
    return tuple(lines)


def time_taken(comparison: Comparison) -> str | None:
    """What the times are; None where none were taken."""
    timed = _timed(comparison)
    if timed is None:
        return None
    return (
        f"Time: prefill and answer of {timed.questions} questions, one at a time and all ways in turn, "
        f"on {timed.device}; nothing kept from before, vision tower and embeddings left out."
    )


def render(comparison: Comparison) -> RenderableType:
    """Headline, table and remarks."""
    from rich.console import Group
    from rich.text import Text

    below = [Text(line, overflow="fold") for line in remarks(comparison)]
    return Group(Text(headline(comparison), style="bold"), table(comparison), *below)


def to_json(comparison: Comparison) -> str:
    """The table in the form MLflow's interface shows: pandas' "split". Fractions, seconds; the configuration
    as canonical JSON.
    """
    columns = (
        "name", "about", "method", "questions", "videos", "accuracy", "accuracy_low", "accuracy_high",
        "difference", "difference_low", "difference_high", "regressions", "gained", "flops_ratio",
        "flops_ratio_end_to_end", "seconds", "seconds_ratio", "device", "configuration",
    )  # fmt: skip
    timed, baseline = _timed(comparison), comparison.baseline
    outcome = comparison.rows[0].held_out.outcome if comparison.rows else None
    rows: list[list[object]] = [
        [
            "unpruned", "", "", *((outcome.questions, outcome.videos) if outcome else (None, None)),
            *_ends(baseline), 0.0, None, None, 0, 0, 1.0, 1.0,
            *((timed.baseline_seconds, 1.0, timed.device) if timed else (None, None, None)), "",
        ]
    ]  # fmt: skip
    for one in comparison.rows:
        held_out, outcome, timed = one.held_out, one.held_out.outcome, one.timed
        rows.append(
            [
                one.name, one.about, held_out.configuration.method, outcome.questions, outcome.videos,
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
