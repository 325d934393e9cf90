"""The report of a study: one HTML file that needs no network and answers four questions on its first screen.

Which configuration, what it saves, what it costs, may I ship it. `answer` holds what is said there, before
any markup; the rest of the page is what the answer rests on. Figures are drawn when they come near the
screen, and all of them before printing.
"""

from __future__ import annotations

import base64
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

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
from tuner.reporting.comparison_table import time_taken
from tuner.reporting.summary import (
    accepting,
    accuracy_name,
    comparison,
    duration,
    guessed,
    headline,
    knob_rows,
    nothing_fits,
    percent,
    remarks,
    signed,
    up_to,
    verdict,
)
from tuner.reporting.values import Comparison, HeldOut, RunSummary, Trial
from tuner.sensitivity.results import Sensitivity
from tuner.statistics.values import Interval, Measured
from tuner.statistics.wording import noise_floor, provable, weak_baseline

if TYPE_CHECKING:
    from jinja2 import Environment

State = Literal["shown", "not_shown", "untested", "nothing_fits"]

# Rows of a table that are in the page; the CSV has all of them.
MOST_ROWS = 200
# Bytes of a CSV that is carried along as a link; a larger one lies among the study's figures.
LARGEST_CSV = 256 * 1024


@dataclass(frozen=True)
class Number:
    """One large number of the first screen, what it counts, and what stands below it."""

    value: str
    unit: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scale:
    """The held-out change beside the margin, in points: what the drawing in the verdict shows."""

    change: float
    low: float
    high: float
    # The tested lower bound, and minus the margin; None where nothing was tested.
    bound: float | None
    allowed: float | None

    def at(self, points: float) -> float:
        """Where so many points lie in a drawing 400 wide, with room for a label on either side."""
        known = [one for one in (self.bound, self.allowed, self.low, self.high, 0.0) if one is not None]
        low, high = min(known), max(known)
        return round(96 + 234 * (points - low) / ((high - low) or 1.0), 1)


@dataclass(frozen=True)
class Answer:
    """What the first screen says."""

    state: State
    title: str
    # The verdict with its numbers, then what would change it.
    said: tuple[str, ...]
    changes: tuple[str, ...]
    # What to type to get best.json; None where there is nothing to export.
    command: str | None
    saves: Number | None
    costs: Number | None
    # The knobs as JSON, to copy.
    configuration: str | None
    scale: Scale | None


def answer(summary: RunSummary) -> Answer:
    """The first screen's four answers."""
    state: State = "nothing_fits" if summary.best is None else summary.verdict
    if summary.best is not None and (_drowned(summary) or guessed(summary)):
        state = "untested"
    held_out = summary.best_held_out
    return Answer(
        state=state,
        title=_title(summary, state),
        said=tuple(
            [nothing_fits(summary)] if summary.best is None else [*_warning(summary), *verdict(summary)]
        ),
        changes=_changes(summary, state),
        command=_export_command(summary),
        saves=None if held_out is None else _saves(summary, held_out),
        costs=None if held_out is None else _costs(summary, held_out),
        configuration=None if summary.best is None else _json(summary.best),
        scale=None if held_out is None else _scale(summary, held_out),
    )


def report_html(
    summary: RunSummary,
    pictures: Sequence[Picture],
    *,
    sensitivity: Sensitivity | None = None,
    comparison: Comparison | None = None,
) -> str:
    """The whole page; the same values give the same text.

    Errors: ValueError when two pictures have one name, or one has neither a drawing nor a body.
    """
    names = [one.name for one in pictures]
    if len(set(names)) < len(names):
        raise ValueError(f"Pictures need names of their own, but got {', '.join(names)}.")
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
            remarks=[line for line in remarks(summary) if not line.startswith("To export it: ")],
            figures=[_figure(one) for one in pictures],
            plotly=plotly_code() if any(one.plotly is not None for one in pictures) else None,
            sensitivity=sensitivity,
            comparison=comparison,
            time_taken=None if comparison is None else time_taken(comparison),
            most=MOST_ROWS,
        )
    )


# The first screen


def _title(summary: RunSummary, state: State) -> str:
    if state == "untested" and guessed(summary):
        return "Not known: the unpruned model does no better than guessing"
    if _drowned(summary):
        return "Not known: the margin is within the noise floor"
    margin = "the margin" if summary.margin is None else f"{100 * summary.margin:.3g} points"
    if state == "not_shown" and _exceeded(summary):
        return f"No: it loses more than {margin}"
    return {
        "shown": f"Yes: shown to lose no more than {margin}",
        "not_shown": f"Not yet: these videos cannot exclude a loss above {margin}",
        "untested": "Not known: it was not tested",
        "nothing_fits": "No: nothing fits the budget",
    }[state]


def _exceeded(summary: RunSummary) -> bool:
    """Whether the whole interval lies beyond the margin: then more videos of this kind would not help."""
    interval = None if summary.best_held_out is None else summary.best_held_out.difference.interval
    return interval is not None and summary.margin is not None and interval.high < -summary.margin


def _warning(summary: RunSummary) -> tuple[str, ...]:
    """Beside a verdict: that the unpruned model may do no better than guessing."""
    guessing = summary.guessing
    if guessing is None or guessing.no_better or guessing.shown_better:
        return ()
    return (weak_baseline(guessing),)


def _drowned(summary: RunSummary) -> bool:
    """Without labels, a margin that the unpruned model itself does not keep; as the terminal says."""
    setting, noise, margin = summary.setting, summary.noise, summary.margin
    if setting is None or setting.labelled or noise is None or margin is None or summary.best is None:
        return False
    return margin <= noise.flip_rate


def _changes(summary: RunSummary, state: State) -> tuple[str, ...]:
    """What would change the verdict."""
    held_out, test = summary.best_held_out, summary.test_of_best
    if state == "untested" and summary.guessing is not None and guessed(summary):
        return (weak_baseline(summary.guessing),)
    if _drowned(summary) and summary.noise is not None:
        return (noise_floor(summary.noise, summary.margin, labelled=False),)
    if state == "nothing_fits":
        return ("A larger budget, or wider bounds of the knobs in study.yaml.",)
    if held_out is None:
        return ("Run `tuner run` again: it carries on, and measures the best trial on held-out videos.",)
    if state == "untested":
        return ("A --max-drop, and held-out videos to test it on.",)
    if state == "not_shown":
        room = "more trials" if summary.goal == "max_drop" else "a larger budget"
        room += ", or a larger --max-drop if your users can bear it."
        if _exceeded(summary):
            return (room[0].upper() + room[1:],)
        lines = [f"More held-out videos, {room}"]
        if summary.provable_drop is not None and summary.margin is not None:
            line = provable(summary.provable_drop, held_out.outcome.videos)
            if summary.provable_drop > summary.margin:
                line += " The margin is smaller: it takes more videos, whatever the configuration."
            lines.append(line)
        return tuple(lines)
    unlike = f"videos unlike the {held_out.outcome.videos} held-out ones."
    if test is None or test.bound >= 0:
        return (unlike.capitalize(),)
    # The bound is the tested one: the verdict cannot contradict it.
    sure = f"{100 * (1 - test.level):.3g} % confidence"
    return (f"A margin below {-100 * test.bound:.1f} points ({sure}), or {unlike}",)


def _export_command(summary: RunSummary) -> str | None:
    if summary.best is None or summary.best_held_out is None:
        return None
    # Budget and seed: the report may be of an earlier search than the latest.
    line = (
        f"tuner export --study {shlex.quote(summary.study)} --budget {summary.budget!r} --seed {summary.seed}"
    )
    return line + accepting(summary)


def _saves(summary: RunSummary, held_out: HeldOut) -> Number:
    outcome = held_out.outcome
    notes = [
        f"{_than(outcome.flops_ratio_end_to_end, 1.0, 'fewer')} end to end, vision tower included",
        f"The dearest question needs {_share(outcome.flops_ratio_max)} of its unpruned prefill",
    ]
    serving = summary.serving
    measured = None if serving is None else serving.measured
    if measured is not None:
        before, after = measured.first_question
        notes.append(
            f"Time for a video and one question, vision tower included: {after:.3g} s instead of "
            f"{before:.3g} s ({_than(after, before)})"
        )
    if serving is not None:
        pays = f"Pays for {up_to(serving.break_even)}"
        if measured is not None:
            pays += f" by FLOPs, {up_to(measured.break_even)} by time"
        notes.append(f"{pays}, on a server that keeps each video's prefix")
    return Number(_share(1 - outcome.flops_ratio), "fewer LLM prefill FLOPs", tuple(notes))


def _costs(summary: RunSummary, held_out: HeldOut) -> Number:
    what, outcome = accuracy_name(summary), held_out.outcome
    points = 100 * held_out.difference.value
    interval = held_out.difference.interval
    before, after = _percent(summary.baseline.get("held_out")), _percent(held_out.accuracy)
    notes = [f"Held-out {what} {after}, unpruned {before}"]
    if interval is not None:
        notes.insert(
            0, f"95 % interval {100 * interval.low:+.1f} to {100 * interval.high:+.1f} points, paired"
        )
    notes.append(
        f"{_counted(outcome.regressions, 'regression')} (right before, wrong now) and "
        f"{outcome.gained} gained, of {outcome.questions} questions about {_counted(outcome.videos, 'video')}"
    )
    if guessed(summary):
        notes.insert(0, f"{points:+.1f} points of {what} from a model that does no better than guessing")
        return Number("Not known", "", tuple(notes))
    return Number(f"{points:+.1f}", f"points of {what}", tuple(notes))


def _scale(summary: RunSummary, held_out: HeldOut) -> Scale | None:
    interval, test = held_out.difference.interval, summary.test_of_best
    if interval is None:
        return None
    return Scale(
        change=100 * held_out.difference.value,
        low=100 * interval.low,
        high=100 * interval.high,
        bound=None if test is None else 100 * test.bound,
        allowed=None if summary.margin is None else -100 * summary.margin,
    )


def _json(trial: Trial) -> str:
    return json.dumps(trial.configuration.as_dict(), indent=2)


# Below it


def _numbers(summary: RunSummary) -> tuple[tuple[str, ...], ...]:
    """The terminal's comparison, its indented lines named in full: a row's heading must stand alone."""
    names = {
        "change": "change from unpruned, points [95 % interval]",
        "regressions": "regressions, questions",
        "gained": "gained, questions",
        "FLOPs ratio": "LLM prefill FLOPs ratio",
        "end to end": "FLOPs ratio end to end",
        "seconds": "seconds for a video and one question",
        "MiB added": "MiB that an answer adds",
    }
    what = accuracy_name(summary)
    names |= {f"{split} {what}": f"{split} {what}, % [95 % interval]" for split in ("held-out", "tune")}
    return tuple(
        (names.get(row.name.strip(), row.name.strip()), row.unpruned, row.best, row.defaults)
        for row in comparison(summary)
    )


def _facts(summary: RunSummary) -> tuple[tuple[str, str], ...]:
    """How it was measured."""
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
                "the study's own" if setting.labelled else "none: the unpruned model's answers stand in",
            ),
        ]
    if outcomes:
        said = (f"{split}: {one.questions} questions about {one.videos} videos" for split, one in outcomes)
        rows.append(("split", "; ".join(said)))
    rows.append(("search", f"{summary.sampler}, seed {summary.seed}, {_asked(summary)}"))
    if summary.serving is not None and summary.serving.measured is not None:
        rows.append(("machine", summary.serving.measured.device))
    if summary.cost is not None:
        spent = f"{summary.cost.passes:.1f} baseline passes, {summary.cost.answers} answers"
        if summary.cost.seconds is not None:
            spent += f", {duration(summary.cost.seconds)} of model time"
        rows.append(("cost of the study", spent))
    return tuple(rows)


def _asked(summary: RunSummary) -> str:
    drop = f"--max-drop {summary.max_drop}" if summary.max_drop else ""
    if summary.goal == "max_drop":
        return f"the cheapest configuration that holds {drop}"
    return f"budget {summary.budget:g}" + (f", {drop}" if drop else "")


# Figures


@dataclass(frozen=True)
class _Figure:
    """A picture as the template wants it."""

    picture: Picture
    # One of the two is there.
    drawing: Drawing | None
    body: Markup | None
    css: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    csv: str | None


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
        columns=tuple(one.name for one in fields(table[0])) if table else (),
        rows=tuple(tuple(getattr(row, one.name) for one in fields(row)) for row in table[:MOST_ROWS]),
        csv=f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text).decode()}"
        if table and len(text) <= LARGEST_CSV
        else None,
    )


# Text


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _percent(measured: Measured | None) -> str:
    if measured is None or not math.isfinite(measured.value):
        return "not known"
    return f"{100 * measured.value:.1f} %"


def _than(after: float, before: float, less: str = "less") -> str:
    change = after / before - 1
    return f"{abs(change):.0%} {'more' if change > 0 else less}".replace("%", " %")


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def _cell(value: Any) -> str:
    """A value of a figure's table; a fraction's digits beyond the sixth are in the CSV."""
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
        "counted": _counted,
    }
    environment.tests["numeric"] = _is_number
    return environment
