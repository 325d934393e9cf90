from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError

from pipeline.break_even import Serving
from pipeline.methods import AdaTP, FastV
from tests.tuner.fakes import (
    FakeEvaluator,
    begin,
    make_loop,
    make_planner,
    make_study,
    open_store,
    study_record,
)
from tuner.errors import DiskFullError, UserError
from tuner.executors.in_process import InProcessExecutor
from tuner.records import database as records
from tuner.records.answers import look_up
from tuner.records.database import default_database
from tuner.records.measurements import CacheUse, MeasuredServing, Profiled, Timed
from tuner.records.store import Store
from tuner.records.values import InfeasibleRecord, RecordedAnswer
from tuner.statistics.values import Noise
from tuner.study.values import Configuration, Outcome

pytestmark = pytest.mark.quick

OUTCOME = Outcome("tune", 12, 4, 0.75, 0.3, 0.4, 0.27, 0.31, 0.33, 2, 1, -0.1, 3.5)
KNOBS = AdaTP(0.9, 0.4, 1.2, 0.97, 0.123456789012345678)


def answer(question: str, text: str = "red") -> RecordedAnswer:
    return RecordedAnswer(question, text, 0, (-0.1, -1 / 3), -0.1, (256, 12), 0.01)


def propose(store: Store, number: int, method: Any = KNOBS) -> Configuration:
    configuration = Configuration.from_method(method)
    search = store.search(0.3, 0, "budget", 40)
    store.propose(search, number, configuration, 0.299)
    return configuration


def test_a_study_comes_back_as_it_was_written(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        found = store.find("fake")
    assert found is not None
    planner = make_planner(study)
    assert [question.id for question in found.questions] == [question.id for question in planner.questions]
    for stored, item in zip(found.questions, planner.questions, strict=True):
        assert (stored.video, stored.split) == (item.video, item.split)
        assert stored.layout.text_after == item.layout.text_after
        np.testing.assert_array_equal(stored.layout.frame_similarity, item.layout.frame_similarity)
        np.testing.assert_array_equal(stored.layout.frame_relevance, item.layout.frame_relevance)


@pytest.mark.parametrize("method", [KNOBS, replace(KNOBS, deduplicate="drop"), FastV(0.1)])
def test_a_trial_comes_back_bit_for_bit(tmp_path: Path, method: Any) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        configuration = propose(store, 0, method)
    with open_store(tmp_path / "t.db", make_study()) as store:
        (trial,) = store.trials()
        assert trial.configuration == configuration
        assert trial.configuration.build() == method
        assert (trial.binding_ratio, trial.outcome) == (0.299, None)


def test_a_trial_number_is_unique(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        propose(store, 0)
        propose(store, 0)
        assert len(store.trials()) == 1
        with pytest.raises(ValueError, match="Trial 0 of this study is another configuration"):
            propose(store, 0, FastV(0.1))


def test_answers_are_found_by_question_and_fingerprint(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        one, two = ("v00.mp4-q0", "a" * 32), ("v01.mp4-q1", "b" * 32)
        store.record({one: answer(one[0]), two: answer(two[0], "blue")})
        crossed = (one[0], two[1])
        assert store.answers([one, two, crossed]) == {one: answer(one[0]), two: answer(two[0], "blue")}


def test_recording_again_changes_nothing(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        key = ("v00.mp4-q0", "a" * 32)
        store.record({key: answer(key[0])})
        store.record({key: answer(key[0], "another text")})
        assert store.answers([key])[key].text == "red"
        assert store.count_answers() == 1


def test_thousands_of_answers_are_found_at_once(tmp_path: Path) -> None:
    study = make_study(videos=100, per_video=12)
    with open_store(tmp_path / "t.db", study) as store:
        pairs = [(question.id, f"{copy:032x}") for question in study.questions for copy in range(8)]
        store.record({pair: answer(pair[0]) for pair in pairs})
        assert store.answers(pairs).keys() == set(pairs)


def test_an_outcome_is_written_with_the_last_answers_and_once(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        configuration = propose(store, 0)
        key = ("v00.mp4-q0", "a" * 32)
        held_out = replace(OUTCOME, split="held_out")
        store.record({key: answer(key[0])}, completed=(0, OUTCOME), measured=(configuration, held_out))
        store.record({}, completed=(0, replace(OUTCOME, accuracy=0)), measured=(configuration, OUTCOME))
        assert store.trials()[0].outcome == OUTCOME
        assert store.measured() == {configuration: held_out}


def test_a_rung_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        propose(store, 0)
        key = ("v00.mp4-q0", "a" * 32)
        broken = replace(OUTCOME, accuracy=object())  # type: ignore[arg-type]
        store.count_cache_use(CacheUse(prefixes_built=1))
        with pytest.raises(Exception, match="must be a string or a real number"):
            store.record({key: answer(key[0])}, completed=(0, broken))
        assert store.count_answers() == 0
        assert store.cache_use() is None


def test_the_same_search_asked_for_more_trials_stays_one_search(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        first = store.search(0.3, 0, "budget", 40)
        assert store.search(0.3, 0, "budget", 60).id == first.id
        assert store.search(0.3, 0, "budget", 20).trials == 20
        assert store.search(0.25, 0, "budget", 40).id != first.id
        assert [search.trials for search in store.searches()] == [60, 40]


def test_the_search_asked_for_last_comes_last(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        for budget in (0.3, 0.25, 0.3):
            store.search(budget, 0, "budget", 40)
        assert [search.budget for search in store.searches()] == [0.25, 0.3]


def test_refusals_keep_the_proposed_point(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        search = store.search(0.3, 0, "budget", 40)
        refusal = InfeasibleRecord(search.id, 3, 1, Configuration.from_method(KNOBS), {"target": 1 / 3}, 0.4)
        store.record_infeasible(refusal)
        assert store.infeasible() == (refusal,)


def test_selections_name_the_chosen_trial(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        for number in range(3):
            propose(store, number)
        search = store.search(0.3, 0, "budget", 40)
        store.select(search, 3, 2)
        store.select(search, 3, 2)
        assert store.selections() == ((search.id, 3, 2),)


def test_an_archived_study_leaves_its_name_and_keeps_its_records(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        propose(store, 0)
        begin(store, make_study(), archive=True)
        assert store.study_names() == ("fake",)
        assert store.trials() == ()
        propose(store, 0)
    with open_store(tmp_path / "t.db", make_study()) as store:
        assert len(store.trials()) == 1
    rows = sqlite3.connect(tmp_path / "t.db").execute("SELECT count(*) FROM adatp_trial").fetchone()
    assert rows == (2,)


def test_studies_of_one_database_do_not_mix(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        propose(store, 0)
    with open_store(tmp_path / "t.db", replace(make_study(), name="other")) as store:
        assert store.trials() == ()
        assert store.study_names() == ("fake", "other")


def test_a_reader_does_not_wait_for_the_writer(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        writer = sqlite3.connect(tmp_path / "t.db")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM adatp_study_question")
        assert store.find("fake") is not None
        writer.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "is a URL like"),
        ("mysql://host/name", "SQLite or PostgreSQL, but got 'mysql'"),
        ("unknown://host/name", "SQLite or PostgreSQL, but got 'unknown'"),
    ],
)
def test_a_url_that_will_not_do_is_the_users_mistake(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Store.open(url)


def test_a_file_that_is_no_database_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "t.db").write_text("this is no database, whatever its name says" * 100)
    with pytest.raises(UserError, match=r"t\.db cannot be opened: file is not a database"):
        Store.open(f"sqlite:///{tmp_path}/t.db")


def test_reading_records_that_are_not_there_makes_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`tuner run` makes them"):
        Store.open(f"sqlite:///{tmp_path}/sub/t.db", create=False)
    assert not (tmp_path / "sub").exists()


def test_a_password_is_never_shown() -> None:
    with pytest.raises(UserError) as caught:
        Store.open("postgresql://someone:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)


def test_a_missing_database_driver_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")

    monkeypatch.setattr("tuner.records.database.create_engine", missing)
    with pytest.raises(UserError, match=r"needs the package psycopg: pip install 'adatp-tuner\[cluster\]'"):
        Store.open("postgresql://someone:secret@127.0.0.1:1/none")


def test_the_default_database_lies_in_the_working_directory() -> None:
    assert default_database("demo") == "sqlite:///.tuner/demo/tuner.db"


def test_what_a_server_pays_comes_back_by_configuration_and_machine(tmp_path: Path) -> None:
    configuration, other = Configuration.from_method(KNOBS), Configuration.from_method(FastV(0.1))
    found = MeasuredServing(
        "a CPU", 5, 4, Serving(1, 0, 3, 0, 1 / 3), Serving(1, 2, 1, 1, 5), Profiled("q", 10, 4, 10, 4)
    )
    elsewhere = replace(found, device="a GPU", value_bytes=2, profiled=None)
    with open_store(tmp_path / "t.db", make_study()) as store:
        assert store.serving(configuration) is None
        store.record_serving(configuration, "here", found)
        store.record_serving(configuration, "here", elsewhere)
        assert store.serving(configuration) == store.serving(configuration, "here") == found
        assert store.serving(configuration, "there") is store.serving(other) is None
        store.record_serving(configuration, "there", elsewhere)
        assert store.serving(configuration) == elsewhere


def test_what_the_caches_did_is_written_with_the_answers_and_adds_up(tmp_path: Path) -> None:
    file, study = tmp_path / "t.db", make_study()
    one, two = (question.id for question in study.questions[:2])
    first, second = CacheUse(1, 2, 3, 4, 5), CacheUse(features_read=10, prefixes_built=20)
    with open_store(file, study) as store:
        assert store.cache_use() is None
        store.count_cache_use(first)
        assert store.cache_use() is None
        store.record({(one, "0" * 32): answer(one)})
        assert store.cache_use() == first
    with open_store(file, study) as store:
        store.count_cache_use(second)
        store.count_cache_use(second)
        store.record_noise(Noise(1, 1, 0, 0.0, 0.0))
        store.record({(two, "0" * 32): answer(two)})
        assert store.cache_use() == first + second + second == CacheUse(1, 22, 3, 4, 45)
        begin(store, study, archive=True)
        assert store.cache_use() is None


def test_what_encoding_took_is_written_with_the_study(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/t.db") as store:
        store.count_cache_use(CacheUse(features_computed=8))
        begin(store, make_study())
        assert store.cache_use() == CacheUse(features_computed=8)


def test_a_quarantined_question_keeps_its_first_reason(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        store.quarantine("v02.mp4-q1", "died twice")
        store.quarantine("v00.mp4-q0", "out of memory")
        store.quarantine("v02.mp4-q1", "again")
    with open_store(tmp_path / "t.db", make_study()) as store:
        assert store.quarantined() == {"v02.mp4-q1": "died twice", "v00.mp4-q0": "out of memory"}
        assert list(store.quarantined()) == ["v02.mp4-q1", "v00.mp4-q0"]


def test_a_quarantine_replaces_outcomes_that_are_there_and_makes_none(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        done, _ = propose(store, 0), propose(store, 1)
        store.record({}, completed=(0, OUTCOME))
        held_out = replace(OUTCOME, split="held_out")
        store.record({}, measured=(done, held_out))
        less = replace(OUTCOME, questions=11, accuracy=0.5)
        store.quarantine(
            "v02.mp4-q1", "died", {0: less, 1: less}, {done: replace(less, split="held_out", questions=10)}
        )
        assert [trial.outcome for trial in store.trials()] == [less, None]
        assert store.measured() == {done: replace(less, split="held_out", questions=10)}


@pytest.mark.parametrize("pages", [2, 5, 20])
def test_tables_that_were_half_made_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    """A disk that is full, or a process that is killed, while an empty database gets its tables."""
    prepare = records._prepare_sqlite

    def prepare_small(engine: Any) -> None:
        prepare(engine)

        @event.listens_for(engine, "connect")
        def _limit(connection: Any, _: object) -> None:
            connection.execute(f"PRAGMA max_page_count={pages}")

    with monkeypatch.context() as small:
        small.setattr(records, "_prepare_sqlite", prepare_small)
        with pytest.raises(DiskFullError):
            Store.open(f"sqlite:///{tmp_path}/t.db")
    with open_store(tmp_path / "t.db", make_study()) as store:
        assert store.study_names() == ("fake",)


def test_a_full_disk_is_one_message_and_the_same_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself says so: the database may not grow beyond what it has after the first answers."""
    study = make_study()

    def run(path: Path) -> list[object]:
        with open_store(path, study) as store:
            InProcessExecutor(FakeEvaluator(study)).run(make_loop(study, store))
            return [
                [(trial.configuration, trial.outcome and trial.outcome.accuracy) for trial in store.trials()],
                list(store.measured()),
                store.count_answers(),
            ]

    path = tmp_path / "t.db"
    open_store(path, study).close()
    with sqlite3.connect(path) as database:
        pages = database.execute("PRAGMA page_count").fetchone()[0]
    prepare = records._prepare_sqlite

    def prepare_small(engine: Any) -> None:
        prepare(engine)

        @event.listens_for(engine, "connect")
        def _limit(connection: Any, _: object) -> None:
            connection.execute(f"PRAGMA max_page_count={pages + 4}")

    with monkeypatch.context() as small:
        small.setattr(records, "_prepare_sqlite", prepare_small)
        with pytest.raises(
            DiskFullError, match=r"t\.db: database or disk is full. Everything recorded is kept"
        ):
            run(path)
        with open_store(path, study) as store:
            assert 0 < store.count_answers() < 100
    assert run(path) == run(tmp_path / "undisturbed.db")


def test_a_servers_full_disk_is_told_in_one_line() -> None:
    said = psycopg_error("53100", "could not extend file: No space left on device\nHINT:  Check free space.")
    with (
        pytest.raises(DiskFullError, match=r"No space left on device\. Everything recorded is kept"),
        records.transaction(create_engine("sqlite://")),
    ):
        raise said


def psycopg_error(state: str, text: str) -> OperationalError:
    """As SQLAlchemy wraps it."""
    error = Exception(text)
    error.sqlstate = state  # type: ignore[attr-defined]
    return OperationalError("INSERT", {}, error)


def test_times_side_by_side_are_those_measured_last_on_a_machine(tmp_path: Path) -> None:
    one, other = Configuration.from_method(KNOBS), Configuration.from_method(FastV(0.1))
    first, second = Timed("a CPU", 12, 0.02, 0.05), Timed("a CPU", 10, 0.03, 0.06)
    with open_store(tmp_path / "t.db", make_study()) as store:
        assert store.timed([one, other]) == {}
        store.record_timed("a", {one: first, other: first})
        store.record_timed("a", {one: second})
        store.record_timed("b", {other: second})
    with open_store(tmp_path / "t.db", make_study()) as store:
        assert store.timed([one, other], "a") == {one: second, other: first}
        assert store.timed([one, other], "b") == {other: second}
        assert store.timed([one, other]) == {one: second, other: second}
        assert store.timed([one]) == {one: second}


def test_looks_are_added_and_none_is_changed(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store:
        search = store.search(0.3, 0, "budget", 40)
        store.record_look(search, 5, 2, "shown", level=0.05, candidates=(2, 4))
        # A run that is repeated looks at nothing new.
        store.record_look(search, 5, 2, "shown", level=0.05, candidates=(2, 4))
        store.record_look(search, 9, 7, "untested", level=0.0125)
        store.record_look(search, 5, 2, "shown", level=0.05, candidates=(2, 4))
        looks = [look for _, look in store.looks()]
        assert [(look.trials, look.level, look.candidates) for look in looks] == [
            (5, 0.05, (2, 4)),
            (9, 0.0125, ()),
            (5, 0.05, (2, 4)),
        ]
        begin(store, make_study(), archive=True)
        assert [look for _, look in store.looks()] == looks
    with open_store(tmp_path / "t.db", replace(make_study(), name="other")) as store:
        assert store.looks() == ()


def test_the_same_question_asked_twice_is_one_prompt(tmp_path: Path) -> None:
    study = make_study()
    twice = replace(study, questions=(*study.questions, replace(study.questions[0], id="again")))
    with open_store(tmp_path / "t.db", twice) as store:
        one = ("v00.mp4-q0", "a" * 32)
        store.record({one: answer("v00.mp4-q0")})
        found = store.answers([one, ("again", "a" * 32)])
        assert found == {one: answer("v00.mp4-q0"), ("again", "a" * 32): answer("again")}
        assert store.count_answers() == 1


def test_what_reports_need_belongs_to_one_definition(tmp_path: Path) -> None:
    study, configuration = make_study(), Configuration.from_method(KNOBS)
    with open_store(tmp_path / "t.db", study) as store:
        store.record_inspection(configuration, b"first")
        store.record_inspection(configuration, b"second")
        store.record_sensitivity(0.3, "{}")
        assert (store.inspection(configuration), store.sensitivity(0.3)) == (b"second", "{}")
        assert store.sensitivity(0.4) is store.inspection(Configuration.from_method(FastV(0.1))) is None
        store.revise(replace(study_record(study), hash="another"))
        assert store.inspection(configuration) is store.sensitivity(0.3) is None


def test_looking_answers_up_does_not_scan_them(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", make_study()) as store, store._transaction() as connection:
        plan = connection.execute(text(f"EXPLAIN QUERY PLAN {look_up('sqlite')}"), {"pairs": "[]"}).all()
    steps = [row[3] for row in plan]
    assert any("SEARCH answer USING INDEX" in step and "fingerprint=?" in step for step in steps)
    assert not any("SCAN answer" in step for step in steps)
