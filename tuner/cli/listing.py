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
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    columns = ["study", "videos", "questions", "model", "records"]
    owned = any(one.owner for one in found)
    table = Table(*columns, *["owner"] * owned, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for one in found:
        labels = "" if one.labelled is not False else " label-free"
        table.add_row(
            *map(
                Text,
                (
                    one.name,
                    "-" if one.videos is None else str(one.videos),
                    "-" if one.questions is None else f"{one.questions}{labels}",
                    one.model or "-",
                    one.records,
                    *[one.owner] * owned,
                ),
            )
        )
    if found:
        Console().print(table)
    else:
        print("No study here. `tuner init NAME --videos FOLDER` makes one.")
