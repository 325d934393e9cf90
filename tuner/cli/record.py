"""Figures and MLflow at a command's end: their failures are warnings, for the records hold everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.errors import without_passwords

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.export.mlflow_mirror import MlflowMirror
    from tuner.reporting.values import Recorded


def written(
    write: Callable[[], Sequence[Path]], console: Console, what: str = "The figures"
) -> Sequence[Path]:
    """The files that were written; none, after a warning, where the system refuses them."""
    try:
        return write()
    except OSError as error:
        where = "" if error.filename is None else f" to {Path(error.filename).absolute()}"
        console.print(
            f"{what} could not be written{where}: {error.strerror or error}. The results are recorded, and "
            "`tuner report` writes to any place that --output names.",
            style="yellow",
            markup=False,
        )
        return ()


def with_mlflow(
    action: Callable[[MlflowMirror], Recorded | None],
    tracking_uri: str | None,
    console: Console,
    failed: str,
    then: str = "",
) -> Recorded | None:
    """What the action returns; where it raises, None after a warning: `failed`, the reason, `then`."""
    from tuner.export.mlflow_mirror import MlflowMirror

    try:
        recorded = action(MlflowMirror(tracking_uri))
    # A server that is down, a full disk, a schema of another version: none of them may end a study.
    except Exception as error:  # noqa: BLE001
        warning = f"{failed}: {_reason(error, tracking_uri)}{then and f'. {then}'}"
        console.print(warning, style="yellow", markup=False, soft_wrap=True)
        return None
    if recorded is not None and recorded.moved_from is not None:
        console.print(
            f"MLflow kept this study's artifacts in {recorded.moved_from}; since the project was moved, they "
            "are kept beside its database, and all of them were written there.",
            style="yellow",
            markup=False,
        )
    return recorded


def _reason(error: Exception, tracking_uri: str | None) -> str:
    """In one line, without passwords: MLflow quotes the address it was given."""
    # Of requests, which MLflow quotes with all that the layers below it said.
    if tracking_uri and type(error.__context__).__name__ in (
        "ConnectionError",
        "ConnectTimeout",
        "ReadTimeout",
    ):
        return f"the server at {without_passwords(tracking_uri)} does not answer"
    text = without_passwords(str(error).strip())
    return text.splitlines()[0] if text else type(error).__name__


def record_files(
    study: str,
    study_hash: str,
    budget: float,
    files: Sequence[Path],
    database: str | None,
    tracking_uri: str | None,
    console: Console,
) -> Recorded | None:
    """Hands what `tuner compare` or `tuner sensitivity` drew to MLflow. database: of the records."""
    from tuner.records.database import default_database, parse_url
    from tuner.records.ownership import owner_here

    owner = owner_here(parse_url(database or default_database(study)).get_backend_name())
    return with_mlflow(
        lambda mirror: mirror.record_files(study, study_hash, budget, files, owner=owner),
        tracking_uri,
        console,
        "Recording in MLflow failed; everything is in the study's database",
    )


def say_where(files: Sequence[Path], recorded: Recorded | None, study: str, console: Console) -> None:
    """A line each for the report, where there is one, and for MLflow."""
    from tuner.reporting.overview import in_mlflow

    for file in files:
        if file.name == "report.html":
            console.print(f"Report: {file}", markup=False, soft_wrap=True)
    if recorded is not None:
        console.print(f"In MLflow: {in_mlflow(recorded, study)}", markup=False, soft_wrap=True)
