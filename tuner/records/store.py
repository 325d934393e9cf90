"""A study's records as one object. Only the driver writes; every method is one transaction.

A crash at any instant leaves either all or nothing of a recorded batch, so what is read back is always
consistent: a trial is complete exactly when its outcome is there, and its answers were written no later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

from tuner.records.answers import Answers
from tuner.records.costs import Costs
from tuner.records.database import network_file_system, open_engine, shown
from tuner.records.held_out import HeldOut
from tuner.records.lock import Locked
from tuner.records.ownership import owner_here
from tuner.records.quarantine import Quarantine
from tuner.records.reports import Reports
from tuner.records.retrying import retried
from tuner.records.searches import Searches
from tuner.records.studies import Studies
from tuner.records.trials import Trials
from tuner.records.values import Pair, Pruned, RecordedAnswer
from tuner.study.values import Configuration, Outcome


class Store(Studies, Searches, Trials, Answers, HeldOut, Quarantine, Costs, Reports, Locked):
    """One study's records in one database. `open` it, then `begin` or `find` the study."""

    @classmethod
    def open(
        cls,
        url: str,
        *,
        create: bool = True,
        owner: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Self:
        """On the database at this URL; without `create` to read alone.

        owner: whose studies; None: this process's own (`tuner.records.ownership`). say: see `Connected`.
        Errors: as `tuner.records.database.open_engine`.
        """
        engine = open_engine(url, create=create)
        store = cls(
            engine,
            owner=owner_here(engine.dialect.name) if owner is None else owner,
            reads=not create,
            say=say,
        )
        if create and (warning := network_file_system(engine)):
            store._say(warning)
        return store

    @property
    def url(self) -> str:
        """Where the records lie, without a password."""
        return shown(self._engine)

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @retried
    def record(
        self,
        answers: Mapping[Pair, RecordedAnswer],
        completed: tuple[int, Outcome] | None = None,
        measured: tuple[Configuration, Outcome] | None = None,
        pruned: tuple[int, Pruned] | None = None,
    ) -> None:
        """One batch: its answers and, with the last one, the outcome of the trial or held-out measurement; or
        that the trial (by number) was pruned with it.

        Writing the same again changes nothing: the first answer to a (prompt, fingerprint) stays.
        """
        with self._writing() as connection:
            self._write_counted(connection, self._study_id)
            self._write_answers(connection, answers)
            if completed is not None or pruned is not None:
                self._use(connection, "tune")
            if completed is not None:
                connection.execute(self._completed(*completed))
            if pruned is not None:
                connection.execute(self._pruned(*pruned))
            if measured is not None:
                self._write_measured(connection, *measured)
