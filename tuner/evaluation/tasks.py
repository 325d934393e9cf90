"""What an executor and the work it runs exchange: tasks, the calls that they consist of, and the results.

Work is a search, a comparison (`loop`), or calls of other kinds, such as encoding (`call_loop`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from tuner.records.measurements import CacheUse
from tuner.records.values import RecordedAnswer
from tuner.study.values import Configuration

VideoBatch = tuple[str, ...]
"""Ids of questions about a few whole videos: what is answered and recorded together."""

Decision = Literal["continue", "stop"]
"""Whether the worker goes on with the task's next batch."""

FailureKind = Literal["killed", "timed_out", "lost", "out_of_memory", "raised"]
"""The worker's process died while its machine lived on; it hung and was ended; its machine was lost or taken
away; memory did not suffice; the evaluator raised another error.
"""

Kind = Literal["baseline", "noise", "trial", "held_out", "asked"]
"""What an evaluation is for; "asked": a comparison or a sensitivity study needs it."""


class Call(NamedTuple):
    """A call of a worker's evaluator, as plain data; it returns a list of plain data."""

    method: Literal["answer", "describe", "encode", "serve", "time", "look"]
    arguments: dict[str, Any]


class Assignment(Protocol):
    """What a worker is given at once: batches of calls, whose results are recorded batch by batch."""

    @property
    def batches(self) -> Sequence[Any]:
        """One element for each batch."""

    def calls(self, batch_index: int) -> list[Call]:
        """What gives a batch's results."""

    def read(self, results: Sequence[Any]) -> Sequence[Any]:
        """A batch's results as `Work.record` takes them, from the plain data that its calls returned."""


Assigned = TypeVar("Assigned", bound=Assignment)


class Work(Protocol[Assigned]):
    """What an executor runs to its end. It is called from one thread only."""

    def propose(self, worker: str = "") -> Assigned | None:
        """The next task for this worker; None if there is none left (`finished`) or it depends on results in
        flight.
        """

    def record(
        self,
        task: Assigned,
        batch_index: int,
        results: Sequence[Any],
        cache_use: CacheUse | None = None,
    ) -> Decision:
        """Takes the results of one batch; returns "stop" if this task needs no further batch."""

    def failed(self, task: Assigned, reason: str, kind: FailureKind = "raised") -> None:
        """An attempt ended without a result: what it had not recorded is proposed again, or given up."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to hand out and nothing is in flight."""

    @property
    def interrupted(self) -> bool:
        """Whether the work was ended early."""

    def interrupt(self) -> None:
        """Ends the work after the batches in flight, which are still recorded."""

    def say(self, text: str) -> None:
        """Passes on a line from the executor that the user should read."""


@dataclass(frozen=True)
class Task:
    """One attempt at an evaluation, or at a share of it: batches of the questions that are still missing."""

    id: int
    kind: Kind
    trial: int | None
    # None: the unpruned model.
    configuration: Configuration | None
    batches: tuple[VideoBatch, ...]
    # Text whose log-probability judges a free answer, by question id; questions with options need none.
    references: Mapping[str, str] = field(default_factory=dict)
    # By question id, for questions that have a configuration of their own.
    configurations: Mapping[str, Configuration] = field(default_factory=dict)

    @property
    def reshaped(self) -> bool:
        """Whether the questions are asked in packs of another size than usual, to measure the noise floor."""
        return self.kind == "noise"

    def calls(self, batch_index: int) -> list[Call]:
        """What answers a batch: a call for each configuration in it."""
        groups: dict[Configuration | None, list[str]] = {}
        for question in self.batches[batch_index]:
            groups.setdefault(self.configurations.get(question, self.configuration), []).append(question)
        return [
            Call(
                "answer",
                {
                    "configuration": None if configuration is None else configuration.as_dict(),
                    "questions": tuple(questions),
                    "references": {
                        question: self.references[question]
                        for question in questions
                        if question in self.references
                    },
                    "reshaped": self.reshaped,
                },
            )
            for configuration, questions in groups.items()
        ]

    def read(self, results: Sequence[Any]) -> list[RecordedAnswer]:
        """The answers of a batch."""
        return [RecordedAnswer.from_dict(result) for result in results]


@dataclass(eq=False)
class Evaluation:
    """An evaluation under way: a configuration (None: the unpruned model) on some questions."""

    kind: Kind
    configuration: Configuration | None
    number: int | None
    fingerprints: dict[str, str]  # by question id, in the study's order
    answers: dict[str, RecordedAnswer]  # by question id; complete when it has all of them
    configurations: Mapping[str, Configuration] = field(default_factory=dict)  # as in `Task`

    def missing(self, questions: Iterable[str]) -> VideoBatch:
        """The ones of these questions that belong to it and are not answered yet."""
        return tuple(
            question
            for question in questions
            if question in self.fingerprints and question not in self.answers
        )

    def leave_out(self, question: str) -> None:
        """Removes a question that is quarantined."""
        self.fingerprints.pop(question, None)
        self.answers.pop(question, None)

    @property
    def complete(self) -> bool:
        """Whether every question is answered."""
        return len(self.answers) == len(self.fingerprints)
