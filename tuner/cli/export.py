"""`tuner export`: writes best.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.options import AcceptWeakBaseline, Database, RecordedStudy, TrackingUri, parse_budget, warn

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.reporting.values import Recorded, RunSummary


def export(
    study: RecordedStudy,
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("best.json"),
    budget: Annotated[
        float | None,
        typer.Option(
            parser=parse_budget,
            metavar="RATIO",
            help="Of the search with this budget; otherwise of the latest.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the search with this seed; otherwise of the latest.", show_default=False),
    ] = None,
    accept_regressions: Annotated[
        bool,
        typer.Option(
            "--accept-regressions",
            help="Export the best configuration even where it is not shown to stay within --max-drop of the "
            "unpruned model; best.json says so.",
        ),
    ] = False,
    accept_weak_baseline: AcceptWeakBaseline = False,
    database: Database = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write the best configuration within the budget, and what was measured of it, for production."""
    from rich.console import Console

    from tuner.export.best_file import export as write
    from tuner.reporting.from_records import load_summary
    from tuner.reporting.overview import exported
    from tuner.reporting.recorded import open_study

    loaded = open_study(study, database, warn)
    summary = load_summary(loaded, budget=budget, seed=seed, database=database)
    console = Console(highlight=False)
    recorded = _find(summary, tracking_uri, console)
    write(
        summary,
        output,
        mlflow_run=None if recorded is None else recorded.run,
        accept_regressions=accept_regressions,
        accept_weak_baseline=accept_weak_baseline,
    )
    for line in exported(summary, output, width=console.width):
        console.print(line, soft_wrap=True)


def _find(summary: RunSummary, tracking_uri: str | None, console: Console) -> Recorded | None:
    """Where `tuner run` mirrored the study; a server that is down is one warning."""
    from tuner.cli.record import with_mlflow

    return with_mlflow(
        lambda mirror: mirror.find(summary.study, summary.study_hash),
        tracking_uri,
        console,
        "MLflow does not answer",
    )
