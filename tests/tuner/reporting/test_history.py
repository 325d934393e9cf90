"""The history is told from the records alone: what each trial added, and what it took."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.methods import AdaTP
from tests.tuner.fakes import SHAPE, FakeEvaluator, make_loop, make_planner, make_study, open_store
from tuner.errors import UserError
from tuner.executors.in_process import InProcessExecutor
from tuner.records.measurements import ModelUse
from tuner.records.store import Store
from tuner.records.values import Pruned
from tuner.reporting.history import History, history, load_history
from tuner.search.selection import hypervolume
from tuner.search.space import TOLERANCE
from tuner.study import Study
from tuner.study.values import Configuration

pytestmark = pytest.mark.quick


@pytest.fixture
def study() -> Study:
    return make_study(videos=16, per_video=3)


@pytest.fixture
def store(tmp_path: Path, study: Study) -> Any:
    with open_store(tmp_path / "t.db", study) as opened:
        yield opened


def run(study: Study, store: Store, **options: Any) -> History:
    InProcessExecutor(FakeEvaluator(study)).run(make_loop(study, store, **options))
    return told(study, store)


def told(study: Study, store: Store) -> History:
    record = store.find(study.name)
    assert record is not None
    return history(store, replace(record, shape=asdict(SHAPE)), store.searches()[-1], study.search)


def propose(store: Store, number: int, configuration: Configuration) -> None:
    store.propose(store.searches()[-1], number, configuration, 0.25)


def stop(study: Study, store: Store, number: int, videos: int, by: int) -> None:
    """A trial answered on the first so many tune videos and stopped there."""
    planner = make_planner(study)
    done = store.trials()[0]
    method = done.configuration.build()
    changed = replace(method, p=method.p - 0.05)
    fingerprints = planner.fingerprints(changed)
    configuration = Configuration.from_method(changed)
    propose(store, number, configuration)
    known = store.answers(
        zip([question.id for question in planner.questions], planner.fingerprints(None), strict=True)
    )
    wanted = sorted({question.video for question in study.questions_of("tune")})[:videos]
    answers = {
        (question.id, fingerprint): replace(known[question.id, base], seconds=0.5)
        for question, fingerprint, base in zip(
            planner.questions, fingerprints, planner.fingerprints(None), strict=True
        )
        if question.split == "tune" and question.video in wanted
    }
    asked = len(answers) - len(store.answers(answers))
    store.count_model_use("trial", number, ModelUse(asked, 0.5 * asked))
    store.record(answers, pruned=(number, Pruned(by, videos)))


def test_every_trial_has_its_row_and_the_clock_runs_forward(study: Study, store: Store) -> None:
    found = run(study, store, trials=4)
    assert [row.number for row in found.rows] == [0, 1, 2, 3]
    clock = [row.seconds_so_far for row in found.rows]
    assert clock == sorted(clock)
    assert found.videos == 8
    assert {row.videos for row in found.rows} == {8}
    assert all(row.own and row.pruned_by is None for row in found.rows)


def test_seconds_are_those_of_the_answers_and_each_counts_once(study: Study, store: Store) -> None:
    found = run(study, store, trials=4)
    assert [row.answers for row in found.rows] == [24] * 4
    assert sum(row.seconds for row in found.rows) == pytest.approx(found.model_time.trials)
    assert found.rows[-1].seconds_so_far == pytest.approx(found.model_time.trials)
    noise = store.noise()
    assert noise is not None
    assert found.model_time.other == pytest.approx(0.001 * noise.questions)
    assert found.model_time.total == pytest.approx(0.001 * (store.count_answers() + noise.questions))
    assert found.model_time.baseline == pytest.approx(0.001 * 48)
    assert found.model_time.held_out > 0


def test_a_run_that_goes_on_adds_to_what_was_taken(study: Study, store: Store) -> None:
    before = run(study, store, trials=2)
    assert told(study, store) == before
    after = run(study, store, trials=4)
    assert after.rows[:2] == before.rows
    assert after.model_time.baseline == before.model_time.baseline
    assert after.model_time.trials > before.model_time.trials


def test_the_hypervolume_is_that_of_the_trials_so_far(study: Study, store: Store) -> None:
    found = run(study, store, trials=4, budget=0.35)
    points = [(row.ratio, row.accuracy) for row in found.rows if row.accuracy is not None]
    for place, row in enumerate(found.rows):
        area = hypervolume(points[: place + 1], (0.35 + TOLERANCE, 0.0))
        assert row.hypervolume_so_far == pytest.approx(area)
    assert found.rows[0].hypervolume_so_far > 0


def test_a_stopped_trial_ends_with_its_last_video_and_adds_nothing(study: Study, store: Store) -> None:
    before = run(study, store, trials=2)
    stop(study, store, 2, videos=3, by=1)
    after = told(study, store)
    row = after.rows[-1]
    assert (row.number, row.pruned_by, row.videos, row.accuracy) == (2, 1, 3, None)
    assert row.answers <= 9
    assert row.seconds == pytest.approx(0.5 * row.answers)
    assert row.seconds_so_far == pytest.approx(before.rows[-1].seconds_so_far + row.seconds)
    assert row.hypervolume_so_far == before.rows[-1].hypervolume_so_far
    assert after.pruned == (row,)


def test_answers_found_through_equal_plans_take_no_time(study: Study, store: Store) -> None:
    run(study, store, trials=2)
    stop(study, store, 2, videos=3, by=1)
    first = told(study, store).rows[-1]
    # Another trial with the same knobs goes on where that one was pruned.
    stop(study, store, 3, videos=8, by=1)
    rows = told(study, store).rows
    assert rows[2] == first
    assert rows[3].videos == 8
    assert rows[3].answers == pytest.approx(24 - 9, abs=9)
    done = store.trials()[0]
    propose(store, 4, done.configuration)
    store.record({}, completed=(4, done.outcome))  # type: ignore[arg-type]
    last = told(study, store).rows[-1]
    assert (last.number, last.answers, last.seconds) == (4, 0, 0.0)
    assert last.seconds_so_far == rows[3].seconds_so_far


def test_a_trial_under_way_and_quarantined_questions_are_left_out(study: Study, store: Store) -> None:
    run(study, store, trials=2)
    propose(store, 2, Configuration.from_method(AdaTP(p=0.11)))
    question = study.questions_of("tune")[0]
    store.quarantine(question.id, "killed its worker")
    found = told(study, store)
    assert [row.number for row in found.rows] == [0, 1]
    assert found.videos == 8


def test_another_searchs_trials_count_and_say_so(study: Study, store: Store) -> None:
    run(study, store, trials=2, budget=0.35)
    found = run(study, store, trials=2, budget=0.5)
    assert [row.own for row in found.rows] == [False, False, True, True]


def test_a_study_without_such_a_search_is_a_users_mistake(study: Study, tmp_path: Path, store: Store) -> None:
    run(study, store, trials=1)
    with pytest.raises(UserError, match="no such search"):
        load_history(study, budget=0.7, database=f"sqlite:///{tmp_path / 't.db'}")
