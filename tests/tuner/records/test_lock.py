"""One driver at a time; whoever comes second is told who holds the study, and a death gives it back."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.errors import UserError
from tuner.records.lock import held, holder

HOLDER = """
import sys, time
from tuner.records.lock import held
with held(sys.argv[1], "demo"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.quick
def test_the_second_is_told_who_holds_the_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    assert holder(url, "demo") is None
    with held(url, "demo"):
        found = holder(url, "demo")
        assert found is not None
        assert (found.pid, found.host) == (os.getpid(), socket.gethostname())
        message = (
            rf"'demo' is being run by process {os.getpid()} of \S+ on host {re.escape(found.host)} since "
            r"\d\d:\d\d; `tuner status`"
        )
        with pytest.raises(UserError, match=message) as refused, held(url, "demo"):
            pass
        assert refused.value.exit_code == 2
        # Another study in the same database is another thing.
        with held(url, "other"):
            pass
    assert holder(url, "demo") is None
    with held(url, "demo"):
        pass


@pytest.mark.quick
def test_the_same_database_by_another_path_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    with held(f"sqlite:///{tmp_path}/link/tuner.db", "demo"):
        assert holder("sqlite:///tuner.db", "demo") is not None


@pytest.mark.quick
def test_a_database_in_memory_needs_no_lock() -> None:
    with held("sqlite://", "demo"), held("sqlite://", "demo"):
        assert holder("sqlite://", "demo") is None


@pytest.mark.quick
def test_an_error_inside_gives_the_study_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    with pytest.raises(ZeroDivisionError), held(url, "demo"):
        raise ZeroDivisionError
    assert holder(url, "demo") is None


def test_a_killed_holder_leaves_the_study_free(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    found = holder(url, "demo")
    assert found is not None
    assert found.pid == process.pid
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert holder(url, "demo") is None
    with held(url, "demo"):
        pass
