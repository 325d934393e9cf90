"""Evaluates in this process, one work after another: `--workers 1` and fast tests."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.executors.evaluator import Evaluator, EvaluatorFactory
from tuner.loop import Loop
from tuner.records.store import RecordedAnswer


@dataclass(frozen=True)
class InProcessExecutor:
    """Calls the factory once, and only when there is something to evaluate.

    An exception of the evaluator ends the run: in one process the same question would raise it again.
    """

    factory: EvaluatorFactory

    def run(self, loop: Loop) -> None:
        """See `Executor.run`."""
        evaluator: Evaluator | None = None
        while (work := loop.propose()) is not None:
            if evaluator is None:
                evaluator = self.factory()
            configuration = None if work.configuration is None else work.configuration.as_dict()
            for index, rung in enumerate(work.rungs):
                answers = evaluator.answer(configuration, rung, work.references)
                if loop.record(work, index, [RecordedAnswer.from_dict(one) for one in answers]) == "stop":
                    break
