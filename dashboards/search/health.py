"""Whether a study's numbers can be trusted, what was left out, and what it cost: tables with small bars."""

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


@dataclass(frozen=True)
class HealthRow:
    """One line of one section; percentages and points are out of 100."""

    section: str
    name: str
    # None where it was not measured, and where the note says it all.
    value: float | None
    unit: str
    # What it means, or why.
    note: str
    # Length of its bar as a share: of the section's largest value of the unit, of 100 for "%". None: none.
    bar: float | None = None


def health_rows(summary: RunSummary, history: History | None = None) -> tuple[HealthRow, ...]:
    """The table, section by section. `history`: for the model time by what asked for it."""
    rows = [
        *_evidence(summary),
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
    """The tables as a page, without script. `history`: for the model time by what asked for it."""
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
        one.value
        for one in rows
        if (one.section, one.unit) == (row.section, row.unit) and one.value is not None
    ]
    longest = 100.0 if row.unit == "%" else max(alike, default=0.0)
    # Alone there is nothing to compare it with.
    if row.value is None or longest <= 0 or (len(alike) < 2 and row.unit != "%"):
        return row
    return replace(row, bar=row.value / longest)


def _evidence(summary: RunSummary) -> Iterator[HealthRow]:
    section, noise = "What the study can show", summary.noise
    if summary.margin is None:
        yield HealthRow(section, "margin", None, "points", "nothing was tested on the held-out part")
    else:
        note = "the largest drop of held-out accuracy that still counts as none"
        yield HealthRow(section, "margin", 100 * summary.margin, "points", note)
    if summary.provable_drop is None:
        yield HealthRow(section, "provable drop", None, "points", "too few held-out videos to say")
    else:
        note = "the smallest margin so many held-out videos can show; it should be below the margin"
        yield HealthRow(section, "provable drop", 100 * summary.provable_drop, "points", note)
    if noise is None:
        yield HealthRow(section, "noise floor", None, "points", "not measured")
        return
    yield HealthRow(
        section,
        "noise floor",
        100 * noise.flip_rate,
        "points",
        f"asked in packs of another size, the unpruned model changes {noise.flips} of {noise.questions} "
        "answers; it should be below the margin",
    )
    note = (
        f"of the right answer in the same check, in natural logarithms; {noise.logprob_mean:.1g} on average"
    )
    yield HealthRow(section, "largest change of log-probability", noise.logprob_max, "", note)


def _left_out(summary: RunSummary) -> Iterator[HealthRow]:
    section = "What was left out"
    note = "asking them killed a worker, or found too little memory"
    yield HealthRow(section, "quarantined", len(summary.quarantined), "questions", note)
    for question, reason in summary.quarantined.items():
        yield HealthRow(section, f"question {question}", None, "", reason)
    yield HealthRow(section, "skipped", len(summary.skipped_videos), "videos", "they cannot be read")
    for video in summary.skipped_videos:
        yield HealthRow(section, f"video {video}", None, "", "cannot be read")


def _tried(summary: RunSummary) -> Iterator[HealthRow]:
    section, stopped = "What was tried", summary.stopped
    note = "answered on all tune videos; those of the study's other searches count, too"
    yield HealthRow(section, "complete", len(summary.trials), "trials", note)
    if summary.above:
        note = "for the front alone; none of them can be chosen"
        yield HealthRow(section, "above the budget", len(summary.above), "trials", note)
    if summary.outside:
        note = "study.yaml does not allow their knobs or choices any more: none of them can be chosen"
        yield HealthRow(section, "left out", len(summary.outside), "trials", note)
    note = "the race stopped none"
    if stopped:
        videos = sum(one.videos for one in stopped) / len(stopped)
        note = f"others at no higher cost are confidently better, on average after {videos:.0f} tune videos"
    yield HealthRow(section, "stopped by the race", len(stopped), "trials", note)
    note = "over the budget by plan alone, at no model time"
    yield HealthRow(section, "refused", summary.refused, "proposals", note)


def _cost(summary: RunSummary) -> Iterator[HealthRow]:
    section, cost = "What it cost", summary.cost
    if cost is None:
        yield HealthRow(section, "baseline passes", None, "passes", "not counted")
        return
    note = "a pass: every video encoded and every question answered unpruned, once"
    yield HealthRow(section, "the study so far", cost.passes, "passes", note)
    note = "every question of every trial encodes its video anew; nothing shared, nothing raced away"
    yield HealthRow(section, "the same done naively", cost.naive_passes, "passes", note)
    note = f"a pass of the language model; done naively {cost.naive_passes_language:.1f} of them"
    yield HealthRow(section, "language model alone", cost.passes_language, "passes of it", note)
    note = "by the baseline, the trials and on the held-out part"
    yield HealthRow(section, "answers evaluated", cost.answers, "answers", note)
    note = f"{cost.shared:,} of the {cost.wanted:,} answers that trials wanted were there through equal plans"
    yield HealthRow(section, "answers shared", 100 * cost.shared_share, "%", note)
    note = f"{cost.raced:,} of them were not asked, for the race had stopped their trial"
    yield HealthRow(section, "answers raced away", 100 * cost.raced_share, "%", note)


# Below it most answers pay for a prefix of their own.
_FEW_PREFIXES = 0.5


def _cache_hits(summary: RunSummary) -> Iterator[HealthRow]:
    section, use = "Cache hits", summary.cache_use
    if use is None:
        yield HealthRow(section, "vision features and prefixes", None, "%", "not recorded")
        return
    if use.feature_hit_rate is not None:
        note = (
            f"of {use.features:,} times a video's were asked for: {use.features_in_memory:,} in memory, "
            f"{use.features_read:,} on disk; {use.features_computed:,} computed"
        )
        if use.features_computed > summary.videos > 0:
            note += (
                f" for {summary.videos:,} videos. Once each is enough: their folder is full, was emptied, or "
                "is not shared by all workers"
            )
        yield HealthRow(section, "vision features", 100 * use.feature_hit_rate, "%", note)
    if use.prefix_hit_rate is not None:
        note = (
            "system prompt and video through the layers that can be kept, in each worker's memory: "
            f"{use.prefixes_reused:,} of {use.prefixes:,} answers reused one; {use.prefixes_built:,} built"
        )
        if use.prefix_hit_rate < _FEW_PREFIXES:
            note += ". That is often: fewer --workers share each prefix among more answers"
        yield HealthRow(section, "prefixes", 100 * use.prefix_hit_rate, "%", note)
    if use.prefixes < summary.evaluated_answers:
        older = summary.evaluated_answers - use.prefixes
        note = "not in these shares: an older version evaluated them, and did not count"
        yield HealthRow(section, "older answers", older, "answers", note)


def _model_time(summary: RunSummary, history: History | None) -> Iterator[HealthRow]:
    section = "Model time by what asked for it"
    if history is not None:
        time = history.model_time
        yield HealthRow(section, "baseline", time.baseline, "seconds", "the unpruned model, all questions")
        yield HealthRow(section, "trials", time.trials, "seconds", "the tune part")
        yield HealthRow(
            section, "held-out part", time.held_out, "seconds", "every configuration measured there"
        )
        if time.other:
            yield HealthRow(section, "other", time.other, "seconds", "asked beside any search")
    elif summary.cost is not None and summary.cost.seconds is not None:
        yield HealthRow(
            section, "all answers", summary.cost.seconds, "seconds", "without encoding the videos"
        )


_PARTS = (
    ("vision", "vision tower", "once per video"),
    ("frame_embedding", "frame embeddings", "once per video"),
    ("prefix", "prefix", "once per video: system prompt and video, through the layers that can be kept"),
    ("text_embedding", "text embedding", "per question"),
    ("question", "question", "per question: its own tokens, and the layers that cannot be kept"),
)


def _answer_time(measured: MeasuredServing) -> Iterator[HealthRow]:
    section = f"Time by part, measured on {measured.device}"
    for name, said, note in _PARTS:
        for model, serving in (("unpruned", measured.baseline), ("pruned", measured.best)):
            value = getattr(serving, name)
            if value:
                yield HealthRow(section, f"{said}, {model}", value, "seconds", note)


# Words


def _description(summary: RunSummary) -> str:
    text = ""
    if summary.provable_drop is not None:
        drop = 100 * summary.provable_drop
        text = f"The held-out part can prove a drop of about {drop:.1f} points at best"
        if summary.margin is None:
            text += ". "
        elif summary.margin < summary.provable_drop:
            text += f", more than the margin of {100 * summary.margin:.1f}: that takes more held-out videos. "
        else:
            text += f", within the margin of {100 * summary.margin:.1f}. "
    noise = summary.noise
    if noise is not None and summary.margin is not None and summary.margin <= noise.flip_rate:
        text += "The noise floor reaches the margin: nothing can be shown. "
    left_out = [
        f"{count} {what}" + ("s" if count > 1 else "")
        for count, what in ((len(summary.quarantined), "question"), (len(summary.skipped_videos), "video"))
        if count
    ]
    text += f"Left out: {' and '.join(left_out)}." if left_out else "Nothing was left out."
    if summary.cost is not None:
        cost = summary.cost
        text += (
            f" The study cost {cost.passes:.1f} baseline passes so far; done naively it would have been "
            f"{cost.naive_passes:.0f}."
        )
    return text


def _said(row: HealthRow) -> str:
    if row.value is None:
        return "not known" if row.unit else ""
    if row.unit == "seconds":
        return duration(row.value) if row.value >= 10 else f"{1000 * row.value:.3g} ms"
    if row.unit in ("questions", "videos", "trials", "proposals", "answers"):
        return f"{row.value:,.0f} {row.unit if row.value != 1 else row.unit[:-1]}"
    if row.unit == "":
        return f"{row.value:.1g}"
    return f"{row.value:.1f} {row.unit}"


# The page: tables that read well aloud; a bar says nothing that its row does not say in figures.

_CSS = f"""
.health table {{ border-collapse: collapse; table-layout: fixed; width: 100%; max-width: 64rem;
  margin: 0 0 1.6rem; }}
.health caption {{ text-align: left; font-weight: 600; padding: 0 0 .4rem; }}
.health th, .health td {{ text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-top: 1px solid rgb(128 128 128 / .3); font-weight: 400; overflow-wrap: break-word; hyphens: auto; }}
.health th {{ width: 30%; }}
.health td.value {{ width: 26%; font-variant-numeric: tabular-nums; }}
.health .bar {{ display: block; height: .4rem; margin-top: .25rem; background: rgb(128 128 128 / .2); }}
.health .bar span {{ display: block; height: 100%; background: {BLUE};
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
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
