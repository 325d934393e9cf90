"""What the files of this room share: the engine, one transaction a method, and the study that is open."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, insert, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from tuner.records.database import transaction
from tuner.records.measurements import CacheUse, ModelUse
from tuner.records.schema import (
    cache_use_table,
    model_use_table,
    study_question_table,
    study_video_table,
    video_use_table,
)
from tuner.study.values import Split


class Connected:
    """A database and, once one was begun or found, the study in it that is read and written."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._insert: Callable[[Table], Any] = (
            sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
        )
        self._study: int | None = None
        self._name = self._hash = ""
        self._encoding = 0
        # Of the study's questions, by id.
        self._prompts: dict[str, int] = {}
        # Splits whose videos are known to have been used.
        self._used: set[Split] = set()
        self._counted = CacheUse()
        self._model_use: dict[tuple[str, int], ModelUse] = {}

    def _transaction(self) -> AbstractContextManager[Connection]:
        return transaction(self._engine)

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
            select(literal(self._name), study_video_table.c.video_id, literal(datetime.now(UTC)))
            .join(study_question_table, study_question_table.c.study_video_id == study_video_table.c.id)
            .where(study_video_table.c.study_id == self._study_id, study_question_table.c.split == split)
            .distinct()
        )
        statement = self._insert(video_use_table).from_select(["study", "video_id", column.key], videos)
        first = func.coalesce(column, statement.excluded[column.key])
        connection.execute(
            statement.on_conflict_do_update(index_elements=["study", "video_id"], set_={column.key: first})
        )
        self._used.add(split)

    def _write_counted(self, connection: Connection, study_id: int) -> None:
        """What was counted since the last transaction that wrote it."""
        for (kind, trial), one in self._model_use.items():
            values = asdict(one)
            connection.execute(
                self._insert(model_use_table)
                .values(study_id=study_id, kind=kind, trial=trial, **values)
                .on_conflict_do_update(
                    index_elements=["study_id", "kind", "trial"],
                    set_={name: model_use_table.c[name] + value for name, value in values.items()},
                )
            )
        self._model_use = {}
        use, self._counted = self._counted, CacheUse()
        if use == CacheUse():
            return
        values = asdict(use)
        connection.execute(
            self._insert(cache_use_table)
            .values(study_id=study_id, **values)
            .on_conflict_do_update(
                index_elements=["study_id"],
                set_={name: cache_use_table.c[name] + value for name, value in values.items()},
            )
        )


def inserted(connection: Connection, table: Table, **values: Any) -> int:
    """The id of a new row."""
    key = connection.execute(insert(table).values(**values)).inserted_primary_key
    assert key is not None
    return int(key[0])
