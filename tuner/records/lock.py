"""One driver at a time for each study: a lock beside the records, which says who holds it.

It is the operating system's lock on a file beside an SQLite database, or the server's on a PostgreSQL
database. Either is given back by the death of its process, so that none is ever left behind.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from sqlalchemy import Connection, CursorResult, NullPool, create_engine, text

from tuner.errors import UserError
from tuner.records.database import parse_url

# `tuner status` looks whether a lock is free by taking it for a moment: a run that begins just then waits.
_PATIENCE = 2.0

# PostgreSQL cuts an application's name there.
_NAME_BYTES = 63


@dataclass(frozen=True)
class Holder:
    """The process that runs a study; `since` is an ISO date with time zone, "" where it is not known."""

    pid: int
    host: str
    user: str
    since: str

    @classmethod
    def this_process(cls) -> Self:
        """Who we are, from now on."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user without a name
            user = str(os.getuid())
        return cls(os.getpid(), socket.gethostname(), user, datetime.now(UTC).isoformat(timespec="seconds"))

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on host {self.host}{_since(self.since)}"


@contextmanager
def held(url: str, study: str) -> Iterator[None]:
    """Holds the study in the records at this URL, which are there.

    Errors: UserError that names the process which holds it.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "postgresql":
        with _connection(url) as connection:
            # First who we are: whoever finds the lock taken reads it.
            _ask(connection, "SELECT set_config('application_name', :name, false)", name=_application_name())
            if not _ask(connection, "SELECT pg_try_advisory_lock(:key)", key=_key(study)).scalar():
                raise _held_by_another(study, _server_holder(connection, study))
            yield
        return
    file = _file(parsed.database, study)
    if file is None:
        yield
        return
    lock = FileLock(file, timeout=_PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise _held_by_another(study, _read(file)) from None
    about = _about(file)
    # Only what the refused are told: on a full disk it may be missing.
    with suppress(OSError):
        about.write_text(json.dumps(asdict(Holder.this_process())))
    try:
        yield
    finally:
        with suppress(OSError):
            about.unlink(missing_ok=True)
        lock.release()


def holder(url: str, study: str) -> Holder | None:
    """The process that runs this study now; None where none does, or nothing tells which."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "postgresql":
        with _connection(url) as connection:
            return _server_holder(connection, study)
    file = _file(parsed.database, study)
    if file is None or not file.exists():
        return None
    try:
        with FileLock(file, timeout=0):
            return None
    except Timeout:
        return _read(file)
    except OSError:  # another user's, on a disk that we may only read
        return None


def _held_by_another(study: str, by: Holder | None) -> UserError:
    return UserError(
        f"the study {study!r} is being run by {by or 'another process'}; `tuner status` shows how far it is"
    )


def _since(iso: str) -> str:
    if not iso:
        return ""
    then, now = datetime.fromisoformat(iso).astimezone(), datetime.now().astimezone()
    return f" since {then:%H:%M}" if then.date() == now.date() else f" since {then:%Y-%m-%d %H:%M}"


# SQLite: a file beside the database, and what is known of its holder in another


def _file(database: str | None, study: str) -> Path | None:
    """None for a database in memory, which nobody else can open."""
    if database in (None, "", ":memory:"):
        return None
    # Resolved: the same database by another path is the same.
    path = Path(str(database)).resolve()
    return path.with_name(f"{path.name}.{study}.lock")


def _about(file: Path) -> Path:
    # Locking a file may truncate it, even where it is refused.
    return file.with_name(f"{file.name}.json")


def _read(file: Path) -> Holder | None:
    try:
        return Holder(**json.loads(_about(file).read_text()))
    except (OSError, ValueError, TypeError):  # not written yet
        return None


# PostgreSQL: a session's advisory lock, whose name for itself says who it is


@contextmanager
def _connection(url: str) -> Iterator[Connection]:
    # No pool, no transaction: the lock lives as long as its one connection, and that is never busy.
    with create_engine(parse_url(url), poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as one:
        yield one


def _ask(connection: Connection, query: str, **values: Any) -> CursorResult[Any]:
    return connection.execute(text(query), values)


def _key(study: str) -> int:
    digest = hashlib.sha256(f"adatp-tuner/{study}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _application_name() -> str:
    me = Holder.this_process()
    return f"tuner {me.pid} {me.user} {me.host}".encode()[:_NAME_BYTES].decode(errors="ignore")


def _server_holder(connection: Connection, study: str) -> Holder | None:
    """As the server knows it; it shows other users' sessions to some roles only."""
    row: Any = _ask(
        connection,
        "SELECT a.application_name AS name, a.backend_start AS since FROM pg_locks AS l "
        "JOIN pg_stat_activity AS a ON a.pid = l.pid WHERE l.locktype = 'advisory' AND l.granted "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND (l.classid::bigint << 32 | l.objid::bigint) = :key AND l.objsubid = 1",
        key=_key(study),
    ).first()
    match row and (row.name or "").split(" ", 3):
        case ["tuner", pid, user, host] if pid.isdigit():
            return Holder(int(pid), host, user, row.since.isoformat() if row.since else "")
    return None
