"""`tuner sync`: makes MLflow hold what the records say."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.options import Database, RecordedStudy, TrackingUri, parse_budget, warn
from tuner.errors import disk_may_be_full


def sync(
    study: RecordedStudy,
    budget: Annotated[
        float | None,
        typer.Option(
            parser=parse_budget,
            metavar="RATIO",
            help="Of searches with this budget; otherwise of all.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of searches with this seed; otherwise of all.", show_default=False),
    ] = None,
    database: Database = None,
    tracking_uri: TrackingUri = None,
    while_running: Annotated[
        bool, typer.Option("--while-running", hidden=True, help="Of a run that goes on: without figures.")
    ] = False,
) -> None:
    """Complete the study in MLflow from its records, and say what was missing there."""
    if while_running:  # before the imports, which take the most time
        os.nice(10)
    from rich.console import Console

    from dashboards.folder import draw
    from tuner.cli.record import with_mlflow
    from tuner.export.mlflow_mirror import MlflowMirror
    from tuner.reporting.from_records import load_summaries
    from tuner.reporting.recorded import open_study

    loaded = open_study(study, database, warn)
    *earlier, latest = load_summaries(loaded, budget=budget, seed=seed, database=database)
    if while_running:
        MlflowMirror(tracking_uri).record(latest, earlier=earlier, running=True)
        return
    # MLflow keeps copies: nothing else is left in this folder, which may be read-only.
    with tempfile.TemporaryDirectory() as figures, disk_may_be_full(f"the figures in {figures}"):
        files = draw(loaded, latest, database, folder=Path(figures))
        recorded = with_mlflow(
            lambda mirror: mirror.record(latest, files, earlier=earlier),
            tracking_uri,
            Console(stderr=True),
            "MLflow cannot be written",
        )
    if recorded is None:
        raise typer.Exit(1)
    searches = f"{1 + len(earlier)} searches" if earlier else "1 search"
    written = "nothing was missing"
    if recorded.runs or recorded.files:
        written = f"wrote {recorded.runs} runs and {recorded.files} artifacts"
    Console().print(
        f"In MLflow: {latest.study}, {len(latest.trials)} trials, {searches}; {written}: {recorded.page}",
        highlight=False,
        soft_wrap=True,
    )
