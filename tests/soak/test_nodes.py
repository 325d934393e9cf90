"""A cluster of three nodes on this machine, one of which is lost with the workers it has."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.contracts.test_executors import Told
from tests.tuner.fakes import FakeEvaluator, make_loop, make_study, open_store
from tuner.evaluation.tasks import Task
from tuner.executors import starting
from tuner.executors.ray_tune import RayExecutor

pytestmark = pytest.mark.soak


@dataclass
class Slow(FakeEvaluator):
    """Tells on which node it answers a trial, and takes long enough for that node to be lost meanwhile."""

    told: Path = Path()

    def answer(
        self,
        configuration: Mapping[str, Any] | None,
        questions: Sequence[str],
        references: Mapping[str, str],
        *,
        reshaped: bool = False,
    ) -> list[dict[str, Any]]:
        if configuration is not None:
            self.told.write_text(ray.get_runtime_context().get_node_id())
            time.sleep(2.0)
        return super().answer(configuration, questions, references, reshaped=reshaped)


def test_what_a_lost_node_was_doing_goes_to_those_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker is at the only trial, the other three have nothing to do when its node is lost."""
    monkeypatch.setattr(starting, "_LOOK", 0.5)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=2))}
        study, progress, told = make_study(), Told(), tmp_path / "node"
        with open_store(tmp_path / "t.db", study) as store:
            loop = make_loop(study, store, progress=progress, trials=1)
            record = loop.record

            def losing(task: Task, *values: Any) -> Any:
                if task.kind == "trial" and len(nodes) == 2:
                    cluster.remove_node(nodes.pop(told.read_text()), allow_graceful=False)
                return record(task, *values)

            loop.record = losing  # type: ignore[method-assign]
            executor = RayExecutor(Slow(study, told=told), workers=4, address=cluster.address)
            with closing(executor):
                executor.run(loop)
            assert len(nodes) == 1
            assert loop.finished
            assert not loop.interrupted
            assert store.quarantined() == {}
            assert [one.number for one in store.trials() if one.outcome is not None] == [0]
        assert [one for one in progress.messages if "its worker process died" in one]
        assert [one for one in progress.messages if "There is room for 2 of 4 workers" in one]
    finally:
        if ray.is_initialized():
            ray.shutdown()
        cluster.shutdown()
