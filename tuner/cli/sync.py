"""`tuner sync`: makes MLflow hold what the records say."""

from __future__ import annotations

from typing import Annotated

import typer

from tuner.cli.options import Database, Study, TrackingUri, parse_budget


def sync(
    study: Study,
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
) -> None:
    """Rebuild the study in MLflow from our records; where it is there already, this changes nothing."""
    from rich.console import Console

    from dashboards.folder import draw
    from tuner.export.mlflow_mirror import MlflowMirror
    from tuner.export.recorders import harmless
    from tuner.reporting.from_records import load_summaries
    from tuner.study import load_study

    loaded = load_study(study, skip_bad_videos=True)
    *earlier, latest = load_summaries(loaded, budget=budget, seed=seed, database=database)
    files = draw(loaded, latest, database)
    recorded = harmless(
        lambda: MlflowMirror(tracking_uri).record(latest, files, earlier=earlier),
        lambda reason: typer.echo(f"MLflow cannot be written: {reason}", err=True),
    )
    if recorded is None:
        raise typer.Exit(1)
    what = f"{len(latest.trials)} trials, {1 + len(earlier)} searches"
    Console().print(f"In MLflow: {latest.study}, {what}: {recorded.page}", highlight=False, soft_wrap=True)
