"""The database the records lie in: where it is, how it is opened, what it says when it is full."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    create_engine,
    event,
    insert,
    inspect,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.schema import CreateColumn

from tuner.errors import DiskFullError, UserError, without_passwords
from tuner.records.schema import SCHEMA_VERSION, Base, SchemaRow

# What SQLite says where there is no room: on a full disk; under a quota; for the file that readers share.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
# The same in PostgreSQL's codes.
_DISK_FULL = "53100"


def default_database(study: str, root: Path = Path(".tuner")) -> str:
    """The SQLite database a study's records lie in unless told otherwise: `.tuner/<study>/tuner.db`."""
    return sqlite_url(root / study / "tuner.db")


def sqlite_url(file: Path) -> str:
    """The URL of an SQLite file, also where its path holds `?`, `#` or `%`."""
    return URL.create("sqlite", database=file.as_posix()).render_as_string()


def open_engine(url: str, *, create: bool = True) -> Engine:
    """The database at a `sqlite:///` or `postgresql://` URL; an empty one gets its tables.

    Without `create` a database that is not there is a mistake.

    Errors: UserError for a URL that names no such database, one that cannot be reached, or tables that
    another version wrote.
    """
    parsed = _parsed(url, create=create)
    try:
        engine = create_engine(parsed)
    except ModuleNotFoundError as error:
        raise UserError(
            f"The database {_shown(parsed)} needs the package {error.name}: "
            "pip install 'adatp-tuner[cluster]'"
        ) from error
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    try:
        with engine.begin() as connection:
            found = None
            if inspect(connection).has_table(SchemaRow.__tablename__):
                found = connection.execute(select(SchemaRow.version)).scalar_one_or_none()
            if found is None:
                # The version comes last. SQLite commits each table by itself: a killed process or a full
                # disk may have left some, and then the others are made now.
                Base.metadata.create_all(connection)
                found = SCHEMA_VERSION
                connection.execute(insert(SchemaRow).values(version=found))
        if found == SCHEMA_VERSION:
            _add_what_came_later(engine)
    except DBAPIError as error:
        engine.dispose()
        if _is_full(error):
            raise DiskFullError.of(f"the database {shown(engine)}", error.orig) from error
        raise UserError(f"The database {shown(engine)} cannot be opened: {error.orig}") from error
    if found != SCHEMA_VERSION:
        engine.dispose()
        raise UserError(
            f"The database {shown(engine)} has tables of version {found}, but this tuner writes version "
            f"{SCHEMA_VERSION}: name another one with --database."
        )
    return engine


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """All or nothing of what is written. Errors: DiskFullError where there is no room for it."""
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        if not _is_full(error):
            raise
        raise DiskFullError.of(f"the database {shown(engine)}", error.orig) from error


def shown(engine: Engine) -> str:
    """Where a database is, without a password."""
    return _shown(engine.url)


def _add_what_came_later(engine: Engine) -> None:
    """Tables and columns that were added since the database was made; older answers leave them empty."""
    with engine.begin() as connection:
        Base.metadata.create_all(connection)
        missing = _missing_columns(connection)
    for table, column in missing:
        definition = CreateColumn(column).compile(dialect=engine.dialect)
        try:
            with engine.begin() as connection:
                connection.exec_driver_sql(f'ALTER TABLE "{table}" ADD COLUMN {definition}')
        except DBAPIError:
            # Another process opened the same database and was faster.
            with engine.begin() as connection:
                still = [(name, one.name) for name, one in _missing_columns(connection)]
            if (table, column.name) in still:
                raise


def _missing_columns(connection: Connection) -> list[tuple[str, Column[Any]]]:
    inspector = inspect(connection)
    found = {
        table: {column["name"] for column in inspector.get_columns(table)} for table in Base.metadata.tables
    }
    return [
        (name, column)
        for name, table in Base.metadata.tables.items()
        for column in table.columns
        if column.name not in found[name]
    ]


def parse_url(url: str) -> URL:
    """The URL of a database as SQLAlchemy takes it, with the driver that belongs to this package.

    Errors: UserError for one that names neither an SQLite nor a PostgreSQL database.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgres":  # as libpq and many who host databases write it
            parsed = parsed.set(drivername="postgresql")
        backend = parsed.get_backend_name()
        if backend == "sqlite" and (parsed.host or parsed.username):
            raise ValueError("a file has no host")
    # ValueError: a port that is no number. None of them is kept: they may quote the password.
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise UserError(
            "--database is a URL like sqlite:///tuner.db or postgresql://host:5432/name, but got "
            f"{_outline(url)!r}."
        ) from None
    if backend not in ("sqlite", "postgresql"):
        raise UserError(f"--database is SQLite or PostgreSQL, but got {backend!r}.")
    if backend == "postgresql" and parsed.drivername == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def _parsed(url: str, *, create: bool) -> URL:
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        file = Path(str(parsed.database))
        if not create and not file.is_file():
            raise UserError(f"there are no records at {file}; `tuner run` makes them")
        file.parent.mkdir(parents=True, exist_ok=True)
    return parsed


def _is_full(error: DBAPIError) -> bool:
    return (
        getattr(error.orig, "sqlite_errorcode", None) in _FULL
        or getattr(error.orig, "sqlstate", None) == _DISK_FULL
    )


def _shown(url: URL) -> str:
    return without_passwords(url.render_as_string(hide_password=True))


def _outline(url: str) -> str:
    """What is no secret in something that is no URL: its beginning, and what follows the last @.

    Without an @, what follows a colon may be a port or a password whose host was forgotten.
    """
    scheme, slashes, rest = url.partition("://") if "://" in url else ("", "", url)
    _, at, address = rest.rpartition("@")
    return without_passwords(scheme + slashes + (f"***@{address}" if at else re.sub(":[^/]+", ":***", rest)))


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _set_pragmas(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        # Readers (`tuner status`, dashboards) never wait for the writer.
        cursor.execute("PRAGMA journal_mode=WAL")
        # With WAL a killed process loses nothing; a power cut can undo the last transactions, never tear one.
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA busy_timeout=10000")
        cursor.close()
