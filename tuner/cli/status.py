"""`tuner status`: how far a study has come."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.options import Database, Study

if TYPE_CHECKING:
    from rich.table import Table

    from tuner.reporting import SearchStatus, Status


def status(
    study: Study,
    database: Database = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how far a study has come; also while it runs."""
    from rich.console import Console

    from tuner.reporting import load_status
    from tuner.study import load_study

    found = load_status(load_study(study, skip_bad_videos=True).name, database)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    console = Console()
    console.print(f"[bold]{found.study}[/bold] {found.study_hash[:8]} in {found.database}", highlight=False)
    console.print(_counts(found), highlight=False)
    if found.searches:
        console.print(_searches(found))


def _counts(found: Status) -> str:
    text = (
        f"baseline {found.baseline_answered} of {found.baseline_questions} questions, "
        f"{found.trials_completed} trials complete"
    )
    if found.trials_unfinished:
        text += f", {found.trials_unfinished} begun"
    return f"{text}, {found.answers} answers"


def _searches(found: Status) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        "budget", "seed", "trials", "refused", "best", "tune", "held-out", "FLOPs (tune)", box=SIMPLE_HEAD
    )
    for search in found.searches:
        table.add_row(
            f"{search.budget:g}",
            str(search.seed),
            f"{search.trials_completed} of {search.trials_asked}",
            str(search.refused),
            *_best(search),
        )
    return table


def _best(search: SearchStatus) -> tuple[str, str, str, str]:
    if search.best is None:
        return ("-", "-", "-", "-")
    held_out = "-" if search.held_out is None else f"{100 * search.held_out.accuracy:.1f} %"
    return (
        f"trial {search.best.number}",
        f"{100 * search.best.outcome.accuracy:.1f} %",
        held_out,
        f"{search.best.outcome.flops_ratio:.4f}",
    )
