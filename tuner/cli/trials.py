"""`tuner trials`: every trial of a study, as a table or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli.options import Database, RecordedStudy, warn

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tuner.records.values import SearchRecord, TrialRecord


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


def trials(
    study: RecordedStudy,
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
        recorded, searches = store.trials(), {one.id: one for one in store.searches()}
        best_of: dict[int, list[str]] = {}
        for search, choice in choices_of(loaded, store, record).items():
            one = searches[search]
            told = f"{searched_for(one.goal, one.budget, one.max_drop)}, seed {one.seed}"
            best_of.setdefault(choice.trial.number, []).append(told)
        allowed = {one.number for one in eligible(recorded, loaded.search)}
        found = rows(recorded, searches, allowed, best_of)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in found], indent=2))
    else:
        listed = [choice for choice, _ in loaded.search.choices]
        # As wide as it needs to be: a number cut short is none.
        typer.echo(_table(found, worth_showing(listed, (trial.configuration for trial in recorded))))


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
        (one.number, one.outcome.accuracy, one.outcome.flops_ratio)
        for one in found
        if one.outcome is not None and one.number in allowed
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
            names = (one for one in row.__dataclass_fields__ if one in outcome.__dataclass_fields__)
            row = replace(row, **{name: getattr(outcome, name) for name in names})
        result.append(row)
    return result


def _table(found: list[Row], choices: tuple[str, ...]) -> str:
    """By hand: rich takes seconds for a thousand rows."""
    from pipeline.methods import KNOBS

    right = [
        *("trial", *(knob.replace("a_", "a_\n") for knob in KNOBS)),
        *("accuracy", "log-\nprob.", "FLOPs", "end to\nend", "lost", "gained", "budget"),
    ]
    left = [*(name.replace("_", "_\n") for name in choices), "front", "best of", "state"]
    titles = [["", *name.split("\n")][-2:] for name in (*right, *left)]
    lines = [list(one) for one in zip(*titles, strict=True)]
    lines += [
        [
            str(row.number),
            *(_number(row.parameters.get(knob), ".4g") for knob in KNOBS),
            _number(None if row.accuracy is None else 100 * row.accuracy, ".1f"),
            _number(row.logprob_change, "+.4f"),
            _number(row.flops_ratio, ".4f"),
            _number(row.flops_ratio_end_to_end, ".4f"),
            _number(row.regressions, "d"),
            _number(row.gained, "d"),
            f"{row.budget:g}" if row.within_budget else f"> {row.budget:g}",
            *(str(row.parameters.get(name, "-")) for name in choices),
            "yes" if row.on_front else "",
            "; ".join(row.best_of),
            _state(row),
        ]
        for row in found
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    written = [
        " ".join(
            cell.rjust(width) if place < len(right) else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*written[:2], "-" * max(map(len, written)), *written[2:]])


def _state(row: Row) -> str:
    text = row.state
    if row.state == "pruned":
        text = f"pruned by {row.pruned_by} after {row.pruned_after} videos"
    return text if row.allowed else f"{text}; not allowed by study.yaml"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
