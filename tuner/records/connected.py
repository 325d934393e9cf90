"""What the files of this room share: the engine, one transaction a method, and the study that is open."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, insert, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from tuner.records.database import transaction
from tuner.records.lease import Lease
from tuner.records.measurements import CacheUse, ModelUse
from tuner.records.schema import (
    cache_use_table,
    model_use_table,
    study_question_table,
    study_video_table,
    video_use_table,
)
from tuner.study.values import Split

_log = logging.getLogger(__name__)


class Connected:
    """A database and, once one was begun or found, the study in it that is read and written."""

    def __init__(
        self,
        engine: Engine,
        *,
        owner: str = "",
        reads: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """owner: whose studies are written, and read first. reads: others' are read, too, and nothing is
        written. say: is told in one line what a user should know; None: it is logged.
        """
        self._engine = engine
        self._say: Callable[[str], None] = say or _log.warning
        self._owner, self._reads = owner, reads
        self._insert: Callable[[Table], Any] = (
            sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
        )
        # While this process holds the study on a server.
        self._lease: Lease | None = None
        self._study: int | None = None
        self._name = self._hash = ""
        self._encoding = 0
        # Of the study's questions, by id.
        self._prompts: dict[str, int] = {}
        # Splits whose videos are known to have been used.
        self._used: set[Split] = set()
        # Counted and not written yet.
        self._counted = CacheUse()
        self._model_use: dict[tuple[str, int], ModelUse] = {}
        # Sums that the database holds, and those that the current transaction writes, by table and key.
        self._sums: dict[tuple[Any, ...], Any] = {}
        self._new_sums: dict[tuple[Any, ...], Any] = {}

    def _transaction(self) -> AbstractContextManager[Connection]:
        return transaction(self._engine)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that changes records. What this object knows of them changes with its end alone, so
        that the same transaction can be done again.

        Errors: RecordsLostError where another process took the study over.
        """
        try:
            with self._transaction() as connection:
                if self._lease is not None:
                    self._lease.check(connection)
                yield connection
        except BaseException:
            self._used.clear()
            self._new_sums = {}
            raise
        if self._new_sums:
            self._sums |= self._new_sums
            self._new_sums, self._model_use, self._counted = {}, {}, CacheUse()

    @property
    def _study_id(self) -> int:
        if self._study is None:
            raise RuntimeError("No study was begun or found in this store.")
        return self._study

    def _use(self, connection: Connection, split: Split) -> None:
        """Notes, for good, that the videos of a split tuned or were looked at."""
        if split in self._used:
            return
        column = video_use_table.c.tuned if split == "tune" else video_use_table.c.held_out
        videos = (
            select(
                literal(self._name),
                literal(self._owner),
                study_video_table.c.video_id,
                literal(datetime.now(UTC)),
            )
            .join(study_question_table, study_question_table.c.study_video_id == study_video_table.c.id)
            .where(study_video_table.c.study_id == self._study_id, study_question_table.c.split == split)
            .distinct()
        )
        statement = self._insert(video_use_table).from_select(
            ["study", "owner", "video_id", column.key], videos
        )
        first = func.coalesce(column, statement.excluded[column.key])
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["study", "owner", "video_id"], set_={column.key: first}
            )
        )
        self._used.add(split)

    def _write_counted(self, connection: Connection, study_id: int) -> None:
        """What was counted since the last transaction that wrote it."""
        for (kind, trial), use in self._model_use.items():
            key = {"study_id": study_id, "kind": kind, "trial": trial}
            self._write_sum(connection, model_use_table, key, use)
        if self._counted != CacheUse():
            self._write_sum(connection, cache_use_table, {"study_id": study_id}, self._counted)

    def _write_sum(
        self, connection: Connection, table: Table, key: dict[str, Any], use: CacheUse | ModelUse
    ) -> None:
        """The sum itself, not what is added: written twice it is the same. Only this process writes it."""
        place = (table.name, *key.values())
        if place not in self._sums:
            row = connection.execute(select(table).filter_by(**key)).first()
            names = () if row is None else tuple(field.name for field in fields(use))
            self._sums[place] = type(use)(**{name: getattr(row, name) for name in names})
        self._new_sums[place] = self._sums[place] + use
        values = asdict(self._new_sums[place])
        connection.execute(
            self._insert(table)
            .values(**key, **values)
            .on_conflict_do_update(index_elements=list(key), set_=values)
        )


def inserted(connection: Connection, table: Table, **values: Any) -> int:
    """The id of a new row."""
    key = connection.execute(insert(table).values(**values)).inserted_primary_key
    assert key is not None
    return int(key[0])
