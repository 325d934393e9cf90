"""A PostgreSQL server of a test's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, select

from tuner.records.database import parse_url
from tuner.records.schema import metadata
from tuner.records.store import Store


class Server:
    """A server in a folder: it can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        # Where distributions put what is no everyday command.
        places = map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))
        self._search = os.pathsep.join([os.environ["PATH"], *places])
        if any(shutil.which(item, path=self._search) is None for item in ("initdb", "pg_ctl")):
            pytest.skip("PostgreSQL (initdb, pg_ctl) is not installed")
        self.folder, self._data = folder, str(folder / "data")
        # PostgreSQL refuses to run as root.
        self._user: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}
        if self._user:
            shutil.chown(folder, "postgres")
        self.url = f"postgresql://tuner@/postgres?host={folder}"
        self._call("initdb", "--no-sync", "--auth=trust", "--username=tuner", "-D", self._data)
        self.start()

    def start(self) -> None:
        """Returns once it answers."""
        # No port: a socket in the folder cannot collide with anything.
        options = f"-h '' -k {self.folder} -F"
        self._call("pg_ctl", "-w", "-D", self._data, "-l", self._data + ".log", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """fast: connections are ended; immediate: as after a power cut."""
        self._call("pg_ctl", "-w", "-D", self._data, "-m", mode, "stop")

    def _call(self, command: str, *arguments: str) -> None:
        program = shutil.which(command, path=self._search)
        assert program is not None
        subprocess.run([program, *arguments], check=True, capture_output=True, cwd=self.folder, **self._user)


class Proxy:
    """Between drivers and the server, over TCP. For a while, `cut` forwards nothing and then drops all;
    `silent` forwards nothing, but keeps what is open and takes new connections.
    """

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / ".s.PGSQL.5432")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open, self._pairs = threading.Event(), list[socket.socket]()
        self._open.set()
        self._cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._cut:
                client.close()
                continue
            there = socket.socket(socket.AF_UNIX)
            try:
                there.connect(self._path)
            except OSError:
                return  # the test is over
            self._pairs += [client, there]
            for item, other in ((client, there), (there, client)):
                threading.Thread(target=self._forward, args=(item, other), daemon=True).start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                self._open.wait()
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            end.close()

    def cut(self, seconds: float) -> None:
        self._cut = True
        self._open.clear()
        time.sleep(seconds)
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            with contextlib.suppress(OSError):  # closed by the other end
                pair.shutdown(socket.SHUT_RDWR)
        self._cut = False
        self._open.set()

    def silent(self, seconds: float) -> None:
        self._open.clear()
        again = threading.Timer(seconds, self._open.set)
        again.daemon = True
        again.start()

    def speak(self) -> None:
        """Ends `silent` early."""
        self._open.set()


def servers() -> Iterator[Server]:
    """A server with an empty database; the test is skipped where it or its driver is not installed."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (the extra `cluster`)")
    with tempfile.TemporaryDirectory() as name:
        server = Server(Path(name))
        try:
            yield server
        finally:
            server.stop("immediate")


def emptied(server: Server) -> str:
    """The URL of its database, without tables."""
    empty(server.url)
    return server.url


def empty(url: str) -> None:
    """Takes all tables out of a PostgreSQL database of the user's own."""
    engine = create_engine(parse_url(url))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    engine.dispose()


def rows(store: Store) -> dict[str, list[Any]]:
    """All that the database holds, but times and ids, of which a failed transaction uses some up."""
    found: dict[str, list[Any]] = {}
    with store._engine.connect() as connection:
        for name, table in metadata.tables.items():
            columns = [
                column
                for column in table.columns
                if "DATETIME" not in str(column.type) and not column.name.endswith("id")
            ]
            found[name] = sorted(map(str, connection.execute(select(*columns))))
    return found


def end_connections(url: str, condition: str = "true") -> int:
    """Ends everybody's but its own, as an administrator may; how many there were.

    condition: on rows of pg_stat_activity.
    """
    engine = create_engine(parse_url(url))
    with engine.connect() as connection:
        ended = connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' "
            f"AND {condition}"
        ).all()
    engine.dispose()
    return len(ended)
