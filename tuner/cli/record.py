"""Handing what `tuner compare` and `tuner sensitivity` drew to MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def record_files(
    study: str, study_hash: str, files: Sequence[Path], tracking_uri: str | None, console: Console
) -> None:
    """Lays the files beside the study's run and says where; a failure is one warning."""
    from tuner.export.mlflow_mirror import MlflowMirror
    from tuner.export.recorders import harmless

    recorded = harmless(
        lambda: MlflowMirror(tracking_uri).record_files(study, study_hash, files),
        lambda reason: console.print(
            f"Recording in MLflow failed; all of it is in the records: {reason}", style="yellow"
        ),
    )
    if recorded is not None:
        console.print(f"In MLflow: {recorded.page}", highlight=False, soft_wrap=True)
