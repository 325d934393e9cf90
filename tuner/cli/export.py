"""`tuner export`: writes best.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.options import (
    AcceptWeakBaseline,
    Address,
    Batch,
    BatchTimeout,
    CacheMemory,
    Database,
    GpusPerWorker,
    RecordedStudy,
    SkipBadVideos,
    Storage,
    TrackingUri,
    WaitForWorkers,
    Workers,
    in_bytes,
    parse_budget,
    warn,
)

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.export.best_file import Best
    from tuner.reporting.values import Recorded, RunSummary
    from tuner.runs.run import RunOptions


def _print_schema(wanted: bool) -> None:
    if wanted:
        from pipeline.export_format import SCHEMA_FILE

        typer.echo(SCHEMA_FILE.read_text(encoding="utf-8"), nl=False)
        raise typer.Exit


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
    trial: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Export this trial (`tuner trials` lists them) instead of the one that the search chose.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Export so many trials within the budget: the one that the search chose, then the most "
            "accurate ones of the Pareto front. best.json becomes best-1.json, best-2.json, ...",
            show_default=False,
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="With --trial or --top: measure trials on the held-out videos where that was not done. Each "
            "is one more look at these videos (docs/statistics.md), and needs videos and model.",
        ),
    ] = False,
    accept_regressions: Annotated[
        bool,
        typer.Option(
            "--accept-regressions",
            help="Export the best configuration even where it is not shown to stay within --max-drop of the "
            "unpruned model; best.json says so.",
        ),
    ] = False,
    accept_weak_baseline: AcceptWeakBaseline = False,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema", help="Print the JSON Schema of best.json.", callback=_print_schema, is_eager=True
        ),
    ] = False,
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
) -> None:
    """Write the best configuration within the budget, and what was measured of it, for production.

    Workers, batch, cache, address and --skip-bad-videos are for --measure.
    """
    from rich.console import Console

    from tuner.cli.run import default_workers
    from tuner.errors import UserError
    from tuner.export.best_file import write
    from tuner.reporting.from_records import front_trials, load_summary
    from tuner.reporting.overview import exported
    from tuner.reporting.recorded import open_study
    from tuner.runs.run import RunOptions

    if trial is not None and top is not None:
        raise UserError("--trial names one trial and --top takes several: give one of them")
    if measure and trial is None and top is None:
        raise UserError("--measure is for --trial and --top: `tuner run` measures what the search chose")
    loaded = open_study(study, database, warn)
    console = Console(highlight=False)
    numbers: tuple[int | None, ...] = (trial,)
    if top is not None:
        numbers = found = front_trials(loaded, top, budget=budget, seed=seed, database=database)
        if len(found) < top:
            warn(f"The front has no more than {len(found)} trials within the budget.")
    if measure:
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
        _measure(study, [number for number in numbers if number is not None], options, seed)
    summaries = [
        load_summary(loaded, budget=budget, seed=seed, database=database, trial=number) for number in numbers
    ]
    recorded = _find(summaries[0], tracking_uri, console)
    paths = [output]
    if top is not None:
        paths = [
            output.with_name(f"{output.stem}-{place + 1}{output.suffix}") for place in range(len(numbers))
        ]
    bests = _described(
        summaries,
        paths,
        None if recorded is None else recorded.run,
        accept_regressions=accept_regressions,
        accept_weak_baseline=accept_weak_baseline,
    )
    for best, path in zip(bests, paths, strict=True):
        write(best, path)
        if top is not None:
            console.print(_line(best, path), soft_wrap=True)
    if top is None:
        for line in exported(summaries[0], output, width=console.width):
            console.print(line, soft_wrap=True)


def _described(
    summaries: list[RunSummary],
    paths: list[Path],
    mlflow_run: str | None,
    *,
    accept_regressions: bool,
    accept_weak_baseline: bool,
) -> list[Best]:
    """All of them, or all that keeps any of them from being exported."""
    from tuner.errors import UserError
    from tuner.export.best_file import describe

    found, problems = [], list[str]()
    for summary, path in zip(summaries, paths, strict=True):
        try:
            found.append(
                describe(
                    summary,
                    path.resolve().parent,
                    mlflow_run=mlflow_run,
                    accept_regressions=accept_regressions,
                    accept_weak_baseline=accept_weak_baseline,
                )
            )
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return found


def _line(best: Best, path: Path) -> str:
    difference = 100 * best.measured.difference
    return (
        f"{path}: trial {best.provenance.trial}, {100 * best.measured.accuracy:.1f} % ({difference:+.1f} "
        f"points) at {best.measured.flops_ratio:.3f} of the FLOPs, {best.verdict.replace('_', ' ')}"
    )


def _measure(study: str, numbers: list[int], options: RunOptions, seed: int | None) -> None:
    from tuner.cli.progress import command_progress
    from tuner.cli.run import quietly_loaded
    from tuner.runs.chosen_trials import measure_trials

    loaded = quietly_loaded(study, skip_bad_videos=options.skip_bad_videos)
    with command_progress() as progress:
        measure_trials(loaded, numbers, options, progress, seed=seed)


def _find(summary: RunSummary, tracking_uri: str | None, console: Console) -> Recorded | None:
    """Where `tuner run` mirrored the study; a server that is down is one warning."""
    from tuner.cli.record import with_mlflow

    return with_mlflow(
        lambda mirror: mirror.find(summary),
        tracking_uri,
        console,
        "MLflow does not answer",
    )
