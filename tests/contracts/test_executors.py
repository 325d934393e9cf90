"""One contract, all executors: everything is answered and recorded once, whatever dies on the way."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import NotFiniteError, VideoError
from tests.tuner.fakes import (
    BASE,
    SHAPE,
    FakeEvaluator,
    make_loop,
    make_planner,
    make_study,
    open_store,
    stored_questions,
)
from tuner.errors import UserError
from tuner.evaluation.description import Computing
from tuner.evaluation.evaluator import EvaluatorSpec, Executor
from tuner.evaluation.failures import EvaluationError
from tuner.evaluation.loop import Loop
from tuner.evaluation.progress import NoProgress
from tuner.evaluation.storage import PART, copied, folder_id
from tuner.evaluation.tasks import Work
from tuner.executors import starting
from tuner.executors.in_process import InProcessExecutor
from tuner.records.store import Store
from tuner.runs.workers import Workers
from tuner.study import Study

EXECUTORS = ["in_process", "ray_1", "ray_2"]


class Unloadable(FakeEvaluator):
    """As a model too large for its machine: the system kills whoever loads it."""

    def __call__(self) -> FakeEvaluator:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("nobody is left")


def make_executor(kind: str, evaluator: FakeEvaluator) -> Executor:
    if kind == "in_process":
        return InProcessExecutor(evaluator)
    from tuner.executors.ray_tune import RayExecutor

    return RayExecutor(lambda _: evaluator, workers=int(kind.removeprefix("ray_")))


def execute(kind: str, evaluator: FakeEvaluator, work: Work[Any]) -> None:
    """Runs one piece of work, with workers of its own."""
    with closing(make_executor(kind, evaluator)) as executor:
        executor.run(work)


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """Starts Ray once for all of these tests; the executor uses one that is there."""
    from tuner.executors.ray_tune import local_ray

    with local_ray(workers=2):
        yield


def table(store: Store) -> list[Any]:
    assert all(trial.outcome is not None for trial in store.trials())
    trials = [
        replace(trial, outcome=replace(trial.outcome, seconds=0)) for trial in store.trials() if trial.outcome
    ]
    measured = {
        configuration: replace(outcome, seconds=0) for configuration, outcome in store.measured().items()
    }
    return [trials, store.infeasible(), measured, store.selections(), store.count_answers()]


def run_in_process(path: Path, evaluator: FakeEvaluator) -> None:
    with open_store(path, evaluator.study) as store:
        InProcessExecutor(evaluator).run(make_loop(evaluator.study, store))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    study, path = make_study(), tmp_path_factory.mktemp("undisturbed") / "t.db"
    run_in_process(path, FakeEvaluator(study))
    with open_store(path, study) as store:
        return table(store)


@dataclass
class Meeting(FakeEvaluator):
    """Answers for a trial only once another process is at one, too."""

    folder: Path = Path()

    def answer(
        self, configuration: Any, questions: Any, references: Any, *, reshaped: bool = False
    ) -> list[dict[str, Any]]:
        if configuration is not None:
            (self.folder / f"{os.getpid()}.met").touch()
            deadline = time.monotonic() + 60
            while len(list(self.folder.glob("*.met"))) < 2:
                if time.monotonic() > deadline:
                    raise RuntimeError("nobody else came")
                time.sleep(0.02)
        return super().answer(configuration, questions, references, reshaped=reshaped)


class NotANumber(FakeEvaluator):
    """As a model that overflows at one question, as soon as anything is pruned."""

    def answer(
        self, configuration: Any, questions: Any, references: Any, *, reshaped: bool = False
    ) -> list[dict[str, Any]]:
        if configuration is not None and "v02.mp4-q1" in questions:
            raise NotFiniteError.of("The model's answer to question 'v02.mp4-q1'")
        return super().answer(configuration, questions, references, reshaped=reshaped)


class Told(NoProgress):
    """Keeps the messages, the phases and the steps done."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.phases: list[tuple[str, int | None]] = []
        self.done = 0

    def started(self, phase: str, total: int | None) -> None:
        self.phases.append((phase, total))

    def advanced(self, count: int = 1) -> None:
        self.done += count

    def message(self, text: str) -> None:
        self.messages.append(text)


@dataclass(frozen=True)
class Ran:
    """A loop that ended, with what it said; its store is closed."""

    path: Path
    loop: Loop
    messages: list[str]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ran]:
    """A whole run on an executor of this kind: once, because a worker takes seconds to start."""

    @cache
    def run(kind: str) -> Ran:
        study, folder, progress = make_study(), tmp_path_factory.mktemp(kind), Told()
        # Two workers have to meet: an attempt that waited for nobody dies and is tried again.
        evaluator = Meeting(study, folder=folder) if kind == "ray_2" else FakeEvaluator(study)
        with open_store(folder / "t.db", study) as store:
            loop = make_loop(study, store, progress=progress)
            execute(kind, evaluator, loop)
        return Ran(folder / "t.db", loop, progress.messages)

    return run


@pytest.mark.parametrize("kind", EXECUTORS)
def test_everything_is_answered_once(kind: str, ran: Callable[[str], Ran]) -> None:
    study, found = make_study(), ran(kind)
    with open_store(found.path, study) as store:
        assert found.loop.finished
        assert not found.loop.interrupted
        assert [trial.number for trial in store.trials() if trial.outcome is not None] == list(range(6))
        wanted = {(question.id, "baseline") for question in study.questions}
        for trial in store.trials():
            fingerprints = make_planner(study).fingerprints(trial.configuration.build())
            tune = zip(study.questions, fingerprints, strict=True)
            wanted |= {
                (question.id, fingerprint)
                for question, fingerprint in tune
                if study.split_of(question) == "tune"
            }
        held_out = len(study.questions_of("held_out"))
        assert store.count_answers() == len(wanted) + held_out * len(store.measured())


@dataclass
class Loaded(FakeEvaluator):
    """Leaves a file for each process that loads it, and a warning."""

    folder: Path = Path()

    def __call__(self) -> FakeEvaluator:
        (self.folder / f"{os.getpid()}.loaded").touch()
        logging.getLogger("some.library").warning("no fast path")
        return self


def asked_by_path(study: Study) -> dict[str, list[str]]:
    paths = {video.name: str(video.path.absolute()) for video in study.videos}
    return {
        path: [question.id for question in study.questions if question.video == name]
        for name, path in paths.items()
    }


@pytest.mark.parametrize("kind", ["in_process", "ray_2"])
def test_workers_stay_from_encoding_to_the_search(kind: str, tmp_path: Path, undisturbed: list[Any]) -> None:
    """At ae20304: the driver encoded, with a model and a number format of its own."""
    study, progress = make_study(), Told()
    with (
        closing(Workers(make_executor(kind, Loaded(study, folder=tmp_path)), progress)) as workers,
        open_store(tmp_path / "t.db", study) as store,
    ):
        assert workers.describe().shape == asdict(SHAPE)
        encoded = workers.encode(asked_by_path(study))
        layouts = {name: layout for video in encoded.values() for name, layout in video.layouts.items()}
        for question in stored_questions(study):
            np.testing.assert_array_equal(
                layouts[question.id].frame_relevance, question.layout.frame_relevance
            )
        workers.run(make_loop(study, store))
        assert [trial.number for trial in store.trials() if trial.outcome is not None] == list(range(6))
        if kind == "in_process":
            assert table(store) == undisturbed
    assert progress.phases == [("loading the model", None), ("encoding", 8)]
    assert progress.done == 8
    assert 1 <= len(list(tmp_path.glob("*.loaded"))) <= 2
    # Of this process it is in the log; of workers it is passed on, once.
    warned = [f"Warning of a worker on {socket.gethostname()}: no fast path"]
    assert progress.messages == (warned if kind == "ray_2" else [])


def test_a_worker_that_dies_while_it_encodes_loses_its_video_only(tmp_path: Path) -> None:
    """One is killed once and its video encoded by the next; a video that kills each time is told as one that
    cannot be read, and all others are encoded.
    """
    study, progress = make_study(), Told()
    evaluator = FakeEvaluator(
        study,
        kill_marker=tmp_path / "killed",
        kill_marker_video="v02.mp4",
        deadly_video="v05.mp4",
        unreadable=("v06.mp4",),
    )
    with closing(Workers(make_executor("ray_1", evaluator), progress)) as workers:
        encoded = {Path(path).name: item for path, item in workers.encode(asked_by_path(study)).items()}
    assert len(encoded) == len(study.videos)
    assert {name for name, item in encoded.items() if item.error is None} == {
        "v00.mp4", "v01.mp4", "v02.mp4", "v03.mp4", "v04.mp4", "v07.mp4",
    }  # fmt: skip
    assert str(encoded["v05.mp4"].error).endswith(
        "v05.mp4 could not be encoded: its worker process died (killed, or out of memory)"
    )
    assert progress.done == len(study.videos)


@pytest.mark.parametrize("kind", ["in_process", "ray_1"])
def test_a_worker_that_computes_otherwise_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    study = make_study()
    with closing(Workers(make_executor(kind, FakeEvaluator(study)), Told())) as workers:
        workers.require(Computing(BASE, "bfloat16", "cuda"))
        with pytest.raises(
            UserError,
            match=r"^The worker on here computes in float32 on cpu, but the study is computed in bfloat16 on "
            r"cuda: .* Allowed are workers",
        ):
            workers.describe()


@pytest.mark.parametrize("kind", EXECUTORS)
def test_what_the_caches_did_comes_back_with_the_answers(kind: str, ran: Callable[[str], Ran]) -> None:
    with open_store(ran(kind).path, make_study()) as store:
        use, noise = store.cache_use(), store.noise()
        assert use is not None
        assert noise is not None
        # Two workers may ask the same of a plan that two trials share.
        asked = use.prefixes - noise.questions - store.count_answers()
        assert asked == 0 or (kind == "ray_2" and asked > 0)
        assert use.features_in_memory == use.prefixes
        assert 0 < use.prefixes_built < use.prefixes_reused


def test_two_workers_evaluate_two_trials_at_a_time(ran: Callable[[str], Ran]) -> None:
    found = ran("ray_2")
    with open_store(found.path, make_study()) as store:
        assert all(trial.outcome is not None for trial in store.trials())
    assert len(list(found.path.parent.glob("*.met"))) >= 2
    assert not [message for message in found.messages if "failed" in message]


def test_workers_without_a_place_hold_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray has two CPUs here: the other three of five workers never begin."""
    monkeypatch.setattr(starting, "_LOOK", 0.0)
    study, progress = make_study(), Told()
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store, progress=progress)
        execute("ray_5", FakeEvaluator(study), loop)
        assert loop.finished
        assert not loop.interrupted
        assert [trial.number for trial in store.trials() if trial.outcome is not None] == list(range(6))
    room = "2 of 5 workers, waiting for CPUs: each takes 1 CPU, and the machines have room for no more."
    assert progress.messages.count(room) == 1


@pytest.mark.parametrize("kind", ["in_process", "ray_1"])
def test_one_worker_is_deterministic(kind: str, ran: Callable[[str], Ran], undisturbed: list[Any]) -> None:
    with open_store(ran(kind).path, make_study()) as store:
        assert table(store) == undisturbed


@pytest.mark.parametrize(
    ("kind", "kill_after"), [("ray_1", 0), pytest.param("ray_1", 9, marks=pytest.mark.soak), ("ray_2", 3)]
)
def test_a_killed_worker_loses_only_its_rung(
    kind: str, kill_after: int, tmp_path: Path, undisturbed: list[Any]
) -> None:
    study = make_study()
    evaluator = FakeEvaluator(study, kill_marker=tmp_path / "killed", kill_after=kill_after)
    with open_store(tmp_path / "t.db", study) as store:
        execute(kind, evaluator, make_loop(study, store))
        assert (tmp_path / "killed").exists()
        if kind == "ray_1":
            assert table(store) == undisturbed
            use, noise = store.cache_use(), store.noise()
            assert use is not None
            assert noise is not None
            # What it died of had not been answered, so nothing is counted twice.
            assert use.prefixes == store.count_answers() + noise.questions
        else:
            assert [trial.number for trial in store.trials() if trial.outcome is not None] == list(range(6))


@pytest.mark.parametrize("kill_after", [0, 3, 9])
def test_a_killed_process_carries_on_as_if_undisturbed(
    kill_after: int, tmp_path: Path, undisturbed: list[Any]
) -> None:
    study = make_study()
    evaluator = FakeEvaluator(study, kill_marker=tmp_path / "killed", kill_after=kill_after)
    process = multiprocessing.get_context("spawn").Process(
        target=run_in_process, args=(tmp_path / "t.db", evaluator)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -9
    run_in_process(tmp_path / "t.db", FakeEvaluator(study))
    with open_store(tmp_path / "t.db", study) as store:
        assert table(store) == undisturbed


def test_questions_that_keep_killing_their_worker_end_the_run_with_a_clear_error(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store)
        with pytest.raises(EvaluationError, match=r"failed 3 times .* RuntimeError: no memory left"):
            execute("ray_1", FakeEvaluator(study, always="no memory left"), loop)


@pytest.mark.parametrize("kind", ["in_process", "ray_1"])
def test_an_answer_that_is_not_a_number_ends_the_run_at_once(kind: str, tmp_path: Path) -> None:
    """As it is: no death that is tried again three times, and no question that is left out."""
    study, progress = make_study(), Told()
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store, progress=progress)
        with pytest.raises(NotFiniteError, match=r"^The model's answer to question 'v02\.mp4-q1' is not a"):
            execute(kind, NotANumber(study), loop)
        assert not [message for message in progress.messages if "failed" in message]
        assert store.quarantined() == {}
        # The baseline of all, and of the trial at most the batches before.
        assert 24 <= store.count_answers() < 24 + 12
        assert all(trial.outcome is None for trial in store.trials())


def without(path: Path, *questions: str) -> list[Any]:
    """What an undisturbed run leaves from whose beginning on these questions are left out."""
    study = make_study()
    with open_store(path, study) as store:
        for question in questions:
            store.quarantine(question, "known before")
        InProcessExecutor(FakeEvaluator(study)).run(make_loop(study, store))
        return table(store)


@pytest.mark.parametrize(
    ("kind", "question"),
    [("in_process", "v02.mp4-q1"), ("in_process", "v03.mp4-q0"), ("ray_2", "v03.mp4-q0")],
)
def test_a_question_that_runs_out_of_memory_is_left_out(kind: str, question: str, tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store)
        execute(kind, FakeEvaluator(study, hungry=question), loop)
        assert loop.finished
        assert not loop.interrupted
        assert list(store.quarantined()) == [question]
        assert "MemoryError: no room" in store.quarantined()[question]
        if kind == "in_process":
            assert table(store) == without(tmp_path / "without.db", question)
        else:
            assert [trial.outcome.questions for trial in store.trials() if trial.outcome is not None] == [
                12
            ] * 6


def test_a_question_that_kills_its_process_is_found_by_workers_and_left_out(tmp_path: Path) -> None:
    """In one process it kills the driver, and nobody is left to count; with a worker, the same study ends."""
    study = make_study()
    deadly = FakeEvaluator(study, deadly="v02.mp4-q1")
    process = multiprocessing.get_context("spawn").Process(
        target=run_in_process, args=(tmp_path / "t.db", deadly)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -9
    with open_store(tmp_path / "t.db", study) as store:
        execute("ray_1", deadly, make_loop(study, store, trials=1))
        assert "its worker process died" in store.quarantined()["v02.mp4-q1"]
    run_in_process(tmp_path / "t.db", deadly)
    with open_store(tmp_path / "t.db", study) as store:
        assert table(store)[0] == without(tmp_path / "without.db", "v02.mp4-q1")[0]


@pytest.mark.parametrize("question", ["v02.mp4-q1", "v03.mp4-q0"], ids=["tune", "held_out"])
@pytest.mark.parametrize("calls", [7, 9, 13, 17])
def test_what_was_measured_before_a_quarantine_is_computed_anew(
    question: str, calls: int, tmp_path: Path
) -> None:
    """Every outcome in the records is about the same questions, whenever the question was found."""
    study = make_study()
    evaluator = FakeEvaluator(study, hungry=question, harmless_calls=calls)
    with open_store(tmp_path / "t.db", study) as store:
        InProcessExecutor(evaluator).run(make_loop(study, store))
        expected = without(tmp_path / "without.db", *store.quarantined())
        left = study.without(store.quarantined())
        for trial in store.trials():
            assert trial.outcome is not None
            assert trial.outcome.questions == len(left.questions_of("tune"))
        for outcome in store.measured().values():
            assert outcome.questions == len(left.questions_of("held_out"))
        # Those that were complete by then: later ones were proposed from other evidence.
        complete = [trial for trial in store.trials() if trial.number < (calls - 4) // 2]
        for item, other in zip(complete, expected[0], strict=False):
            assert item.configuration == other.configuration
            assert item.outcome is not None
            assert other.outcome is not None
            # A mean from which an answer was taken out may differ in its last digits.
            assert item.outcome.graded == pytest.approx(other.outcome.graded, rel=1e-12)
            assert replace(item.outcome, seconds=0, graded=other.outcome.graded) == other.outcome


def test_workers_that_cannot_be_started_are_no_questions_fault(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        with pytest.raises(EvaluationError, match=r"Machine \S+: 3 workers in a row failed there"):
            execute("ray_1", Unloadable(study), make_loop(study, store))
        assert store.quarantined() == {}


@pytest.mark.parametrize("kind", EXECUTORS)
def test_an_interrupted_run_ends_after_the_rungs_in_flight(kind: str, tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store)
        record = loop.record

        def interrupting(*values: Any) -> Any:
            if len(store.trials()) >= 2:
                loop.interrupt()
            return record(*values)

        loop.record = interrupting  # type: ignore[method-assign]
        execute(kind, FakeEvaluator(study), loop)
        assert loop.finished
        assert loop.interrupted
        assert len(store.trials()) < 6


@pytest.mark.parametrize("kind", EXECUTORS)
def test_an_error_of_the_loop_comes_out_as_it_is(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store)
        monkeypatch.setattr(Loop, "record", full)
        with pytest.raises(OSError, match="no space left on device"):
            execute(kind, FakeEvaluator(study), loop)


@pytest.mark.parametrize("kind", EXECUTORS)
def test_nothing_to_do_loads_no_model(kind: str, tmp_path: Path) -> None:
    study = make_study()
    run_in_process(tmp_path / "t.db", FakeEvaluator(study))
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store)
        execute(kind, FakeEvaluator(study, always="nobody should ask"), loop)
        assert loop.finished


def test_workers_on_other_machines_get_the_drivers_files_through_ray(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tuner.executors.ray_files import served

    video, secret = tmp_path / "a.mp4", tmp_path / "secret"
    video.write_bytes(os.urandom(PART + 1))
    secret.write_bytes(b"secret")
    spec = EvaluatorSpec.of(make_study(), tmp_path / "features")
    spec = replace(spec, videos={"q": str(video), "r": str(tmp_path / "gone.mp4")})
    with served(spec) as given:
        assert isinstance(given, EvaluatorSpec)
        files = given.driver
        assert files is not None
        digest = files.content_hash(str(video))
        with copied(files, str(video), digest) as copy:
            assert copy.read_bytes() == video.read_bytes()
        assert files.read("key") is None
        files.write("key", b"encoded")
        assert files.read("key") == (tmp_path / "features/key.safetensors").read_bytes() == b"encoded"
        assert given.folder_id == folder_id(tmp_path / "features")
        with pytest.raises(VideoError, match=r"gone.mp4 is not there$"):
            files.content_hash(str(tmp_path / "gone.mp4"))
        for method in (files.content_hash, lambda path: files.part(path, 0)):
            with pytest.raises(ValueError, match="is no video of the study"):
                method(str(secret))
        with pytest.raises(ValueError, match="a key consists of"):
            files.read("../secret")
    # A folder that takes nothing is told, and the worker goes on.
    with served(replace(spec, storage=str(secret / "features"))) as given:
        assert isinstance(given, EvaluatorSpec)
        assert given.driver is not None
        for _ in range(2):
            given.driver.write("key", b"encoded")
    (told,) = caplog.messages
    assert told.startswith(f"Vision features cannot be stored in {secret}/features on the driver's machine; ")
