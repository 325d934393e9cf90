"""What a run asks Ray for, from its options."""

from __future__ import annotations

import pytest

from tests.tuner.fakes import make_study
from tuner.cli.run import default_workers
from tuner.errors import UserError
from tuner.evaluation.evaluator import EvaluatorSpec
from tuner.evaluation.progress import NoProgress
from tuner.executors.in_process import InProcessExecutor
from tuner.executors.placement import Placement
from tuner.executors.ray_tune import RayExecutor
from tuner.runs.run import RunOptions, check_options, executor_for, worker_spec


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(("gpus", "device"), [(0.5, "auto"), (0.0, "cpu")])
def test_workers_of_a_cluster_take_the_share_that_it_gives_them(gpus: float, device: str) -> None:
    options = RunOptions(workers=None, address="auto")
    check_options(options)
    executor = executor_for(worker_spec(make_study(), options, None), options, NoProgress())
    assert isinstance(executor, RayExecutor)
    spec = executor._factory_for(Placement(8, gpus, 2))
    assert isinstance(spec, EvaluatorSpec)
    assert (spec.device, spec.workers, spec.gpu_share) == (device, 2, gpus)


def test_one_worker_stays_in_this_process_unless_a_cluster_is_named() -> None:
    options = RunOptions(workers=1)
    executor = executor_for(worker_spec(make_study(), options, None), options, NoProgress())
    assert isinstance(executor, InProcessExecutor)


def test_a_cluster_says_how_many_workers_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_workers("auto") is None
    here = default_workers(None)
    assert here is not None
    assert here >= 1
    # A job that was submitted to one.
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert default_workers(None) is None
    check_options(RunOptions(workers=None))


def test_mistakes_in_options_of_workers_are_told_together() -> None:
    with pytest.raises(UserError) as found:
        check_options(RunOptions(workers=None, wait_for_workers=0.0, batch_timeout=-1.0))
    assert len(found.value.problems) == 3
