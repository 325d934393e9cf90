"""`tuner trials`: every trial of a study, as a table or as JSON."""

from __future__ import annotations

import json
import os
import textwrap
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.options import Database, RecordedStudy, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from tuner.records.values import SearchRecord, TrialRecord
    from tuner.reporting.columns import Column


@dataclass(frozen=True)
class Row:
    """One trial; what its answers tell is None until all are there. Ratios and accuracies are fractions."""

    number: int
    # complete, pruned (`pruned_by` is the trial that beats it) or unfinished
    state: str
    pruned_by: int | None
    pruned_after: int | None
    purpose: str
    # Budget and seed of the search that asked for it.
    budget: float
    seed: int
    method: str
    parameters: dict[str, Any]
    # The larger of the two splits' ratios: what the budget binds.
    binding_ratio: float
    within_budget: bool
    accuracy: float | None = None
    logprob_change: float | None = None
    flops_ratio: float | None = None
    flops_ratio_end_to_end: float | None = None
    regressions: int | None = None
    gained: int | None = None
    questions: int | None = None
    # Of the complete trials that the study's search allows none is both cheaper and at least as accurate.
    on_front: bool = False
    # Whether the study's search (fixed, bounds, choices) allows it; if not, it is never chosen.
    allowed: bool = True
    # The searches that have come to it: what each was for, and its seed.
    best_of: tuple[str, ...] = ()


class SortChoice(StrEnum):
    """What comes first."""

    NUMBER = "number"
    ACCURACY = "accuracy"
    FLOPS = "flops"


def trials(
    study: RecordedStudy,
    sort: Annotated[
        SortChoice, typer.Option(help="What comes first: the best accuracy, or the fewest FLOPs.")
    ] = SortChoice.NUMBER,
    top: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many.", show_default=False)
    ] = None,
    within_budget: Annotated[
        bool, typer.Option("--within-budget", help="Only those within the budget of their search.")
    ] = False,
    database: Database = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all digits.")] = False,
) -> None:
    """List all trials with their knobs and what they reach on tune videos; also while a run goes on."""
    from tuner.reporting.from_records import choices_of
    from tuner.reporting.recorded import opened
    from tuner.reporting.wording import searched_for
    from tuner.search.choices import worth_showing
    from tuner.search.selection import eligible

    with opened(study, database, warn) as (loaded, store, record):
        recorded, searches = store.trials(), {search.id: search for search in store.searches()}
        best_of: dict[int, list[str]] = {}
        for search, choice in choices_of(loaded, store, record).items():
            searched = searches[search]
            told = f"{searched_for(searched.goal, searched.budget, searched.max_drop)}, seed {searched.seed}"
            best_of.setdefault(choice.trial.number, []).append(told)
        allowed = {trial.number for trial in eligible(recorded, loaded.search)}
        found = rows(recorded, searches, allowed, best_of)
    found = _selected(found, sort, top, within_budget=within_budget)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in found], indent=2))
        return
    from rich.console import Console

    console = Console()
    listed = [choice for choice, _ in loaded.search.choices]
    shown = worth_showing(listed, (trial.configuration for trial in recorded))
    # Where nobody looks at it, as wide as it needs to be; COLUMNS says otherwise.
    width = console.width if console.is_terminal or "COLUMNS" in os.environ else None
    typer.echo(_table(found, shown, width, labelled=loaded.labelled))


def _selected(found: list[Row], sort: SortChoice, top: int | None, *, within_budget: bool) -> list[Row]:
    """Sorted, those without the value last; then the first `top`."""
    if within_budget:
        found = [row for row in found if row.within_budget]
    if sort is SortChoice.ACCURACY:
        found = sorted(found, key=lambda row: -1.0 if row.accuracy is None else row.accuracy, reverse=True)
    elif sort is SortChoice.FLOPS:
        found = sorted(found, key=lambda row: row.binding_ratio)
    return found[:top]


def rows(
    found: tuple[TrialRecord, ...],
    searches: Mapping[int, SearchRecord],
    allowed: Collection[int],
    best_of: Mapping[int, Sequence[str]],
) -> list[Row]:
    """The trials in order of number; `searches` by id, the others by trial: see `Row`."""
    from tuner.reporting.trial_table import front_numbers
    from tuner.search.space import TOLERANCE

    front = front_numbers(
        (trial.number, trial.outcome.accuracy, trial.outcome.flops_ratio)
        for trial in found
        if trial.outcome is not None and trial.number in allowed
    )
    result = []
    for trial in found:
        search, outcome = searches[trial.search], trial.outcome
        row = Row(
            number=trial.number,
            state="complete" if outcome is not None else "unfinished" if trial.unfinished else "pruned",
            pruned_by=None if trial.pruned is None else trial.pruned.by,
            pruned_after=None if trial.pruned is None else trial.pruned.videos,
            purpose=trial.purpose,
            budget=search.budget,
            seed=search.seed,
            method=trial.configuration.method,
            parameters=dict(trial.configuration.parameters),
            binding_ratio=trial.binding_ratio,
            within_budget=trial.binding_ratio <= search.budget + TOLERANCE,
            on_front=trial.number in front,
            allowed=trial.number in allowed,
            best_of=tuple(best_of.get(trial.number, ())),
        )
        if outcome is not None:
            names = (field for field in row.__dataclass_fields__ if field in outcome.__dataclass_fields__)
            row = replace(row, **{name: getattr(outcome, name) for name in names})
        result.append(row)
    return result


def _table(found: list[Row], choices: tuple[str, ...], width: int | None, *, labelled: bool) -> str:
    """At most so wide, with a line below that names the columns left out; None: all of them."""
    from tuner.reporting.columns import fitted

    table = fitted(_columns(found, choices, labelled=labelled), width)
    below = [f"* trial {row.number}: the best of {told}" for row in found for told in row.best_of]
    if not all(row.allowed for row in found):
        below.append("not allowed: study.yaml does not allow its knobs or choices any more")
    if table.left_out:
        below.append(f"Left out for want of room: {', '.join(table.left_out)}; --json has everything.")
    below = [line for text in below for line in textwrap.wrap(text, width or 1000)]
    return "\n".join([*table.head, *table.body, *([""] if below else []), *below])


def _columns(found: list[Row], choices: tuple[str, ...], *, labelled: bool) -> list[Column]:
    from pipeline.methods import KNOBS
    from tuner.reporting.columns import Column

    def column(title: str, cell: Callable[[Row], str], rank: int = 0, *, right: bool = True) -> Column:
        return Column(title, tuple(map(cell, found)), right, rank)

    def knob(name: str) -> Callable[[Row], str]:
        return lambda row: _number(row.parameters.get(name), ".4g")

    def choice(name: str) -> Callable[[Row], str]:
        return lambda row: str(row.parameters.get(name, "-"))

    # Without labels answers agree with the unpruned model's or not: none is right, none can be gained.
    what, lost = ("accuracy", "lost") if labelled else ("agreement", "changed")
    gained = [column("gained", lambda row: _number(row.gained, "d"), 4)] if labelled else []
    return [
        column("trial", lambda row: f"{row.number}{'*' if row.best_of else ' '}"),
        column(what, lambda row: _number(None if row.accuracy is None else 100 * row.accuracy, ".1f")),
        column("LLM\nFLOPs", lambda row: _number(row.flops_ratio, ".3f")),
        column("end to\nend", lambda row: _number(row.flops_ratio_end_to_end, ".3f"), 2),
        column(lost, lambda row: _number(row.regressions, "d"), 3),
        *gained,
        *(column(name.replace("a_", "a_\n"), knob(name)) for name in KNOBS),
        *(column(name.replace("_", "_\n"), choice(name), 1, right=False) for name in choices),
        column("log\nprob.", lambda row: _number(row.logprob_change, "+.4f"), 6),
        column("budget", lambda row: f"{'' if row.within_budget else '> '}{row.budget:g}", 5),
        column("", _state, right=False),
    ]


def _state(row: Row) -> str:
    said = []
    if row.state == "pruned":
        said.append(f"pruned by {row.pruned_by}")
    elif row.state != "complete":
        said.append(row.state)
    said += ["front"] if row.on_front else []
    said += [] if row.allowed else ["not allowed"]
    return ", ".join(said)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
