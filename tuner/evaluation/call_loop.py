"""Work beside answering: calls of the workers' evaluators that do not depend on each other.

Encoding, measuring what a server pays, timing and inspecting go through an executor as answers do, so that
the driver needs neither the model nor its device. Results are handed to a function when they arrive; nothing
is written here.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.evaluation.failures import MOST_DEATHS, MOST_FAILURES, EvaluationError
from tuner.evaluation.progress import NoProgress, Progress
from tuner.evaluation.tasks import Call, Decision, FailureKind
from tuner.records.measurements import CacheUse


@dataclass(frozen=True)
class CallTask:
    """Calls that one worker makes in turn: each is a batch."""

    batches: tuple[Call, ...]

    def calls(self, batch_index: int) -> list[Call]:
        """The batch's only call."""
        return [self.batches[batch_index]]

    def read(self, results: Sequence[Any]) -> Sequence[Any]:
        """As they are."""
        return results


class CallLoop:
    """Calls, each of which is made once; see `Work` for the methods that an executor calls."""

    def __init__(
        self,
        what: str,
        phase: str | None,
        tasks: Sequence[Sequence[Call]],
        take: Callable[[Call, list[Any]], bool | None],
        *,
        give_up: Callable[[Call, str], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """what: for messages, such as "Encoding". phase: of progress, in which a call is a step. tasks: one
        worker makes the calls of a task in turn, and tasks are shared among workers. take: is given each call
        with its results; True ends its task, whose other calls are then left out. give_up: is given a call
        that killed its worker `MOST_DEATHS` times, or that memory does not suffice for, with the reason;
        None: that ends the run.
        """
        self._what = what
        self._take = take
        self._give_up = give_up
        self._progress: Progress = NoProgress() if progress is None else progress
        self._counted = phase is not None
        if phase is not None:
            self._progress.started(phase, sum(map(len, tasks)))
        self._waiting = deque(CallTask(tuple(calls)) for calls in tasks if calls)
        # By the task's identity: what is left of it.
        self._in_flight: dict[int, deque[Call]] = {}
        self._attempts: Counter[int] = Counter()
        self._interrupted = False
        self.cache_use = CacheUse()

    def propose(self, worker: str = "") -> CallTask | None:
        """The next task, whoever asks."""
        if self._interrupted or not self._waiting:
            return None
        task = self._waiting.popleft()
        self._in_flight[id(task)] = deque(task.batches)
        return task

    def record(
        self,
        task: CallTask,
        batch_index: int,
        results: Sequence[Any],
        cache_use: CacheUse | None = None,
    ) -> Decision:
        """Hands the results on."""
        left = self._in_flight[id(task)]
        call = left.popleft()
        if cache_use is not None:
            self.cache_use += cache_use
        enough = self._take(call, list(results))
        self._advanced(1 + len(left) if enough else 1)
        if enough or not left or self._interrupted:
            del self._in_flight[id(task)]
            return "stop"
        return "continue"

    def failed(self, task: CallTask, reason: str, kind: FailureKind = "raised") -> None:
        """Tries the call again, or gives it up.

        Errors: EvaluationError after `MOST_FAILURES` errors, or where giving up is not foreseen.
        """
        left = self._in_flight.pop(id(task), None)
        if not left:
            return
        call = left[0]
        # A lost machine is no evidence against the call.
        self._attempts[id(call)] += kind != "lost"
        attempts = self._attempts[id(call)]
        dies = kind in ("killed", "timed_out") and attempts >= MOST_DEATHS
        hopeless = kind == "out_of_memory" or dies
        if hopeless and self._give_up is not None:
            left.popleft()
            self._give_up(call, reason)
            self._advanced(1)
        elif hopeless or attempts >= MOST_FAILURES:
            self._interrupted = True
            times = "" if attempts == 1 else f" {attempts} times in a row"
            raise EvaluationError(
                f"{self._what} failed{times}. The last reason: {reason}\n"
                "Everything done before is kept, and the same command continues from there."
            )
        else:
            self._progress.message(f"{self._what} failed and is tried again: {reason}")
        if left:
            self._waiting.appendleft(CallTask(tuple(left)))

    def _advanced(self, count: int) -> None:
        if self._counted:
            self._progress.advanced(count)

    def leave_the_rest(self) -> None:
        """Leaves out the tasks that no worker has begun."""
        self._advanced(sum(len(task.batches) for task in self._waiting))
        self._waiting.clear()

    @property
    def finished(self) -> bool:
        """See `Work.finished`."""
        return not self._in_flight and (self._interrupted or not self._waiting)

    @property
    def interrupted(self) -> bool:
        """See `Work.interrupted`."""
        return self._interrupted

    def interrupt(self) -> None:
        """See `Work.interrupt`."""
        self._interrupted = True

    def say(self, text: str) -> None:
        """See `Work.say`."""
        self._progress.message(text)
