"""A shared database that fails at random moments, and drivers that meet on it: nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.soak.driver import LEASE, drive
from tests.tuner.records.servers import Proxy, Server, emptied, end_connections, rows, servers
from tuner.records.store import Store

pytestmark = pytest.mark.soak

TIMES = 5
TRIALS = 30
SECONDS = 0.15


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    yield from servers()


@pytest.fixture
def url(server: Server) -> str:
    """Of an empty database."""
    return emptied(server)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The records of an undisturbed run."""
    url = f"sqlite:///{tmp_path_factory.mktemp('calm')}/t.db"
    drive(url, TRIALS, 0.0, "soak")
    return recorded(url)


def recorded(url: str) -> dict[str, list[Any]]:
    with Store.open(url, owner="soak") as store:
        found = rows(store)
    del found["adatp_lease"]
    return found


Start = Callable[..., "Driver"]


class Driver:
    """A process, and what it said."""

    def __init__(self, url: str, trials: int = TRIALS, seconds: float = SECONDS, owner: str = "soak") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.driver", url, str(trials), str(seconds), owner],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.lines: list[str] = []
        self._held = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if self.lines[-1] == "held":
                self._held.set()
        self._held.set()

    def until_held(self) -> None:
        assert self._held.wait(600)  # a busy machine takes long to start a process

    def end(self) -> int:
        code = self.process.wait(600)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert not any("Traceback" in line for line in self.lines), self.lines
        return code


@pytest.fixture
def start(url: str) -> Iterator[Start]:
    """Starts a driver on the empty database; none outlives the test."""
    started: list[Driver] = []

    def one(*arguments: Any, at: str = url) -> Driver:
        started.append(Driver(at, *arguments))
        return started[-1]

    yield one
    for driver in started:
        driver.process.kill()
        driver.process.send_signal(signal.SIGCONT)
        driver.process.wait()


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """A disk of its own for a folder; the test is skipped where none may be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=755", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Nothing more can be written to the folder's disk until the end of the block."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    yield
    ballast.unlink()


def restarted(server: Server, mode: str, seconds: float) -> None:
    server.stop(mode)
    time.sleep(seconds)
    server.start()


# Which connection of the pool the lease was renewed through last.
LEASES = "query LIKE 'UPDATE adatp_lease%%'"


@pytest.mark.parametrize(
    "fault", ["all connections", "the lease's connection", "restarted", "crashed", "network cut"]
)
def test_the_run_goes_on_by_itself(
    fault: str, start: Start, server: Server, url: str, expected: dict[str, list[Any]]
) -> None:
    proxy = Proxy(server.folder) if fault == "network cut" else None
    faults: dict[str, Callable[[], object]] = {
        "all connections": lambda: end_connections(url),
        "the lease's connection": lambda: end_connections(url, LEASES),
        "restarted": lambda: restarted(server, "fast", 1.0),
        "crashed": lambda: restarted(server, "immediate", 3.0),
        "network cut": lambda: proxy and proxy.cut(6.0),
    }
    driver = start() if proxy is None else start(at=f"postgresql://tuner@127.0.0.1:{proxy.port}/postgres")
    driver.until_held()
    chance = random.Random(fault)
    for _ in range(TIMES):
        time.sleep(chance.uniform(0.1, 0.8))
        assert driver.process.poll() is None
        faults[fault]()
    assert driver.end() == 0, driver.lines
    assert recorded(url) == expected


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(
    backend: str, start: Start, tmp_path: Path, expected: dict[str, list[Any]]
) -> None:
    """The disk of the records: the driver's own, or the server's."""
    chance, size = random.Random(0), 8 if backend == "sqlite" else 128
    # A short name, for the server's socket.
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name), size):
        server = None if backend == "sqlite" else Server(Path(name))
        at = f"sqlite:///{name}/t.db" if server is None else server.url
        for _ in range(TIMES):
            driver = start(at=at)
            driver.until_held()
            time.sleep(chance.uniform(0.1, 2))
            assert driver.process.poll() is None
            with full(Path(name)):
                assert driver.end() == 1, driver.lines
            assert "There is no room to write the database" in driver.lines[-1]
            sys.stdout.write(f"\n{backend}: {driver.lines[-1]}\n")
        last = start(at=at)
        assert last.end() == 0, last.lines
        assert recorded(at) == expected
        if server is not None:
            server.stop("immediate")


def test_a_killed_driver_is_followed_by_the_same_command(
    start: Start, url: str, expected: dict[str, list[Any]]
) -> None:
    chance = random.Random(0)
    for _ in range(TIMES):
        driver = start()
        driver.until_held()
        time.sleep(chance.uniform(0.1, 2))
        assert driver.process.poll() is None
        driver.process.kill()
        driver.end()
        began = time.monotonic()
    last = start()
    last.until_held()
    assert time.monotonic() - began < LEASE + 30  # most of it is the start of the process
    assert last.end() == 0, last.lines
    assert "if that process is gone, this one takes over in " in last.lines[0]
    assert recorded(url) == expected


def test_a_driver_that_stood_still_writes_nothing_once_another_took_over(
    start: Start, url: str, expected: dict[str, list[Any]]
) -> None:
    chance = random.Random(0)
    driver = start()
    for _ in range(TIMES):
        driver.until_held()
        time.sleep(chance.uniform(0.1, 1.5))
        assert driver.process.poll() is None
        driver.process.send_signal(signal.SIGSTOP)
        successor = start()
        successor.until_held()
        driver.process.send_signal(signal.SIGCONT)
        assert driver.end() == 1
        assert "is no longer run by this process" in driver.lines[-1]
        driver = successor
    assert driver.end() == 0, driver.lines
    assert recorded(url) == expected


def test_of_eight_drivers_that_begin_at_once_one_runs(start: Start, url: str) -> None:
    for trials in range(1, TIMES + 1):
        drivers = [start(trials, 1.0) for _ in range(8)]
        codes = sorted(driver.end() for driver in drivers)
        refused = sum("is being run by process" in driver.lines[-1] for driver in drivers)
        # One that begins after the first has ended runs, too, and has nothing to do.
        assert (codes.count(0) >= 1, codes.count(2)) == (True, refused)
        assert codes.count(0) + refused == 8
        with Store.open(url, owner="soak") as store:
            store.find("fake")
            assert [trial.number for trial in store.trials()] == list(range(trials))


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_eight_owners_begin_at_once_on_an_empty_database(
    backend: str, start: Start, url: str, tmp_path: Path
) -> None:
    at = f"sqlite:///{tmp_path}/t.db" if backend == "sqlite" else url
    owners = [f"owner-{place}" for place in range(8)]
    drivers = [start(3, 0.01, owner, at=at) for owner in owners]
    codes = [driver.end() for driver in drivers]
    if backend == "sqlite":  # where there are no owners: one runs, and others after it
        assert set(codes) <= {0, 2}, [driver.lines for driver in drivers]
        return
    assert codes == [0] * 8, [driver.lines for driver in drivers]
    with Store.open(url, owner="soak") as store:
        assert [(item.owner, item.trials) for item in store.in_use()] == [(owner, 3) for owner in owners]
