"""`tuner report`: one HTML file with a study's answer and what it rests on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.options import Database, RecordedStudy, parse_budget, warn
from tuner.errors import UserError


def report(
    study: RecordedStudy,
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("report.html"),
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
    database: Database = None,
) -> None:
    """Write one HTML file: which configuration, what it saves, what it costs, whether to ship it, and why.

    It opens from disk without a network, and holds what `tuner sensitivity` and `tuner compare` found.
    """
    from rich.console import Console

    from dashboards import folder
    from tuner.export.best_file import write_whole
    from tuner.reporting.from_records import load_summary
    from tuner.reporting.recorded import open_study

    # Before the minutes that reading a large study may take.
    if output.is_dir():
        raise UserError(f"{output} is a folder; --output names a file.")
    if not output.parent.is_dir():
        raise UserError(f"the folder {output.parent} does not exist; --output writes into one that does.")
    loaded = open_study(study, database, warn)
    summary = load_summary(loaded, budget=budget, seed=seed, database=database)
    details = folder.gather(loaded, summary, database)
    write_whole(output, folder.report(summary, details))
    Console().print(f"Report: {output}", highlight=False, soft_wrap=True, markup=False)
