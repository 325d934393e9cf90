"""Several users on one database: each has studies of its own, whatever their names, and reads all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tuner.fakes import FakeEvaluator, begin, make_loop, make_study, open_store
from tests.tuner.records.servers import postgresql
from tuner.errors import UserError
from tuner.executors.in_process import InProcessExecutor
from tuner.records.store import Store

CONTENT = {"v00.mp4"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    yield from postgresql()


def run(store: Store, trials: int, name: str = "fake") -> None:
    study = replace(make_study(), name=name)
    begin(store, study)
    InProcessExecutor(FakeEvaluator(study)).run(make_loop(study, store, trials=trials))


def test_each_owner_has_a_study_of_the_same_name(server: str) -> None:
    with Store.open(server, owner="anna") as anna, Store.open(server, owner="ben") as ben:
        with anna.held("fake"), ben.held("fake"):  # at the same time
            run(anna, 2)
            assert ben.find("fake") is None
            assert ben.videos_that_tuned("fake", CONTENT) == set()
            asked = FakeEvaluator(make_study())
            begin(ben, make_study())
            InProcessExecutor(asked).run(make_loop(make_study(), ben, trials=2))
            # The same questions were answered before; the noise floor is each study's own.
            assert len(asked.calls) == 1
            assert [one.outcome for one in ben.trials()] == [one.outcome for one in anna.trials()]
            ben.archive("fake")
            assert ben.find("fake") is None
        assert len(anna.trials()) == 2
        assert anna.archived("fake") == ()
        identifier = ben.archived("fake")[0].id
        anna.restore("fake", identifier)  # which is not hers
        assert ben.find("fake") is None
        assert [(one.name, one.owner, one.trials) for one in ben.in_use()] == [("fake", "anna", 2)]


def test_readers_find_the_study_of_others(server: str) -> None:
    for owner in ("anna", "ben"):
        with Store.open(server, owner=owner) as store:
            run(store, 1, f"of {owner}")
            run(store, 1, "of both")
    with Store.open(server, create=False, owner="carl") as store:
        assert store.find("of anna") is not None
        assert (store.owner, len(store.trials())) == ("anna", 1)
    with (
        Store.open(server, create=False, owner="carl") as store,
        pytest.raises(UserError, match=r"studies 'of both' of anna and ben, none of carl: name the owner"),
    ):
        store.find("of both")
    with Store.open(server, create=False, owner="ben") as store:
        assert store.find("of both") is not None
        assert store.owner == "ben"
    # A writer never takes another's for its own.
    with Store.open(server, owner="carl") as store:
        assert store.find("of anna") is None


def test_records_older_than_owners_belong_to_the_first_who_runs_them(server: str) -> None:
    with Store.open(server, owner="") as store:
        run(store, 2, "old")
    with Store.open(server, create=False, owner="anna") as store:
        assert store.find("old") is not None
    for owner, trials in (("anna", 2), ("ben", None)):
        with Store.open(server, owner=owner) as store, store.held("old"):
            record = store.find("old")
            assert (None if record is None else len(store.trials())) == trials
            assert store.videos_that_tuned("old", CONTENT) == (CONTENT if trials else set())


@pytest.mark.quick
def test_an_sqlite_file_has_no_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner in ("anna", "ben"):
        monkeypatch.setenv("TUNER_OWNER", owner)
        with open_store(tmp_path / "t.db", make_study()) as store:
            assert store.owner == ""
            assert len(store.in_use()) == 1


def test_the_owner_is_named_by_the_environment_or_the_user(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_OWNER", "team")
    with Store.open(server) as store:
        assert store.owner == "team"
    monkeypatch.delenv("TUNER_OWNER")
    monkeypatch.setenv("LOGNAME", "anna")
    with Store.open(server) as store:
        assert store.owner == "anna"
