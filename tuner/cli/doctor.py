"""`tuner doctor`: whether this machine has what a study needs, and what to do where it has not."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.options import Address, Database, Storage, TrackingUri

if TYPE_CHECKING:
    from pipeline.finding import Finding

FAILED = 1  # exit code where something is to be done


def doctor(
    database: Database = None,
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine: versions, GPU, memory, disk, decoders, network settings, and the services named.

    Database, storage, MLflow server and cluster are asked where they are named; a storage gets a small file,
    which is deleted. Exit code 0: all is well; 1: something is to be done.
    """
    from rich.console import Console

    from tuner.cli.findings import print_finding
    from tuner.runs.doctor import examine

    console = Console(highlight=False)
    found: list[Finding] = []
    for finding in examine(database=database, storage=storage, tracking_uri=tracking_uri, address=address):
        found.append(finding)
        if not as_json:
            print_finding(finding, console, failed="TO DO")
    well = all(finding.passed for finding in found)
    if as_json:
        typer.echo(json.dumps({"passed": well, "checks": [asdict(finding) for finding in found]}, indent=2))
    if not well:
        raise typer.Exit(FAILED)
