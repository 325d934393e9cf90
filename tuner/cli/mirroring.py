"""Keeps MLflow up to date while a run goes on, from a process of its own.

`tuner sync` reads the records and writes MLflow: nothing of that takes the run's time, and whatever fails
there cannot reach it. What is missing at the end is written at the end, which then also says what failed. A
run that is interrupted does not wait for MLflow: a last process, which outlives it, closes what MLflow shows
as running.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Seconds between two times at least, and how much longer than one took: at most a twentieth of one core.
EVERY = 60.0
_SPARING = 20.0


@contextmanager
def mirroring(
    study: str, database: str | None, tracking_uri: str | None, *, every: float = EVERY
) -> Iterator[None]:
    """From time to time until the end of the block. study, database, tracking_uri: as the command was given
    them.
    """
    # In the environment, since addresses may hold passwords.
    addresses = {"TUNER_DATABASE": database, "MLFLOW_TRACKING_URI": tracking_uri}
    environment = os.environ | {name: value for name, value in addresses.items() if value is not None}
    command = [sys.executable, "-m", "tuner.cli.main", "sync", "--study", study, "--status"]
    ended, begun = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=_repeat, args=(command, environment, ended, begun, every), name="mirroring", daemon=True
    )
    thread.start()
    try:
        yield
    except BaseException:
        ended.set()
        thread.join()
        last = _sync([*command, "KILLED"], environment) if begun.is_set() else None
        if last is not None:
            last.returncode = 0  # nobody waits for it, and Python is not to warn of that
        raise
    finally:
        ended.set()
        thread.join()


def _repeat(
    command: Sequence[str],
    environment: dict[str, str],
    ended: threading.Event,
    begun: threading.Event,
    every: float,
) -> None:
    wait = every
    while not ended.wait(wait):
        began = time.monotonic()
        process = _sync([*command, "RUNNING"], environment)
        if process is None:
            return
        begun.set()
        while process.poll() is None and not ended.wait(0.2):
            pass
        # What it did not write is written by the next one.
        process.kill()
        process.wait()
        wait = max(every, _SPARING * (time.monotonic() - began))


def _sync(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes] | None:
    """Starts it; None where the system refuses."""
    try:
        # A session of its own: Ctrl-C is for the run.
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None
