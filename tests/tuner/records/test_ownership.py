"""Several users on one database: each has studies of its own, whatever their names, and reads all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.tuner.fakes import FakeEvaluator, begin, make_loop, make_study, open_store
from tuner.cli.main import app
from tuner.errors import UserError
from tuner.executors.in_process import InProcessExecutor
from tuner.records import lease
from tuner.records.store import Store
from tuner.reporting.known import studies_here

CONTENT = {"v00.mp4"}


STUDY = make_study(videos=2, per_video=2)


def run(store: Store, trials: int, name: str = "fake") -> None:
    study = replace(STUDY, name=name)
    begin(store, study)
    InProcessExecutor(FakeEvaluator(study)).run(make_loop(study, store, trials=trials))


def test_each_owner_has_a_study_of_the_same_name(postgresql: str) -> None:
    with Store.open(postgresql, owner="anna") as anna, Store.open(postgresql, owner="ben") as ben:
        with anna.held("fake"), ben.held("fake"):  # at the same time
            run(anna, 2)
            assert ben.find("fake") is None
            assert ben.videos_that_tuned("fake", CONTENT) == set()
            asked = FakeEvaluator(STUDY)
            begin(ben, STUDY)
            InProcessExecutor(asked).run(make_loop(STUDY, ben, trials=2))
            # The same questions were answered before; the noise floor is each study's own.
            assert len(asked.calls) == 1
            assert [trial.outcome for trial in ben.trials()] == [trial.outcome for trial in anna.trials()]
            ben.archive("fake")
            assert ben.find("fake") is None
        assert len(anna.trials()) == 2
        assert anna.archived("fake") == ()
        identifier = ben.archived("fake")[0].id
        with pytest.raises(ValueError, match="'anna' has no study 'fake' with the number"):
            anna.restore("fake", identifier)
        assert ben.find("fake") is None
        assert [(item.name, item.owner, item.trials) for item in ben.in_use()] == [("fake", "anna", 2)]


def test_readers_find_the_study_of_others(postgresql: str) -> None:
    for owner in ("anna", "ben"):
        with Store.open(postgresql, owner=owner) as store:
            run(store, 1, f"of {owner}")
            run(store, 1, "of both")
    with Store.open(postgresql, create=False, owner="carl") as store:
        assert store.find("of anna") is not None
        assert (store.owner, len(store.trials())) == ("anna", 1)
    with (
        Store.open(postgresql, create=False, owner="carl") as store,
        pytest.raises(UserError, match=r"studies 'of both' of anna and ben, none of carl: name the owner"),
    ):
        store.find("of both")
    with Store.open(postgresql, create=False, owner="ben") as store:
        assert store.find("of both") is not None
        assert store.owner == "ben"
    # A writer never takes another's for its own.
    with Store.open(postgresql, owner="carl") as store:
        assert store.find("of anna") is None
        with pytest.raises(UserError, match=r"no records of carl, but of anna, in .* TUNER_OWNER names"):
            store.require("of anna")


def test_the_command_line_tells_owners_apart(
    postgresql: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with Store.open(postgresql, owner="anna") as store:
        run(store, 1)
        with store.held("fake"):
            assert (
                "1 trials, run by process"
                in {item.owner: item.records for item in studies_here(postgresql)}["anna"]
            )
    call = CliRunner(env={"TUNER_OWNER": "ben", "TUNER_DATABASE": postgresql, "COLUMNS": "200"}).invoke
    assert "anna" in call(app, ["list"]).output
    assert call(app, ["status", "--study", "fake", "--json"]).exit_code == 0
    for command in ("archive", "unquarantine"):
        refused = call(app, [command, "--study", "fake"]).exception
        assert isinstance(refused, UserError)
        assert "no records of ben, but of anna," in str(refused)
    with Store.open(postgresql, owner="ben") as store:
        run(store, 1)
    listed = json.loads(call(app, ["list", "--json"]).output)
    found = {(entry["name"], entry["owner"], entry["records"]) for entry in listed}
    assert {("fake", "anna", "1 trials"), ("fake", "ben", "1 trials")} < found


def test_records_older_than_owners_belong_to_the_first_who_runs_them(postgresql: str) -> None:
    with Store.open(postgresql, owner="") as store:
        run(store, 2, "old")
    with Store.open(postgresql, create=False, owner="anna") as store:
        assert store.find("old") is not None
    for owner, trials in (("anna", 2), ("ben", None)):
        with Store.open(postgresql, owner=owner) as store, store.held("old"):
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
    postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_OWNER", "team")
    with Store.open(postgresql) as store:
        assert store.owner == "team"
    monkeypatch.delenv("TUNER_OWNER")
    monkeypatch.setenv("LOGNAME", "anna")
    with Store.open(postgresql) as store:
        assert store.owner == "anna"
