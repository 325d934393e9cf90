"""The report's first screen: which configuration, what it saves, what it costs, and whether to ship it."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from typing import Literal

from tuner.reporting.summary import (
    accepting,
    accuracy_name,
    drowned,
    exceeded,
    guessed,
    nothing_fits,
    study_cost_in_short,
    up_to,
    verdict,
    worth,
)
from tuner.reporting.values import HeldOut, RunSummary, Trial
from tuner.statistics.values import Measured
from tuner.statistics.wording import noise_floor, provable, weak_baseline

State = Literal["shown", "not_shown", "untested", "nothing_fits"]


@dataclass(frozen=True)
class Number:
    """One large number of the first screen, its unit, and the notes below it."""

    value: str
    unit: str
    notes: tuple[str, ...] = ()
    # Numbers of the same kind beside it, as (value, unit).
    beside: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Scale:
    """The held-out change and the margin, in points, as the verdict's drawing shows them."""

    change: float
    low: float
    high: float
    # The tested lower bound and minus the margin; None where nothing was tested.
    bound: float | None
    allowed: float | None

    def at(self, points: float) -> float:
        """The position of `points` in a drawing 400 wide, with room for labels on both sides."""
        known = [value for value in (self.bound, self.allowed, self.low, self.high, 0.0) if value is not None]
        low, high = min(known), max(known)
        return round(96 + 234 * (points - low) / ((high - low) or 1.0), 1)


@dataclass(frozen=True)
class Answer:
    """The content of the first screen."""

    state: State
    title: str
    # The verdict with its numbers; then what would change it.
    said: tuple[str, ...]
    changes: tuple[str, ...]
    # The command that writes best.json; None where there is nothing to export.
    command: str | None
    saves: Number | None
    costs: Number | None
    # The knobs as JSON, to copy.
    configuration: str | None
    scale: Scale | None


def answer(summary: RunSummary) -> Answer:
    """Answers the four questions of the first screen."""
    state: State = "nothing_fits" if summary.best is None else summary.verdict
    if summary.best is not None and (drowned(summary) or guessed(summary)):
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


def _title(summary: RunSummary, state: State) -> str:
    if state == "untested" and guessed(summary):
        return "Not known: the unpruned model does no better than guessing"
    if drowned(summary):
        return "Not known: the margin is within the noise floor"
    margin = "the margin" if summary.margin is None else f"{100 * summary.margin:.3g} points"
    if state == "not_shown" and exceeded(summary):
        return f"No: it loses more than {margin}"
    return {
        "shown": f"Yes: shown to lose no more than {margin}",
        "not_shown": f"Not yet: these videos cannot exclude a loss above {margin}",
        "untested": "Not known: it was not tested",
        "nothing_fits": "No: nothing fits the budget",
    }[state]


def _warning(summary: RunSummary) -> tuple[str, ...]:
    """A warning before the verdict where the unpruned model may do no better than guessing."""
    guessing = summary.guessing
    if guessing is None or guessing.no_better or guessing.shown_better:
        return ()
    return (weak_baseline(guessing),)


def _changes(summary: RunSummary, state: State) -> tuple[str, ...]:
    """What would change the verdict."""
    held_out, test = summary.best_held_out, summary.test_of_best
    if state == "untested" and summary.guessing is not None and guessed(summary):
        return (weak_baseline(summary.guessing),)
    if drowned(summary) and summary.noise is not None:
        return (noise_floor(summary.noise, summary.margin, labelled=False),)
    if state == "nothing_fits":
        return ("A larger budget, or wider ranges of the knobs in study.yaml.",)
    if held_out is None:
        return ("Run `tuner run` again: it continues, and measures the best trial on held-out videos.",)
    if state == "untested":
        return ("An allowed drop (--max-drop), and held-out videos to test it on.",)
    if state == "not_shown":
        room = "more trials" if summary.goal == "max_drop" else "a larger budget"
        room += ", or a larger --max-drop if your users can accept it."
        if exceeded(summary):
            return (room[0].upper() + room[1:],)
        lines = [f"More held-out videos, {room}"]
        if summary.provable_drop is not None and summary.margin is not None:
            line = provable(summary.provable_drop, held_out.outcome.videos)
            if summary.provable_drop > summary.margin:
                line += " The margin is smaller, so any configuration needs more videos."
            lines.append(line)
        return tuple(lines)
    unlike = f"videos that differ from the {held_out.outcome.videos} held-out ones."
    if test is None or test.bound >= 0:
        return (unlike.capitalize(),)
    # The tested bound, so that this cannot contradict the verdict.
    sure = f"{100 * (1 - test.level):.3g} % confidence"
    return (f"A margin below {-100 * test.bound:.1f} points ({sure}), or {unlike}",)


def _export_command(summary: RunSummary) -> str | None:
    if summary.best is None or summary.best_held_out is None:
        return None
    # With budget and seed, since the report may show an earlier search than the latest.
    line = (
        f"tuner export --study {shlex.quote(summary.study)} --budget {summary.budget!r} --seed {summary.seed}"
    )
    return line + accepting(summary)


def _saves(summary: RunSummary, held_out: HeldOut) -> Number:
    outcome = held_out.outcome
    beside = [(_share(1 - outcome.flops_ratio), "fewer in the LLM's prefill alone")]
    notes = [
        f"The most expensive question needs {_share(outcome.flops_ratio_max)} of its unpruned prefill",
    ]
    serving = summary.serving
    measured = None if serving is None else serving.measured
    if measured is not None:
        before, after = measured.first_question
        value, unit = _than(after, before).rsplit(" ", 1)
        beside.append((value, f"{unit} time: {after:.3g} s instead of {before:.3g} s"))
        notes.append("End to end, and time: a video and one question, including the vision tower")
    if serving is not None:
        pays = up_to(serving.break_even)
        if measured is not None:
            pays += f" by FLOPs, {up_to(measured.break_even)} by time"
        notes.append(f"On a server that keeps each video's prefix, it pays for {pays}")
    value, less = _than(outcome.flops_ratio_end_to_end, 1.0, "fewer").rsplit(" ", 1)
    return Number(value, f"{less} FLOPs end to end", tuple(notes), tuple(beside))


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
        f"{counted(outcome.regressions, 'regression')} (right before, wrong now) and "
        f"{outcome.gained} gained, of {outcome.questions} questions about {counted(outcome.videos, 'video')}"
    )
    notes += [line.removesuffix(".") for line in worth(summary)]
    if summary.cost is not None:
        notes.append(f"The study has cost {study_cost_in_short(summary.cost)}")
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


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _percent(measured: Measured | None) -> str:
    if measured is None or not math.isfinite(measured.value):
        return "not known"
    return f"{100 * measured.value:.1f} %"


def _than(after: float, before: float, less: str = "less") -> str:
    change = after / before - 1
    return f"{abs(change):.0%} {'more' if change > 0 else less}".replace("%", " %")


def counted(number: int, thing: str) -> str:
    """`number` and the noun, in the plural except for 1."""
    return f"{number} {thing}" + ("" if number == 1 else "s")
