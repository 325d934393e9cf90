"""`tuner sensitivity`: what each knob does, around the chosen configuration and over the whole space."""

from __future__ import annotations

from typing import Annotated

import typer

from tuner.cli.options import (
    AcceptWeakBaseline,
    Address,
    AsJson,
    Batch,
    BatchTimeout,
    CacheMemory,
    Database,
    GpusPerWorker,
    Log,
    LogFormat,
    SkipBadVideos,
    Storage,
    Study,
    TrackingUri,
    WaitForWorkers,
    Workers,
    in_bytes,
    parse_budget,
)


def sensitivity(
    study: Study,
    budget: Annotated[
        float,
        typer.Option(
            parser=parse_budget,
            metavar="RATIO",
            help="FLOPs ratio of the search whose best configuration is studied; where there was none, "
            "AdaTP's defaults at it.",
        ),
    ],
    runs: Annotated[
        int,
        typer.Option(min=0, help="Configurations of the space-filling design; a power of two fills best."),
    ] = 64,
    max_drop: Annotated[
        str | None,
        typer.Option(
            "--max-drop",
            help="What a knob that drifts may cost, against the studied configuration: 0.01 is one point, 1% "
            "is of the unpruned accuracy. Otherwise what the search allowed.",
            show_default=False,
        ),
    ] = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    batch: Batch = 8,
    address: Address = None,
    wait_for_workers: WaitForWorkers = None,
    batch_timeout: BatchTimeout = None,
    storage: Storage = None,
    cache_memory: CacheMemory = None,
    database: Database = None,
    tracking_uri: TrackingUri = None,
    skip_bad_videos: SkipBadVideos = False,
    accept_weak_baseline: AcceptWeakBaseline = False,
    log_format: Log = LogFormat.TEXT,
    as_json: AsJson = False,
) -> None:
    """Show what matters: how far each knob may drift, what breaks when it does, and what makes no difference.

    Every answer that exists is used; after Ctrl-C the same command goes on, and a second call asks nothing.
    """
    from tuner.cli.progress import command_progress

    with command_progress(log_format=log_format, study=study) as progress:
        progress.started("reading the study", None)
        # They take seconds: not before something is shown.
        from dashboards.folder import draw_sensitivity
        from tuner.cli.record import record_files, written
        from tuner.cli.run import default_workers, quietly_loaded
        from tuner.runs.run import RunOptions
        from tuner.runs.sensitivity import sensitivity as find
        from tuner.sensitivity.saved import save_sensitivity
        from tuner.sensitivity.surrogate import analyse

        options = RunOptions(
            budget=budget,
            workers=default_workers(address) if workers is None else workers,
            gpus_per_worker=gpus_per_worker,
            batch=batch,
            address=address,
            wait_for_workers=wait_for_workers,
            batch_timeout=batch_timeout,
            storage=storage,
            cache_memory=in_bytes(cache_memory),
            database=database,
            skip_bad_videos=skip_bad_videos,
            accept_weak_baseline=accept_weak_baseline,
        )
        loaded = quietly_loaded(study, skip_bad_videos=skip_bad_videos)
        found = find(loaded, options, analyse=analyse, runs=runs, max_drop=max_drop, progress=progress)
        progress.started("drawing the report", None)
        saved = written(
            lambda: (save_sensitivity(found, database),), progress.console, "The file of all numbers"
        )
        files = written(lambda: draw_sensitivity(loaded, found, database), progress.console)
        progress.started("recording in MLflow", None)
        recorded = record_files(
            found.study,
            found.study_hash,
            found.budget,
            (*saved, *files),
            database,
            tracking_uri,
            progress.console,
        )
    if as_json:
        from tuner.reporting.documents import sensitivity_document

        typer.echo(sensitivity_document(found, files, recorded))
        return
    from rich.console import Console

    from tuner.cli.record import say_where
    from tuner.reporting.sensitivity_table import render

    console = Console(highlight=False)
    for line in render(found, console.width):
        console.print(line, soft_wrap=True)
    for file in saved:
        console.print(f"All numbers: {file}", markup=False, soft_wrap=True)
    say_where(files, recorded, found.study, console)
