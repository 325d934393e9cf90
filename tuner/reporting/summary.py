"""Everything a search has come to: the tables and sentences of `tuner show`. Its short form: `overview`."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.methods import AdaTP, choices, knobs
from tuner.records.measurements import MeasuredServing, ServingCost
from tuner.records.values import Look
from tuner.reporting.values import HeldOut, Recorded, RunSummary, TagRow, Trial
from tuner.search.choices import in_words, value_text, worth_showing
from tuner.search.selection import level_of
from tuner.statistics.values import Interval, Measured
from tuner.statistics.wording import another_look, noise_floor, provable, weak_baseline
from tuner.study.values import AnswerCost, Configuration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tuner.planning.study_cost import StudyCost

NOTHING = "-"
# Rows of the table by tag; best.json has them all.
MOST_TAGS = 12
_BINDS = {
    "alpha_boost": "alpha_boost decides the boosted ratio; gamma_cap has no effect here.",
    "gamma_cap": "gamma_cap decides the boosted ratio; alpha_boost has no effect here.",
    "none": "No segment is boosted: alpha_boost and gamma_cap have no effect here.",
}


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a value unpruned, at the best configuration and at AdaTP's defaults."""

    name: str
    unpruned: str
    best: str
    defaults: str


@dataclass(frozen=True)
class KnobRow:
    """One knob or choice: its value at the best configuration and at AdaTP's defaults, and what it does."""

    name: str
    best: str
    defaults: str
    meaning: str


def comparison(summary: RunSummary) -> tuple[Row, ...]:
    """The comparison's lines, held-out numbers first because they are the ones to believe."""
    what = accuracy_name(summary)
    best, defaults = summary.best_held_out, summary.defaults_held_out
    return (
        Row(
            f"held-out {what}",
            percent(summary.baseline.get("held_out")),
            percent(None if best is None else best.accuracy),
            percent(None if defaults is None else defaults.accuracy),
        ),
        Row("  change", NOTHING, _change(best), _change(defaults)),
        *(
            Row(f"  {name}", NOTHING, _count(best, field), _count(defaults, field))
            for name, field in _counted(summary, "regressions")
        ),
        Row("FLOPs ratio", "1", _ratio(best, "flops_ratio"), _ratio(defaults, "flops_ratio")),
        Row(
            "  end to end",
            "1",
            _ratio(best, "flops_ratio_end_to_end"),
            _ratio(defaults, "flops_ratio_end_to_end"),
        ),
        # Stored answers have seconds, too: of other moments and loads, so not to be set side by side.
        Row("seconds", *_seconds(summary.serving), NOTHING),
        Row("MiB added", _memory(summary.baseline_cost), _memory(_cost(best)), _memory(_cost(defaults))),
        Row(
            f"tune {what}",
            percent(summary.baseline.get("tune")),
            _tune(summary.best),
            _tune(summary.defaults),
        ),
        *_tuning(summary),
    )


def _counted(summary: RunSummary, lost: str) -> tuple[tuple[str, str], ...]:
    """What is counted, as it is called and as `Outcome` calls it. Without labels nothing can be gained."""
    if not _labelled(summary):
        return (("changed", "regressions"),)
    return ((lost, "regressions"), ("gained", "gained"))


def _tuning(summary: RunSummary) -> list[Row]:
    """Whether tuning was worth it: what it gained over the defaults on held-out videos, and its cost."""
    rows = []
    if summary.over_defaults is not None:
        rows.append(Row("tuned - defaults", NOTHING, signed(summary.over_defaults), NOTHING))
    if summary.cost is not None:
        rows.append(Row("study cost, passes", NOTHING, f"{summary.cost.passes:.1f}", NOTHING))
    return rows


def knob_rows(summary: RunSummary) -> tuple[KnobRow, ...]:
    """The five knobs, then the choices that the study lists or that are not AdaTP's default."""
    known = choices(AdaTP)
    trials = [outcome_ for outcome_ in (summary.best, summary.defaults) if outcome_ is not None]
    shown = worth_showing(summary.choices, [trial.configuration for trial in trials])
    meanings = {name: knob.meaning for name, knob in knobs(AdaTP).items()}
    meanings |= {name: known[name].meaning for name in shown}
    return tuple(
        KnobRow(name, _knob(summary.best, name), _knob(summary.defaults, name), meaning)
        for name, meaning in meanings.items()
    )


def tag_rows(summary: RunSummary) -> tuple[TagRow, ...]:
    """What pruning did by tag: all values, or those that lost most where there are more than `MOST_TAGS`."""
    rows = () if summary.best_held_out is None else summary.best_held_out.by_tag
    most = sorted(rows, key=lambda row: row.difference.value)[:MOST_TAGS]
    return tuple(row for row in rows if row in most)


def remarks(
    summary: RunSummary,
    *,
    recorded: Recorded | None = None,
    study: str | None = None,
) -> tuple[str, ...]:
    """Sentences below the tables: what binds, what was left out, what did not fit, and what to type next."""
    lines = []
    if summary.best_held_out is not None:
        outcome = summary.best_held_out.outcome
        lines.append(
            f"Held out: {outcome.questions} questions about {outcome.videos} videos; %, 95 % intervals."
        )
        lines += _changed(summary.best_held_out, labelled=_labelled(summary))
    lines += verdict(summary)
    if summary.provable_drop is not None and summary.best_held_out is not None:
        videos = summary.held_out_videos
        lines.append(provable(summary.provable_drop, videos, summary.margin, summary.loss_correlation))
    if summary.guessing is not None and not summary.guessing.shown_better:
        lines.append(weak_baseline(summary.guessing))
    if summary.noise is not None:
        lines.append(noise_floor(summary.noise, summary.margin, labelled=_labelled(summary)))
    if summary.best is None:
        lines.append(nothing_fits(summary))
    elif summary.binds is not None:
        lines.append(_BINDS[summary.binds])
    if summary.serving is not None:
        lines += _serving(summary.serving)
    moved = "" if summary.defaults is None else moved_defaults(summary.defaults.configuration)
    if moved:
        lines.append(f"AdaTP's defaults are taken {moved}.")
    lines += worth(summary)
    if summary.cost is not None:
        lines.append(_study_cost(summary.cost))
    if summary.skipped_videos:
        lines.append(f"Left out because they cannot be read: {', '.join(summary.skipped_videos)}.")
    lines += [
        f"Left out: question {question} ({reason})." for question, reason in summary.quarantined.items()
    ]
    if summary.best is not None:
        accept = accepting(summary)
        name = shlex.quote(study or summary.study)
        lines.append(f"To export it: tuner export --study {name} --output best.json{accept}")
    if recorded is not None:
        local = "" if recorded.served else "type `mlflow ui` and open "
        lines.append(f"In MLflow: {local}{recorded.page}")
    return tuple(lines)


def accepting(summary: RunSummary) -> str:
    """The options without which `tuner export` refuses this result, as they are typed behind it."""
    accept = "" if summary.verdict == "shown" else " --accept-regressions"
    return accept + (" --accept-weak-baseline" if guessed(summary) else "")


def guessed(summary: RunSummary) -> bool:
    """Whether the unpruned model does no better than guessing."""
    return summary.guessing is not None and summary.guessing.no_better


def exceeded(summary: RunSummary) -> bool:
    """Whether the whole interval lies beyond the margin, so that more videos of this kind would not help."""
    interval = None if summary.best_held_out is None else summary.best_held_out.difference.interval
    return interval is not None and summary.margin is not None and interval.high < -summary.margin


def drowned(summary: RunSummary) -> bool:
    """Without labels: whether the unpruned model itself differs from its answers by more than the margin."""
    setting, noise, margin = summary.setting, summary.noise, summary.margin
    if setting is None or setting.labelled or noise is None or margin is None or summary.best is None:
        return False
    return margin <= noise.flip_rate


def _study_cost(cost: StudyCost) -> str:
    text = (
        f"This study cost {cost.passes:.1f} baseline passes so far (a pass: every video encoded and every "
        f"question answered unpruned, once), {cost.passes_language:.1f} of the language model alone"
    )
    if cost.seconds is not None:
        text += f", {duration(cost.seconds)} of model time"
    return text + (
        f"; {100 * cost.spared_share:.0f} % of the trials' questions were spared by pruning trials, "
        f"{100 * cost.shared_share:.0f} % shared. Done naively: {cost.naive_passes:.0f} passes."
    )


def headline(summary: RunSummary) -> str:
    """One line above the tables."""
    if summary.goal == "max_drop":
        asked = f"the cheapest within {summary.max_drop} of the unpruned {accuracy_name(summary)}"
    else:
        asked = f"budget {summary.budget:g}"
    text = f"{summary.study}: {asked}, {len(summary.trials)} trials"
    if summary.pruned:
        text += f" and {len(summary.pruned)} pruned early"
    if summary.above:
        text += f", {len(summary.above)} above the budget for the front"
    if summary.outside:
        text += f", {len(summary.outside)} left out because study.yaml does not allow them any more"
    if summary.infeasible:
        text += f", {summary.infeasible} proposals over the budget rejected at no cost"
    if summary.shared_answers:
        text += f", {summary.shared_answers} answers shared between trials"
    if summary.seconds >= 1:
        text += f", {duration(summary.seconds)}"
    return text


def render(
    summary: RunSummary,
    *,
    recorded: Recorded | None = None,
    study: str | None = None,
) -> RenderableType:
    """Headline, comparison, knobs and remarks, for a rich console of 80 columns or more.

    study: as the user named it, for the command to type next.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    best = "best" if summary.best is None else f"best: trial {summary.best.number}"
    table = Table("", "unpruned", best, "AdaTP defaults", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in comparison(summary):
        # Text: a string in brackets might be taken for markup.
        table.add_row(row.name, Text(row.unpruned), Text(row.best, style="bold"), Text(row.defaults))
    counted = [name for name, _ in _counted(summary, "lost")]
    columns = ("by tag", "questions", "unpruned", "pruned", "change", *counted)
    tags = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in tags.columns[1:]:
        column.justify = "right"
    for row_by_tag in tag_rows(summary):
        tags.add_row(*(Text(cell) for cell in _tag_cells(row_by_tag)[: len(columns)]))
    settings = Table("knob", best, "AdaTP defaults", "meaning", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in settings.columns[1:3]:
        column.justify = "right"
    for knob in knob_rows(summary):
        settings.add_row(knob.name, Text(knob.best, style="bold"), knob.defaults, knob.meaning)
    # What is pasted stays on one line, however narrow the terminal is.
    below = [
        Text(line, no_wrap=True, overflow="ignore")
        if line.startswith(("To export it: ", "In MLflow: "))
        else Text(line, overflow="fold")
        for line in remarks(summary, recorded=recorded, study=study)
    ]
    tables = [table, tags, settings] if tags.rows else [table, settings]
    return Group(Text(headline(summary), style="bold"), *tables, *below)


def percent(measured: Measured | None) -> str:
    """A fraction in per cent, with its interval where there is one."""
    if measured is None or not math.isfinite(measured.value):
        return NOTHING
    return f"{100 * measured.value:.1f}{_range(measured.interval, '.1f')}"


def signed(change: Measured) -> str:
    """A change in points, with its interval where there is one."""
    return f"{100 * change.value:+.1f}{_range(change.interval, '+.1f')}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _range(interval: Interval | None, form: str) -> str:
    return "" if interval is None else f" [{100 * interval.low:{form}}, {100 * interval.high:{form}}]"


def _change(held_out: HeldOut | None) -> str:
    return NOTHING if held_out is None else signed(held_out.difference)


def _tag_cells(row: TagRow) -> tuple[str, ...]:
    return (
        f"{row.key}: {row.value}",
        str(row.questions),
        f"{100 * row.baseline:.1f}",
        f"{100 * row.accuracy:.1f}",
        signed(row.difference),
        str(row.lost),
        str(row.gained),
    )


def _labelled(summary: RunSummary) -> bool:
    return summary.setting is None or summary.setting.labelled


def accuracy_name(summary: RunSummary) -> str:
    """What the share of right answers is called: accuracy, or agreement in a study without labels."""
    return "accuracy" if _labelled(summary) else "agreement"


def _changed(best: HeldOut, *, labelled: bool) -> list[str]:
    """What pruning changed on the held-out split: answers, whether that is chance, and how sure they are."""
    outcome = best.outcome
    line = f"Pruning {'flipped' if labelled else 'changed'} {best.flips} of {outcome.questions} answers"
    line += f": {outcome.regressions} lost, {outcome.gained} gained" if labelled else ""
    if best.p_value is not None:
        line += f"; p {best.p_value:.2g} over videos"
        line += "" if best.mcnemar_p is None else f" (McNemar {best.mcnemar_p:.2g})"
    line += f"; log-probability {outcome.logprob_change:+.3f}"
    line += "" if best.divergence is None else f", KL {best.divergence:.3f}"
    lines = [f"{line}."]
    more = len(best.by_tag) - MOST_TAGS
    return lines if more <= 0 else [*lines, f"By tag: {more} more rows, which lost less, are in best.json."]


def verdict(summary: RunSummary) -> list[str]:
    """Whether the configuration holds, in a sentence; nothing where no margin was asked for."""
    if summary.best is None or summary.margin is None:
        return []
    within = f"within {100 * summary.margin:.3g} points of the unpruned {accuracy_name(summary)}"
    if summary.max_drop:
        within += f" (--max-drop {summary.max_drop})"
    if not summary.tested:
        return [f"Not tested: {within}."]
    chosen = summary.test_of_best or summary.tested[0]
    trial = f" of trial {chosen.trial}" if len(summary.tested) > 1 else ""
    line = (
        f"{'Shown' if chosen.shown else 'Not shown'}: {within}; the held-out difference{trial} is "
        f"{100 * chosen.difference:+.1f} points, lower bound {100 * chosen.bound:+.1f}."
    )
    for shown, said in ((True, "Shown"), (False, "Not shown")):
        others = [
            str(candidate.trial)
            for candidate in summary.tested
            if candidate is not chosen and candidate.shown is shown
        ]
        if others:
            line += f" {said} for trials tested besides: {', '.join(others)}."
    lines = [line, another_look(summary.look, level_of("max_drop", summary.look))]
    if len(summary.looks) > 1:
        told = [
            f"{number}: {_asked(look)}, {look.verdict.replace('_', ' ')}"
            for number, look in enumerate(summary.looks, start=1)
        ]
        lines.append(f"All looks: {'; '.join(told)}.")
    return lines


def _asked(look: Look) -> str:
    if look.goal == "trial":
        return f"trial {look.trial}, chosen by a person, --max-drop {look.max_drop}"
    goal = f"budget {look.budget:g}" if look.goal == "budget" else "the cheapest"
    return f"{goal}, seed {look.seed}, --max-drop {look.max_drop}, trial {look.trial}"


def worth(summary: RunSummary) -> list[str]:
    """What tuning gained over AdaTP's defaults, in a sentence; nothing where that was not measured."""
    gained = summary.over_defaults
    if gained is None:
        return []
    if gained.interval is None or gained.interval.low <= 0 <= gained.interval.high:
        answer = "these videos do not tell them apart"
    else:
        answer = "tuning helped" if gained.value > 0 else "the defaults are better"
    what = f"points of held-out {accuracy_name(summary)}"
    # The cheapest that holds has no budget: its defaults are those of the paper, p too.
    best, defaults = summary.best, summary.defaults
    at = "at the same budget"
    if summary.goal == "max_drop" and best is not None and defaults is not None:
        at = f"(FLOPs ratios {best.outcome.flops_ratio:.3f} and {defaults.outcome.flops_ratio:.3f})"
    return [f"Tuned minus AdaTP's defaults {at}: {signed(gained)} {what}, paired: {answer}."]


def moved_defaults(defaults: Configuration) -> str:
    """Where study.yaml does not allow AdaTP's own default, what stands in its place; p is solved anyway."""
    paper = Configuration.from_method(AdaTP())
    moved = [
        f"{name} {value_text(value)} instead of {value_text(paper.get(name))}"
        for name, value in defaults.parameters
        if name != "p" and value != paper.get(name)
    ]
    return f"as far as study.yaml allows: {', '.join(moved)}" if moved else ""


def study_cost_in_short(cost: StudyCost) -> str:
    """What all work on the study cost, in a few words."""
    text = f"{cost.passes:.1f} baseline passes"
    text += "" if cost.seconds is None else f", {duration(cost.seconds)} of model time"
    return f"{text}, comparisons and sensitivity studies included"


def _count(held_out: HeldOut | None, name: str) -> str:
    return NOTHING if held_out is None else str(getattr(held_out.outcome, name))


def _ratio(held_out: HeldOut | None, name: str) -> str:
    return NOTHING if held_out is None else f"{getattr(held_out.outcome, name):.4f}"


def _cost(held_out: HeldOut | None) -> AnswerCost | None:
    return None if held_out is None else held_out.outcome.per_answer


def _seconds(serving: ServingCost | None) -> tuple[str, str]:
    """For a video and one question, unpruned and at the best configuration."""
    if serving is None or serving.measured is None:
        return NOTHING, NOTHING
    before, after = serving.measured.first_question
    return f"{before:.3g}", f"{after:.3g}"


def _memory(cost: AnswerCost | None) -> str:
    if cost is None or cost.peak_bytes_mean is None:
        return NOTHING
    mib = cost.peak_bytes_mean / 2**20
    # Below that the resident pages of a process tell nothing.
    return f"{mib:.1f}" if mib >= 1 else "< 1"


def _serving(serving: ServingCost) -> list[str]:
    """Up to how many questions per video pruning pays, the memory of either way, and torch's own count."""
    said, measured = f"{up_to(serving.break_even)} (FLOPs)", serving.measured
    numbers = [serving.break_even]
    if measured is not None:
        said += f", {up_to(measured.break_even)} (seconds on {measured.device})"
        numbers.append(measured.break_even)
    if max(numbers) == 0:
        said += "; keep the unpruned prefix"
    elif min(numbers) < math.inf:
        said += "; beyond that keep the unpruned prefix"
    lines = [f"On a server that keeps each video's prefix pruning pays for {said}."]
    if serving.stored_bytes is not None:
        full, pruned = (value / 2**20 for value in serving.stored_bytes)
        lines.append(f"Such a server keeps {full:.3g} MiB per video unpruned, {pruned:.3g} MiB pruned.")
    if measured is not None:
        lines.append(measured_seconds(measured))
    if measured is not None and measured.profiled is not None:
        profile = measured.profiled
        lines.append(
            f"torch.profiler's multiply-adds over ours, question {profile.question}: "
            f"{profile.counted_baseline / profile.planned_baseline:.4f} unpruned, "
            f"{profile.counted_best / profile.planned_best:.4f} pruned."
        )
    return lines


def measured_seconds(measured: MeasuredServing) -> str:
    """What the seconds of a video and one question are."""
    asked = "1 question" if measured.questions == 1 else f"each of {measured.questions} questions"
    return (
        "Seconds: a video and one question, nothing kept from before, vision tower and embeddings included; "
        f"{asked} unpruned and pruned side by side on {measured.device}."
    )


def up_to(questions: float) -> str:
    """A number of questions per video, as in "pays for ..."."""
    if questions == math.inf:
        return "any number of questions per video"
    return "no question" if questions == 0 else f"up to {questions:.3g} questions per video"


def _tune(trial: Trial | None) -> str:
    return NOTHING if trial is None else percent(Measured(trial.outcome.accuracy))


def _knob(trial: Trial | None, name: str) -> str:
    if trial is None or name not in dict(trial.configuration.parameters):
        return NOTHING
    return value_text(trial.configuration.get(name))


def nothing_fits(summary: RunSummary) -> str:
    """Why there is no best configuration, and what the closest one and the smallest possible one need."""
    text = f"No configuration within the budget {summary.budget:g} was found."
    if summary.closest is not None:
        values = in_words(summary.closest.configuration, summary.choices)
        text += f" The closest needs {summary.closest.flops_ratio:.4f} ({values})."
    if summary.smallest_reachable is not None:
        text += f" The smallest FLOPs ratio any configuration can reach is {summary.smallest_reachable:.4f}."
    if summary.outside:
        text += (
            f" Of {len(summary.outside)} trials study.yaml does not allow the knobs or choices any more; "
            "`tuner run` searches on."
        )
    return text
