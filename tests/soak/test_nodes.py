"""A cluster of three nodes on this machine whose workers and nodes are disturbed at random moments.

Each fault is tried `ADATP_FAULTS` times (5), while four workers on two nodes evaluate whole searches without
a model. Each search must end with every answer there once and no question left out. What the user was told
is printed: `pytest -m soak -s tests/soak/test_nodes.py`.
"""

from __future__ import annotations

import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.errors import ModelError
from tests.contracts.test_executors import Told
from tests.soak.slow import Slow
from tests.tuner.fakes import make_loop, make_planner, make_study, open_store
from tuner.evaluation.failures import EvaluationError
from tuner.executors import starting
from tuner.executors.ray_tune import RayExecutor

# Ray does not wait for the processes of nodes that are lost or do not start.
pytestmark = [
    pytest.mark.soak,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

TIMES = int(os.environ.get("ADATP_FAULTS", "5"))
TRIALS = 12
STUDY = make_study()


class Nodes:
    """A head without CPUs, and nodes of two."""

    def __init__(self, nodes: int = 2) -> None:
        # As docs/cluster.md advises where other programs compete for the CPUs.
        os.environ.update({"RAY_worker_niceness": "0", "RAY_worker_register_timeout_seconds": "600"})
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.nodes: list[Any] = []
        for _ in range(nodes):
            self.join()
        # Later ones join from another thread: they must set no signal handlers.
        self.cluster._shutdown_at_exit = False

    def lose(self, index: int) -> None:
        """As if its machine's power was cut."""
        self.cluster.remove_node(self.nodes.pop(index), allow_graceful=False)

    def join(self) -> None:
        """Another node; again where a busy machine does not start it within the 30 s that Ray allows."""
        for _ in range(10):
            before = set(psutil.Process().children())
            try:
                self.nodes.append(self.cluster.add_node(num_cpus=2))
                return
            except Exception as error:
                if "timed out" not in str(error):
                    raise
            for process in set(psutil.Process().children()) - before:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        raise AssertionError("no node starts")

    def processes(self, index: int) -> list[psutil.Process]:
        """The node's own processes and its workers."""
        below = [
            psutil.Process(item.process.pid)
            for kind in self.nodes[index].all_processes.values()
            for item in kind
        ]
        return [*below, *(child for item in below for child in item.children(recursive=True))]

    def workers(self) -> list[psutil.Process]:
        """By the names that Ray gives them while they are at something and while they are not."""
        found = [process for index in range(len(self.nodes)) for process in self.processes(index)]
        names = ("ray::_Inner", "ray::_Trainable")
        return [item for item in found if " ".join(item.cmdline()).startswith(names)]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    found = Nodes()
    try:
        yield found
    finally:
        if ray.is_initialized():
            ray.shutdown()
        found.cluster.shutdown()


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_LOOK", 0.5)


def search(executor: RayExecutor, path: Path, disturb: Callable[[], None] | None, within: float) -> list[str]:
    """One search, disturbed at a random moment within so many seconds of its first trial; what was told."""
    progress = Told()
    with open_store(path, STUDY) as store:
        loop = make_loop(STUDY, store, progress=progress, trials=TRIALS)
        record, begun = loop.record, threading.Event()

        def recording(task: Any, *values: Any) -> Any:
            if task.kind == "trial":
                begun.set()
            return record(task, *values)

        loop.record = recording  # type: ignore[method-assign]
        failed = list[Exception]()

        def later() -> None:
            begun.wait()
            time.sleep(random.uniform(0, within))
            try:
                assert disturb is not None
                disturb()
            except Exception as error:  # noqa: BLE001 - raised below
                failed.append(error)

        thread = threading.Thread(target=later, daemon=True)
        if disturb is not None:
            thread.start()
        executor.run(loop)
        if disturb is not None:
            thread.join()
        assert not failed
        assert loop.finished
        assert not loop.interrupted
        assert store.quarantined() == {}
        assert [trial.number for trial in store.trials() if trial.outcome is not None] == list(range(TRIALS))
        wanted = {(question.id, "baseline") for question in STUDY.questions}
        for trial in store.trials():
            fingerprints = make_planner(STUDY).fingerprints(trial.configuration.build())
            tune = zip(STUDY.questions, fingerprints, strict=True)
            wanted |= {
                (question.id, fingerprint)
                for question, fingerprint in tune
                if STUDY.split_of(question) == "tune"
            }
        held_out = len(STUDY.questions_of("held_out"))
        assert store.count_answers() == len(wanted) + held_out * len(store.measured())
    return progress.messages


def report(fault: str, told: Sequence[str], times: int = TIMES) -> None:
    """What the user saw, without what differs from time to time."""
    seen = Counter(
        re.sub(r"trial \d+", "trial N", item.splitlines()[0]) for item in told if "Noise floor" not in item
    )
    lines = [f"{fault}: {times} tried, {times} survived, 0 answers lost, 0 doubled. The user saw:"]
    sys.stdout.write("\n".join(["", *lines, *(f"    {n} x {text}" for text, n in seen.most_common()), ""]))


def test_a_worker_is_killed(nodes: Nodes, tmp_path: Path) -> None:
    told: list[str] = []

    def kill() -> None:
        random.choice(nodes.workers()).kill()

    with closing(RayExecutor(lambda _: Slow(STUDY), 4, address=nodes.cluster.address)) as executor:
        for number in range(TIMES):
            told += search(executor, tmp_path / f"{number}.db", kill, 5.0)
    report("A worker is killed", told)


def test_a_node_is_killed(nodes: Nodes, tmp_path: Path) -> None:
    """It has two of the four workers; another node joins later."""
    told: list[str] = []

    def lose() -> None:
        nodes.lose(random.randrange(2))

    with closing(RayExecutor(lambda _: Slow(STUDY), 4, address=nodes.cluster.address)) as executor:
        for number in range(TIMES):
            told += search(executor, tmp_path / f"{number}.db", lose, 5.0)
            nodes.join()
    assert any("2 of 4 workers, waiting for CPUs" in item for item in told)
    report("A node is killed", told)


def test_all_nodes_are_killed_and_another_comes_late(nodes: Nodes, tmp_path: Path) -> None:
    told: list[str] = []

    def lose() -> None:
        while nodes.nodes:
            nodes.lose(0)
        time.sleep(random.uniform(0, 10))
        nodes.join()

    executor = RayExecutor(lambda _: Slow(STUDY), 4, address=nodes.cluster.address, wait_for_workers=1200.0)
    with closing(executor):
        for number in range(TIMES):
            told += search(executor, tmp_path / f"{number}.db", lose, 5.0)
    report("All nodes are killed, another comes", told)


def test_a_worker_hangs(nodes: Nodes, tmp_path: Path) -> None:
    told: list[str] = []

    def hang() -> None:
        random.choice(nodes.workers()).suspend()

    executor = RayExecutor(lambda _: Slow(STUDY), 4, address=nodes.cluster.address, batch_timeout=5.0)
    with closing(executor):
        for number in range(TIMES):
            told += search(executor, tmp_path / f"{number}.db", hang, 5.0)
    report("A worker hangs", told)


def test_a_node_does_not_answer_for_30_seconds(nodes: Nodes, tmp_path: Path) -> None:
    """Its processes stand still, as seen from others when its network is cut."""
    told: list[str] = []
    thaws: list[threading.Thread] = []

    def cut() -> None:
        frozen = nodes.processes(random.randrange(2))
        for one in frozen:
            one.suspend()

        def thaw() -> None:
            time.sleep(30)
            for item in frozen:
                if item.is_running():
                    item.resume()

        thaws.append(threading.Thread(target=thaw))
        thaws[-1].start()

    executor = RayExecutor(lambda _: Slow(STUDY), 4, address=nodes.cluster.address, batch_timeout=5.0)
    with closing(executor):
        for number in range(TIMES):
            told += search(executor, tmp_path / f"{number}.db", cut, 5.0)
            thaws[-1].join()
    report("A node does not answer for 30 s", told)


@pytest.mark.parametrize("error", [ModelError, RuntimeError])
def test_a_node_cannot_load_the_model(nodes: Nodes, tmp_path: Path, error: type[Exception]) -> None:
    """It is there from the beginning, or becomes so when its workers are killed in the middle."""
    told: list[str] = []
    for number in range(TIMES):
        bad = tmp_path / f"{number}.bad"
        name = nodes.nodes[random.randrange(2)].node_id

        def spoil(bad: Path = bad, name: str = name) -> None:
            bad.write_text(name)
            for worker in nodes.workers():
                if random.random() < 0.5:
                    worker.kill()

        if number % 2:
            bad.write_text(name)
        evaluator = Slow(STUDY, bad=bad, error=error)
        with closing(RayExecutor(lambda _, one=evaluator: one, 4, address=nodes.cluster.address)) as executor:
            told += search(executor, tmp_path / f"{number}.db", None if number % 2 else spoil, 5.0)
    report(f"A node cannot load the model ({error.__name__})", told)


def test_where_no_node_can_load_the_model_the_run_ends_with_the_reasons(tmp_path: Path) -> None:
    nodes, bad = Nodes(1), tmp_path / "bad"
    try:
        bad.write_text(nodes.nodes[0].node_id)
        with (
            closing(
                RayExecutor(lambda _: Slow(STUDY, bad=bad), 2, address=nodes.cluster.address)
            ) as executor,
            pytest.raises(EvaluationError, match=r"Machine \S+: 3 workers in a row failed there"),
        ):
            search(executor, tmp_path / "t.db", None, 0.0)
        for node in nodes.nodes:
            nodes.cluster.remove_node(node)
        executor = RayExecutor(lambda _: Slow(STUDY), 2, address=nodes.cluster.address, wait_for_workers=5.0)
        with closing(executor), pytest.raises(EvaluationError, match="No worker has started for 5 s"):
            search(executor, tmp_path / "t.db", None, 0.0)
    finally:
        if ray.is_initialized():
            ray.shutdown()
        nodes.cluster.shutdown()
