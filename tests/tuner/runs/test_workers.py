"""The driver takes all that it knows of the model from its workers."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tests.tuner.fakes import BASE, FakeEvaluator, make_study, stored_questions
from tuner.errors import UserError
from tuner.evaluation.call_loop import CallLoop
from tuner.evaluation.description import Computing
from tuner.evaluation.failures import EvaluationError
from tuner.evaluation.progress import NoProgress
from tuner.evaluation.tasks import Call
from tuner.executors.in_process import InProcessExecutor
from tuner.records.store import Store
from tuner.records.values import StudyRecord
from tuner.reporting.from_records import setting_from
from tuner.runs.study_record import define
from tuner.runs.workers import Workers

pytestmark = pytest.mark.quick


def defined(folder: Path, evaluator: FakeEvaluator, *, skip: bool = False) -> StudyRecord:
    with (
        Store.open(f"sqlite:///{folder / 't.db'}") as store,
        closing(Workers(InProcessExecutor(evaluator), NoProgress())) as workers,
    ):
        return define(evaluator.study, None, store, workers, NoProgress(), skip_bad_videos=skip)[1]


def test_number_format_and_device_of_a_study_are_its_workers(tmp_path: Path) -> None:
    """At ae20304: a driver without a GPU would have written float32 on cpu, and refused its own workers."""
    study = make_study()
    record = defined(tmp_path, FakeEvaluator(study, dtype="bfloat16", device="cuda"))
    setting = setting_from(record.setting)
    assert setting is not None
    assert (setting.dtype, setting.device, setting.encoding) == ("bfloat16", "cuda", BASE)
    assert record.encoding == BASE
    for question, other in zip(record.questions, stored_questions(study), strict=True):
        assert (question.id, question.video, question.split) == (other.id, other.video, other.split)
        assert question.layout.frame_similarity.tolist() == other.layout.frame_similarity.tolist()
        assert question.layout.frame_relevance.tolist() == other.layout.frame_relevance.tolist()
    assert record.parts["videos"] == {video.name: video.name for video in study.videos}


def test_all_videos_that_cannot_be_read_are_told_together(tmp_path: Path) -> None:
    evaluator = FakeEvaluator(make_study(), unreadable=("v02.mp4", "v05.mp4"))
    with pytest.raises(UserError) as error:
        defined(tmp_path, evaluator)
    assert error.value.exit_code == 2
    assert [problem.split(" (")[0].rsplit("/", 1)[1] for problem in error.value.problems] == [
        "v02.mp4 is empty",
        "v05.mp4 is empty",
    ]
    assert {entry["name"] for entry in defined(tmp_path, evaluator, skip=True).skipped} == {
        "v02.mp4",
        "v05.mp4",
    }


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        (Computing(BASE, "float32", "cpu"), None),
        (Computing(BASE), None),  # records of versions that did not say
        (Computing(BASE, "float32", "cuda"), "float32 on cpu, but the study is computed in float32 on cuda"),
        (Computing(BASE, "float16", "cpu"), "float32 on cpu, but the study is computed in float16 on cpu"),
        (Computing("another"), "worker on here encodes otherwise"),
    ],
)
def test_a_worker_is_taken_where_it_computes_as_the_records(recorded: Computing, said: str | None) -> None:
    refusal = FakeEvaluator(make_study()).describe()[0].refusal(recorded)
    assert refusal is None if said is None else said in str(refusal)


CALLS = [Call("encode", {"video": name, "questions": ()}) for name in "abc"]


def test_calls_of_a_task_are_left_out_once_there_is_enough() -> None:
    taken: list[str] = []

    def take(call: Call, results: list[str]) -> bool:
        taken.extend(results)
        return len(taken) == 2

    loop = CallLoop("Measuring", "costs", [CALLS], take)
    task = loop.propose()
    assert task is not None
    assert loop.propose() is None
    assert not loop.finished
    assert [loop.record(task, index, [str(index)]) for index in range(2)] == ["continue", "stop"]
    assert loop.finished
    assert taken == ["0", "1"]


def test_a_call_that_fails_is_tried_again_from_there_and_given_up_at_last() -> None:
    given_up: list[str] = []
    loop = CallLoop(
        "Encoding",
        "encoding",
        [CALLS],
        lambda *_: None,
        give_up=lambda call, reason: given_up.append(f"{call.arguments['video']}: {reason}"),
    )
    for _ in range(2):
        task = loop.propose()
        assert task is not None
        if len(task.batches) == 3:
            loop.record(task, 0, [])
        loop.failed(task, "it died", "killed")
    assert given_up == ["b: it died"]
    task = loop.propose()
    assert task is not None
    assert task.batches == (CALLS[2],)
    for _ in range(2):
        loop.failed(task, "an error of ours", "raised")
        task = loop.propose()
        assert task is not None
    with pytest.raises(EvaluationError, match=r"failed 3 times in a row\. The last reason: an error"):
        loop.failed(task, "an error of ours", "raised")
    assert loop.finished
    assert loop.interrupted


def test_an_interrupted_encoding_ends_as_interrupted() -> None:
    study = make_study()
    evaluator = FakeEvaluator(study)
    encode, seen = evaluator.encode, list[str]()
    with closing(Workers(InProcessExecutor(evaluator), NoProgress())) as workers:

        def encode_and_stop(video, questions):  # type: ignore[no-untyped-def]
            seen.append(video)
            if len(seen) == 3:
                raise KeyboardInterrupt
            return encode(video, questions)

        evaluator.encode = encode_and_stop  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            workers.encode({video.name: [] for video in study.videos})
    assert len(seen) == 3
