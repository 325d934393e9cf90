"""Why a worker ended, from what Ray raises: a question is blamed only where its worker died."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal import actor_manager
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)
from ray.tune.execution import tune_controller

from pipeline.errors import ModelError, NotFiniteError
from tuner.executors import ray_tune
from tuner.executors.placement import Machine

HERE = Machine("1", "here", {"CPU": 2.0})


def raised(cause: Exception) -> RayTaskError:
    return RayTaskError("step", "Traceback ...", cause)


def died(text: str) -> ActorDiedError:
    """As of an actor whose process ended."""
    error = ActorDiedError()
    error.error_msg = text
    return error


DIED = died("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR")
NODE_DIED = died("The actor died because its node has died. Node Id: 1")


@pytest.mark.parametrize(
    ("error", "kind", "certain", "reason"),
    [
        (raised(ValueError("no such video")), "raised", False, "ValueError: no such video"),
        (raised(ModelError("no such model")), "raised", True, "no such model"),
        (raised(MemoryError("too much")), "out_of_memory", False, "MemoryError: too much"),
        (DIED, "killed", False, "its worker process died"),
        (NODE_DIED, "lost", False, "its machine was lost"),
        (RayActorError(None, "gone", False, preempted=True), "lost", False, "preempted"),
        # The connection broke, and the cluster knows of no death.
        (ActorUnavailableError("socket closed", None), "lost", False, "its machine was lost"),
    ],
)
def test_why_a_worker_ended(
    error: Exception,
    kind: str,
    certain: bool,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_tune, "_DEATH", 0.0)
    monkeypatch.setattr(ray_tune, "_actor", lambda _: {})
    monkeypatch.setattr(ray_tune, "_machines", lambda: (HERE,))
    ending = ray_tune._ending(failed_trial(error, tmp_path), HERE)
    assert (ending.kind, ending.certain) == (kind, certain)
    assert reason in ending.reason


def failed_trial(error: Exception, folder: Path) -> Any:
    (folder / "error.pkl").write_bytes(pickle.dumps(error))
    return SimpleNamespace(pickled_error_file=str(folder / "error.pkl"))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1 worker(s) were killed due to the node running low on memory.", "killed"),
        ("Failed to set up runtime environment.", "raised"),
        ("Failed to retrieve object", "lost"),
    ],
)
def test_why_a_worker_ended_whose_error_tune_does_not_keep(text: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "error.txt").write_text(f"Failure # 1\n{text}\n")
    trial: Any = SimpleNamespace(pickled_error_file=None, error_file=str(tmp_path / "error.txt"))
    assert ray_tune._ending(trial, HERE).kind == kind


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        ("The actor is dead because its worker process has died.", "killed"),
        ("The actor is dead because all references to the actor were removed.", "lost"),
        ("The actor died because its node has died.", "lost"),
    ],
)
def test_a_broken_connection_is_asked_after(
    cause: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tune, "_actor", lambda _: {"State": "DEAD", "DeathCause": cause})
    monkeypatch.setattr(ray_tune, "_machines", lambda: (HERE,))
    error = ActorUnavailableError("socket closed", None)
    assert ray_tune._ending(failed_trial(error, tmp_path), HERE).kind == kind


def test_a_process_that_dies_with_its_machine_is_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tune, "_actor", lambda _: {})
    monkeypatch.setattr(ray_tune, "_machines", lambda: ())
    assert ray_tune._ending(failed_trial(DIED, tmp_path), HERE).kind == "lost"


def test_a_process_that_ends_before_it_told_its_place_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tune, "_actor", lambda _: {"Address": {"NodeID": HERE.id}})
    monkeypatch.setattr(ray_tune, "_machines", lambda: (HERE,))
    ending = ray_tune._ending(failed_trial(DIED, tmp_path), Machine("", ""))
    assert (ending.kind, ending.machine) == ("killed", HERE)


def test_what_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError):
        ray_tune._ending(failed_trial(raised(NotFiniteError("nan")), tmp_path), HERE)


def test_tune_takes_all_of_these_for_the_end_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (actor_manager, tune_controller):
        monkeypatch.setattr(module, "RayActorError", RayActorError)
    ray_tune._teach_tune()
    for module in (actor_manager, tune_controller):
        assert isinstance(OutOfMemoryError("low"), module.RayActorError)
        assert not isinstance(raised(ValueError("x")), module.RayActorError)
