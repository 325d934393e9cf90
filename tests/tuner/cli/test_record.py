"""MLflow's failures are warnings that say what failed, once, and without passwords."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.summaries import make_summary
from tuner.cli.record import with_mlflow
from tuner.reporting.values import Recorded

RECORDED = Recorded("run", "page")


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=1000)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.quick
def test_the_result_of_the_action_is_passed_on_in_silence(console: Console) -> None:
    assert with_mlflow(lambda _: RECORDED, None, console, "Recording failed") == RECORDED
    assert with_mlflow(lambda _: None, None, console, "Recording failed") is None
    assert printed(console) == ""


@pytest.mark.quick
def test_a_failure_is_one_line_and_ends_nothing(console: Console) -> None:
    def fails(_: object) -> Recorded:
        raise ConnectionError("the server [at] home is down\nand more")

    assert with_mlflow(fails, None, console, "Recording failed") is None
    assert printed(console) == "Recording failed: the server [at] home is down\n"
    with_mlflow(fails, None, console, "Recording failed", "It is kept")
    assert printed(console).endswith("Recording failed: the server [at] home is down. It is kept\n")


@pytest.mark.quick
def test_artifacts_that_followed_a_moved_project_are_told(console: Console) -> None:
    moved = Recorded("run", "page", moved_from=Path("/old [x]/mlartifacts/demo"))
    assert with_mlflow(lambda _: moved, None, console, "Recording failed") == RECORDED
    assert printed(console).startswith(
        "MLflow kept this study's artifacts in /old [x]/mlartifacts/demo; since"
    )


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_a_tracking_server_that_fails_is_told_without_the_password(
    scheme: str, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"{scheme}://me:pass-1-word@127.0.0.1:1"
    assert with_mlflow(lambda mirror: mirror.find(make_summary()), uri, console, "No answer") is None
    assert f"{scheme}://me:***@127.0.0.1:1" in printed(console)
    if scheme == "http":
        assert printed(console) == "No answer: the server at http://me:***@127.0.0.1:1 does not answer\n"
    assert "pass-1-word" not in printed(console)


def test_a_database_of_another_kind_is_a_warning(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be read as one " * 40)
    assert with_mlflow(lambda mirror: mirror.find(make_summary()), None, console, "No answer") is None
    assert printed(console).startswith("No answer: ")
    assert printed(console).count("\n") == 1
