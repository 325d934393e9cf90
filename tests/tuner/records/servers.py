"""A PostgreSQL server of a test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def postgresql() -> Iterator[str]:
    """URL of an empty database; the test is skipped where PostgreSQL or its driver is not installed."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (the extra `cluster`)")
    # Where distributions put what is no everyday command.
    places = [os.environ["PATH"], *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
    search = os.pathsep.join(places)
    if shutil.which("initdb", path=search) is None or shutil.which("pg_ctl", path=search) is None:
        pytest.skip("PostgreSQL (initdb, pg_ctl) is not installed")
    # PostgreSQL refuses to run as root.
    user: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, "postgres")

        def call(command: str, *arguments: str) -> None:
            program = shutil.which(command, path=search)
            assert program is not None
            subprocess.run([program, *arguments], check=True, capture_output=True, cwd=folder, **user)

        data = str(folder / "data")
        call("initdb", "--no-sync", "--auth=trust", "--username=tuner", "-D", data)
        # No port: a socket in the folder cannot collide with anything.
        call("pg_ctl", "-w", "-D", data, "-l", data + ".log", "-o", f"-h '' -k {folder} -F", "start")
        try:
            yield f"postgresql://tuner@/postgres?host={folder}"
        finally:
            call("pg_ctl", "-w", "-D", data, "-m", "immediate", "stop")
