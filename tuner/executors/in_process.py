"""Runs work in this process, one task after another: for `--workers 1` and fast tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.errors import UserError
from tuner.evaluation.description import Computing
from tuner.evaluation.evaluator import Evaluator, EvaluatorFactory
from tuner.evaluation.memory import free_memory, is_out_of_memory
from tuner.evaluation.progress import NoProgress, Progress
from tuner.evaluation.tasks import Assignment, Work
from tuner.records.measurements import CacheUse


class InProcessExecutor:
    """Calls the factory once, and only if there is something to do.

    Memory that does not suffice for a call is reported to the work; its cache use is counted with the next
    batch. Any other exception of the evaluator ends the run, because the same call would raise it again in
    the same process.
    """

    def __init__(self, factory: EvaluatorFactory, progress: Progress | None = None) -> None:
        self._factory = factory
        self._progress: Progress = progress or NoProgress()
        self._evaluator: Evaluator | None = None
        self._required: Computing | None = None
        self._contents: Mapping[str, str] | None = None

    def run(self, work: Work[Any]) -> None:
        """See `Executor.run`. Errors: UserError if the model computes otherwise than is required."""
        while (task := work.propose()) is not None:
            evaluator = self._loaded()
            for index in range(len(task.batches)):
                results = _results(evaluator, task, index)
                if isinstance(results, str):
                    free_memory()
                    work.failed(task, results, "out_of_memory")
                    break
                use = CacheUse(**evaluator.cache_use())
                if work.record(task, index, task.read(results), use) == "stop":
                    break

    def require(self, computing: Computing) -> None:
        """See `Executor.require`."""
        self._required = computing

    def expect(self, contents: Mapping[str, str]) -> None:
        """See `Executor.expect`."""
        self._contents = contents
        if self._evaluator is not None:
            self._evaluator.expect(contents)

    def close(self) -> None:
        """Gives the model's memory back."""
        self._evaluator = None
        free_memory()

    def _loaded(self) -> Evaluator:
        if self._evaluator is None:
            self._progress.now("loading the model")
            evaluator = self._factory()
            self._progress.now("")
            if self._required is not None:
                refusal = evaluator.describe()[0].refusal(self._required)
                if refusal is not None:
                    raise UserError(refusal)
            if self._contents is not None:
                evaluator.expect(self._contents)
            self._evaluator = evaluator
        return self._evaluator


def _results(evaluator: Evaluator, task: Assignment, batch: int) -> list[Any] | str:
    """What the batch's calls return or, if memory does not suffice for them, the error's message."""
    results: list[Any] = []
    try:
        for call in task.calls(batch):
            results += getattr(evaluator, call.method)(**call.arguments)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # Only its text: the error itself keeps the failed forward's tensors alive.
        return f"{type(error).__name__}: {error}"
    return results
