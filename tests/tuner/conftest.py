from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, to be copied: making them takes longer than most tests with them."""
    from tuner.export.mlflow_mirror import MlflowMirror

    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    database.touch()
    MlflowMirror(f"sqlite:///{database}").reach()
    return database


@pytest.fixture(scope="session")
def server_environment() -> dict[str, str]:
    """For an MLflow server. One that also runs jobs, which nothing asks for here, starts far slower."""
    return os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": "",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
