"""The same records on PostgreSQL, on a server of this test's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.tuner.fakes import FakeEvaluator, begin, make_loop, make_study, open_store
from tuner.executors.in_process import InProcessExecutor
from tuner.records.database import open_engine
from tuner.records.schema import metadata
from tuner.records.store import Store


def table(store: Store) -> list[Any]:
    trials = [
        replace(trial, search=0, outcome=trial.outcome and replace(trial.outcome, seconds=0))
        for trial in store.trials()
    ]
    infeasible = [replace(proposal, search=0) for proposal in store.infeasible()]
    return [
        trials,
        infeasible,
        [outcome.accuracy for outcome in store.measured().values()],
        store.count_answers(),
    ]


def test_a_run_leaves_the_same_records_as_on_sqlite(postgresql: str, tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        InProcessExecutor(FakeEvaluator(study)).run(make_loop(study, store, unsolved=True, budget=0.3))
        expected = table(store)
    for trials in (2, 6):
        with Store.open(postgresql) as store:
            begin(store, study, archive=trials == 2)
            loop = make_loop(study, store, unsolved=True, budget=0.3, trials=trials)
            InProcessExecutor(FakeEvaluator(study)).run(loop)
    with Store.open(postgresql) as store:
        begin(store, study)
        found = table(store)
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    # What was best after two trials was measured too.
    assert set(expected[2]) <= set(found[2])


def test_a_password_reaches_the_server_and_nothing_else(postgresql: str) -> None:
    study, url = make_study(), postgresql.replace("tuner@", "tuner:pass-1-word@")
    with Store.open(url) as store, store.held(study.name):
        store.archive(study.name)
        begin(store, study)
        InProcessExecutor(FakeEvaluator(study)).run(make_loop(study, store, trials=1))
        kept = [store.url, str(store.holder(study.name))]
    engine = open_engine(url)
    with engine.connect() as connection:
        for table in metadata.tables.values():
            kept += [str(row) for row in connection.execute(table.select())]
        kept += connection.exec_driver_sql("SELECT application_name FROM pg_stat_activity").scalars()
    engine.dispose()
    assert len(kept) > 20
    assert "pass-1-word" not in "".join(map(str, kept))


def test_a_quarantine_is_one_transaction_there_too(postgresql: str) -> None:
    study = make_study()
    with Store.open(postgresql) as store:
        begin(store, study, archive=True)
        InProcessExecutor(FakeEvaluator(study)).run(make_loop(study, store, trials=2))
        InProcessExecutor(FakeEvaluator(study, hungry="v00.mp4-q0")).run(make_loop(study, store, trials=4))
        assert list(store.quarantined()) == ["v00.mp4-q0"]
        assert [trial.outcome.questions for trial in store.trials() if trial.outcome] == [11] * 4
