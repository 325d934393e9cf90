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
from tuner.records.store import Store

HOLDER = """
import sys, time
from tuner.records.store import Store
with Store.open(sys.argv[1]) as store, store.held("demo"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.quick
def test_the_second_is_told_who_holds_the_study(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/tuner.db") as store:
        assert store.holder("demo") is None
        with store.held("demo"):
            found = store.holder("demo")
            assert found is not None
            assert (found.pid, found.host) == (os.getpid(), socket.gethostname())
            message = (
                rf"'demo' is being run by process {os.getpid()} of \S+ on host {re.escape(found.host)} since "
                r"\d\d:\d\d; `tuner status`"
            )
            with pytest.raises(UserError, match=message) as refused, store.held("demo"):
                pass
            assert refused.value.exit_code == 2
            # Another study in the same database is another thing.
            with store.held("other"):
                pass
        assert store.holder("demo") is None
        with store.held("demo"):
            pass


@pytest.mark.quick
def test_the_same_database_by_another_path_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    with (
        Store.open(f"sqlite:///{tmp_path}/link/tuner.db") as store,
        Store.open("sqlite:///tuner.db") as same,
        store.held("demo"),
    ):
        assert same.holder("demo") is not None


@pytest.mark.quick
def test_a_database_in_memory_needs_no_lock() -> None:
    with Store.open("sqlite://") as store, store.held("demo"), store.held("demo"):
        assert store.holder("demo") is None


@pytest.mark.quick
def test_an_error_inside_gives_the_study_back(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/tuner.db") as store:
        with pytest.raises(ZeroDivisionError), store.held("demo"):
            raise ZeroDivisionError
        assert store.holder("demo") is None


def test_a_killed_holder_leaves_the_study_free(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with Store.open(url) as store:
        found = store.holder("demo")
        assert found is not None
        assert found.pid == process.pid
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert store.holder("demo") is None
        with store.held("demo"):
            pass
