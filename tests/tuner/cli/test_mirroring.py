"""MLflow has trials while a run goes on, and whatever happens there does not reach the run."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.summaries import make_summary
from tuner.cli import mirroring as module
from tuner.cli.mirroring import mirroring
from tuner.export.mlflow_mirror import MlflowMirror, experiment_name


def _program(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """What runs in place of Python: it is given the arguments of `tuner sync`."""
    file = folder / "python"
    file.write_text(f"#!{sys.executable}\nimport os, sys, time\n{text}\n")
    file.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(file))


def _wait_for(file: Path) -> str:
    deadline = time.monotonic() + 20
    while not (file.exists() and file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return file.read_text()


@pytest.mark.quick
def test_sync_is_called_while_the_run_goes_on_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(
        monkeypatch,
        tmp_path,
        "said = ' '.join([*sys.argv[1:], os.environ['TUNER_DATABASE']])\n"
        f"open({str(tmp_path / 'said')!r}, 'w').write(said)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(100)",
    )
    with mirroring("./my study", "sqlite:///secret.db", None, every=0.01):
        process = int(_wait_for(tmp_path / "pid"))
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    said = (tmp_path / "said").read_text()
    assert said == "-m tuner.cli.main sync --study ./my study --status RUNNING sqlite:///secret.db"


@pytest.mark.quick
@pytest.mark.parametrize("text", ["sys.exit('the server is down')", None])
def test_a_tracker_that_fails_does_not_reach_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    if text is None:
        monkeypatch.setattr(module.sys, "executable", str(tmp_path / "missing"))
    else:
        _program(monkeypatch, tmp_path, f"open({str(tmp_path / 'said')!r}, 'w').write('x')\n{text}")
    with mirroring("demo", None, None, every=0.01):
        if text is not None:
            _wait_for(tmp_path / "said")
    assert capfd.readouterr() == ("", "")


def test_the_run_in_mlflow_stays_open_until_the_end(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    mirror = MlflowMirror(f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient(mirror.tracking_uri)
    summary = make_summary(3)

    def status(run: str) -> str:
        return str(client.get_run(run).info.status)

    begun = mirror.record(make_summary(2), status="RUNNING")
    assert status(begun.run) == "RUNNING"
    assert mirror.record(summary).run == begun.run
    assert status(begun.run) == "FINISHED"
    mirror.record(summary, status="RUNNING")
    assert status(begun.run) == "RUNNING"
    experiment = client.get_experiment_by_name(experiment_name("demo"))
    assert experiment is not None
    trials = client.search_runs([experiment.experiment_id], "tags.`adatp.kind` = 'trial'")
    assert [run.info.status for run in trials] == ["FINISHED"] * 3
    # Its program was killed: whoever looks next says so, where the search has not come to its end.
    mirror.record(replace(summary, ended=False), status=None)
    assert status(begun.run) == "KILLED"
    mirror.record(summary, status=None)
    assert status(begun.run) == "KILLED"
    mirror.record(summary, status="RUNNING")
    mirror.record(summary, status=None)
    assert status(begun.run) == "FINISHED"
    # Another search began: this one cannot be running any more.
    mirror.record(summary, status="RUNNING")
    other = mirror.record(make_summary(2, budget=0.2, own=frozenset()), status="RUNNING")
    assert (status(begun.run), status(other.run)) == ("KILLED", "RUNNING")


@pytest.mark.quick
@pytest.mark.parametrize("mirrored", [False, True])
def test_an_interrupted_run_that_mlflow_knows_of_is_closed_there_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirrored: bool
) -> None:
    said = tmp_path / "said"
    _program(
        monkeypatch,
        tmp_path,
        f"open({str(said)!r}, 'a').write(sys.argv[-1] + chr(10))\n"
        "time.sleep(100 if sys.argv[-1] == 'RUNNING' else 0.2)",
    )

    def interrupted() -> None:
        with mirroring("demo", None, None, every=0.01 if mirrored else 100):
            if mirrored:
                _wait_for(said)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    if not mirrored:
        assert not said.exists()
        return
    deadline = time.monotonic() + 20
    while "KILLED" not in said.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert said.read_text().split() == ["RUNNING", "KILLED"]
