"""Ctrl-C and SIGTERM at any moment: 128 plus the signal, no traceback, no process left, nothing lost."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.small_demo import DEMO, small_study

ROOT = Path(__file__).parents[3]
MARK = "TUNER_TEST_MARK"
# Of the interrupts in the soak; fewer for a short look.
MOMENTS = int(os.environ.get("ADATP_INTERRUPTS", "40"))
# Seconds that a command may take to end a batch, its workers and Ray.
PATIENCE = 90


@dataclass(frozen=True)
class Ended:
    code: int
    output: str
    # Names of processes that it started and that were still there.
    left: tuple[str, ...]


def start(folder: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], str]:
    """The console script in a process group of its own, as a shell starts it, and what marks its children."""
    mark = uuid.uuid4().hex
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner.cli.entry", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell's background jobs ignore it, and so would what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            env=os.environ | {"PYTHONPATH": str(ROOT), MARK: mark},
        )
    return process, mark


def await_handlers(process: subprocess.Popen[bytes]) -> None:
    """Until the first line of ours has run: before it Python itself starts, and prints what it likes."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        status = Path(f"/proc/{process.pid}/status").read_text()
        (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.002)


def interrupted(folder: Path, after: float, number: int, *arguments: str) -> Ended:
    """A command that gets a signal so many seconds after its beginning: Ctrl-C as from a terminal, which
    reaches all processes of the group, and the others as from a scheduler, which knows the first alone.
    """
    process, mark = start(folder, *arguments)
    await_handlers(process)
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    try:
        code = process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    left = marked(mark)
    names = tuple(item.name() for item in left)
    for one in left:
        one.kill()
    return Ended(code, (folder / "output.txt").read_text(), names)


def marked(mark: str) -> list[psutil.Process]:
    """Processes with this mark that do not end by themselves within some seconds."""
    found: list[psutil.Process] = []
    for _ in range(100):
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        if not found:
            return []
        time.sleep(0.1)
    return found


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("after", "number"), [(0.0, signal.SIGINT), (0.3, signal.SIGINT), (1.0, signal.SIGTERM)]
)
def test_an_interrupt_while_a_command_begins_is_one_line(tmp_path: Path, after: float, number: int) -> None:
    ended = interrupted(tmp_path, after, number, "check", "--study", str(DEMO))
    assert "Traceback" not in ended.output, ended.output
    assert ended.code == 128 + number
    assert "Interrupted" in ended.output
    assert ended.left == ()


WORK = ("--study", "./small", "--budget", "0.3", "--accept-weak-baseline")
COMMANDS = {
    "run": ("run", *WORK, "--trials", "40"),
    "run in this process": ("run", *WORK, "--trials", "40", "--workers", "1"),
    "check": ("check", "--study", "./small", "--model"),
    "compare": ("compare", *WORK),
    "sensitivity": ("sensitivity", *WORK),
    "report": ("report", "--study", "./small"),
}


def answers(folder: Path) -> int:
    """How many are recorded in a database that is whole."""
    file = folder / ".tuner" / "small" / "tuner.db"
    if not file.exists():
        return 0
    with sqlite3.connect(file) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        tables = {name for (name,) in database.execute("select name from sqlite_master")}
        if "adatp_answer" not in tables:
            return 0
        return int(database.execute("select count(*) from adatp_answer").fetchone()[0])


@pytest.mark.soak
def test_interrupted_at_random_moments_it_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    small_study(tmp_path)
    # A first search, so that `report` has something to show and there is something to lose.
    process, _ = start(tmp_path, *COMMANDS["run in this process"], "--trials", "1")
    assert process.wait() == 0, (tmp_path / "output.txt").read_text()
    chance = random.Random(0)
    recorded = 0
    wrong = []
    for index in range(MOMENTS):
        name = list(COMMANDS)[index % len(COMMANDS)]
        # Imports take the first seconds.
        after = chance.uniform(0, 1) if index % 5 < 2 else chance.uniform(1, 20)
        number = signal.SIGTERM if index % 4 == 3 else signal.SIGINT
        ended = interrupted(tmp_path, after, number, *COMMANDS[name])
        # Some are over before; `check` finds too few videos.
        over = {0, 1} if name == "check" else {0}
        # A shell tells both alike; the second is Python's last moment, when it has given handlers back.
        right = (
            ended.code in {128 + number, -number} | over
            and "Traceback" not in ended.output
            and not ended.left
        )
        there = answers(tmp_path)
        right = right and there >= recorded
        recorded = there
        told = (
            f"{name} after {after:.2f} s, signal {number}: {ended.code}, {there} answers, left {ended.left}"
        )
        print(told, flush=True)  # noqa: T201
        if not right:
            wrong.append(f"{told}\n{ended.output[-3000:]}")
    assert not wrong, "\n\n".join(wrong)
    process, _ = start(tmp_path, *COMMANDS["run"][:-1], "6")
    assert process.wait() == 0, (tmp_path / "output.txt").read_text()
