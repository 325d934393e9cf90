"""How well are many workers kept busy, and what does that cost the driver? A study whose workers only wait.

    python -m tests.benchmarks.cluster_scale --workers 16 --trials 100 --seconds 10
    python -m tests.benchmarks.cluster_scale --workers 64 --trials 10000 --simulate

Driver, sampler, pruner, records and Ray Tune are the real ones; a worker sleeps as long as a batch of videos
takes and returns made-up answers. It imports no torch. `--seconds` is the mean of a batch; its logarithm
varies by `--spread` (0.5: one batch in 44 takes 2.7 times the median); a share `--deaths` of the batches
kills its worker half-way. Printed are, from when all workers have a trial to the last proposal: the share of
the workers' time spent in batches that were recorded, and the driver's CPU time, all its threads together.

`--simulate` does without Ray and without sleep: the workers' batches end in the order of a clock that only
counts. Printed is the driver's CPU time without Ray's part, from one number of trials to the next.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from tests.tuner.fakes import OPTIONS, FakeEvaluator, _number, make_loop, make_study, open_store
from tuner.evaluation.progress import NoProgress
from tuner.evaluation.search_loop import SearchLoop
from tuner.evaluation.tasks import Decision, FailureKind, Task
from tuner.records.measurements import CacheUse
from tuner.records.store import Store
from tuner.study import Study


@dataclass
class Waiting(FakeEvaluator):
    """Sleeps, and answers at random, rightly the more often the more is kept."""

    seconds: float = 1.0
    spread: float = 0.5
    deaths: float = 0.0

    def answer(
        self,
        configuration: Mapping[str, Any] | None,
        questions: Sequence[str],
        references: Mapping[str, str],
        *,
        reshaped: bool = False,
    ) -> list[dict[str, Any]]:
        ratio = 1.0 if configuration is None else float(configuration["p"])
        chance = np.random.default_rng(_number(*questions, ratio, time.time_ns() if self.deaths else 0))
        # Its mean is `seconds`. What comes before the search is over soon.
        took = self.seconds * float(np.exp(chance.normal(-(self.spread**2) / 2, self.spread)))
        took = took if configuration is not None else 0.01
        dies = configuration is not None and chance.random() < self.deaths
        self.sleep(took / 2 if dies else took)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        assert "torch" not in sys.modules
        return [self._made_up(question, ratio, took / len(questions)) for question in questions]

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def _made_up(self, question: str, ratio: float, seconds: float) -> dict[str, Any]:
        right = OPTIONS.index(self.study.question(question).answer or "")
        margin = 4 * (0.5 + 0.4 * ratio - _number(question, round(ratio, 2)) / 2**32)
        logprobs = [-2.0] * 4
        logprobs[right] += margin
        return {
            "question": question,
            "text": OPTIONS[right if margin > 0 else (right + 1) % 4],
            "option": right if margin > 0 else (right + 1) % 4,
            "option_logprobs": tuple(logprobs),
            "logprob": max(logprobs),
            "kept": (),
            "seconds": seconds,
        }


class Measured:
    """The search loop, watched from outside; an executor calls it in its place."""

    def __init__(self, loop: SearchLoop, workers: int) -> None:
        self._loop = loop
        self.wanted = workers
        self.began: tuple[float, float] | None = None
        self.ended: tuple[float, float] | None = None
        # Batches, their seconds and CPU seconds within the loop: so far, at `began` and at `ended`.
        self.loop_cpu = 0.0
        self.first = self.last = (0, 0.0, 0.0)
        self.batches = self.failures = 0
        self.recorded_seconds = 0.0
        self.last_proposals: list[float] = []
        self.workers: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def propose(self, worker: str = "") -> Task | None:
        before = time.thread_time()
        task = self._loop.propose(worker)
        took = time.thread_time() - before
        self.loop_cpu += took
        if task is not None and task.kind == "trial":
            self.workers.add(worker)
            if len(self.workers) == self.wanted and self.began is None:
                self.began = time.monotonic(), time.process_time()
                self.first = (self.batches, self.recorded_seconds, self.loop_cpu)
            self.last = (self.batches, self.recorded_seconds, self.loop_cpu)
            self.ended = time.monotonic(), time.process_time()
            self.last_proposals = [*self.last_proposals[-99:], took]
        return task

    def record(self, task: Task, index: int, answers: Sequence[Any], use: Any = None) -> Decision:
        before = time.thread_time()
        decision = self._loop.record(task, index, answers, use)
        self.loop_cpu += time.thread_time() - before
        if task.kind == "trial":
            self.batches += 1
            self.recorded_seconds += sum(answer.seconds for answer in answers)
        return decision

    def failed(self, task: Task, reason: str, kind: FailureKind = "raised") -> None:
        self.failures += 1
        self._loop.failed(task, reason, kind)


@dataclass
class Replaying(Waiting):
    """Does not sleep."""

    def sleep(self, seconds: float) -> None:
        pass


def simulate(loop: SearchLoop, evaluator: Replaying, workers: int, marks: Sequence[int]) -> Iterator[str]:
    """Runs the loop with so many workers on a clock that only counts; a row of the table at each of `marks`,
    ascending numbers of trials.
    """
    idle = [f"worker {index}" for index in range(workers)]
    # Batches under way: when they end, in which order they began, whose they are, their answers.
    under_way: list[tuple[float, int, str, Task, int, list[Any]]] = []
    now, order, left = 0.0, count(), list(marks)
    before = trials = batches = 0
    proposing = recording = 0.0

    def begin(worker: str, task: Task, index: int) -> None:
        results = [result for call in task.calls(index) for result in evaluator.answer(**call.arguments)]
        ends = now + sum(result["seconds"] for result in results)
        heappush(under_way, (ends, next(order), worker, task, index, results))

    def row() -> str:
        new, answered, both = trials - before, batches or 1, 1e3 * (proposing + recording)
        return (
            f"{trials:>7} {batches / new:>14.1f} {1e3 * proposing / new:>17.1f} "
            f"{1e3 * recording / answered:>7.1f} {both / answered:>8.1f} {both / new:>8.1f}"
        )

    while True:
        began = time.thread_time()
        task = loop.propose(idle[-1]) if idle else None
        took = time.thread_time() - began
        if task is not None:
            if task.trial is not None and task.kind == "trial":
                proposing, trials = proposing + took, task.trial + 1
            begin(idle.pop(), task, 0)
        elif not under_way:
            # Numbers of proposals that fit no budget are not those of trials: the last mark may not be met.
            if trials > before:
                yield row()
            return
        else:
            now, _, worker, task, index, results = heappop(under_way)
            use = CacheUse(features_in_memory=len(results))
            began = time.thread_time()
            decision = loop.record(task, index, task.read(results), use)
            if task.kind == "trial":
                recording, batches = recording + time.thread_time() - began, batches + 1
            if decision == "continue":
                begin(worker, task, index + 1)
            else:
                idle.append(worker)
        if left and trials >= left[0]:
            yield row()
            left.pop(0)
            before, batches, proposing, recording = trials, 0, 0.0, 0.0


class Shown(NoProgress):
    """Prints the messages."""

    def message(self, text: str) -> None:
        print(f"    {text.splitlines()[0]}", flush=True)


def _study(options: argparse.Namespace) -> Study:
    return make_study(videos=2 * options.batches * options.videos, per_video=options.questions)


def _loop(study: Study, store: Store, options: argparse.Namespace) -> SearchLoop:
    return make_loop(
        study,
        store,
        trials=options.trials,
        race=options.race,
        batch_videos=options.videos,
        progress=Shown(),
    )


def measure(options: argparse.Namespace, folder: Path) -> str:
    """One run; a row of the table."""
    from tuner.executors.ray_tune import RayExecutor

    study = _study(options)
    evaluator = Waiting(study, seconds=options.seconds, spread=options.spread, deaths=options.deaths)
    with open_store(folder / "t.db", study) as store:
        loop = _loop(study, store, options)
        work = Measured(loop, options.workers)
        with closing(RayExecutor(lambda _: evaluator, workers=options.workers)) as executor:
            executor.run(work)  # type: ignore[arg-type]
        assert work.began is not None
        assert work.ended is not None
        batches, seconds, cpu = (after - before for before, after in zip(work.first, work.last, strict=True))
        wall, driver = (after - before for before, after in zip(work.began, work.ended, strict=True))
        completed = sum(trial.outcome is not None for trial in store.trials())
        proposal = 1e3 * sum(work.last_proposals) / len(work.last_proposals)
    return (
        f"{options.workers:>7} {options.seconds:>7g} {completed:>6} {batches:>7} {work.failures:>8} "
        f"{wall:>7.1f} {seconds / (options.workers * wall):>10.1%} {1e3 * driver / batches:>8.1f} "
        f"{1e3 * (driver - cpu) / batches:>8.1f} {1e3 * driver / options.trials:>8.1f} {proposal:>8.1f}"
    )


HEAD = (
    "workers   batch trials batches failures  wall/s efficiency CPU ms/batch: all, Ray alone, "
    "CPU ms/trial, per proposal at the end"
)


MARKS = (30, 100, 300, 1_000, 3_000, 10_000)
SIMULATED_HEAD = " trials  batches/trial  CPU ms: proposal, record, a batch, a trial"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--spread", type=float, default=0.5)
    parser.add_argument("--deaths", type=float, default=0.0)
    parser.add_argument("--batches", type=int, default=5, help="batches of a trial")
    parser.add_argument("--videos", type=int, default=8, help="videos of a batch")
    parser.add_argument("--questions", type=int, default=2, help="questions of a video")
    parser.add_argument("--no-race", dest="race", action="store_false")
    parser.add_argument("--simulate", action="store_true", help="without Ray and without sleep")
    options = parser.parse_args()
    if options.simulate:
        study = _study(options)
        replaying = Replaying(study, seconds=options.seconds, spread=options.spread)
        for workers in options.workers:
            print(f"{workers} workers\n{SIMULATED_HEAD}")
            with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "t.db", study) as store:
                marks = [mark for mark in MARKS if mark <= options.trials]
                for row in simulate(_loop(study, store, options), replaying, workers, marks):
                    print(row, flush=True)
        return
    print(HEAD)
    for workers in options.workers:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(argparse.Namespace(**{**vars(options), "workers": workers}), Path(folder)))


if __name__ == "__main__":
    main()
