"""`tuner compare`: ways to prune side by side, at the same FLOPs."""

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


def compare(
    study: Study,
    budget: Annotated[
        float | None,
        typer.Option(
            parser=parse_budget,
            metavar="RATIO",
            help="Compute that all of them are set to: LLM prefill FLOPs over the unpruned model's, above 0 "
            "and at most 1.",
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
    """Measure other ways to prune beside AdaTP, and AdaTP without each of its parts, at the same FLOPs.

    On held-out videos; nothing is asked twice. AdaTP is tuned where `tuner run` did so with this budget.
    """
    from tuner.cli.progress import command_progress

    with command_progress(log_format=log_format, study=study) as progress:
        progress.started("reading the study", None)
        # They take seconds: not before something is shown.
        from dashboards.folder import draw_comparison
        from tuner.cli.record import record_files, written
        from tuner.cli.run import default_workers, quietly_loaded
        from tuner.runs.compare import compare as compare_study
        from tuner.runs.run import RunOptions

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
        comparison = compare_study(loaded, options, progress)
        progress.started("drawing the report", None)
        files = written(lambda: draw_comparison(loaded, comparison, database), progress.console)
        progress.started("recording in MLflow", None)
        recorded = record_files(
            comparison.study,
            comparison.study_hash,
            comparison.budget,
            files,
            database,
            tracking_uri,
            progress.console,
        )
    if as_json:
        from tuner.reporting.documents import comparison_document

        typer.echo(comparison_document(comparison, files, recorded))
        return
    from rich.console import Console

    from tuner.cli.record import say_where
    from tuner.reporting.comparison_table import render

    console = Console(highlight=False)
    for line in render(comparison, console.width):
        console.print(line, soft_wrap=True)
    say_where(files, recorded, comparison.study, console)
