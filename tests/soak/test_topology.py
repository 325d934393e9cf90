"""The topology of docker/compose.yaml as processes, with faults at random moments while studies run on it.

Each fault is tried `ADATP_FAULTS` times (5); `ADATP_SEED` repeats the moments of an earlier run. What the
user was told is printed: `pytest -m soak --timeout=0 -s tests/soak/test_topology.py`.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import SQLAlchemyError

from tests.cluster.processes import Topology, running
from tests.small_demo import small_study
from tests.soak.comparing import recorded
from tests.tuner.records.servers import empty
from tuner.records.database import parse_url

pytestmark = pytest.mark.soak

TIMES = int(os.environ.get("ADATP_FAULTS", "5"))
SEED = int(os.environ.get("ADATP_SEED", random.randrange(10**6)))
VIDEOS = 12
# Proposals that do not depend on the order of answers, and answers that do not depend on each other.
ALIKE = "--study ./small --budget 0.3 --batch 1 --sampler random --no-race --accept-weak-baseline".split()
LONG = [*ALIKE, "--trials", "32"]
SHORT = [*ALIKE, "--trials", "3"]
# Of a worker, by the names that Ray gives it while it is at something and while it is not.
WORKER = ("ray::_Inner", "ray::_Trainable")


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    yield from running()


@pytest.fixture(autouse=True)
def whole(topology: Topology) -> None:
    """Nodes that a test lost are there again, and the records are empty."""
    topology.until_whole()
    empty(topology.url())


def alone(folder: Path, videos: int, options: Sequence[str], *, more: Sequence[str] = ()) -> Path:
    """The same study in one process on one machine, undisturbed; its folder."""
    small_study(folder, videos)
    for command in (["run", *options, "--workers", "1"], *([list(more)] if more else [])):
        subprocess.run(
            [sys.executable, "-m", "tuner.cli.entry", *command],
            cwd=folder,
            check=True,
            capture_output=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
    return folder


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    """Trials and answers of the study that faults disturb."""
    folder = alone(tmp_path_factory.mktemp("calm"), VIDEOS, LONG)
    return recorded(f"sqlite:///{folder}/.tuner/small/tuner.db", "small")


class User:
    """Somebody with a working folder, an owner's name and commands on the head."""

    def __init__(self, topology: Topology, owner: str, videos: int = VIDEOS) -> None:
        self.topology, self.owner = topology, owner
        self.folder = topology.folder / "work" / owner
        shutil.rmtree(self.folder, ignore_errors=True)
        small_study(self.folder, videos)
        self.said = ""

    def begin(self, *command: str) -> subprocess.Popen[str]:
        with (self.folder / "output.txt").open("w") as output:
            return self.topology.begin("head", self._own(command), self.folder, output)

    def run(self, *command: str) -> str:
        process = self.begin(*command)
        assert self.ends(process) == 0, self.said
        return self.said

    def ends(self, process: subprocess.Popen[str]) -> int:
        """The exit code; what was printed is kept in `said`."""
        code = process.wait(1800)
        self.said = (self.folder / "output.txt").read_text()
        assert "Traceback" not in self.said, self.said
        return code

    def records(self) -> tuple[list[Any], list[Any]]:
        return recorded(self.topology.url(), "small", self.owner)

    def _own(self, command: Sequence[str]) -> list[str]:
        return ["env", f"TUNER_OWNER={self.owner}", "tuner", *command]


def answers(topology: Topology) -> int:
    """How many there are by now."""
    engine = create_engine(parse_url(topology.url()))
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("adatp_answer"):
                return 0
            return int(connection.exec_driver_sql("SELECT count(*) FROM adatp_answer").scalar_one())
    except SQLAlchemyError:
        return 0
    finally:
        engine.dispose()


def workers(topology: Topology) -> list[tuple[str, int]]:
    """Node and process id of each worker that has been given its name by Ray."""
    nodes = ("worker-1", "worker-2")
    return [(node, pid) for node in nodes for pid in topology.processes(node, *WORKER)]


def kill_worker(topology: Topology, chance: random.Random) -> None:
    _, pid = chance.choice(workers(topology))
    os.kill(pid, signal.SIGKILL)


def hang_worker(topology: Topology, chance: random.Random) -> None:
    _, pid = chance.choice(workers(topology))
    os.kill(pid, signal.SIGSTOP)


def kill_node(topology: Topology, chance: random.Random) -> None:
    topology.kill(chance.choice(workers(topology))[0])


def cut_network(topology: Topology, chance: random.Random) -> None:
    with topology.cut_off(chance.choice(workers(topology))[0]):
        time.sleep(30)


class Fault(NamedTuple):
    make: Callable[[Topology, random.Random], None]
    options: tuple[str, ...] = ()


FAULTS = {
    "network cut for 30 s": Fault(cut_network),
    "worker killed": Fault(kill_worker),
    "node killed": Fault(kill_node),
    "worker hangs": Fault(hang_worker, ("--batch-timeout", "10")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_study_ends_as_if_undisturbed(
    name: str, topology: Topology, calm: tuple[list[Any], list[Any]]
) -> None:
    """As many faults as fit into one study; where that is over before all, the next from its beginning."""
    if "network" in name and not topology.separate:
        pytest.skip("network namespaces are not permitted here")
    fault, chance = FAULTS[name], random.Random(f"{SEED} {name}")
    made, said, total = 0, "", len(calm[1])
    while made < TIMES:
        empty(topology.url())
        user = User(topology, "user")
        process = user.begin("run", *LONG, "--workers", "2", "--address", "auto", *fault.options)
        at = 0.0
        while made < TIMES and process.poll() is None:
            at = max(at, answers(topology)) + chance.uniform(1, total / TIMES / 2)
            while process.poll() is None and answers(topology) < at:
                time.sleep(0.2)
            if process.poll() is None and at < total and workers(topology):
                sys.stdout.write(f"\n{name}: at {answers(topology)} of {total} answers\n")
                fault.make(topology, chance)
                made += 1
        assert user.ends(process) == 0, user.said
        said += user.said.partition("\nsmall, budget")[0] + "\n"
        trials, found = user.records()
        assert trials == calm[0]
        assert found == calm[1]
    report(name, made, said)


def report(fault: str, made: int, said: str) -> None:
    """What the user saw, without what differs from time to time."""
    usual = re.compile(r"^(\S+: \d+ of|reading|drawing|recording|pictures|$)|\d+ of \d+|to do$")
    lines = [re.sub(r"\d+", "N", line) for line in said.splitlines() if not usual.search(line)]
    seen = [f"    {n} x {text}" for text, n in Counter(lines).most_common(40)]
    told = f"{fault}: {made} tried, {made} survived, 0 lost, 0 doubled (seed {SEED}). The user saw:"
    sys.stdout.write("\n".join(["", told, *seen, ""]))


# What is not the same in two runs of the same: times, memory, what was shared, places and links.
_UNLIKE = re.compile(
    "seconds|bytes|evaluated|shared|passes|hit_rate|break_even|mlflow|digest|owner|adatp.files|^model$|^text_encoder$"
)


def in_mlflow(topology: Topology, owner: str) -> dict[str, Any]:
    """All that MLflow has of an owner's study: searches and trials by their names, with their files."""
    from mlflow import MlflowClient

    password = (topology.folder / "secrets" / "mlflow_password").read_text()
    os.environ.update({"MLFLOW_TRACKING_USERNAME": "tuner", "MLFLOW_TRACKING_PASSWORD": password})
    return mlflow_runs(MlflowClient(f"http://{topology.address('mlflow')}:5000"), owner)


def mlflow_runs(client: Any, owner: str | None) -> dict[str, Any]:
    experiment = client.get_experiment_by_name("adatp/small")
    found = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        if owner is not None and run.data.tags.get("adatp.owner") != owner:
            continue
        name = run.info.run_name
        assert name not in found, f"{name} is there twice"
        found[name] = {
            "status": run.info.status,
            "files": sorted(item.path for item in client.list_artifacts(run.info.run_id)),
            **{
                kind: {key: value for key, value in values.items() if not _UNLIKE.search(key)}
                for kind, values in (
                    ("params", run.data.params),
                    ("metrics", run.data.metrics),
                    ("tags", run.data.tags),
                )
            },
        }
    return found


def test_without_mlflow_a_study_ends_and_sync_brings_it_there_later(topology: Topology) -> None:
    """The server is not running, or its machine cannot be reached."""
    run = ("run", *SHORT, "--workers", "2", "--address", "auto")
    calm = User(topology, "calm", 4)
    calm.run(*run)
    users, told = [User(topology, f"user-{number}", 4) for number in range(TIMES)], []
    expected = in_mlflow(topology, "calm")
    assert len(expected) >= 4
    for number, user in enumerate(users):
        if number % 2 and topology.separate:
            with topology.cut_off("mlflow"):
                user.run(*run)
        else:
            topology.kill("mlflow")
            user.run(*run)
            topology.serve_mlflow()
        assert user.records() == calm.records()
        told += [line for line in user.said.splitlines() if re.search("MLflow.* failed", line)]
        assert len(told) == number + 1
        assert "`tuner sync --study ./small` completes MLflow later" in told[-1]
    for user in users:
        assert in_mlflow(topology, user.owner) == {}
        assert f"wrote {len(expected)} runs" in user.run("sync", "--study", "./small")
        assert in_mlflow(topology, user.owner) == expected
        assert "nothing was missing" in user.run("sync", "--study", "./small")
    report("MLflow down for the whole study", TIMES, "\n".join(told))


def exported(folder: Path) -> Any:
    """best.json without what differs between two runs of the same."""
    unlike = re.compile("seconds|bytes|evaluated|shared|passes|mlflow|versions|created|break_even")

    def alike(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: alike(item) for key, item in value.items() if not unlike.search(key)}
        return [alike(item) for item in value] if isinstance(value, list) else value

    return alike(json.loads((folder / "best.json").read_text()))


@pytest.mark.parametrize("content", ["another study", "the same study"])
def test_two_users_at_the_same_time_are_each_as_alone(
    content: str, topology: Topology, tmp_path: Path
) -> None:
    """Both call their study `small`: it has other videos, or all is the same but the seed."""
    from mlflow import MlflowClient

    export = ("export", "--study", "./small", "--output", "best.json", "--accept-regressions")
    # The others' runs stay in MLflow.
    videos = {"anna": 4, "ben": 6} if content == "another study" else {"carl": 4, "dora": 4}
    options = {name: (*SHORT, "--seed", str(number)) for number, name in enumerate(videos)}
    with ThreadPoolExecutor() as pool:
        calm = {
            name: pool.submit(alone, tmp_path / name, videos[name], options[name], more=export)
            for name in videos
        }
        users = {name: User(topology, name, number) for name, number in videos.items()}
        begun = {
            name: user.begin("run", *options[name], "--workers", "2", "--address", "auto")
            for name, user in users.items()
        }
        for name, process in begun.items():
            assert users[name].ends(process) == 0, users[name].said
    for name, user in users.items():
        user.run(*export)
        there = calm[name].result()
        trials, expected = recorded(f"sqlite:///{there}/.tuner/small/tuner.db", "small")
        found_trials, found = user.records()
        assert found_trials == trials
        # Answers are shared: those of the other user's trials to the same questions are there, too.
        assert {pair: dict(found).get(pair) for pair, _ in expected} == dict(expected)
        assert content == "the same study" or found == expected
        assert exported(user.folder) == exported(there)
        assert in_mlflow(topology, name) == mlflow_runs(MlflowClient(f"sqlite:///{there}/mlflow.db"), None)
