"""What happens when an evaluation fails: a worker dies, memory does not suffice, or an error is raised.

An error may be a passing one: the same questions are tried again, and the run ends when it keeps coming.
Where workers die of the same questions or hang at them, or memory does not suffice for them, they are asked
one at a time. A machine that is lost says nothing of what was asked there.
The question that a worker dies of again is quarantined: left out of the study from then on. `Failures`
counts and decides, `Loop.failed` carries out, and the records keep what is quarantined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Literal

from tuner.evaluation.tasks import FailureKind, VideoBatch
from tuner.study.values import Configuration

Consequence = Literal["retry", "ask_one_by_one", "quarantine", "end_run"]

# Attempts at the same questions that may raise an error before the run ends.
MOST_FAILURES = 3

# Workers that may die of the same questions, or hang at them, before these are asked one at a time, and of
# one question before it is quarantined. Memory that does not suffice needs no second attempt: it would not
# suffice again.
MOST_DEATHS = 2

# Questions that may be quarantined in any study; in a large one a quarter of its questions.
MOST_QUARANTINED = 3


class EvaluationError(Exception):
    """Evaluations keep failing, and leaving out a few questions does not help; what was answered is kept."""

    exit_code: int = 1


class Failures:
    """Counts failed attempts by configuration and the questions they were at."""

    def __init__(self) -> None:
        self._attempts: Counter[tuple[Configuration | None, VideoBatch]] = Counter()

    def add(self, configuration: Configuration | None, batch: VideoBatch, kind: FailureKind) -> Consequence:
        """Counts one more attempt that failed at these questions, and says what follows from it."""
        if kind == "lost":
            return "retry"
        self._attempts[configuration, batch] += 1
        attempts = self._attempts[configuration, batch]
        if kind == "raised":
            return "end_run" if attempts >= MOST_FAILURES else "retry"
        if kind in ("killed", "timed_out") and attempts < MOST_DEATHS:
            return "retry"
        return "quarantine" if len(batch) == 1 else "ask_one_by_one"


def keeps_failing(what: str, question: str, video: str, reason: str) -> EvaluationError:
    """The error that ends a run; `what` was evaluated, from `question` on."""
    return EvaluationError(
        f"Evaluating {what} failed {MOST_FAILURES} times in a row on the same questions, from {question!r} "
        f"(video {video}) on. The last reason: {reason}\n"
        "Everything answered before is kept, and the same command continues from there."
    )


def too_many_quarantined(
    quarantined: Collection[str], questions: int, reason: str, *, split_is_empty: bool
) -> EvaluationError | None:
    """The error that ends a run where so many of the study's questions are quarantined; None while few are.

    The last of `quarantined` was added for `reason`. split_is_empty: it was the last question of its split.
    """
    count = len(quarantined)
    if not split_is_empty and count <= max(MOST_QUARANTINED, questions / 4):
        return None
    return EvaluationError(
        f"{count} of {questions} questions kill their workers, too many to leave out: "
        f"{', '.join(quarantined)}. The last one: {reason}\n"
        "More memory for each worker, a smaller model or other videos may help. Everything answered before "
        "is kept, and the same command continues from there."
    )
