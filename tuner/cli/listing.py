"""`tuner list`: the studies here."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tuner.cli.options import Database


def list_(
    database: Database = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the studies here: those in ./studies/, those that ship, and those with records in .tuner/."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tuner.reporting.known import studies_here

    found = studies_here(database)
    if as_json:
        typer.echo(json.dumps([asdict(study) for study in found], indent=2))
        return
    columns = ["study", "videos", "questions", "model", "records"]
    owned = any(study.owner for study in found)
    table = Table(*columns, *["owner"] * owned, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for item in found:
        labels = "" if item.labelled is not False else " label-free"
        table.add_row(
            *map(
                Text,
                (
                    item.name,
                    "-" if item.videos is None else str(item.videos),
                    "-" if item.questions is None else f"{item.questions}{labels}",
                    item.model or "-",
                    item.records,
                    *[item.owner] * owned,
                ),
            )
        )
    if found:
        Console().print(table)
    else:
        print("No study here. `tuner init NAME --videos FOLDER` makes one.")
