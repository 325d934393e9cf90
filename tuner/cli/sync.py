"""`tuner sync`: makes MLflow hold what the records say."""

from __future__ import annotations

import os
import tempfile
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.options import Database, RecordedStudy, TrackingUri, parse_budget, warn
from tuner.errors import disk_may_be_full

if TYPE_CHECKING:
    from tuner.export.mlflow_mirror import Status


class MirroredStatus(StrEnum):
    """What a run tells MLflow about itself, in MLflow's words."""

    RUNNING = "RUNNING"
    KILLED = "KILLED"


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
    status: Annotated[
        MirroredStatus | None,
        typer.Option(
            hidden=True, help="Of the search that was begun last, which is written without figures."
        ),
    ] = None,
) -> None:
    """Complete the study in MLflow from its records, and say what was missing there."""
    if status is not None:  # before the imports, which take the most time
        os.nice(10)
    from rich.console import Console

    from dashboards.folder import draw
    from tuner.cli.record import with_mlflow
    from tuner.export.mlflow_mirror import MlflowMirror
    from tuner.reporting.from_records import load_summaries, load_summary
    from tuner.reporting.recorded import opened

    with opened(study, database, warn) as (loaded, store, _):
        running = status is None and store.holder(loaded.name) is not None
    if status is not None:
        MlflowMirror(tracking_uri).record(load_summary(loaded, database=database), status=status.value)
        return
    summaries = load_summaries(loaded, budget=budget, seed=seed, database=database)
    console = Console(stderr=True)
    written = []
    for summary in summaries:
        going_on: Status | None = "RUNNING" if running and summary is summaries[-1] else None
        # MLflow keeps copies: nothing else is left in this folder, which may be read-only.
        with tempfile.TemporaryDirectory() as figures, disk_may_be_full(f"the figures in {figures}"):
            drawn = draw(loaded, summary, database, folder=Path(figures))
            action = partial(MlflowMirror.record, summary=summary, files=drawn, status=going_on)
            recorded = with_mlflow(action, tracking_uri, console, "MLflow cannot be written")
        if recorded is None:
            raise typer.Exit(1)
        written.append(recorded)
    runs, files = sum(item.runs for item in written), sum(item.files for item in written)
    searches = f"{len(summaries)} searches" if len(summaries) > 1 else "1 search"
    told = f"wrote {runs} runs and {files} artifacts" if runs or files else "nothing was missing"
    trials = len(summaries[-1].trials)
    Console().print(
        f"In MLflow: {loaded.name}, {trials} trials, {searches}; {told}: {written[-1].page}",
        highlight=False,
        soft_wrap=True,
    )
