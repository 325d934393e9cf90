"""Whose studies are meant: on a shared database a study belongs to a name and an owner.

The owner is `TUNER_OWNER` or, without it, the user of this process. Everybody may read everything; a run
writes to its owner's studies alone. An SQLite file belongs to whoever may write it: its studies have no owner
(the empty string).
"""

from __future__ import annotations

import os

from sqlalchemy import Connection, select, update

from tuner.records.lease import this_user
from tuner.records.schema import OWNER_LENGTH, study_table, video_use_table


def owner_here(backend: str) -> str:
    """Who this process is in a database of this kind, by SQLAlchemy's name for it."""
    if backend == "sqlite":
        return ""
    return (os.environ.get("TUNER_OWNER") or this_user())[:OWNER_LENGTH]


def adopt(connection: Connection, study: str, owner: str) -> None:
    """Gives the records of this name that are older than owners to the first who runs them, unless that is
    somebody with a study of this name.
    """
    own = select(study_table.c.id).where(study_table.c.name == study, study_table.c.owner == owner)
    if connection.execute(own).first() is not None:
        return
    for table, name in ((study_table, study_table.c.name), (video_use_table, video_use_table.c.study)):
        connection.execute(update(table).where(name == study, table.c.owner == "").values(owner=owner))
