"""A study that changed ends like one that had been so from the beginning, and asks only what is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tuner.fakes import (
    OPTIONS,
    FakeEvaluator,
    begin,
    make_loop,
    make_planner,
    make_study,
    open_store,
    study_record,
)
from tuner.evaluation.rederive import Rederived, rederive
from tuner.executors.in_process import InProcessExecutor
from tuner.records.store import Store
from tuner.records.values import Pruned
from tuner.study import Study

pytestmark = pytest.mark.quick

TRIALS = 3


def run(study: Study, store: Store) -> list[str]:
    """The questions that were asked, of each configuration."""
    # Its answers hang on what is right, and not on what the study says is right.
    evaluator = FakeEvaluator(make_study())
    InProcessExecutor(evaluator).run(make_loop(study, store, trials=TRIALS))
    return [question for _, questions in evaluator.calls for question in questions]


def change(study: Study, store: Store) -> Rederived:
    record = study_record(study)
    store.register(record)
    found = rederive(study, store, make_planner(study))
    store.revise(record, found.trials, found.measured)
    return found


def relabelled(study: Study) -> Study:
    first, *rest = study.questions
    assert first.answer is not None
    other = OPTIONS[(OPTIONS.index(first.answer) + 1) % 4]
    return replace(study, questions=(replace(first, answer=other, tags={"kind": "corrected"}), *rest))


def with_less(study: Study) -> Study:
    return study.without(
        [
            question.id
            for question in study.questions
            if question.video == "v02.mp4" or question.id == "v01.mp4-q1"
        ]
    )


def split_otherwise(study: Study) -> Study:
    """A held-out video tunes from now on."""
    return replace(study, held_out=study.held_out - {"v01.mp4"})


def reordered(study: Study) -> Study:
    return replace(study, questions=study.questions[::-1])


@pytest.mark.parametrize("changed", [relabelled, with_less, reordered])
def test_what_fits_is_used_again_and_outcomes_are_those_of_the_new_definition(
    changed: Callable[[Study], Study], tmp_path: Path
) -> None:
    before = make_study()
    after = changed(before)
    with open_store(tmp_path / "t.db", before) as store:
        run(before, store)
        old = store.trials()
        found = change(after, store)
        assert found.needed == found.found
        assert [trial.outcome for trial in store.trials()] != [
            trial.outcome for trial in old
        ] or changed is reordered
        trials, measured = store.trials(), store.measured()
        # Another trial may be the best: it is measured, and nothing else is asked.
        assert {question[:7] for question in run(after, store)} <= after.held_out
    with open_store(tmp_path / "expected.db", after) as store:
        search, planner = store.search(0.35, 0, "budget", TRIALS, max_drop="0.02"), make_planner(after)
        for one in old:
            method = one.configuration.build()
            store.propose(search, one.number, one.configuration, planner.binding_ratio(method))
        run(after, store)
        assert store.trials() == trials
        shared = store.measured().keys() & measured.keys()
        assert shared
        assert all(store.measured()[item] == measured[item] for item in shared)


def test_only_what_is_new_is_asked(tmp_path: Path) -> None:
    after = make_study()
    before = with_less(after)
    with open_store(tmp_path / "t.db", before) as store:
        run(before, store)
        found = change(after, store)
        assert 0 < found.found < found.needed
        assert [trial.outcome for trial in store.trials()] == [None] * TRIALS
        asked = run(after, store)
        new = {question.id for question in after.questions} - {question.id for question in before.questions}
        assert {question for question in asked if question[:7] not in after.held_out} <= new
        assert new <= set(asked)
        assert [trial.outcome and trial.outcome.questions for trial in store.trials()] == [12] * TRIALS


def test_a_video_that_moves_to_the_tune_split_has_tuned_from_then_on(tmp_path: Path) -> None:
    before = make_study()
    after = split_otherwise(before)
    with open_store(tmp_path / "t.db", before) as store:
        run(before, store)
        assert store.videos_that_tuned("fake", {"v00.mp4", "v01.mp4"}) == {"v00.mp4"}
        change(after, store)
        run(after, store)
        assert store.videos_that_tuned("fake", {"v00.mp4", "v01.mp4"}) == {"v00.mp4", "v01.mp4"}
        assert store.videos_that_tuned("another", {"v00.mp4"}) == set()
        store.archive("fake")
        assert store.videos_that_tuned("fake", {"v00.mp4"}) == {"v00.mp4"}


def test_a_pruned_trial_is_looked_at_again(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        run(study, store)
        method = make_loop(study, store).best()
        assert method is not None
        search = store.searches()[0]
        store.propose(search, 9, method.configuration, method.binding_ratio)
        store.record({}, pruned=(9, Pruned(0, 2)))
        change(relabelled(study), store)
        assert store.trials()[-1].unfinished


def test_an_archived_study_begins_anew_from_the_answers_that_are_there(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        run(study, store)
        noise_of_the_first = store.noise()
        trials = store.trials()
        begin(store, study, archive=True)
        assert (store.trials(), store.noise()) == ((), None)
        asked = run(study, store)
        assert noise_of_the_first is not None
        assert len(asked) == noise_of_the_first.questions
        assert [trial.outcome for trial in store.trials()] == [trial.outcome for trial in trials]
        first = store.archived("fake")[0]
        assert (first.trials, store.restore("fake", first.id)) == (TRIALS, True)
        store.find("fake")
        assert store.trials() == trials
        assert len(store.archived("fake")) == 1


def test_a_quarantined_question_stays_left_out_as_long_as_it_is_asked(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        store.quarantine("v02.mp4-q1", "died")
        change(with_less(study), store)
        assert store.quarantined() == {}
        change(study, store)
        assert store.quarantined() == {"v02.mp4-q1": "died"}
