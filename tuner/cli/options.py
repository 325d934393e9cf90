"""Options that several commands share, each described once."""

from __future__ import annotations

from typing import Annotated

import typer

Study = Annotated[
    str,
    typer.Option(
        "--study", help="Name of a study in ./studies/ or of one that ships (demo), or a path to its folder."
    ),
]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        help="URL of the records, as SQLAlchemy writes it; otherwise an SQLite file in .tuner/.",
        envvar="TUNER_DATABASE",
        show_default=False,
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        help="Address of an MLflow server; otherwise mlflow.db in this folder.",
        envvar="MLFLOW_TRACKING_URI",
        show_default=False,
    ),
]
