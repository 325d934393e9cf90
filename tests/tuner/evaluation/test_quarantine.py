"""Whoever dies, in whatever order: questions that kill are found, no other is, and all else is answered."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.methods import AdaTP
from tests.tuner.fakes import FakeEvaluator, make_loop, make_planner, make_study, open_store
from tuner.evaluation.failures import EvaluationError
from tuner.evaluation.loop import Loop
from tuner.evaluation.rederive import rederive
from tuner.evaluation.scoring import judge, outcome, outcome_without
from tuner.evaluation.tasks import Task, VideoBatch
from tuner.executors.in_process import InProcessExecutor
from tuner.records.store import Store
from tuner.records.values import RecordedAnswer
from tuner.study.values import Configuration, Outcome

pytestmark = pytest.mark.quick


def simulate(
    loop: Loop, evaluator: FakeEvaluator, deadly: Collection[str], *, workers: int, seed: int, bad_luck: float
) -> None:
    """As so many workers would go on, in random order: some questions kill, and now and then bad luck."""
    chance = random.Random(seed)
    slots: list[tuple[Task, int] | None] = [None] * workers
    unlucky: set[tuple[Configuration | None, VideoBatch]] = set()
    for _ in range(20_000):
        slot = chance.randrange(workers)
        if (held := slots[slot]) is None:
            task = loop.propose()
            if task is None and loop.finished:
                return
            slots[slot] = None if task is None else (task, 0)
            continue
        task, index = held
        batch = task.batches[index]
        died = any(item in deadly for item in batch)
        # The same attempt has bad luck once only: twice would look like its own fault.
        if not died and (task.configuration, batch) not in unlucky and chance.random() < bad_luck:
            unlucky.add((task.configuration, batch))
            died = True
        if died:
            loop.failed(task, "its worker process died", "killed")
            slots[slot] = None
            continue
        configuration = None if task.configuration is None else task.configuration.as_dict()
        answers = [RecordedAnswer.from_dict(item) for item in evaluator.answer(configuration, batch, {})]
        slots[slot] = None if loop.record(task, index, answers) == "stop" else (task, index + 1)
    raise AssertionError("the simulated run does not end")


def outcomes(store: Store) -> list[tuple[int, int]]:
    """Questions of every trial and of every held-out measurement."""
    complete = [trial.outcome for trial in store.trials()] + list(store.measured().values())
    assert all(complete)
    return [(batch.questions, batch.regressions) for batch in complete if batch is not None]


@pytest.mark.parametrize("deadly", [(), ("v02.mp4-q1",), ("v00.mp4-q0", "v02.mp4-q1", "v03.mp4-q2")])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_questions_that_kill_are_found_and_no_others(
    deadly: tuple[str, ...], workers: int, seed: int, tmp_path: Path
) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        evaluator = FakeEvaluator(study)
        simulate(
            make_loop(study, store, trials=4), evaluator, deadly, workers=workers, seed=seed, bad_luck=0.05
        )
        assert set(store.quarantined()) == set(deadly)
        left = study.without(deadly)
        assert {question for _, asked in evaluator.calls for question in asked} == {
            question.id for question in left.questions
        }
        tune, held_out = (len(left.questions_of(split)) for split in ("tune", "held_out"))
        found = [questions for questions, _ in outcomes(store)]
        assert found == [tune] * 4 + [held_out] * (len(found) - 4)
        # Everything is there, and there once: the same again asks nothing.
        again = FakeEvaluator(study)
        InProcessExecutor(again).run(make_loop(study, store, trials=4))
        assert again.calls == []


def test_a_question_that_kills_late_takes_its_answers_out_of_every_outcome(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        InProcessExecutor(FakeEvaluator(study)).run(make_loop(study, store, trials=3))
        before = outcomes(store)
        hungry = FakeEvaluator(study, hungry="v00.mp4-q1")
        InProcessExecutor(hungry).run(make_loop(study, store, trials=5))
        after = outcomes(store)
        assert [item for item, _ in before[:3]] == [12] * 3
        assert [item for item, _ in after[:5]] == [11] * 5


def test_outcomes_without_a_question_are_those_of_the_other_answers(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        InProcessExecutor(FakeEvaluator(study)).run(make_loop(study, store))
        for question in ("v00.mp4-q1", "v02.mp4-q2", "v01.mp4-q0"):
            loop = make_loop(study, store)
            while loop.propose() is not None:
                pass
            loop._quarantine(question, "it kills")
        anew = rederive(study, store, make_planner(study))
        tune = {trial.number: trial.outcome for trial in store.trials()}
        check_outcomes(tune, {number: trial.outcome for number, trial in anew.trials.items()})
        check_outcomes(store.measured(), anew.measured)
        assert [batch.questions for batch in tune.values() if batch] == [10] * 6


def check_outcomes(found: Mapping[Any, Outcome | None], expected: Mapping[Any, Outcome | None]) -> None:
    assert found.keys() == expected.keys()
    for key, answer in found.items():
        other = expected[key]
        assert answer is not None
        assert other is not None
        for name, value in asdict(answer).items():
            expect = getattr(other, name)
            assert value == (pytest.approx(expect, rel=1e-12) if isinstance(expect, float) else expect), name


@pytest.mark.parametrize(
    ("peaks", "removed", "left"),
    [
        ((5, 9, 7), 0, (8, 9)),
        ((5, 9, 7), 1, None),  # the largest
        ((None, None, None), 0, (None, None)),
        ((None, 9, 7), 0, None),  # the only one that was not measured
    ],
)
def test_memory_without_a_question_is_known_or_asked_for(
    peaks: Sequence[int | None], removed: int, left: Any
) -> None:
    study = make_study(videos=1)
    results = [
        judge(
            question,
            "tune",
            RecordedAnswer(question.id, "red", 0, (-1.0, -2.0, -3.0, -4.0), -1.0, (), 1.0, peak),
        )
        for question, peak in zip(study.questions, peaks, strict=True)
    ]
    baseline = {result.question: result for result in results}
    compute = make_planner(make_study()).cost(AdaTP()).compute["tune"]
    whole = outcome("tune", compute, results, baseline)
    others = [question for place, question in enumerate(study.questions) if place != removed]
    found = outcome_without(whole, results[removed], results[removed], baseline, others)
    assert (found and (found.peak_bytes_mean, found.peak_bytes_max)) == left


def test_too_many_questions_end_the_run_with_a_clear_error(tmp_path: Path) -> None:
    study = make_study()
    deadly = [f"v{video:02}.mp4-q0" for video in range(8)]
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store)
        with pytest.raises(EvaluationError, match=r"7 of 24 questions kill their workers, too many"):
            simulate(loop, FakeEvaluator(study), deadly, workers=1, seed=0, bad_luck=0)
        assert loop.finished
        # A quarter may go.
        assert len(store.quarantined()) == 6


def test_the_last_question_of_a_part_is_not_left_out(tmp_path: Path) -> None:
    study = make_study(videos=2, per_video=1)
    with open_store(tmp_path / "t.db", study) as store:
        with pytest.raises(EvaluationError, match="1 of 2 questions kill their workers"):
            simulate(
                make_loop(study, store), FakeEvaluator(study), ["v00.mp4-q0"], workers=1, seed=0, bad_luck=0
            )
        assert store.quarantined() == {}


def test_other_exceptions_end_the_run_as_they_are(tmp_path: Path) -> None:
    study = make_study()
    with (
        open_store(tmp_path / "t.db", study) as store,
        pytest.raises(RuntimeError, match="a mistake of ours"),
    ):
        InProcessExecutor(FakeEvaluator(study, always="a mistake of ours")).run(make_loop(study, store))
