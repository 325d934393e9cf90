"""What is asked beside the searches shares answers, carries on, and leaves no trial behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.methods import AdaTP, FastV
from tests.tuner.fakes import FakeEvaluator, make_loop, make_planner, make_study, open_store
from tuner.evaluation.ad_hoc_loop import AdHocLoop, AdHocRequest
from tuner.evaluation.loop import Loop
from tuner.executors.in_process import InProcessExecutor
from tuner.records.store import Store
from tuner.study import Study
from tuner.study.values import Configuration

pytestmark = pytest.mark.quick

STUDY = make_study()
PLANNER = make_planner(STUDY)
PEER = Configuration.from_method(FastV(keep_ratio=0.2))
SEGMENTED = Configuration.from_method(AdaTP(tau_s=0.7, p=0.5))
TUNE = [question.id for question in STUDY.questions_of("tune")]
HELD_OUT = [question.id for question in STUDY.questions_of("held_out")]
# A configuration per question, and one of them asked of again with another.
ASKS = (
    AdHocRequest({TUNE[0]: PEER, TUNE[1]: SEGMENTED, HELD_OUT[0]: SEGMENTED}),
    AdHocRequest({TUNE[0]: SEGMENTED}),
)


def beside(store: Store, study: Study = STUDY) -> AdHocLoop:
    return AdHocLoop(study, store, PLANNER, measure=[PEER], requests=ASKS, batch_videos=2)


def run(loop: Loop, evaluator: FakeEvaluator, most: int | None = None) -> None:
    """To its end, or until so many batches are recorded."""
    if most is not None:
        record = loop.record

        def counting(*given):
            nonlocal most
            most -= 1
            decision = record(*given)
            if most == 0:
                loop.interrupt()
                return "stop"
            return decision

        loop.record = counting
    InProcessExecutor(evaluator).run(loop)


def answered(store: Store, configuration: Configuration) -> set[str]:
    method = configuration.build()
    ids = [question.id for question in STUDY.questions]
    found = store.answers(zip(ids, PLANNER.fingerprints(method), strict=True))
    return {question for question, _ in found}


def test_it_measures_and_asks_and_tries_nothing(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", STUDY) as store:
        evaluator = FakeEvaluator(STUDY)
        run(beside(store), evaluator)
        assert {configuration: outcome.questions for configuration, outcome in store.measured().items()} == {
            PEER: len(HELD_OUT)
        }
        assert answered(store, PEER) == {TUNE[0], *HELD_OUT}
        assert answered(store, SEGMENTED) == {TUNE[0], TUNE[1], HELD_OUT[0]}
        assert not store.trials()
        assert not store.searches()
        assert store.noise() is None
        again = FakeEvaluator(STUDY)
        run(beside(store), again)
        assert again.calls == []


def test_stopped_after_any_rung_it_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    whole = FakeEvaluator(STUDY)
    with open_store(tmp_path / "whole.db", STUDY) as store:
        run(beside(store), whole)
        count = store.count_answers()
    for batches in range(1, len(whole.calls)):
        first, second = FakeEvaluator(STUDY), FakeEvaluator(STUDY)
        with open_store(tmp_path / f"{batches}.db", STUDY) as store:
            run(beside(store), first, batches)
            run(beside(store), second)
            assert store.count_answers() == count
        asked = sum(len(questions) for _, questions in (*first.calls, *second.calls))
        assert asked == count


def test_a_search_afterwards_finds_the_answers(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", STUDY) as store:
        run(beside(store), FakeEvaluator(STUDY))
        evaluator = FakeEvaluator(STUDY)
        run(make_loop(STUDY, store, trials=1), evaluator)
        # The baseline is there: what asks unpruned again is the noise floor.
        (unpruned,) = [questions for name, questions in evaluator.calls if name is None]
        assert set(unpruned) <= set(TUNE)
        assert store.noise().questions == len(unpruned)


def test_a_question_for_which_memory_does_not_suffice_is_left_out(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", STUDY) as store:
        run(beside(store), FakeEvaluator(STUDY, hungry=TUNE[0]))
        assert set(store.quarantined()) == {TUNE[0]}
        assert answered(store, SEGMENTED) == {TUNE[1], HELD_OUT[0]}
        assert store.measured()[PEER].questions == len(HELD_OUT)
