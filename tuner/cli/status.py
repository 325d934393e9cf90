"""`tuner status`: how far a study has come."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.options import Database, RecordedStudy, warn

if TYPE_CHECKING:
    from rich.table import Table

    from tuner.reporting.from_records import SearchStatus, Status


def status(
    study: RecordedStudy,
    database: Database = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how far a study has come; also while it runs."""
    from rich.console import Console

    from tuner.records.database import default_database
    from tuner.records.lock import holder
    from tuner.reporting.from_records import status_of
    from tuner.reporting.recorded import opened

    with opened(study, database, warn) as records:
        found = status_of(*records)
    running = holder(database or default_database(found.study), found.study)
    if as_json:
        by = None if running is None else dataclasses.asdict(running)
        typer.echo(json.dumps(dataclasses.asdict(found) | {"running": by}, indent=2))
        return
    console = Console()
    console.print(f"[bold]{found.study}[/bold] {found.study_hash[:8]} in {found.database}", highlight=False)
    console.print(_counts(found), highlight=False)
    console.print(f"Run by {running}." if running else "Nobody is running it.", highlight=False, markup=False)
    for question, reason in found.quarantined.items():
        console.print(f"Left out: question {question} ({reason}).", highlight=False, markup=False)
    if found.searches:
        console.print(_searches(found))


def _counts(found: Status) -> str:
    text = (
        f"baseline {found.baseline_answered} of {found.baseline_questions} questions, "
        f"{found.trials_completed} trials complete"
    )
    if found.trials_unfinished:
        text += f", {found.trials_unfinished} begun"
    if found.trials_pruned:
        text += f", {found.trials_pruned} pruned early"
    return f"{text}, {found.answers} answers"


def _searches(found: Status) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from tuner.reporting.wording import searched_for

    table = Table(
        "search",
        "seed",
        "trials",
        "infeasible",
        "best",
        "tune",
        "held-out",
        "FLOPs\n(tune)",
        "drop",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for search in found.searches:
        table.add_row(
            searched_for(search.goal, search.budget, search.max_drop),
            str(search.seed),
            _trials(search),
            str(search.infeasible),
            *_best(search),
        )
    return table


def _trials(search: SearchStatus) -> str:
    pruned = f" + {search.trials_pruned} pruned" if search.trials_pruned else ""
    return f"{search.trials_completed}{pruned} of {search.trials_asked}"


def _best(search: SearchStatus) -> tuple[str, str, str, str, str]:
    if search.best is None:
        return ("-", "-", "-", "-", "-")
    held_out = "-" if search.held_out is None else f"{100 * search.held_out.accuracy:.1f} %"
    return (
        f"trial {search.best.number}",
        f"{100 * search.best.outcome.accuracy:.1f} %",
        held_out,
        f"{search.best.outcome.flops_ratio:.4f}",
        f"{search.verdict.replace('_', ' ')} ({search.max_drop})",
    )
