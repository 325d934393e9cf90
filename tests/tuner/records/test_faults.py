"""A server that goes away, processes that stand still, several at once: nothing is lost or doubled."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, update

from tests.tuner.fakes import FakeEvaluator, begin, make_loop, make_study
from tests.tuner.records.servers import Proxy, Server, end_connections, rows
from tuner.errors import RecordsLostError, UserError
from tuner.executors.in_process import InProcessExecutor
from tuner.records import connected, lease, retrying
from tuner.records import database as records
from tuner.records.database import ConnectionLostError, open_engine, transaction
from tuner.records.schema import study_table
from tuner.records.store import Store


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE", 0.5)
    monkeypatch.setattr(lease, "BEAT", 0.05)


class Disturbed(FakeEvaluator):
    """Before some of its answers something happens."""

    happens: Callable[[], object] = staticmethod(lambda: None)
    every: int = 2

    def answer(self, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
        if len(self.calls) % self.every == 1:
            self.happens()
        return super().answer(*arguments, **options)


def run(store: Store, happens: Callable[[], object] | None = None, every: int = 2) -> None:
    study = make_study(videos=4, per_video=2)
    begin(store, study)
    evaluator = Disturbed(study)
    evaluator.every = every
    if happens is not None:
        evaluator.happens = happens
    loop = make_loop(study, store, trials=3, unsolved=True, budget=0.3, race=True, above_budget=(4 / 3,))
    InProcessExecutor(evaluator).run(loop)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The records of an undisturbed run."""
    with Store.open(f"sqlite:///{tmp_path_factory.mktemp('calm')}/t.db") as store:
        run(store)
        return rows(store)


@pytest.mark.quick
def test_every_transaction_may_be_done_twice(
    expected: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the connection is lost after the commit, before it was confirmed."""
    lost = 0

    @contextmanager
    def unconfirmed(engine: Engine) -> Iterator[Connection]:
        nonlocal lost
        with transaction(engine) as connection:
            yield connection
        lost += 1
        if lost % 2:
            raise ConnectionLostError("server closed the connection unexpectedly")

    monkeypatch.setattr(connected, "transaction", unconfirmed)
    monkeypatch.setattr(retrying, "_FIRST_WAIT", 0.0)
    with Store.open(f"sqlite:///{tmp_path}/twice.db") as store:
        run(store)
        assert lost > 40
        assert rows(store) == expected
        store.archive("fake")
        identifier = store.archived("fake")[0].id
        store.restore("fake", identifier)
        assert store.archived("fake") == ()


def test_ended_connections_are_opened_again(
    postgresql: str, expected: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, the lease's with them, before every second batch."""
    monkeypatch.setattr(lease, "BEAT", 0.02)
    ended, said = [], list[str]()
    with Store.open(postgresql, owner="", say=said.append) as store, store.held("fake"):
        run(store, lambda: ended.append(end_connections(postgresql)))
        found = rows(store)
    assert sum(ended) > 4
    assert said == []
    assert found | {"adatp_lease": []} == expected


def test_a_restart_of_the_server_is_waited_for(
    server: Server, postgresql: str, expected: dict[str, list[Any]]
) -> None:
    said: list[str] = []

    def restart() -> None:
        server.stop("immediate")
        threading.Timer(1.0, server.start).start()

    with Store.open(postgresql, owner="", say=said.append) as store, store.held("fake"):
        run(store, restart, every=1000)
        found = rows(store)
    assert found | {"adatp_lease": []} == expected
    assert said[0].endswith(" does not answer; trying again for up to 5 minutes.")
    assert said[1].endswith(" answers again.")


def test_after_the_limit_one_sentence_says_how_to_go_on(
    server: Server, postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "PATIENCE", 0.3)
    with Store.open(postgresql, say=lambda _: None) as store:
        begin(store, make_study())
        server.stop()
        try:
            with pytest.raises(RecordsLostError, match=r"did not answer for .*: the same command") as lost:
                run(store)
        finally:
            server.start()
        assert lost.value.exit_code == 1
        run(store)
        assert all(trial.outcome or trial.pruned for trial in store.trials())


@pytest.fixture
def proxy(server: Server, postgresql: str, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """To the empty database; a server that is silent for some tenths of a second is taken for lost."""
    monkeypatch.setattr(records, "SILENCE", 0.5)
    monkeypatch.setitem(records._POSTGRESQL_LIMITS, "connect_timeout", 2)
    return Proxy(server.folder)


def test_a_server_that_falls_silent_is_waited_for(
    proxy: Proxy, expected: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections stay open, and it takes new ones."""
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(lease, "LEASE", 10.0)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        proxy.speak()

    url = f"postgresql://tuner@127.0.0.1:{proxy.port}/postgres"
    with Store.open(url, owner="", say=say) as store, store.held("fake"):
        run(store, lambda: proxy.silent(60.0), every=1000)
        found = rows(store)
    assert found | {"adatp_lease": []} == expected
    assert said[0].endswith(" does not answer; trying again for up to 5 minutes.")
    assert said[-1].endswith(" answers again.")


def test_silence_without_an_end_ends_in_a_sentence(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "PATIENCE", 0.5)
    with Store.open(f"postgresql://tuner@127.0.0.1:{proxy.port}/postgres", say=lambda _: None) as store:
        begin(store, make_study())
        proxy.silent(60.0)
        began = time.monotonic()
        with pytest.raises(RecordsLostError, match=r"did not answer for .*: the same command"):
            store.count_answers()
        assert time.monotonic() - began < 30


def test_a_long_answer_is_no_silence(proxy: Proxy) -> None:
    engine = open_engine(f"postgresql://tuner@127.0.0.1:{proxy.port}/postgres")
    rows = "SELECT repeat('x', 10000), pg_sleep(0.01) FROM generate_series(1, 80)"
    with transaction(engine) as connection:
        assert len(connection.exec_driver_sql(rows).all()) == 80
    with transaction(engine, silence=10) as connection:
        connection.exec_driver_sql("SELECT pg_sleep(0.8)")
    with pytest.raises(ConnectionLostError, match="silent"), transaction(engine) as connection:
        connection.exec_driver_sql("SELECT pg_sleep(0.8)")
    engine.dispose()


@pytest.mark.usefixtures("short_leases")
def test_the_second_driver_is_told_who_holds_the_study(postgresql: str) -> None:
    said: list[str] = []
    with Store.open(postgresql) as store, Store.open(postgresql, say=said.append) as other:
        assert store.holder("demo") is None
        with store.held("demo"):
            found = other.holder("demo")
            assert found is not None
            assert (found.pid, found.host) == (os.getpid(), socket.gethostname())
            with (
                pytest.raises(UserError, match=rf"is being run by process {os.getpid()} of "),
                other.held("demo"),
            ):
                pass
            with other.held("another"):
                pass
        assert store.holder("demo") is None
    assert said == [
        f"The study 'demo' is held by {found}; if that process is gone, this one takes over in 0 seconds."
    ]


@pytest.mark.usefixtures("short_leases")
def test_a_driver_that_lost_its_lease_writes_nothing(postgresql: str) -> None:
    with Store.open(postgresql) as first, Store.open(postgresql) as second:
        began = time.monotonic()
        with first.held("fake"):
            run(first)
            assert first._lease is not None
            first._lease._over.set()  # as a process that stands still
            before = rows(first)
            with second.held("fake"):
                assert time.monotonic() - began > 0.5
                assert rows(second)["adatp_trial"] == before["adatp_trial"]
                begin(second, make_study())
                with pytest.raises(RecordsLostError, match=r"no longer run by this process, .* runs it now"):
                    first.search(0.9, 7, "budget", 1)
                second.search(0.8, 7, "budget", 1)
            with pytest.raises(RecordsLostError, match="another process ran it in the meantime"):
                first.record({}, completed=None)
        searches = [search.budget for search in second.searches()]
    assert 0.8 in searches
    assert 0.9 not in searches


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.usefixtures("short_leases")
def test_a_lease_is_not_taken_in_the_middle_of_a_transaction(ends: bool, postgresql: str) -> None:
    """One that does not end, because its process stands still, is ended by the server."""
    with Store.open(postgresql) as first, Store.open(postgresql) as second, first.held("fake"):
        begin(first, make_study())
        assert first._lease is not None
        first._lease._over.set()
        time.sleep(lease.LEASE)
        taken = threading.Event()

        def take() -> None:
            with second.held("fake"):
                taken.set()

        def write() -> None:
            with first._writing() as connection:
                thread.start()
                assert taken.wait(0.3 if ends else 10) is not ends
                connection.execute(update(study_table).values(hash="written late"))

        thread = threading.Thread(target=take)
        if ends:
            write()
        else:
            with pytest.raises(ConnectionLostError, match="idle-in-transaction timeout"):
                write()
        assert taken.wait(10)
        thread.join()
        assert ("written late" in str(rows(second)["adatp_study"])) is ends


@pytest.mark.usefixtures("short_leases")
def test_of_several_that_begin_at_once_one_wins(postgresql: str) -> None:
    rounds, stores = 5, [Store.open(postgresql, say=lambda _: None) for _ in range(4)]
    together, inside, won = threading.Barrier(len(stores)), list[int](), list[int]()

    def begin_each(place: int) -> None:
        for _ in range(rounds):
            together.wait()
            try:
                with stores[place].held("fake"):
                    inside.append(place)
                    assert len(inside) == 1
                    won.append(place)
                    time.sleep(0.5)
                    inside.clear()
            except UserError:
                pass

    run_together([lambda place=place: begin_each(place) for place in range(len(stores))])  # type: ignore[misc]
    assert len(won) == rounds
    for store in stores:
        store.close()


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_eight_may_make_the_tables_of_an_empty_database(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/t.db" if backend == "sqlite" else request.getfixturevalue("postgresql")
    run_together([lambda: open_engine(url).dispose()] * 8)
    with Store.open(url) as store:
        run(store)
        assert store.count_answers() > 0


def run_together(works: list[Callable[[], object]]) -> None:
    """In threads; what they raise is raised."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.quick
def test_records_on_a_network_file_system_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disk:
        def __init__(self, mountpoint: object, fstype: str) -> None:
            self.mountpoint, self.fstype = str(mountpoint), fstype

    disks = [Disk("/", "ext4"), Disk(tmp_path / "here", "nfs4"), Disk(tmp_path / "here" / "disk", "xfs")]
    monkeypatch.setattr(records.psutil, "disk_partitions", lambda **_: disks)
    said: list[str] = []
    for folder in ("here", "here/disk", "hereafter"):
        Store.open(f"sqlite:///{tmp_path}/{folder}/t.db", say=said.append).close()
    (warning,) = said
    assert warning.startswith(f"The records {tmp_path}/here/t.db lie on a network file system (nfs4 at ")
