"""One driver at a time for each study, and who it is.

On PostgreSQL it is a lease, which a process that vanished loses (`lease`). Beside an SQLite database it is
the operating system's lock on a file, which the death of its process gives back at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import URL

from tuner.records.connected import Connected
from tuner.records.lease import Holder, Lease, held_by_another
from tuner.records.ownership import adopt
from tuner.records.retrying import retried

# `tuner status` looks whether a lock is free by taking it for a moment: a run that begins just then waits.
_PATIENCE = 2.0


class Locked(Connected):
    """The study of a name as one process's own."""

    @contextmanager
    def held(self, study: str) -> Iterator[None]:
        """Holds the study, which need not exist yet: as long as that lasts, this process alone writes it.

        Errors: UserError that names the process which holds it.
        """
        if self._engine.dialect.name == "sqlite":
            with _locked(self._engine.url, study):
                yield
            return
        with Lease(self._engine, study, self._owner, self._say).held() as self._lease:
            try:
                self._adopt(study)
                yield
            finally:
                self._lease = None

    @retried
    def _adopt(self, study: str) -> None:
        with self._writing() as connection:
            adopt(connection, study, self._owner)

    def holder(self, study: str) -> Holder | None:
        """The process that runs this study now; None where none does, or nothing tells which."""
        if self._engine.dialect.name == "sqlite":
            return _file_holder(self._engine.url, study)
        return Lease(self._engine, study, self._owner, self._say).holder()


@contextmanager
def _locked(url: URL, study: str) -> Iterator[None]:
    file = _file(url.database, study)
    if file is None:
        yield
        return
    lock = FileLock(file, timeout=_PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise held_by_another(study, _read(file)) from None
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


def _file_holder(url: URL, study: str) -> Holder | None:
    file = _file(url.database, study)
    if file is None or not file.exists():
        return None
    try:
        with FileLock(file, timeout=0):
            return None
    except Timeout:
        return _read(file)
    except OSError:  # another user's, on a disk that we may only read
        return None


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
        return Holder.read(_about(file).read_text())
    except (OSError, ValueError, TypeError, KeyError):  # not written yet
        return None
