"""The report of a study: one HTML file that needs no network.

The first screen (`answer`) says which configuration, what it saves, what it costs and whether to ship it; the
rest of the page supports that. Figures are drawn when they come near the screen, and all before printing.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from dashboards.picture.picture import FONT, Picture, to_csv
from dashboards.picture.templating import (
    Drawing,
    css_safe,
    drawing_of,
    make_environment,
    plotly_code,
    with_minus,
)
from dashboards.report.answer import answer, counted
from dashboards.report.flips import filters_of, flips_of
from tuner.reporting.comparison_table import end_to_end_unreachable, time_taken
from tuner.reporting.summary import (
    accuracy_name,
    comparison,
    duration,
    headline,
    knob_rows,
    percent,
    remarks,
    signed,
)
from tuner.reporting.values import Comparison, RunSummary
from tuner.sensitivity.in_short import in_short
from tuner.sensitivity.results import Sensitivity
from tuner.statistics.values import Interval
from tuner.statistics.wording import NOTHING_CHOSEN

if TYPE_CHECKING:
    from jinja2 import Environment

# Rows of a table that the page shows; the CSV has all of them.
MOST_ROWS = 200
# Regressions and gains that the page shows; some 700 bytes each.
MOST_FLIPS = 2000
# Largest CSV, in bytes, that the page carries as a link; a larger one lies among the study's figures.
LARGEST_CSV = 256 * 1024
# Beginnings of the names of pictures that are folded in the page: the curves of a sensitivity study by tag.
_FOLDED = "sensitivity-by-"


def report_html(
    summary: RunSummary,
    pictures: Sequence[Picture],
    *,
    sensitivity: Sensitivity | None = None,
    comparison: Comparison | None = None,
) -> str:
    """The whole page; equal values give equal text.

    Errors: ValueError when two pictures have the same name, or a picture has neither a drawing nor a body.
    """
    names = [picture.name for picture in pictures]
    if len(set(names)) < len(names):
        raise ValueError(f"Pictures need names of their own, but got {', '.join(names)}.")
    flips = flips_of(summary, pictures)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            summary=summary,
            answer=answer(summary),
            headline=headline(replace(summary, seconds=0.0)).removeprefix(f"{summary.study}: "),
            what=accuracy_name(summary),
            font=FONT,
            knobs=knob_rows(summary),
            numbers=_numbers(summary),
            facts=_facts(summary),
            # The page has the command, and all rows by tag.
            remarks=[
                remark for remark in remarks(summary) if not remark.startswith(("To export it: ", "By tag: "))
            ],
            figures=[_figure(picture) for picture in pictures],
            plotly=plotly_code() if any(picture.plotly is not None for picture in pictures) else None,
            sensitivity=sensitivity,
            findings=_findings(sensitivity),
            findings_in_short=() if sensitivity is None else in_short(sensitivity),
            comparison=comparison,
            nothing_chosen=NOTHING_CHOSEN,
            end_to_end_unreachable=() if comparison is None else end_to_end_unreachable(comparison),
            fair=None if comparison is None else _fair(comparison),
            time_taken=None if comparison is None else time_taken(comparison),
            flips=flips[:MOST_FLIPS],
            flips_in_all=len(flips),
            filters=filters_of(flips[:MOST_FLIPS]),
            most=MOST_ROWS,
        )
    )


def _fair(comparison: Comparison) -> str | None:
    """What equal LLM FLOPs leave out; None where all methods cost the same end to end."""
    ratios = {row.name: row.held_out.outcome.flops_ratio_end_to_end for row in comparison.rows}
    if not ratios:
        return None
    cheapest, dearest = min(ratios, key=lambda name: ratios[name]), max(ratios, key=lambda name: ratios[name])
    if ratios[dearest] - ratios[cheapest] < 0.02:
        return None
    return (
        f"Equal LLM FLOPs are not equal cost: end to end, including the vision tower, {cheapest} needs "
        f"{100 * ratios[cheapest]:.0f} % of the unpruned FLOPs and {dearest} {100 * ratios[dearest]:.0f} %. "
        + (
            f"At equal end-to-end cost {cheapest} could keep more tokens, and may lose less than here: "
            f"`tuner compare --budget {comparison.budget:g}` measures that."
            if comparison.end_to_end is None
            else "The next table compares them at equal end-to-end cost."
        )
    )


def _findings(found: Sensitivity | None) -> tuple[str, ...]:
    """The sentences of a sensitivity study, without those about failures, which stand by themselves."""
    if found is None:
        return ()
    failures = {failure.evidence for failure in found.failures}
    return tuple(sentence for sentence in found.sentences if sentence not in failures)


def _numbers(summary: RunSummary) -> tuple[tuple[str, ...], ...]:
    """The comparison that the terminal prints, with a full name for each row."""
    names = {
        "change": "change from unpruned, points [95 % interval]",
        "regressions": "regressions, questions",
        "gained": "gained, questions",
        "FLOPs ratio": "LLM prefill FLOPs ratio",
        "end to end": "FLOPs ratio end to end",
        "seconds": "seconds for a video and one question",
        "MiB added": "MiB of memory per answer",
        "tuned - defaults": "tuned minus AdaTP's defaults, held out, points [95 % interval]",
        "study cost, passes": "cost of this study so far, baseline passes",
    }
    what = accuracy_name(summary)
    names |= {f"{split} {what}": f"{split} {what}, % [95 % interval]" for split in ("held-out", "tune")}
    return tuple(
        (names.get(row.name.strip(), row.name.strip()), row.unpruned, row.best, row.defaults)
        for row in comparison(summary)
    )


def _facts(summary: RunSummary) -> tuple[tuple[str, str], ...]:
    """How it was measured, as names and values."""
    setting, outcomes = summary.setting, []
    if summary.trials:
        outcomes.append(("tune", summary.trials[0].outcome))
    if summary.best_held_out is not None:
        outcomes.append(("held-out", summary.best_held_out.outcome))
    rows = [("study", f"{summary.study}, {summary.study_hash}")]
    if setting is not None:
        revised = [
            name if revision is None else f"{name}, revision {revision}"
            for name, revision in (
                (setting.model, setting.model_revision),
                (setting.text_encoder, setting.text_encoder_revision),
            )
        ]
        rows += [
            ("model", f"{revised[0]} ({setting.model_identity})"),
            ("text encoder", revised[1]),
            ("frames", f"{setting.frames} from each video"),
            ("scoring", setting.scoring),
            (
                "pruning layers",
                f"{', '.join(map(str, setting.pruning_layers))} of {setting.layers} decoder layers",
            ),
            (
                "labels",
                "the study's own"
                if setting.labelled
                else "none: the unpruned model's answers are taken as right",
            ),
        ]
    if outcomes:
        said = (
            f"{split}: {outcome.questions} questions about {outcome.videos} videos"
            for split, outcome in outcomes
        )
        rows.append(("split", "; ".join(said)))
    rows.append(("search", f"{summary.sampler}, seed {summary.seed}, {_asked(summary)}"))
    if summary.serving is not None and summary.serving.measured is not None:
        rows.append(("machine", summary.serving.measured.device))
    if summary.cost is not None:
        spent = f"{summary.cost.passes:.1f} baseline passes, {summary.cost.answers:,} answers"
        if summary.cost.seconds is not None:
            spent += f", {duration(summary.cost.seconds)} of model time"
        rows.append(("cost of the study", spent))
    return tuple(rows)


def _asked(summary: RunSummary) -> str:
    drop = f"--max-drop {summary.max_drop}" if summary.max_drop else ""
    if summary.goal == "max_drop":
        return f"the cheapest configuration within {drop}"
    return f"budget {summary.budget:g}" + (f", {drop}" if drop else "")


@dataclass(frozen=True)
class _Figure:
    """A picture as the template reads it."""

    picture: Picture
    # Exactly one of the two is set.
    drawing: Drawing | None
    body: Markup | None
    css: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    csv: str | None
    # Long figures that only some readers need.
    folded: bool


def _figure(picture: Picture) -> _Figure:
    if picture.plotly is None and picture.body is None:
        raise ValueError(f"A picture needs a plotly figure or a body, but {picture.name} has neither.")
    table = picture.table
    text = to_csv(table).encode()
    return _Figure(
        picture=picture,
        drawing=None if picture.plotly is None else drawing_of(picture.plotly),
        body=None if picture.body is None else Markup(picture.body),
        css=css_safe(picture.css),
        columns=tuple(field.name for field in fields(table[0])) if table else (),
        rows=tuple(tuple(getattr(row, field.name) for field in fields(row)) for row in table[:MOST_ROWS]),
        csv=f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text).decode()}"
        if table and len(text) <= LARGEST_CSV
        else None,
        folded=picture.name.startswith(_FOLDED),
    )


def _cell(value: Any) -> str:
    """A value of a figure's table with six significant digits; the CSV has all of them."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return with_minus(f"{value:.6g}") if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"


@cache
def _environment() -> Environment:
    environment = make_environment()
    environment.filters |= {
        "cell": _cell,
        "signed": signed,
        "percent": percent,
        "interval": _interval,
        "counted": counted,
    }
    environment.tests["numeric"] = _is_number
    return environment
