"""`tuner status`: how far a study has come, and the short answer so far."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.options import Database, OfBudget, OfSeed, RecordedStudy, given, warn

if TYPE_CHECKING:
    from tuner.records.lease import Holder
    from tuner.reporting.from_records import Status
    from tuner.reporting.overview import Naming, Standing


def status(
    study: RecordedStudy,
    budget: OfBudget = None,
    seed: OfSeed = None,
    database: Database = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how far a study is and what its latest search has come to; also while it runs."""
    from rich.console import Console

    from dashboards.folder import report_of
    from tuner.reporting.from_records import find_searches, status_of, summarise
    from tuner.reporting.overview import Naming, overview
    from tuner.reporting.recorded import opened

    with opened(study, database, warn) as (loaded, store, record):
        found = status_of(loaded, store, record)
        running = store.holder(found.study)
        naming = Naming(study, {"--database": given(database, "TUNER_DATABASE")})
        if as_json:
            by = None if running is None else dataclasses.asdict(running)
            typer.echo(json.dumps(dataclasses.asdict(found) | {"running": by}, indent=2))
            return
        if not found.searches:
            typer.echo(_nothing_searched(found, running, naming))
            return
        search = find_searches(store, found.study, budget=budget, seed=seed)[-1]
        place = store.searches().index(search)
        summary = summarise(loaded, store, record, search)
    console = Console(highlight=False)
    latest = place == len(found.searches) - 1
    report = report_of(summary) if latest and running is None else None
    below = [("report", str(report))] if report is not None else []
    if len(found.searches) > 1:
        below.append(("other searches", textwrap.shorten(_others(found, place), console.width - 17)))
    below.append(("records", found.database))
    for line in overview(
        summary,
        naming,
        width=console.width,
        standing=standing(found, place, running),
        below=below,
        latest=latest,
    ):
        console.print(line, soft_wrap=True)


def standing(found: Status, place: int, running: Holder | None) -> Standing:
    """How far the search at this place is."""
    from tuner.reporting.overview import Standing

    search = found.searches[place]
    return Standing(
        search.trials_completed + search.trials_pruned,
        search.trials_asked,
        None if running is None else str(running),
        found.baseline_questions - found.baseline_answered,
    )


def _nothing_searched(found: Status, running: Holder | None, naming: Naming) -> str:
    who = "nobody is running it" if running is None else f"it is being run by {running}"
    missing = found.baseline_questions - found.baseline_answered
    return (
        f"{found.study}: nothing was searched yet, {missing:,} unpruned answers are missing, {who}.\n\n"
        f"NEXT  {naming.command('run', '--budget', '0.3')}\nrecords         {found.database}"
    )


def _others(found: Status, place: int) -> str:
    """The other searches, the latest first."""
    from tuner.reporting.wording import searched_for

    said = []
    for number, search in reversed(list(enumerate(found.searches))):
        if number != place:
            best = "nothing fits" if search.best is None else f"trial {search.best.number}"
            text = searched_for(search.goal, search.budget, search.max_drop)
            text += f" seed {search.seed}" if search.seed else ""
            said.append(f"{text} ({best}, {search.verdict.replace('_', ' ')})")
    return "; ".join(said)
