"""Evaluates in this process, one task after another: for `--workers 1` and fast tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuner.evaluation.evaluator import Evaluator, EvaluatorFactory, free_memory, is_out_of_memory
from tuner.evaluation.loop import Loop
from tuner.evaluation.tasks import Task
from tuner.records.measurements import CacheUse
from tuner.records.values import RecordedAnswer


@dataclass(frozen=True)
class InProcessExecutor:
    """Calls the factory once, and only if there is something to evaluate.

    Memory that does not suffice for a question is reported to the loop; its cache use is counted with the
    next batch that is answered. Any other exception of the evaluator ends the run, because the same question
    would raise it again in the same process.
    """

    factory: EvaluatorFactory

    def run(self, loop: Loop) -> None:
        """See `Executor.run`."""
        evaluator: Evaluator | None = None
        while (task := loop.propose()) is not None:
            if evaluator is None:
                evaluator = self.factory()
            for index in range(len(task.batches)):
                answers = _answer(evaluator, task, index)
                if isinstance(answers, str):
                    free_memory()
                    loop.failed(task, answers, "out_of_memory")
                    break
                if loop.record(task, index, answers, CacheUse(**evaluator.cache_use())) == "stop":
                    break


def _answer(evaluator: Evaluator, task: Task, batch: int) -> list[RecordedAnswer] | str:
    """The answers or, if memory does not suffice for them, the error's message."""
    answers: list[dict[str, Any]] = []
    try:
        for configuration, questions in task.calls(batch):
            answers += evaluator.answer(configuration, questions, task.references, reshaped=task.reshaped)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # Only its text: the error itself keeps the failed forward's tensors alive.
        return f"{type(error).__name__}: {error}"
    return [RecordedAnswer.from_dict(one) for one in answers]
