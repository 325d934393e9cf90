"""What the loop and an executor exchange: evaluations, and the attempts at them that are handed out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tuner.records.values import RecordedAnswer
from tuner.study.values import Configuration

Kind = Literal["baseline", "noise", "trial", "held_out", "asked"]
"""What an evaluation is for; "asked": a comparison or a sensitivity study needs it."""

VideoBatch = tuple[str, ...]
"""Ids of questions about a few whole videos: what is answered and recorded together."""


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

    def calls(self, batch_index: int) -> list[tuple[dict[str, Any] | None, VideoBatch]]:
        """What answers a batch: pairs of a configuration as plain data (None: the unpruned model) and the ids
        of its questions.
        """
        groups: dict[Configuration | None, list[str]] = {}
        for question in self.batches[batch_index]:
            groups.setdefault(self.configurations.get(question, self.configuration), []).append(question)
        return [
            (None if configuration is None else configuration.as_dict(), tuple(questions))
            for configuration, questions in groups.items()
        ]


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
        return tuple(one for one in questions if one in self.fingerprints and one not in self.answers)

    def leave_out(self, question: str) -> None:
        """Removes a question that is quarantined."""
        self.fingerprints.pop(question, None)
        self.answers.pop(question, None)

    @property
    def complete(self) -> bool:
        """Whether every question is answered."""
        return len(self.answers) == len(self.fingerprints)
