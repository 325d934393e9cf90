"""Databases of other versions and of other programs: migrated by writers, left alone by readers."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import DateTime, MetaData, create_engine, inspect

from tests.tuner.fakes import FakeEvaluator, make_loop, make_planner, make_study, open_store
from tuner.errors import UserError
from tuner.executors.in_process import InProcessExecutor
from tuner.records import database as records
from tuner.records.database import VERSION_TABLE, open_engine, parse_url
from tuner.records.definition import recorded_study
from tuner.records.schema import SCHEMA_REVISION, metadata
from tuner.records.store import Store
from tuner.reporting.from_records import status_of

pytestmark = pytest.mark.quick

# Made by commit ae20304 with this module's `make_study` and `FakeEvaluator`: an archived study, and one with
# three searches, pruned and unfinished trials, a comparison, single questions asked beside them, and a
# question in quarantine. The JSON is what that commit read from it.
DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((DATA / "records_version_2.json.gz").read_bytes()))
    return found


@pytest.fixture
def old(tmp_path: Path) -> Path:
    file = tmp_path / "old.db"
    file.write_bytes(gzip.decompress((DATA / "records_version_2.db.gz").read_bytes()))
    return file


def read(url: str) -> dict[str, Any]:
    """What the records hold, in the form of `expected`."""
    study = make_study()
    planner = make_planner(study)
    with Store.open(url, create=False) as store:
        record = store.require("fake")
        trials = [
            {
                "number": trial.number,
                "search": trial.search,
                "configuration": trial.configuration.as_dict(),
                # Version 2 kept them; they follow from the configuration.
                "fingerprints": list(planner.fingerprints(trial.configuration.build())),
                "binding_ratio": trial.binding_ratio,
                "purpose": trial.purpose,
                "pruned": trial.pruned and [trial.pruned.by, trial.pruned.videos],
                "outcome": trial.outcome and asdict(trial.outcome),
            }
            for trial in store.trials()
        ]
        ids = [question.id for question in planner.questions]
        baseline = store.answers(zip(ids, planner.fingerprints(None), strict=True))
        measured = list(store.measured())
        timed = store.timed(measured)
        best = next(iter(timed))
        found: dict[str, Any] = {
            "trials": trials,
            "searches": [asdict(search) for search in store.searches()],
            "infeasible": [
                [
                    proposal.search,
                    proposal.number,
                    proposal.attempt,
                    proposal.configuration.as_dict(),
                    proposal.proposed,
                    proposal.binding_ratio,
                ]
                for proposal in store.infeasible()
            ],
            "measured": [
                [configuration.as_dict(), asdict(outcome)]
                for configuration, outcome in store.measured().items()
            ],
            "answers": [list(answer) for answer in store.stored_answers()],
            "baseline": {question: asdict(item) for (question, _), item in baseline.items()},
            "quarantined": store.quarantined(),
            "noise": asdict(store.noise()),  # type: ignore[arg-type]
            "cache_use": asdict(store.cache_use()),  # type: ignore[arg-type]
            "selections": [list(selection) for selection in store.selections()],
            "timed": asdict(timed[best]),
            "serving": asdict(store.serving(best)),  # type: ignore[arg-type]
        }
        assert record.skipped[0]["name"] == "bad.mp4"
        assert [question.id for question in recorded_study(record).questions] == ids
        assert store.videos_that_tuned("fake", {"content of v00.mp4", "content of v01.mp4"}) == {
            "content of v00.mp4"
        }
        archived = store.archived("fake")
        assert [study_.trials for study_ in archived] == [2]
        status = status_of(study, store, record)
    found["counts"] = {
        "answers": status.answers,
        "trials_completed": status.trials_completed,
        "trials_unfinished": status.trials_unfinished,
        "stopped": status.trials_pruned,
        "baseline": [status.baseline_questions, status.baseline_answered],
    }
    found["searches_status"] = [
        [
            search.budget,
            search.seed,
            search.trials_asked,
            search.trials_completed,
            search.infeasible,
            search.trials_pruned,
        ]
        for search in status.searches
    ]
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def test_records_of_version_2_are_the_same_after_their_migration(old: Path, expected: dict[str, Any]) -> None:
    url = f"sqlite:///{old}"
    with Store.open(url):
        pass
    found = read(url)
    for what, values in expected.items():
        assert found[what] == values, what
    with sqlite3.connect(old) as connection:
        names = [
            item for (item,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        ]
        assert all(name.startswith("adatp_") for name in names)
        assert "adatp_schema" not in names
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_what_answering_took_is_counted_for_them(old: Path) -> None:
    with Store.open(f"sqlite:///{old}") as store:
        store.require("fake")
        use, stored = store.model_use(), store.stored_answers()
        assert sum(item.answers for item in use.values()) == len(stored)
        assert sum(item.seconds for item in use.values()) == pytest.approx(
            sum(name.seconds for name in stored)
        )
        assert use["baseline"].answers == sum(not name.kept for name in stored)
        assert use["held_out"].answers > 0
        by_trial = store.trial_use()
        assert sum(trial.answers for trial in by_trial.values()) == use["trial"].answers
        complete = {
            trial.number: trial.outcome.questions for trial in store.trials() if trial.outcome is not None
        }
        assert all(item.answers <= complete.get(number, item.answers) for number, item in by_trial.items())
        assert by_trial[0].answers == complete[0]


def test_they_are_the_same_on_postgresql(postgresql: str, old: Path, expected: dict[str, Any]) -> None:
    source, target = create_engine(f"sqlite:///{old}"), create_engine(parse_url(postgresql))
    tables = MetaData()
    with source.connect() as here, target.begin() as there:
        tables.reflect(here)
        for column in (column for table in tables.sorted_tables for column in table.columns):
            # What SQLite calls otherwise.
            column.type = column.type.as_generic()
            if isinstance(column.type, DateTime):
                column.type = DateTime(timezone=True)
        for table in tables.sorted_tables:
            table.indexes.clear()  # of rows in use alone, which goes by another word there
        tables.create_all(there)
        for table in tables.sorted_tables:
            if rows := [dict(row._mapping) for row in here.execute(table.select())]:
                there.execute(table.insert(), rows)
    source.dispose()
    target.dispose()
    with Store.open(postgresql):
        pass
    found = read(postgresql)
    for what, values in expected.items():
        assert found[what] == values, what
    # Ids go on behind those that were moved.
    with Store.open(postgresql) as store, store.held("fake"):
        store.find("fake")
        assert store.search(0.9, 7, "budget", 1).id > max(search.id for search in store.searches()[:-1])


def test_a_run_goes_on_after_the_migration(old: Path) -> None:
    study = make_study()
    with Store.open(f"sqlite:///{old}") as store:
        store.find("fake")
        before = store.count_answers()
        evaluator = FakeEvaluator(study)
        InProcessExecutor(evaluator).run(make_loop(study, store, trials=8, race=True, above_budget=(4 / 3,)))
        assert all(not trial.unfinished for trial in store.trials())
        # Of configurations that were not finished alone.
        assert all(method is not None for method, _ in evaluator.calls)
        assert store.count_answers() - before == sum(len(questions) for _, questions in evaluator.calls)


def test_looks_at_the_held_out_split_move_too(old: Path) -> None:
    """Version 2 came to have them after ae20304."""
    with sqlite3.connect(old) as connection:
        connection.executescript(
            "CREATE TABLE look (id INTEGER PRIMARY KEY, search_id INTEGER, max_drop VARCHAR(32), "
            "trials INTEGER, trial_id INTEGER, verdict VARCHAR(16), created DATETIME);"
            "INSERT INTO look SELECT 5, s.search_id, '0.02', s.trials, s.trial_id, 'shown', s.created "
            "FROM selection AS s ORDER BY s.id DESC LIMIT 1;"
        )
    with Store.open(f"sqlite:///{old}") as store:
        store.find("fake")
        ((search, look),) = store.looks()
        chosen = store.selections()[-1]
        assert (search, look.trials, look.trial) == chosen
        assert (look.verdict, look.max_drop, look.candidates) == ("shown", "0.02", (look.trial,))


def test_two_writers_may_migrate_at_once(old: Path) -> None:
    url, errors = f"sqlite:///{old}", list[BaseException]()

    def open_it() -> None:
        try:
            open_engine(url).dispose()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with Store.open(url, create=False) as store:
        assert store.require("fake").questions


def test_a_migration_that_fails_leaves_the_old_records(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, url = dump(old), f"sqlite:///{old}"
    with monkeypatch.context() as broken:
        broken.setattr("sqlalchemy.sql.schema.MetaData.drop_all", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Store.open(url)
    assert dump(old) == before
    Store.open(url).close()


def test_a_reader_neither_migrates_nor_writes(old: Path) -> None:
    url, before = f"sqlite:///{old}", old.read_bytes()
    with pytest.raises(UserError, match=r"tables of version 2, but .* `tuner run` migrates them"):
        Store.open(url, create=False)
    assert old.read_bytes() == before
    assert list(old.parent.iterdir()) == [old]
    Store.open(url).close()
    with Store.open(url, create=False) as store, pytest.raises(Exception, match="readonly database"):
        store.archive("fake")


@pytest.mark.parametrize("create", [True, False])
def test_another_programs_database_is_refused_as_it_is(
    create: bool, empty_database: Path, tmp_path: Path
) -> None:
    file = shutil.copy(empty_database, tmp_path / "mlflow.db")
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"tables of another program \(alembic_version, "):
        Store.open(f"sqlite:///{file}", create=create)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("create", [True, False])
def test_tables_of_a_later_version_are_not_touched(create: bool, tmp_path: Path) -> None:
    file = tmp_path / "t.db"
    open_store(file, make_study()).close()
    with sqlite3.connect(file) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '0999'")
    connection.close()
    with pytest.raises(UserError, match=r"tables of version 0999, but this tuner reads up to"):
        Store.open(f"sqlite:///{file}", create=create)


def test_an_empty_database_is_none_to_read_from(tmp_path: Path) -> None:
    (tmp_path / "t.db").touch()
    with pytest.raises(UserError, match="there are no records in"):
        Store.open(f"sqlite:///{tmp_path}/t.db", create=False)


def test_records_are_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is mounted read-only: not even the file that readers of a WAL share can be made."""
    file = tmp_path / "t.db"
    open_store(file, make_study()).close()
    connect = sqlite3.connect

    class NoRoom(sqlite3.Connection):
        def execute(self, *_: Any) -> sqlite3.Cursor:
            raise sqlite3.OperationalError("unable to open database file")

    def on_that_disk(address: str, **options: Any) -> sqlite3.Connection:
        return connect(address, factory=sqlite3.Connection if "immutable" in address else NoRoom, **options)

    monkeypatch.setattr(records.sqlite3, "connect", on_that_disk)
    with Store.open(f"sqlite:///{file}", create=False) as store:
        assert store.require("fake").questions
    # A log that was not taken over yet belongs to a writer: without it, what is read may be half of it.
    (tmp_path / "t.db-wal").write_bytes(b"left by a writer")
    with pytest.raises(UserError, match="cannot be opened: unable to open database file"):
        Store.open(f"sqlite:///{file}", create=False)


def test_the_migrations_end_with_the_tables_of_the_schema(tmp_path: Path) -> None:
    folder = Path(records.__file__).with_name("migrations")
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_REVISION
    engine = open_engine(f"sqlite:///{tmp_path}/t.db")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
        assert {"adatp_lease", "adatp_look"} <= set(inspect(connection).get_table_names())
    engine.dispose()


def dump(file: Path) -> list[str]:
    with sqlite3.connect(file) as connection:
        return list(connection.iterdump())
