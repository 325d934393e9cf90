"""The database the records lie in: where it is, how it is opened, what it says when it is full."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]
from pydantic_core import from_json
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from tuner.errors import DiskFullError, UserError, disk_may_be_full, is_full, without_passwords
from tuner.records.schema import SCHEMA_REVISION

# Alembic's, under a name of our own: MLflow and Optuna have theirs under its default one.
VERSION_TABLE = "adatp_alembic_version"
# What version 2 had in its place.
_VERSION_TABLE_BEFORE = "adatp_schema"

# Any number that nobody else locks.
_MIGRATION_LOCK = 0x61646174700003
# How long another process may migrate the database that this one waits for.
_MIGRATION_SECONDS = 600

# What SQLite says where there is no room: on a full disk; under a quota; for the file that readers share.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
# The same in PostgreSQL's codes.
_DISK_FULL = "53100"
# PostgreSQL's codes for what may pass when the same transaction is done again: the server ends, starts or has
# too many connections; a session stood still in a transaction; two transactions waited for each other. Those
# of class 08 are lost connections.
_PASSING = ("57P01", "57P02", "57P03", "53300", "25P03", "40001", "40P01")

# Without these a connection through a cut network, or to a machine that vanished, is believed in for hours:
# seconds, but the last in milliseconds. What the URL says of them counts.
_POSTGRESQL_LIMITS = {
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
# Seconds without a byte from a server that was asked something. Its kernel or a proxy may still keep the
# connection alive, so that none of the limits above counts. More than a lease lasts: whoever takes one waits
# for the transactions that hold it.
SILENCE = 90.0

T = TypeVar("T")


class ConnectionLostError(Exception):
    """A transaction was not done, or its end is not known, because the server does not answer."""


def default_database(study: str, root: Path = Path(".tuner")) -> str:
    """The SQLite database a study's records lie in unless told otherwise: `.tuner/<study>/tuner.db`."""
    return sqlite_url(root / study / "tuner.db")


def sqlite_url(file: Path) -> str:
    """The URL of an SQLite file, also where its path holds `?`, `#` or `%`."""
    return URL.create("sqlite", database=file.as_posix()).render_as_string()


def open_engine(url: str, *, create: bool = True) -> Engine:
    """The database at a `sqlite:///` or `postgresql://` URL, for a writer: an empty one gets its tables, and
    records of an earlier version are migrated.

    Without `create`, for a reader: it changes nothing, and a file or folder that is read-only will do.

    Errors: UserError for a URL that names no such database, for one that cannot be reached or holds another
    program's tables or a later version's, and for a reader where nothing is recorded, or by an earlier
    version. DiskFullError where there is no room for the tables.
    """
    parsed = parse_url(url)
    file = _file(parsed)
    if not create:
        if file is not None and not file.is_file():
            raise UserError(f"there are no records at {file}; `tuner run` makes them")
        engine, found = _examined(parsed, file, write=False)
        if found != SCHEMA_REVISION:
            engine.dispose()
            raise UserError(_before_migration(engine, found))
        return engine
    if file is not None:
        with disk_may_be_full():
            _make_folder(file.parent)
        if file.is_file() and file.stat().st_size:
            # Opened for writing, another program's file would be changed by that alone.
            _examined(parsed, file, write=False)[0].dispose()
    engine, found = _examined(parsed, file, write=True)
    if found != SCHEMA_REVISION:
        with _told(engine), transaction(engine, silence=_MIGRATION_SECONDS) as connection:
            _migrate(connection)
    return engine


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_full(error):
            raise
        raise UserError(
            f"The folder {folder.absolute()} for the records cannot be made: {error.strerror}. Work in a "
            "folder that can be written, or name a database elsewhere with --database."
        ) from error


def _examined(url: URL, file: Path | None, *, write: bool) -> tuple[Engine, str | None]:
    """A database and the revision of its tables; "2": tables older than revisions; None: it is empty.

    Errors: UserError where its tables are not ours, or of a version that no migration begins or ends with.
    """
    try:
        if file is None:
            limits = _POSTGRESQL_LIMITS if url.get_backend_name() == "postgresql" else {}
            own = {name: value for name, value in limits.items() if name not in url.query}
            engine = create_engine(url, json_deserializer=from_json, connect_args=own)
            if engine.dialect.driver == "psycopg":
                _limit_silence(engine)
        elif write:
            engine = create_engine(url, json_deserializer=from_json)
        else:
            engine = create_engine(url, json_deserializer=from_json, creator=lambda: _read_only(file))
    except ModuleNotFoundError as error:
        raise UserError(
            f"The database {_shown(url)} needs the package {error.name}: pip install 'adatp-tuner[cluster]'"
        ) from error
    if file is not None and write:
        _prepare_sqlite(engine)
    with _told(engine), engine.connect() as connection:
        found = _revision(connection)
        tables = inspect(connection).get_table_names() if found is None else []
        if tables:
            # Another process may have made them since.
            connection.rollback()
            found = _revision(connection)
            tables = [] if found else tables
        if tables:
            some = ", ".join(sorted(tables)[:3])
            raise UserError(
                f"The database {shown(engine)} holds tables of another program ({some}): "
                "name another one with --database."
            )
        if found not in (None, "2") and str(found) > SCHEMA_REVISION:
            raise UserError(
                f"The database {shown(engine)} has tables of version {found}, but this tuner reads up to "
                f"{SCHEMA_REVISION}: use the tuner that wrote them, or name another one with --database."
            )
    return engine, found


def _revision(connection: Connection) -> str | None:
    for table, column in ((VERSION_TABLE, "version_num"), (_VERSION_TABLE_BEFORE, "version")):
        if inspect(connection).has_table(table):
            version = connection.exec_driver_sql(f"SELECT {column} FROM {table}").scalar_one_or_none()
            return None if version is None else str(version)
    return None


def _before_migration(engine: Engine, found: str | None) -> str:
    if found is None:
        return f"there are no records in {shown(engine)}; `tuner run` makes them"
    return (
        f"The database {shown(engine)} has tables of version {found}, but this tuner reads "
        f"{SCHEMA_REVISION}: `tuner run` migrates them."
    )


def _migrate(connection: Connection) -> None:
    """All or nothing. Of several processes that come at once one migrates; the others wait for it."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA busy_timeout={_MIGRATION_SECONDS * 1000}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    if _revision(connection) == SCHEMA_REVISION:
        return
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, "head")


# As Linux names them; what two machines write at once there is not safe from each other.
_NETWORK_FILE_SYSTEMS = frozenset(
    "nfs nfs4 cifs smb3 smbfs lustre gpfs beegfs ceph glusterfs fuse.glusterfs fuse.sshfs fuse.cephfs 9p afs "
    "pvfs2 wekafs fuse.juicefs fuse.s3fs".split()
)


def network_file_system(engine: Engine) -> str | None:
    """A warning where an SQLite file lies on a network file system; None elsewhere.

    Its write-ahead log needs memory that all its processes share, and locks that hold (sqlite.org/wal.html,
    "All processes using a database must be on the same host computer").
    """
    file = _file(engine.url)
    if file is None:
        return None
    place = file.resolve()
    disks = [
        partition
        for partition in psutil.disk_partitions(all=True)
        if place.is_relative_to(Path(partition.mountpoint).resolve())
    ]
    disk = max(disks, key=lambda disk: len(disk.mountpoint), default=None)
    if disk is None or disk.fstype.lower() not in _NETWORK_FILE_SYSTEMS:
        return None
    return (
        f"The records {file} lie on a network file system ({disk.fstype} at {disk.mountpoint}). A second "
        "machine that opens an SQLite database there can damage it, even if it only reads: use them from one "
        "machine, or name a PostgreSQL database with --database."
    )


@contextmanager
def _told(engine: Engine) -> Iterator[None]:
    """What keeps a database from being opened, as one message; then it is closed."""
    try:
        yield
    except DBAPIError as error:
        engine.dispose()
        if _is_full(error):
            raise DiskFullError.of(f"the database {shown(engine)}", _reason(error)) from error
        raise UserError(f"The database {shown(engine)} cannot be opened: {error.orig}") from error
    except ConnectionLostError as error:
        engine.dispose()
        raise UserError(f"The database {shown(engine)} cannot be opened: {error}") from error
    except BaseException:
        engine.dispose()
        raise


@contextmanager
def transaction(engine: Engine, *, silence: float | None = None) -> Iterator[Connection]:
    """All or nothing of what is written.

    silence: seconds that a server may let pass without a byte of its answer; None: `SILENCE`.
    Errors: DiskFullError where there is no room for it; ConnectionLostError where the server does not answer.
    """
    try:
        with engine.begin() as connection:
            driver: Any = connection.connection.driver_connection
            if hasattr(driver, "silence"):
                driver.silence = silence
            yield connection
    except DBAPIError as error:
        if _is_full(error):
            raise DiskFullError.of(f"the database {shown(engine)}", _reason(error)) from error
        if _is_passing(error):
            raise ConnectionLostError(_reason(error)) from error
        raise


def shown(engine: Engine) -> str:
    """Where a database is, without a password."""
    return _shown(engine.url)


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


def _file(url: URL) -> Path | None:
    """Of an SQLite database; None for a server's, and for one in memory."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database))


def _reason(error: DBAPIError) -> str:
    """What the database says, without the hints that PostgreSQL adds in further lines."""
    return str(error.orig).strip().partition("\n")[0]


def _is_full(error: DBAPIError) -> bool:
    return (
        getattr(error.orig, "sqlite_errorcode", None) in _FULL
        or getattr(error.orig, "sqlstate", None) == _DISK_FULL
    )


def _is_passing(error: DBAPIError) -> bool:
    """Whether the same transaction may succeed when it is done again."""
    if error.connection_invalidated:
        return True
    # An error without a code comes from the client: it reached no server, or lost it.
    state = getattr(error.orig, "sqlstate", "")
    return isinstance(error, OperationalError) and (
        state is None or state.startswith("08") or state in _PASSING
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


def _read_only(file: Path) -> sqlite3.Connection:
    address = f"file:{quote(str(file.absolute()))}?mode=ro"
    connection = sqlite3.connect(address, uri=True, check_same_thread=False, timeout=10)
    try:
        connection.execute("SELECT 1 FROM sqlite_schema")
    except sqlite3.OperationalError:
        # A database in WAL mode wants a file beside it that readers share. In a folder that may not be
        # written there is none, and no writer who would need it; unless one left its log there.
        connection.close()
        log = file.with_name(f"{file.name}-wal")
        if log.exists() and log.stat().st_size:
            raise
        connection = sqlite3.connect(f"{address}&immutable=1", uri=True, check_same_thread=False)
    return connection


def _limit_silence(engine: Engine) -> None:
    """Makes of a connection on which the server is silent for too long a lost one."""
    psycopg: Any = engine.dialect.loaded_dbapi

    class LimitedConnection(psycopg.Connection):  # type: ignore[misc]
        """Counts from the last byte: a long answer may take as long as it needs."""

        silence: float | None = None

        def wait(self, generator: Generator[int, int, T], *arguments: Any, **options: Any) -> T:
            """See `psycopg.Connection.wait`, through which every wait for the server goes."""
            waited: T = super().wait(self._limited(generator), *arguments, **options)
            return waited

        def _limited(self, generator: Generator[int, int, T]) -> Generator[int, int, T]:
            limit = SILENCE if self.silence is None else self.silence
            heard = time.monotonic()
            try:
                wanted = next(generator)
                while True:
                    # 0 from time to time while nothing can be read or written.
                    ready = yield wanted
                    if ready:
                        heard = time.monotonic()
                    elif time.monotonic() - heard > limit:
                        self.pgconn.finish()
                        raise psycopg.OperationalError(f"the server was silent for {limit:g} seconds")
                    wanted = generator.send(ready)
            except StopIteration as end:
                value: T = end.value
                return value

    @event.listens_for(engine, "do_connect")
    def _connect(_: object, __: object, arguments: Any, options: Any) -> Any:
        return LimitedConnection.connect(*arguments, **options)


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _set_pragmas(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        # First: the others wait, too, where several processes open a new database at once.
        cursor.execute("PRAGMA busy_timeout=10000")
        cursor.execute("PRAGMA foreign_keys=ON")
        # Readers (`tuner status`, dashboards) never wait for the writer.
        cursor.execute("PRAGMA journal_mode=WAL")
        # With WAL a killed process loses nothing; a power cut can undo the last transactions, never tear one.
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()
