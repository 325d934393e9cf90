"""The short answer that `tuner run`, `tuner status` and `tuner export` end with: at most 25 lines of 80
columns, from which a person decides. `tuner show` prints everything else (`summary`).

Which configuration, what it saves, what it costs, whether to ship it, what to type next, where the report is.
"""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pipeline.methods import KNOBS
from tuner.reporting.summary import (
    NOTHING,
    accepting,
    accuracy_name,
    drowned,
    duration,
    exceeded,
    guessed,
    nothing_fits,
    up_to,
)
from tuner.reporting.values import HeldOut, Recorded, RunSummary, Trial
from tuner.reporting.wording import searched_for
from tuner.search.choices import value_text, worth_showing
from tuner.statistics.margin import DEFAULT_MAX_DROP
from tuner.statistics.wording import guesses, provable
from tuner.study.values import Outcome

if TYPE_CHECKING:
    from rich.text import Text

WIDTH = 80
MOST_LINES = 25
# Sentences are not drawn out further on wide terminals.
WIDEST = 100
_INDENT = 16

Word = Literal["YES", "NO", "NOT SHOWN", "NOT KNOWN", "NOT YET", "NOTHING FITS"]
_STYLES: dict[Word, str] = {
    "YES": "bold green",
    "NO": "bold red",
    "NOTHING FITS": "bold red",
    "NOT SHOWN": "bold yellow",
    "NOT KNOWN": "bold yellow",
    "NOT YET": "bold yellow",
}


class Verdict(NamedTuple):
    """Whether to ship the configuration, in a word or two and in a sentence."""

    word: Word
    sentence: str


@dataclass(frozen=True)
class Standing:
    """How far a search has come, where it may not be at its end."""

    # Trials of this search that are complete or pruned, and how many it was asked for.
    done: int
    asked: int
    # Who runs the study at the moment; None: nobody.
    running: str | None = None
    # Unpruned answers that are still to come.
    unpruned_missing: int = 0


@dataclass(frozen=True)
class Naming:
    """How the user named what the commands to type next have to name again."""

    # A name or a folder.
    study: str
    # Options by name, such as "--database"; None: not given.
    options: Mapping[str, str | None] = field(default_factory=dict)

    def command(self, name: str, *arguments: str) -> str:
        """A line that can be pasted into a shell."""
        given = [word for key, value in self.options.items() if value is not None for word in (key, value)]
        return shlex.join(["tuner", name, "--study", self.study, *arguments, *given])


def overview(
    summary: RunSummary,
    naming: Naming,
    *,
    width: int = WIDTH,
    standing: Standing | None = None,
    below: Sequence[tuple[str, str]] = (),
    latest: bool = True,
) -> list[Text]:
    """The lines. None is longer than `width`, from 80 on, unless it is a command, a path or an address.

    below: names and what each is, such as where the report lies; a line each. latest: whether commands mean
    this search where no other is named.
    """
    from rich.text import Text

    word, sentence = verdict(summary, standing)
    first, *rest = _wrapped(f"{word}: {sentence}", "MAY I SHIP IT?", width)
    answer = Text(first)
    answer.stylize("bold", 0, _INDENT - 1)
    answer.stylize(_STYLES[word], _INDENT, _INDENT + len(word))
    lines = [Text(headline(summary), style="bold"), Text(""), answer, *map(Text, rest)]
    for explanation in _explanations(summary, word, standing):
        lines += map(Text, _wrapped(explanation, "", width))
    if summary.best is not None:
        lines.append(Text(""))
        heading, *rows = _table(summary)
        lines += [Text(heading, style="bold"), *map(Text, rows)]
        lines += map(Text, _wrapped(_kinds(summary), "weakest kinds", width, sep=", "))
        lines += map(Text, _wrapped(_pays(summary), "pays for", width))
        lines += map(Text, _wrapped(_configuration(summary, summary.best), "configuration", width, sep="  "))
    lines.append(Text(""))
    commands = _commands(summary, naming, word, standing, latest=latest)
    lines += _next(commands[: max(1, MOST_LINES - len(lines) - len(below))], width)
    return [*lines, *(Text(f"{name:<{_INDENT}}{what}") for name, what in below)]


def exported(summary: RunSummary, path: Path, *, width: int = WIDTH) -> list[Text]:
    """What `tuner export` adds to the end of `tuner run`: the file, the verdict, how to load it."""
    from rich.text import Text

    word, sentence = verdict(summary)
    trial = "" if summary.best is None else f": trial {summary.best.number} of {_search(summary)}"
    said = [
        *_wrapped(f"{path}{trial}", "wrote", width),
        *_wrapped(f"{word}: {sentence}", "MAY I SHIP IT?", width),
        f"{'load it':<{_INDENT}}from pipeline import load; model = load({str(path)!r})",
    ]
    return [Text(line) for line in said]


def in_mlflow(recorded: Recorded, study: str) -> str:
    """Where MLflow shows a study: its page, or for a local database how to see it."""
    if recorded.served:
        return recorded.page
    return f"type `mlflow ui` in this folder; the experiment is adatp/{study}"


def headline(summary: RunSummary) -> str:
    """Study, search and effort, in one line."""
    trials = len(summary.trials) + len(summary.pruned)
    text = f"{_search(summary)}: {trials} trial" + ("" if trials == 1 else "s")
    text += f" ({len(summary.pruned)} pruned early)" if summary.pruned else ""
    return text + (f", {duration(summary.seconds)}" if summary.seconds >= 1 else "")


def _search(summary: RunSummary) -> str:
    text = f"{summary.study}, {searched_for(summary.goal, summary.budget, summary.max_drop)}"
    return text + (f", seed {summary.seed}" if summary.seed else "")


def verdict(summary: RunSummary, standing: Standing | None = None) -> Verdict:
    """Whether to ship it, from what the held-out videos showed."""
    best, test = summary.best, summary.test_of_best
    if best is None:
        if not summary.trials and summary.closest is None:
            return Verdict("NOT YET", _how_far(standing, "no trial is complete"))
        return Verdict("NOTHING FITS", nothing_fits(summary))
    if guessed(summary) and summary.guessing is not None:
        return Verdict("NO", f"{guesses(summary.guessing)}. No loss can be measured against that.")
    if summary.best_held_out is None:
        if not summary.held_out_videos:
            return Verdict("NOT KNOWN", "the study holds no videos out, and only those can tell.")
        return Verdict("NOT YET", _how_far(standing, "the best trial is not measured on held-out videos"))
    if drowned(summary):
        return Verdict("NOT KNOWN", "the margin is within the noise floor; take a larger --max-drop.")
    if test is None or summary.margin is None:
        return Verdict("NOT KNOWN", "no drop was allowed that could be tested on held-out videos.")
    change, worst = 100 * test.difference, max(0.0, -100 * test.bound)
    of = "" if accuracy_name(summary) == "accuracy" else " of agreement"
    joined = ", at most" if test.shown and change <= 0 else " and may lose up to"
    text = (
        f"it {'gains' if change > 0 else 'loses'} {abs(change):.1f} points{of}{joined} {worst:.1f}; "
        f"you allow {100 * summary.margin:.3g}."
    )
    if test.shown:
        return Verdict("YES", text)
    return Verdict("NO" if exceeded(summary) else "NOT SHOWN", text)


def _how_far(standing: Standing | None, otherwise: str) -> str:
    if standing is None:
        return f"{otherwise}."
    trials = f"{standing.done} of {standing.asked} trials are done"
    if standing.unpruned_missing:
        trials += f", {standing.unpruned_missing:,} unpruned answers are missing"
    if standing.running is not None:
        return f"{trials}; it is being run by {standing.running}."
    if standing.done < standing.asked:
        return f"{trials} and nobody is running it: the command below goes on from there."
    return f"{trials}, but {otherwise}: the command below does that."


def _explanations(summary: RunSummary, word: Word, standing: Standing | None) -> list[str]:
    """What a person has to know beside the verdict: what would change it, what is left out, what goes on."""
    lines = []
    if word == "NOT SHOWN":
        drop, margin = summary.provable_drop, summary.margin
        if drop is not None and margin is not None and margin < drop:
            lines.append(provable(drop, summary.held_out_videos, margin))
        else:
            room = "more trials" if summary.goal == "max_drop" else "a larger budget"
            lines.append(f"More held-out videos, {room} or a larger --max-drop might show it.")
    elif word == "NO" and summary.margin is not None and not guessed(summary):
        lines.append("More videos would not change that; a larger budget or --max-drop might.")
    if standing is not None and word != "NOT YET":
        trials = f"{standing.done} of {standing.asked} trials are done"
        if standing.running is not None:
            lines.append(f"A run goes on: {trials}.")
        elif _left_off(standing):
            lines.append(f"Nobody is running it: {trials}.")
    left_out = [
        f"{len(found)} {what}{'' if len(found) == 1 else 's'}"
        for found, what in ((summary.skipped_videos, "video"), (summary.quarantined, "question"))
        if found
    ]
    if left_out:
        lines.append(f"Left out: {' and '.join(left_out)}; `tuner show` says why.")
    return lines


# The table


def _row(name: str, unpruned: str, best: Sequence[str], defaults: Sequence[str]) -> str:
    """A name, a value, and twice a value with its change; a cell alone takes the place of both."""
    cells = [
        f"{item[0]:>{value}}{item[1]:>{change}}" if len(item) == 2 else f"{item[0]:>{value + change}}"
        for item, value, change in ((best, 12, 9), (defaults, 13, 9))
    ]
    return f"{name:<21}{unpruned:>10}{''.join(cells)}".rstrip()


def _table(summary: RunSummary) -> list[str]:
    """The unpruned model, the best trial and AdaTP's defaults, side by side."""
    assert summary.best is not None
    what = accuracy_name(summary)
    best, defaults = summary.best_held_out, summary.defaults_held_out
    rows = [_row("", "unpruned", [f"tuned (trial {summary.best.number})"], ["AdaTP's defaults"])]
    if best is None:
        rows.append(_tune_row(summary, what))
        compute: list[Outcome | None] = [summary.best.outcome]
        compute.append(None if summary.defaults is None else summary.defaults.outcome)
    else:
        unpruned = summary.baseline.get("held_out")
        rows.append(
            _row(
                f"{what}, held-out",
                NOTHING if unpruned is None else _percent(unpruned.value),
                _accuracy(best),
                _accuracy(defaults),
            )
        )
        compute = [best.outcome, None if defaults is None else defaults.outcome]
    rows.append(
        _row(
            "FLOPs, end to end",
            "100 %",
            *(_share(measurement, "flops_ratio_end_to_end") for measurement in compute),
        )
    )
    rows.append(
        _row("FLOPs, LLM prefill", "100 %", *(_share(measurement, "flops_ratio") for measurement in compute))
    )
    measured = None if summary.serving is None else summary.serving.measured
    if measured is not None:
        before, after = measured.first_question
        change = f"{100 * (after / before - 1):+.0f} %" if before else ""
        rows.append(_row("time, first question", _time(before), [_time(after), change], [NOTHING]))
    if best is not None:
        name = "answers lost / gained" if what == "accuracy" else "answers changed"
        rows.append(_row(name, "", [_answers(best, what, of=True)], [_answers(defaults, what)]))
    return rows


def _tune_row(summary: RunSummary, what: str) -> str:
    unpruned = summary.baseline.get("tune")
    cells = [
        [NOTHING]
        if outcome_ is None
        else [_percent(outcome_.outcome.accuracy)]
        + ([] if unpruned is None else [f"{100 * (outcome_.outcome.accuracy - unpruned.value):+.1f}"])
        for outcome_ in (summary.best, summary.defaults)
    ]
    return _row(f"{what}, tune", NOTHING if unpruned is None else _percent(unpruned.value), *cells)


def _accuracy(held_out: HeldOut | None) -> list[str]:
    if held_out is None:
        return [NOTHING]
    return [_percent(held_out.accuracy.value), f"{100 * held_out.difference.value:+.1f}"]


def _share(outcome: Outcome | None, name: str) -> list[str]:
    if outcome is None:
        return [NOTHING]
    ratio = getattr(outcome, name)
    return [f"{100 * ratio:.0f} %", f"{100 * (ratio - 1):+.0f} %"]


def _answers(held_out: HeldOut | None, what: str, *, of: bool = False) -> str:
    if held_out is None:
        return NOTHING
    outcome = held_out.outcome
    text = str(outcome.regressions) if what != "accuracy" else f"{outcome.regressions} / {outcome.gained}"
    return f"{text} of {outcome.questions}" if of else text


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else NOTHING


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.3g} s"


def _kinds(summary: RunSummary) -> str:
    """The tags that lost most."""
    rows = () if summary.best_held_out is None else summary.best_held_out.by_tag
    worst = sorted((row for row in rows if row.difference.value < 0), key=lambda row: row.difference.value)
    return ", ".join(f"{row.key} {row.value} {100 * row.difference.value:+.1f}" for row in worst[:3])


def _pays(summary: RunSummary) -> str:
    """Up to how many questions about a video pruning pays, where that has an end."""
    if summary.serving is None or summary.serving.break_even == math.inf:
        return ""
    return f"{up_to(summary.serving.break_even)}, where prefixes are kept"


def _configuration(summary: RunSummary, best: Trial) -> str:
    """The knobs and choices; those without effect are marked."""
    configuration = best.configuration
    values = dict(configuration.parameters)
    shown = [name for name in KNOBS if name in values] or sorted(values)
    shown += [item for item in worth_showing(summary.choices, [configuration]) if item in values]
    idle = {
        "alpha_boost": ("gamma_cap",),
        "gamma_cap": ("alpha_boost",),
        "none": ("alpha_boost", "gamma_cap"),
    }
    without = idle.get(summary.binds or "", ())
    return "  ".join(
        f"{name} {value_text(values[name])}" + (" (no effect)" if name in without else "") for name in shown
    )


# What to type next


def _commands(
    summary: RunSummary, naming: Naming, word: Word, standing: Standing | None, *, latest: bool
) -> list[tuple[str, str]]:
    """Commands and what each does, the most useful first."""
    which = [] if latest else ["--budget", f"{summary.budget!r}", "--seed", f"{summary.seed}"]
    found = []
    if word == "NOTHING FITS":
        if summary.smallest_reachable is not None and summary.smallest_reachable < 1:
            budget = math.ceil(100 * summary.smallest_reachable + 1e-9) / 100
            found.append(
                (naming.command("run", "--budget", f"{budget:g}"), "the smallest that is within reach")
            )
    elif word == "NOT YET":
        if standing is None or standing.running is None:
            found.append((naming.command("run", *_search_options(summary, standing)), "go on"))
        else:
            found.append((naming.command("status"), "how far it is"))
    elif guessed(summary):
        # Whatever the records say, it is the study's files that are checked.
        check = shlex.join(["tuner", "check", "--study", naming.study, "--model"])
        found.append((check, "what may be wrong"))
    elif summary.best_held_out is not None:
        accept = shlex.split(accepting(summary))
        meaning = "the file for production" if not accept else "if you accept that"
        found.append((naming.command("export", "--output", "best.json", *which, *accept), meaning))
    if _left_off(standing) and word != "NOT YET":
        found.append((naming.command("run", *_search_options(summary, standing)), "go on"))
    if summary.best is not None:
        found.append((naming.command("show", *which), "all numbers"))
    if summary.best_held_out is not None and word != "NOT YET":
        found.append((naming.command("report", *which), "one HTML file with the evidence"))
        if summary.goal == "budget":
            at = f"{summary.budget:g}"
            found.append((naming.command("compare", "--budget", at), "other ways to prune"))
            found.append((naming.command("sensitivity", "--budget", at), "how far knobs may drift"))
    return found


def _left_off(standing: Standing | None) -> bool:
    """Whether trials that were asked for are not there, and nobody is at it."""
    return standing is not None and standing.running is None and standing.done < standing.asked


def _search_options(summary: RunSummary, standing: Standing | None) -> list[str]:
    """What makes `tuner run` go on with this search."""
    options = [] if summary.goal == "max_drop" else ["--budget", f"{summary.budget!r}"]
    if summary.max_drop and (summary.goal == "max_drop" or summary.max_drop != DEFAULT_MAX_DROP):
        options += ["--max-drop", summary.max_drop]
    if standing is not None:
        options += ["--trials", str(standing.asked)]
    options += ["--seed", str(summary.seed)] if summary.seed else []
    return options + (["--sampler", summary.sampler] if summary.sampler != "tpe" else [])


def _next(commands: Sequence[tuple[str, str]], width: int) -> list[Text]:
    from rich.text import Text

    longest = max((len(command) for command, _ in commands), default=0)
    lines = []
    for place, (command, meaning) in enumerate(commands):
        label = "NEXT" if place == 0 else ""
        text = Text(f"{label:<6}", style="bold")
        # Only where it fits: a command that is broken cannot be pasted.
        said = f"{command:<{longest}}  # {meaning}"
        text.append(said if 6 + len(said) <= width else command, style="not bold")
        lines.append(text)
    return lines


def _wrapped(text: str, label: str, width: int, sep: str = " ") -> list[str]:
    """Lines no longer than `width`, the label before the first; nothing for an empty text."""
    if not text:
        return []
    room = max(20, min(width, WIDEST) - _INDENT)
    if sep == " ":
        lines = textwrap.wrap(text, room, break_on_hyphens=False)
    else:
        lines = [""]
        for item in text.split(sep):
            joined = f"{lines[-1]}{sep}{item}" if lines[-1] else item
            lines = [*lines[:-1], joined] if len(joined) <= room else [*lines, item]
        lines = [line for line in lines if line]
    return [f"{label if place == 0 else '':<{_INDENT}}{line}" for place, line in enumerate(lines)]
