"""Evaluates in this process, one work after another: `--workers 1` and fast tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuner.evaluation.evaluator import Evaluator, EvaluatorFactory, free_memory, is_out_of_memory
from tuner.evaluation.loop import Loop
from tuner.evaluation.tasks import Work
from tuner.records.measurements import CacheUse
from tuner.records.values import RecordedAnswer


@dataclass(frozen=True)
class InProcessExecutor:
    """Calls the factory once, and only when there is something to evaluate.

    Memory that does not suffice for a question is told to the loop; what the caches did for it counts with
    the batch that is answered next. Any other exception of the evaluator ends the run: in one process the
    same question would raise it again.
    """

    factory: EvaluatorFactory

    def run(self, loop: Loop) -> None:
        """See `Executor.run`."""
        evaluator: Evaluator | None = None
        while (work := loop.propose()) is not None:
            if evaluator is None:
                evaluator = self.factory()
            for index in range(len(work.batches)):
                answers = _answer(evaluator, work, index)
                if isinstance(answers, str):
                    free_memory()
                    loop.failed(work, answers, "out_of_memory")
                    break
                if loop.record(work, index, answers, CacheUse(**evaluator.cache_use())) == "stop":
                    break


def _answer(evaluator: Evaluator, work: Work, batch: int) -> list[RecordedAnswer] | str:
    """The answers or, where memory does not suffice for them, what the error said."""
    answers: list[dict[str, Any]] = []
    try:
        for configuration, questions in work.calls(batch):
            answers += evaluator.answer(configuration, questions, work.references, reshaped=work.reshaped)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # Only the text: the error itself holds the tensors of the failed forward.
        return f"{type(error).__name__}: {error}"
    return [RecordedAnswer.from_dict(one) for one in answers]
