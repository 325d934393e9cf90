"""`tuner run`: searches a study within a compute budget."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    given,
    in_bytes,
    parse_budget,
)
from tuner.errors import UserError
from tuner.statistics.margin import DEFAULT_MAX_DROP

if TYPE_CHECKING:
    from tuner.study import Study as LoadedStudy


class SamplerChoice(StrEnum):
    """Who proposes."""

    TPE = "tpe"
    RANDOM = "random"


def run(
    study: Study,
    budget: Annotated[
        float | None,
        typer.Option(
            parser=parse_budget,
            metavar="RATIO",
            help="Compute allowed: LLM prefill FLOPs over the unpruned model's, above 0 and at most 1. "
            "Without it: the cheapest configuration that loses no more than --max-drop.",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            "--max-drop",
            help="What held-out accuracy may lose against the unpruned model: 0.01 is one point, 1% is of "
            f"the unpruned accuracy. {DEFAULT_MAX_DROP} with a budget.",
            show_default=False,
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=0, help="Trials in all, those of earlier runs included.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds after which no further trial begins.", show_default=False),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials in a row that add nothing to the front after which no further one begins.",
            show_default=False,
        ),
    ] = None,
    race: Annotated[
        bool,
        typer.Option("--race/--no-race", help="Stop trials that others confidently beat at the same cost."),
    ] = True,
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
    fresh: Annotated[bool, typer.Option("--fresh", hidden=True, help="Gone: see `tuner archive`.")] = False,
    sampler: Annotated[
        SamplerChoice,
        typer.Option(
            help="What proposes trials after AdaTP's defaults and a short design. random is a baseline."
        ),
    ] = SamplerChoice.TPE,
    log_format: Log = LogFormat.TEXT,
    as_json: AsJson = False,
) -> None:
    """Find the AdaTP configuration that answers best within a compute budget, or the cheapest that holds.

    Running it again carries on: nothing is asked twice, more trials or another budget add to what is there.
    """
    from tuner.cli.progress import command_progress

    if fresh:
        raise UserError(
            "--fresh is no longer there, for a run throws no results away: a changed study is simply run "
            f"again, and `tuner archive --study {study}` puts its records aside so that the next run begins "
            "anew"
        )
    if budget is None and max_drop is None:
        raise UserError(
            "name --budget (the best configuration within it), --max-drop (the cheapest that holds) or both"
        )
    with command_progress(log_format=log_format, study=study) as progress:
        progress.started("reading the study", None)
        # They take seconds: not before something is shown.
        from dashboards.folder import draw
        from tuner.cli.mirroring import mirroring
        from tuner.cli.record import with_mlflow, written
        from tuner.reporting.overview import Naming
        from tuner.runs.run import RunOptions
        from tuner.runs.run import run as run_study

        options = RunOptions(
            budget=budget,
            trials=trials,
            seed=seed,
            timeout=timeout,
            workers=default_workers(address) if workers is None else workers,
            gpus_per_worker=gpus_per_worker,
            batch=batch,
            address=address,
            wait_for_workers=wait_for_workers,
            batch_timeout=batch_timeout,
            storage=storage,
            cache_memory=in_bytes(cache_memory),
            database=database,
            sampler=sampler.value,
            max_drop=DEFAULT_MAX_DROP if max_drop is None else max_drop,
            patience=patience,
            race=race,
            skip_bad_videos=skip_bad_videos,
            accept_weak_baseline=accept_weak_baseline,
        )
        loaded = quietly_loaded(study, skip_bad_videos=skip_bad_videos)
        with mirroring(study, database, tracking_uri):
            summary = run_study(loaded, options, progress)
        progress.started("drawing the report", None)
        files = written(lambda: draw(loaded, summary, database), progress.console)
        naming = Naming(study, {"--database": given(database, "TUNER_DATABASE")})
        progress.started("recording in MLflow", None)
        recorded = with_mlflow(
            lambda mirror: mirror.record(summary, files),
            tracking_uri,
            progress.console,
            "Recording in MLflow failed",
            f"Everything is in the records: `{naming.command('sync')}` completes MLflow later",
        )
    report = next((file for file in files if file.name == "report.html"), None)
    if as_json:
        from tuner.reporting.documents import run_document

        typer.echo(run_document(summary, report, recorded))
        return
    from rich.console import Console

    from tuner.reporting.overview import in_mlflow, overview

    console = Console(highlight=False)
    below = [] if report is None else [("report", str(report))]
    below += [] if recorded is None else [("MLflow", in_mlflow(recorded, summary.study))]
    for line in overview(summary, naming, width=console.width, below=below):
        console.print(line, soft_wrap=True)


def default_workers(address: str | None) -> int | None:
    """One per GPU; on a CPU two, if it has as many cores: each holds a model of its own. None: the cluster at
    this address, or that this process is a job of, suggests how many.
    """
    from tuner.runs.run import gpus_here

    if address is not None or "RAY_ADDRESS" in os.environ:
        return None
    return gpus_here() or min(2, os.cpu_count() or 1)


def quietly_loaded(study: str, *, skip_bad_videos: bool) -> LoadedStudy:
    """The study that is named. From here on libraries keep their own bars and hints to themselves, for those
    would tear ours apart; a download of gigabytes keeps its bar.

    They look at these variables when transformers is imported, here and in the workers.
    """
    from tuner.study import load_study

    loaded = load_study(study, skip_bad_videos=skip_bad_videos)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if Path(loaded.model).is_dir():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return loaded
