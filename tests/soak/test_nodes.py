"""A cluster of three nodes on this machine, one of which is lost with the workers it has."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.contracts.test_executors import Told
from tests.tuner.fakes import FakeEvaluator, make_loop, make_study, open_store
from tuner.executors import starting
from tuner.executors.ray_tune import RayExecutor

pytestmark = pytest.mark.soak


@dataclass
class Slow(FakeEvaluator):
    """Long enough for a node to be lost in the middle of a rung."""

    def answer(
        self,
        configuration: Mapping[str, Any] | None,
        questions: Sequence[str],
        references: Mapping[str, str],
        *,
        reshaped: bool = False,
    ) -> list[dict[str, Any]]:
        time.sleep(0.5)
        return super().answer(configuration, questions, references, reshaped=reshaped)


def test_a_lost_node_leaves_its_work_to_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_LOOK", 0.5)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        lost = cluster.add_node(num_cpus=2)
        study, progress = make_study(), Told()
        with open_store(tmp_path / "t.db", study) as store:
            loop = make_loop(study, store, progress=progress, trials=20)
            record = loop.record

            def losing(*values: Any) -> Any:
                nonlocal lost
                if lost is not None and len(store.trials()) >= 4:
                    cluster.remove_node(lost, allow_graceful=False)
                    lost = None
                return record(*values)

            loop.record = losing  # type: ignore[method-assign]
            RayExecutor(Slow(study), workers=4, address=cluster.address).run(loop)
            assert lost is None
            assert loop.finished
            assert not loop.interrupted
            assert store.quarantined() == {}
            assert [one.number for one in store.trials() if one.outcome is not None] == list(range(20))
        assert [one for one in progress.messages if "its worker process died" in one]
        assert [one for one in progress.messages if "There is room for 2 of 4 workers" in one]
    finally:
        if ray.is_initialized():
            ray.shutdown()
        cluster.shutdown()
