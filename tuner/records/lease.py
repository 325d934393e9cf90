"""Which process may write to a study: a lease that ends by itself, with a token that only grows.

Whoever lets a lease run out may not know it. What it writes then comes with a token smaller than the one of
its successor, and can be refused by it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import or_, update

from tuner.records.connected import Connected
from tuner.records.schema import lease_table


class Lease(Connected):
    """Leases of studies by name; a study need not exist yet. Clocks of the hosts agree within seconds."""

    def acquire(self, study: str, holder: str, host: str, seconds: float) -> int | None:
        """The token of a lease for so many seconds from now; None while another one lasts."""
        now = datetime.now(UTC)
        values = {"holder": holder, "host": host, "expires": now + timedelta(seconds=seconds)}
        statement = self._insert(lease_table).values(study=study, token=1, **values)
        with self._transaction() as connection:
            return connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["study"],
                    set_={"token": lease_table.c.token + 1, **values},
                    where=or_(lease_table.c.expires.is_(None), lease_table.c.expires <= now),
                ).returning(lease_table.c.token)
            ).scalar_one_or_none()

    def renew(self, study: str, token: int, seconds: float) -> bool:
        """Makes the lease last so many seconds from now; False: it ran out and is another's by now."""
        return self._change(study, token, expires=datetime.now(UTC) + timedelta(seconds=seconds))

    def release(self, study: str, token: int) -> bool:
        """Gives the lease back; False: it is another's by now."""
        return self._change(study, token, holder=None, host=None, expires=None)

    def _change(self, study: str, token: int, **values: object) -> bool:
        statement = update(lease_table).where(lease_table.c.study == study, lease_table.c.token == token)
        with self._transaction() as connection:
            return bool(connection.execute(statement.values(**values)).rowcount)
