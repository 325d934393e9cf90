"""Tasks for an executor: what to ask of the model, and how asking may fail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tuner.records.values import RecordedAnswer
from tuner.study.values import Configuration

Kind = Literal["baseline", "noise", "trial", "held_out", "asked"]


# How an attempt ended without an answer: its process died; memory did not suffice; the evaluator raised
# another error.
Ending = Literal["killed", "out_of_memory", "raised"]


VideoBatch = tuple[str, ...]


class EvaluationError(Exception):
    """Evaluations keep failing, and not for a few questions' sake; what was answered before is kept."""

    exit_code: int = 1


@dataclass(frozen=True)
class Work:
    """One attempt at one evaluation: its batches hold the ids of the questions still missing."""

    id: int
    kind: Kind
    trial: int | None
    # None: the unpruned baseline.
    configuration: Configuration | None
    batches: tuple[VideoBatch, ...]
    # Text whose log-probability judges a free answer, by question id; questions with options need none.
    references: Mapping[str, str] = field(default_factory=dict)
    # Where questions have configurations of their own, by id.
    configurations: Mapping[str, Configuration] = field(default_factory=dict)

    @property
    def reshaped(self) -> bool:
        """Whether the questions are asked in packs of another size than usual."""
        return self.kind == "noise"

    def calls(self, batch_index: int) -> list[tuple[dict[str, Any] | None, VideoBatch]]:
        """What answers a batch: configurations as plain data (None: the unpruned model), each with its
        questions.
        """
        groups: dict[Configuration | None, list[str]] = {}
        for question in self.batches[batch_index]:
            groups.setdefault(self.configurations.get(question, self.configuration), []).append(question)
        return [
            (None if configuration is None else configuration.as_dict(), tuple(questions))
            for configuration, questions in groups.items()
        ]


@dataclass(eq=False)
class Job:
    """An evaluation under way: one configuration (None: the baseline) on some questions."""

    kind: Kind
    configuration: Configuration | None
    number: int | None
    fingerprints: dict[str, str]  # by question id, in the study's order
    answers: dict[str, RecordedAnswer]  # by question id; complete when it has all of them
    configurations: Mapping[str, Configuration] = field(default_factory=dict)  # as in `Work`

    def missing(self, questions: Iterable[str]) -> VideoBatch:
        """Those of these questions that are part of it and still to be answered."""
        return tuple(one for one in questions if one in self.fingerprints and one not in self.answers)

    def leave_out(self, question: str) -> None:
        """It is no part of the job any more."""
        self.fingerprints.pop(question, None)
        self.answers.pop(question, None)

    @property
    def complete(self) -> bool:
        """Whether all of it is answered."""
        return len(self.answers) == len(self.fingerprints)
