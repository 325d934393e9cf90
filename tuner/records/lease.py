"""Which process may write to a study on a shared database: a lease that ends by itself.

A process may not know that its lease ended: it stood still, or its network was cut. So each lease has a
fencing token, a number that only grows (Kleppmann, Designing Data-Intensive Applications, 2017, chapter 8).
Every transaction that writes compares it first and keeps the lease's row until it is committed: it is done
before another process takes over, or not at all. The server's clock alone counts.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Self

from sqlalchemy import Connection, DateTime, Engine, Interval, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from tuner.errors import RecordsLostError, UserError
from tuner.records.database import ConnectionLostError, transaction
from tuner.records.retrying import retried
from tuner.records.schema import lease_table

# Seconds a lease lasts once its holder is gone. Long enough for a network that is cut for half a minute.
LEASE = 60.0
# Seconds between two renewals: whoever waits for the lease sees after that long that its holder is alive.
BEAT = 5.0
# Seconds between two looks at a lease that is waited for.
_LOOK = 1.0


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
        return cls(
            os.getpid(), socket.gethostname(), this_user(), datetime.now(UTC).isoformat(timespec="seconds")
        )

    @classmethod
    def read(cls, text: str) -> Self:
        """From JSON. Errors: ValueError or TypeError where it is something else."""
        values = json.loads(text)
        return cls(**{name: values[name] for name in ("pid", "host", "user", "since")})

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on host {self.host}{_since(self.since)}"


def this_user() -> str:
    """The name of who runs this process; its number where it has none, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def held_by_another(study: str, by: Holder | None) -> UserError:
    """What a second process is told."""
    return UserError(
        f"the study {study!r} is being run by {by or 'another process'}; `tuner status` shows how far it is"
    )


class _Seen(NamedTuple):
    holder: Holder
    expires: datetime
    seconds: float


class Lease:
    """A study's lease on PostgreSQL. The study need not exist yet."""

    def __init__(self, engine: Engine, study: str, owner: str, say: Callable[[str], None]) -> None:
        self._engine, self._say = engine, say
        self._study, self._owner = study, owner
        # Told apart from an earlier process with the same number, as every container has it.
        self._me = json.dumps(asdict(Holder.this_process()) | {"key": secrets.token_hex(8)})
        self._token: int | None = None
        self._over = threading.Event()

    @contextmanager
    def held(self) -> Iterator[Self]:
        """Holds the lease, which a thread of its own renews; waits for one whose holder shows no life.

        Errors: UserError that names the process which holds it.
        """
        self._wait()
        beating = threading.Thread(target=self._renew, name="lease", daemon=True)
        beating.start()
        try:
            yield self
        finally:
            self._over.set()
            beating.join(BEAT)
            # Without a server it ends by itself.
            with suppress(ConnectionLostError, SQLAlchemyError), transaction(self._engine) as connection:
                connection.execute(
                    update(lease_table).where(self._mine).values(holder=None, host=None, expires=None)
                )

    def check(self, connection: Connection) -> None:
        """Keeps the lease until the end of this transaction.

        Errors: RecordsLostError where another process has or had it since.
        """
        # A process that is stopped in the middle of the transaction does not keep the row from its successor:
        # the server ends it. A renewal need not wait for the transaction (FOR KEY SHARE), a successor must.
        limit = func.set_config("idle_in_transaction_session_timeout", f"{LEASE * 1000:.0f}", True)
        token = connection.execute(
            select(lease_table.c.token, limit).where(self._mine).with_for_update(read=True, key_share=True)
        ).scalar_one_or_none()
        if token is None:
            seen = self._seen(connection)
            by = "another process ran it in the meantime" if seen is None else f"{seen.holder} runs it now"
            raise RecordsLostError(
                f"The study {self._study!r} is no longer run by this process, which did not reach the "
                f"database for {LEASE:.0f} seconds: {by}. Everything recorded is kept."
            )

    def holder(self) -> Holder | None:
        """The process that holds it now."""
        seen = self._look()
        return None if seen is None else seen.holder

    @retried
    def _look(self) -> _Seen | None:
        with transaction(self._engine) as connection:
            return self._seen(connection)

    def _wait(self) -> None:
        first: _Seen | None = None
        while not self._take():
            seen = self._look()
            if seen is not None and first is None:
                first = seen
                self._say(
                    f"The study {self._study!r} is held by {seen.holder}; if that process is gone, this one "
                    f"takes over in {seen.seconds:.0f} seconds."
                )
            elif seen is not None and first is not None and seen.expires > first.expires:
                raise held_by_another(self._study, seen.holder)
            time.sleep(min(_LOOK, BEAT))

    @retried
    def _take(self) -> bool:
        values = {"holder": self._me, "host": socket.gethostname(), "expires": _from_now(LEASE)}
        statement = insert(lease_table).values(study=self._study, owner=self._owner, token=1, **values)
        with transaction(self._engine) as connection:
            # Waits for the transactions that hold it.
            connection.execute(select(lease_table.c.token).where(self._here).with_for_update())
            self._token = connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["study", "owner"],
                    set_={"token": lease_table.c.token + 1, **values},
                    # Our own: taken by an attempt whose end we do not know.
                    where=or_(
                        lease_table.c.expires.is_(None),
                        lease_table.c.expires <= _now(),
                        lease_table.c.holder == self._me,
                    ),
                ).returning(lease_table.c.token)
            ).scalar_one_or_none()
        return self._token is not None

    def _renew(self) -> None:
        """Until it is over, or lost: then the next transaction that writes says so."""
        while not self._over.wait(BEAT):
            # A server that does not answer is told of by the transactions; where this connection alone is
            # silent, the next one renews the lease in time.
            with (
                suppress(ConnectionLostError, SQLAlchemyError),
                transaction(self._engine, silence=LEASE / 4) as connection,
            ):
                renewed = update(lease_table).where(self._mine).values(expires=_from_now(LEASE))
                if not connection.execute(renewed).rowcount:
                    return

    def _seen(self, connection: Connection) -> _Seen | None:
        row: Any = connection.execute(
            select(
                lease_table.c.holder, lease_table.c.expires, (lease_table.c.expires - _now()).label("left")
            ).where(self._here, lease_table.c.expires > _now())
        ).first()
        if row is None:
            return None
        return _Seen(Holder.read(row.holder), row.expires, row.left.total_seconds())

    @property
    def _here(self) -> Any:
        return (lease_table.c.study == self._study) & (lease_table.c.owner == self._owner)

    @property
    def _mine(self) -> Any:
        # The holder as well: tokens begin anew where the tables were made anew.
        return self._here & (lease_table.c.token == self._token) & (lease_table.c.holder == self._me)


def _now() -> Any:
    return func.clock_timestamp(type_=DateTime(timezone=True))


def _from_now(seconds: float) -> Any:
    return _now() + literal(timedelta(seconds=seconds), Interval)


def _since(iso: str) -> str:
    if not iso:
        return ""
    then, now = datetime.fromisoformat(iso).astimezone(), datetime.now().astimezone()
    return f" since {then:%H:%M}" if then.date() == now.date() else f" since {then:%Y-%m-%d %H:%M}"
