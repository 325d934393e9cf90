"""`tuner sensitivity`: what each knob does, around the chosen configuration and over the whole space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.options import (
    AcceptWeakBaseline,
    Address,
    AsJson,
    Batch,
    Cache,
    CacheMemory,
    Database,
    GpusPerWorker,
    Log,
    LogFormat,
    SkipBadVideos,
    Study,
    TrackingUri,
    Workers,
    in_bytes,
    parse_budget,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from tuner.sensitivity.results import Sensitivity
    from tuner.statistics.values import Interval, Measured


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
    cache: Cache = None,
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
            workers=default_workers() if workers is None else workers,
            gpus_per_worker=gpus_per_worker,
            batch=batch,
            address=address,
            cache=cache,
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
            found.study, found.study_hash, (*saved, *files), tracking_uri, progress.console
        )
    if as_json:
        from tuner.reporting.documents import sensitivity_document

        typer.echo(sensitivity_document(found, files, recorded))
        return
    from rich.console import Console

    from tuner.cli.record import say_where

    console = Console(highlight=False)
    console.print(render(found))
    for file in saved:
        console.print(f"All numbers: {file}", markup=False, soft_wrap=True)
    say_where(files, recorded, found.study, console)


def render(found: Sensitivity) -> RenderableType:
    """Headline, sentences, safe ranges and indices, for a rich console of 80 columns or more."""
    from rich.console import Group
    from rich.text import Text

    which = "AdaTP's defaults" if found.trial is None else f"trial {found.trial}"
    headline = (
        f"{found.study}: {which} at budget {found.budget:g}, one knob at a time and over the whole space"
    )
    parts: list[RenderableType] = [Text(headline, style="bold"), Text("")]
    parts += [Text(f"- {line}", overflow="fold") for line in found.sentences]
    parts.append(_safe_ranges(found))
    if any(output.indices for output in found.outputs):
        parts.append(_indices(found))
    return Group(*parts)


def _safe_ranges(found: Sensitivity) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    what = "accuracy" if found.labelled else "agreement"
    columns = (
        "knob",
        "chosen",
        f"safe to {100 * found.margin:.1f} points",
        "within budget",
        f"{what}, % over its range",
        "points",
    )
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for one in found.curves:
        shares = [100 * point.accuracy.value for point in one.points]
        table.add_row(
            one.knob,
            f"{one.chosen:.4g}",
            _range(one.safe),
            _range(one.within_budget),
            f"{min(shares):.1f} to {max(shares):.1f}",
            f"{len(one.points)}{' (exact)' if one.exact else ''}",
        )
    return table


def _indices(found: Sensitivity) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    columns = ("share of variance", "knob", "alone", "with the others", "PED-ANOVA")
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns[2:]:
        column.justify = "right"
    for output in found.outputs:
        for place, index in enumerate(output.indices):
            table.add_row(
                f"{output.name} (R2 {output.r2:.2f})" if place == 0 else "",
                index.input,
                _share(index.first),
                _share(index.total),
                "-" if index.ped_anova is None else f"{index.ped_anova:.2f}",
            )
    return table


def _range(one: Interval | None) -> str:
    return "none" if one is None else f"{one.low:.4g} to {one.high:.4g}"


def _share(one: Measured) -> str:
    text = f"{one.value:.2f}"
    return text if one.interval is None else f"{text} [{one.interval.low:.2f}, {one.interval.high:.2f}]"
