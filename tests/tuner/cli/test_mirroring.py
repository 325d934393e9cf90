"""MLflow has trials while a run goes on, and whatever happens there does not reach the run."""

from __future__ import annotations

import os
import sys
import time
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
    assert said == "-m tuner.cli.main sync --study ./my study --while-running sqlite:///secret.db"


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

    begun = mirror.record(make_summary(2), running=True)
    assert status(begun.run) == "RUNNING"
    assert mirror.record(summary).run == begun.run
    assert status(begun.run) == "FINISHED"
    mirror.record(summary, running=True)
    assert status(begun.run) == "RUNNING"
    experiment = client.get_experiment_by_name(experiment_name("demo"))
    assert experiment is not None
    trials = client.search_runs([experiment.experiment_id], "tags.`adatp.kind` = 'trial'")
    assert [run.info.status for run in trials] == ["FINISHED"] * 3
