"""`tuner show`: everything the records tell of a search, for whom the short answer is not enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuner.cli.options import Database, OfBudget, OfSeed, RecordedStudy, TrackingUri, warn

if TYPE_CHECKING:
    from rich.table import Table

    from tuner.reporting.from_records import SearchStatus, Status


def show(
    study: RecordedStudy,
    budget: OfBudget = None,
    seed: OfSeed = None,
    database: Database = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Print all numbers of a search: intervals, tests, tags, knobs, what serving costs, every search."""
    from rich.console import Console

    from tuner.cli.record import with_mlflow
    from tuner.reporting.from_records import find_searches, status_of, summarise
    from tuner.reporting.recorded import opened
    from tuner.reporting.summary import render

    with opened(study, database, warn) as (loaded, store, record):
        found = status_of(loaded, store, record)
        search = find_searches(store, found.study, budget=budget, seed=seed)[-1]
        summary = summarise(loaded, store, record, search)
    recorded = with_mlflow(
        lambda mirror: mirror.find(summary),
        tracking_uri,
        Console(stderr=True),
        "MLflow does not answer",
    )
    console = Console(highlight=False)
    console.print(render(summary, recorded=recorded, study=study), crop=False)
    console.print(_searches(found))
    console.print(f"Records: {found.study_hash[:8]} in {found.database}", markup=False, soft_wrap=True)
    console.print(_counts(found))


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

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in (
        "search",
        "seed",
        "trials",
        "infeasible",
        "best",
        "tune",
        "held-out",
        "FLOPs\n(tune)",
        "drop",
    ):
        # Words and numbers stay whole; what consists of several words may take several lines.
        table.add_column(title, no_wrap=title not in ("search", "trials", "drop"))
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
