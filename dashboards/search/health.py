"""Whether the study's numbers can be trusted, what was left out and what it cost: tables with small bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import groupby

from dashboards.picture.picture import BLUE, Picture
from tuner.records.measurements import MeasuredServing
from tuner.reporting.history import History
from tuner.reporting.summary import duration
from tuner.reporting.values import RunSummary
from tuner.statistics.wording import provable


@dataclass(frozen=True)
class HealthRow:
    """One line of a section; percentages and points count from 0 to 100."""

    section: str
    name: str
    # None where it was not measured, or where the note says everything.
    value: float | None
    unit: str
    # What the value means, or the reason.
    note: str
    # Length of its bar as a share of the section's largest value of this unit, or of 100 %; None: no bar.
    bar: float | None = None


def health_rows(summary: RunSummary, history: History | None = None) -> tuple[HealthRow, ...]:
    """The table, section by section; `history` gives the model time by purpose."""
    rows = [
        *_detectable(summary),
        *_left_out(summary),
        *_tried(summary),
        *_cost(summary),
        *_cache_hits(summary),
        *_model_time(summary, history),
    ]
    if summary.serving is not None and summary.serving.measured is not None:
        rows += _answer_time(summary.serving.measured)
    return tuple(_with_bar(row, rows) for row in rows)


def health_picture(summary: RunSummary, history: History | None = None) -> Picture:
    """The tables as a page without scripts; `history` gives the model time by purpose."""
    rows = health_rows(summary, history)
    return Picture(
        name="health",
        title="Study health",
        description=_description(summary),
        table=rows,
        body=_body(rows),
        css=_CSS,
    )


def _with_bar(row: HealthRow, rows: Sequence[HealthRow]) -> HealthRow:
    alike = [
        other.value
        for other in rows
        if (other.section, other.unit) == (row.section, row.unit) and other.value is not None
    ]
    longest = 100.0 if row.unit == "%" else max(alike, default=0.0)
    # A single value has nothing to be compared with.
    if row.value is None or longest <= 0 or (len(alike) < 2 and row.unit != "%"):
        return row
    return replace(row, bar=row.value / longest)


def _detectable(summary: RunSummary) -> Iterator[HealthRow]:
    section, noise = "What the study can show", summary.noise
    if summary.margin is None:
        yield HealthRow(section, "margin", None, "points", "no test on the held-out split")
    else:
        note = "the largest drop of held-out accuracy that you allow"
        yield HealthRow(section, "margin", 100 * summary.margin, "points", note)
    name = "smallest loss that can be ruled out"
    if summary.provable_drop is None:
        yield HealthRow(section, name, None, "points", "too few held-out videos")
    else:
        note = (
            f"with {summary.held_out_videos} held-out videos, if no answer is lost; it should be well below "
            "the margin, since lost answers take more videos"
        )
        yield HealthRow(section, name, 100 * summary.provable_drop, "points", note)
    if summary.loss_correlation is not None:
        note = "of lost answers within a video; 0: independent, 1: whole videos are lost"
        yield HealthRow(section, "correlation", summary.loss_correlation, "correlation", note)
    if noise is None:
        yield HealthRow(section, "noise floor", None, "points", "not measured")
        return
    yield HealthRow(
        section,
        "noise floor",
        100 * noise.flip_rate,
        "points",
        f"with another batch size the unpruned model changes {noise.flips} of {noise.questions} answers; it "
        "should be below the margin",
    )
    note = f"of the right answer in the same check, natural logarithm; {noise.logprob_mean:.1g} on average"
    yield HealthRow(section, "largest change of log-probability", noise.logprob_max, "", note)


def _left_out(summary: RunSummary) -> Iterator[HealthRow]:
    section = "What was left out"
    note = "they killed a worker or ran out of memory"
    yield HealthRow(section, "quarantined", len(summary.quarantined), "questions", note)
    for question, reason in summary.quarantined.items():
        yield HealthRow(section, f"question {question}", None, "", reason)
    yield HealthRow(section, "skipped", len(summary.skipped_videos), "videos", "they cannot be read")
    for video in summary.skipped_videos:
        yield HealthRow(section, f"video {video}", None, "", "cannot be read")


def _tried(summary: RunSummary) -> Iterator[HealthRow]:
    section, pruned = "Trials", summary.pruned
    note = "answered on all tune videos, including those of other searches of this study"
    yield HealthRow(section, "completed", len(summary.trials), "trials", note)
    if summary.above:
        note = "they complete the front, but cannot be chosen"
        yield HealthRow(section, "above the budget", len(summary.above), "trials", note)
    if summary.outside:
        note = "study.yaml no longer allows their values, so they cannot be chosen"
        yield HealthRow(section, "left out", len(summary.outside), "trials", note)
    note = "no trial was pruned"
    if pruned:
        videos = sum(trial.videos for trial in pruned) / len(pruned)
        note = f"pruned, on average after {videos:.0f} tune videos: others are better at no higher cost"
    yield HealthRow(section, "pruned", len(pruned), "trials", note)
    note = "over the budget, which is known without running the model"
    yield HealthRow(section, "infeasible", summary.infeasible, "proposals", note)


def _cost(summary: RunSummary) -> Iterator[HealthRow]:
    section, cost = "Cost", summary.cost
    if cost is None:
        yield HealthRow(section, "baseline passes", None, "passes", "not counted")
        return
    note = "one pass encodes every video and answers every question once, unpruned"
    yield HealthRow(section, "this study so far", cost.passes, "passes", note)
    note = "every trial encodes and answers everything again: no caches, no shared answers, no pruned trials"
    yield HealthRow(section, "without the tuner's savings", cost.naive_passes, "passes", note)
    note = f"without the vision tower; {cost.naive_passes_language:.1f} without the tuner's savings"
    yield HealthRow(section, "language model alone", cost.passes_language, "language-model passes", note)
    note = "for all of the study, comparisons and sensitivity studies included"
    yield HealthRow(section, "answers evaluated", cost.answers, "answers", note)
    note = f"{cost.shared:,} of {cost.wanted:,} answers for trials were known, because their plans were equal"
    yield HealthRow(section, "answers shared", 100 * cost.shared_share, "%", note)
    note = f"{cost.spared:,} of them were not computed, because their trial was pruned"
    yield HealthRow(section, "answers spared by pruned trials", 100 * cost.spared_share, "%", note)


# Below this hit rate most answers compute their own prefix.
_FEW_PREFIXES = 0.5


def _cache_hits(summary: RunSummary) -> Iterator[HealthRow]:
    section, use = "Cache hits", summary.cache_use
    if use is None:
        yield HealthRow(section, "vision features and prefixes", None, "%", "not recorded")
        return
    if use.feature_hit_rate is not None:
        note = (
            f"of {use.features:,} uses {use.features_in_memory:,} were in memory and "
            f"{use.features_read:,} on disk; {use.features_computed:,} were computed"
        )
        if use.features_computed > summary.videos > 0:
            note += (
                f", more than the {summary.videos:,} videos: the cache folder is full, was emptied, or is "
                "not shared by all workers"
            )
        yield HealthRow(section, "vision features", 100 * use.feature_hit_rate, "%", note)
    if use.prefix_hit_rate is not None:
        note = (
            "system prompt and video through the layers that can be cached, in each worker's memory: "
            f"{use.prefixes_reused:,} of {use.prefixes:,} answers reused a prefix; {use.prefixes_built:,} "
            "were computed"
        )
        if use.prefix_hit_rate < _FEW_PREFIXES:
            note += ". With fewer --workers more answers share each prefix"
        yield HealthRow(section, "prefixes", 100 * use.prefix_hit_rate, "%", note)
    if use.prefixes < summary.evaluated_answers:
        older = summary.evaluated_answers - use.prefixes
        note = "not counted here: an earlier version computed them"
        yield HealthRow(section, "older answers", older, "answers", note)


def _model_time(summary: RunSummary, history: History | None) -> Iterator[HealthRow]:
    section = "Model time by purpose"
    if history is not None:
        time = history.model_time
        yield HealthRow(section, "baseline", time.baseline, "seconds", "the unpruned model on all questions")
        yield HealthRow(section, "trials", time.trials, "seconds", "the tune split")
        yield HealthRow(
            section, "held-out split", time.held_out, "seconds", "all configurations measured there"
        )
        if time.other:
            yield HealthRow(section, "other", time.other, "seconds", "comparisons and sensitivity studies")
    elif summary.cost is not None and summary.cost.seconds is not None:
        yield HealthRow(section, "all answers", summary.cost.seconds, "seconds", "without encoding videos")


_PARTS = (
    ("vision", "vision tower", "once per video"),
    ("frame_embedding", "frame embeddings", "once per video"),
    ("prefix", "prefix", "once per video: system prompt and video, through the layers that can be cached"),
    ("text_embedding", "text embedding", "per question"),
    ("question", "question", "per question: its own tokens, and the layers that cannot be cached"),
)


def _answer_time(measured: MeasuredServing) -> Iterator[HealthRow]:
    section = f"Time by step, measured on {measured.device}"
    for name, said, note in _PARTS:
        for model, serving in (("unpruned", measured.baseline), ("pruned", measured.best)):
            value = getattr(serving, name)
            if value:
                yield HealthRow(section, f"{said}, {model}", value, "seconds", note)


def _description(summary: RunSummary) -> str:
    text = ""
    if summary.provable_drop is not None:
        said = provable(
            summary.provable_drop, summary.held_out_videos, summary.margin, summary.loss_correlation
        )
        text = f"{said} "
    noise = summary.noise
    if noise is not None and summary.margin is not None and summary.margin <= noise.flip_rate:
        text += "The noise floor is not below the margin, so nothing can be shown. "
    left_out = [
        f"{count} {what}" + ("s" if count > 1 else "")
        for count, what in ((len(summary.quarantined), "question"), (len(summary.skipped_videos), "video"))
        if count
    ]
    text += f"Left out: {' and '.join(left_out)}." if left_out else "Nothing was left out."
    if summary.cost is not None:
        cost = summary.cost
        text += (
            f" The study has cost {cost.passes:.1f} baseline passes so far; without the tuner's savings it "
            f"would have cost {cost.naive_passes:.0f}."
        )
    return text


def _said(row: HealthRow) -> str:
    if row.value is None:
        return "not known" if row.unit else ""
    if row.unit == "seconds":
        return duration(row.value) if row.value >= 10 else f"{1000 * row.value:.3g} ms"
    if row.unit == "correlation":
        return f"{row.value:.2f}"
    if row.unit in ("questions", "videos", "trials", "proposals", "answers"):
        return f"{row.value:,.0f} {row.unit if row.value != 1 else row.unit[:-1]}"
    if row.unit == "":
        return f"{row.value:.1g}"
    return f"{row.value:.1f} {row.unit}"


# The page: tables for screen readers too; a bar repeats the number of its row.

_CSS = f"""
.health table {{ border-collapse: collapse; table-layout: fixed; width: 100%; max-width: 64rem;
  margin: 0 0 1.6rem; font-size: clamp(.8rem, 2.4vw + .2rem, 1rem); }}
.health caption {{ text-align: left; font-weight: 600; padding: 0 0 .4rem; }}
.health th, .health td {{ text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-top: 1px solid rgb(128 128 128 / .3); font-weight: 400; overflow-wrap: break-word; hyphens: auto; }}
.health th {{ width: 32%; }}
.health td.value {{ width: 26%; font-variant-numeric: tabular-nums; }}
.health .bar {{ display: block; height: .4rem; margin-top: .25rem; background: rgb(128 128 128 / .2); }}
.health .bar span {{ display: block; height: 100%; background: {BLUE};
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
@media screen and (max-width: 600px) {{
  .health table {{ font-size: .9rem; }}
  .health tr {{ display: grid; grid-template-columns: 1fr 1fr; border-top: 1px solid rgb(128 128 128 / .3); }}
  .health th, .health td, .health td.value {{ width: auto; border: 0; hyphens: manual; }}
  .health td:last-child {{ grid-column: 1 / -1; padding-top: 0; }}
}}
"""


def _body(rows: Sequence[HealthRow]) -> str:
    tables = []
    for section, lines in groupby(rows, key=lambda row: row.section):
        tables.append(f"<table>\n<caption>{escape(section)}</caption>\n<tbody>")
        tables += [
            f'<tr><th scope="row">{escape(row.name)}</th>'
            f'<td class="value">{escape(_said(row))}{_bar(row)}</td><td>{escape(row.note)}</td></tr>'
            for row in lines
        ]
        tables.append("</tbody>\n</table>")
    return '<div class="health">\n' + "\n".join(tables) + "\n</div>"


def _bar(row: HealthRow) -> str:
    if row.bar is None:
        return ""
    return f'<span class="bar" aria-hidden="true"><span style="width: {100 * row.bar:.1f}%"></span></span>'
