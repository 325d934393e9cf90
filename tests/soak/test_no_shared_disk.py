"""A cluster whose machines share no disk: workers see neither the study's folder nor its videos."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.object_storage import object_server
from tests.small_demo import DEMO, small_study

pytestmark = pytest.mark.soak

VIDEOS = 12
RUN = "--study ./small --budget 0.3 --trials 4 --batch 1 --accept-weak-baseline"
REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_register_timeout_seconds": "600",
    "OMP_NUM_THREADS": "1",
}


def make_study(folder: Path) -> Path:
    """A study whose checkpoints lie elsewhere, where every machine sees them."""
    small_study(folder, VIDEOS)
    file = folder / "small" / "study.yaml"
    text = file.read_text()
    for name in ("model", "siglip"):
        (folder / "small" / name).unlink()
        text = text.replace(f": {name}\n", f": {DEMO / name}\n")
    file.write_text(text)
    return folder


@contextmanager
def cluster(head: Path, nodes: int, **environment: str) -> Iterator[str]:
    """A head without CPUs that sees the folder `head`, and nodes of one CPU that find it empty; the address.

    Each node has a home and a temporary folder of its own.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    # Ray gives a node half a minute to start, which a busy machine may not do at once.
    node = f"until ray start --address={address} --num-cpus=1 --block; do sleep 1; done"
    commands = [
        f"exec ray start --head --port={port} --num-cpus=0 --include-dashboard=false --block",
        *[f"mount -t tmpfs tmpfs {head} && {node}" for _ in range(nodes)],
    ]
    with ExitStack() as stack:
        # Ray's sockets lie in it, whose names are short.
        base = Path(stack.enter_context(TemporaryDirectory(dir="/tmp", prefix="n")))
        for number, command in enumerate(commands):
            place = base / str(number)
            (place / "tmp").mkdir(parents=True)
            home = {"HOME": str(place), "XDG_CACHE_HOME": "", "TMPDIR": str(place / "tmp")}
            log = stack.enter_context((place / "log").open("wb"))
            process = subprocess.Popen(
                ["unshare", "--mount", "--map-root-user", "sh", "-c", command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=ENVIRONMENT | home | environment,
                cwd=place,
                start_new_session=True,
            )
            stack.callback(end, process)
            if number == 0:
                wait_for(port, process)
        yield address


def end(process: subprocess.Popen[bytes]) -> None:
    """With all processes of its group: Ray's own among them."""
    for kind, seconds in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0)):
        deadline = time.monotonic() + seconds
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.1)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None
            time.sleep(0.2)
        else:
            return
    raise AssertionError("the cluster's head does not start")


def start(folder: Path, *options: str, output: Path, **environment: str) -> subprocess.Popen[bytes]:
    with output.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tuner.cli.entry", "run", *RUN.split(), *options],
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT | environment,
        )


def records(folder: Path) -> list[Any]:
    """Trials and answers, without what may differ: row ids, dates and seconds."""
    with sqlite3.connect(folder / ".tuner" / "small" / "tuner.db") as database:
        trials = database.execute(
            "select number, tau_s, tau_t, alpha_boost, gamma_cap, p, accuracy, flops_ratio "
            "from adatp_trial order by number"
        ).fetchall()
        answers = database.execute(
            "select content, hash, fingerprint, adatp_answer.text, option, option_logprobs, logprob, kept "
            "from adatp_answer join adatp_prompt on adatp_prompt.id = prompt_id "
            "join adatp_video on adatp_video.id = video_id order by 1, 2, 3"
        ).fetchall()
    return [trials, answers]


def counted(folder: Path, column: str) -> int:
    table = "adatp_cache_use" if column.startswith("features") else f"adatp_{column}"
    what = f"sum({column})" if column.startswith("features") else "count(*)"
    with sqlite3.connect(folder / ".tuner" / "small" / "tuner.db") as database:
        return int(database.execute(f"select {what} from {table}").fetchone()[0])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study run by one process on one machine."""
    folder = make_study(tmp_path_factory.mktemp("alone"))
    process = start(folder, "--workers", "1", output=folder / "output.txt")
    assert process.wait() == 0, (folder / "output.txt").read_text()
    return folder


@pytest.mark.parametrize("storage", ["the driver's folder", "an object storage"])
def test_workers_need_the_model_alone(alone: Path, tmp_path: Path, storage: str) -> None:
    """Each video is encoded once in the cluster, and all answers are those of one machine."""
    folder = make_study(tmp_path / "driver")
    with ExitStack() as stack:
        options, environment = [], {}
        if storage == "an object storage":
            server = stack.enter_context(object_server())
            options, environment = ["--storage", server.url], server.environment
        address = stack.enter_context(cluster(folder, 2, **environment))
        process = start(
            folder, "--workers", "2", "--address", address, *options, output=tmp_path / "out", **environment
        )
        code = process.wait()
    said = (tmp_path / "out").read_text()
    assert code == 0, said
    assert "Traceback" not in said
    assert "could not be" not in said
    assert records(folder) == records(alone)
    assert counted(folder, "features_computed") == VIDEOS
    assert counted(folder, "inspection") == counted(folder, "serving") == 1
    assert (folder / ".tuner/small/features").is_dir() == (storage == "the driver's folder")


@pytest.mark.parametrize("number", range(6))
def test_half_a_minute_without_the_object_storage_changes_nothing(
    alone: Path, tmp_path: Path, number: int
) -> None:
    """At a random moment soon after the first video is encoded."""
    folder = make_study(tmp_path / "driver")
    with object_server() as server:
        environment = server.environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        process = start(
            folder, "--workers", "2", "--storage", server.url, output=tmp_path / "out", **environment
        )
        # The first object is the one by which the driver saw that the storage can be written.
        while len(server.objects()) < 2:
            assert process.poll() is None, (tmp_path / "out").read_text()
            time.sleep(0.1)
        time.sleep(random.Random(number).uniform(0.0, 3.0))
        server.door.shut()
        time.sleep(30.0)
        server.door.open()
        code = process.wait()
    said = (tmp_path / "out").read_text()
    assert code == 0, said
    assert "Traceback" not in said
    assert server.door.refused > 0
    assert records(folder) == records(alone)
    assert counted(folder, "features_computed") == VIDEOS


@pytest.mark.parametrize("number", range(5))
def test_a_full_disk_for_encoded_videos_is_one_line(alone: Path, tmp_path: Path, number: int) -> None:
    """Of the machine's own folder, which has room for some of the twelve."""
    kibibytes = random.Random(number).randrange(64, 4096)
    folder = make_study(tmp_path / "driver")
    cache = tmp_path / "cache"
    cache.mkdir()
    with object_server() as server:
        entry = f"{sys.executable} -m tuner.cli.entry"
        command = f"run --storage {server.url} --workers 1 {RUN}"
        mount = f"mount -t tmpfs -o size={kibibytes}k tmpfs {cache} && exec"
        process = subprocess.run(
            ["unshare", "--mount", "--map-root-user", "sh", "-c", f"{mount} {entry} {command}"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=ENVIRONMENT | server.environment | {"XDG_CACHE_HOME": str(cache)},
        )
    assert process.returncode == 0, process.stdout
    assert process.stdout.count("No space left on device") == 1
    assert process.stdout.count("Vision features cannot be stored in") == 1
    assert records(folder) == records(alone)
