"""What the records hold, as plain values: what `Store` takes and returns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, Self

from pipeline.layout import Layout
from pipeline.question import Question
from tuner.statistics.margin import DEFAULT_MAX_DROP
from tuner.statistics.values import Verdict
from tuner.study.values import Configuration, Outcome, Split

Pair = tuple[str, str]
"""(question id, fingerprint): what an answer is known by."""


def prompt_hash(text: str, options: Sequence[str] | None) -> str:
    """What a question is known by, whoever asks it; how it is rendered is part of every fingerprint."""
    return hashlib.sha256(json.dumps([text, None if options is None else list(options)]).encode()).hexdigest()


def asked_hash(question: Question, content: str) -> str:
    """What identifies a question about a video, in twelve hexadecimal digits: its text and options, and the
    hash of the video's bytes.
    """
    asked = f"{prompt_hash(question.text, question.options)} {content}"
    return hashlib.sha256(asked.encode()).hexdigest()[:12]


Goal = Literal["budget", "max_drop"]
# Of a look: what a search was for, or a trial that a person chose.
LookGoal = Literal["budget", "max_drop", "trial"]
Purpose = Literal["search", "above"]


@dataclass(frozen=True)
class RecordedAnswer:
    """What the model said, as stored; judged by `tuner.evaluation.scoring`."""

    question: str
    text: str
    option: int | None
    option_logprobs: tuple[float, ...] | None
    logprob: float | None
    kept: tuple[int, ...]
    seconds: float
    peak_bytes: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From plain data as a worker sends it; lists become tuples."""
        logprobs = values["option_logprobs"]
        return cls(
            question=values["question"],
            text=values["text"],
            option=values["option"],
            option_logprobs=None if logprobs is None else tuple(logprobs),
            logprob=values["logprob"],
            kept=tuple(values["kept"]),
            seconds=values["seconds"],
            peak_bytes=values.get("peak_bytes"),
        )


class StoredAnswer(NamedTuple):
    """What an answer cost: visual tokens kept at each pruning (none: the unpruned model), and seconds."""

    question: str
    fingerprint: str
    kept: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class StoredQuestion:
    """A question with its place in the study and the layout its plans are made from."""

    id: str
    video: str
    split: Split
    layout: Layout
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyRecord:
    """All that planning, scoring and exporting need of a study, without its model."""

    name: str
    hash: str
    parts: dict[str, Any]
    setting: dict[str, Any]
    shape: dict[str, Any]
    fingerprint_base: str
    text_encoder_identity: str
    # Videos left out because they cannot be read: name, reason and content hash of each.
    skipped: tuple[dict[str, str], ...]
    questions: tuple[StoredQuestion, ...]
    # What else study.yaml says (`tuner.records.definition`); empty where it was migrated and not run since.
    definition: dict[str, Any] = field(default_factory=dict)

    @property
    def encoding(self) -> str:
        """Model, text encoder, frames and number format: what stored layouts and answers depend on."""
        return str(self.parts["settings"]["encoding"])


@dataclass(frozen=True)
class SearchRecord:
    """What one search asked for; `id` is the database's."""

    id: int
    budget: float
    seed: int
    coordinates: str
    trials: int
    sampler: str = "tpe"
    goal: Goal = "budget"
    # As `tuner.statistics.margin.MaxDrop` writes it.
    max_drop: str = DEFAULT_MAX_DROP


@dataclass(frozen=True)
class Pruned:
    """Why a trial was pruned: completed ones beat it at its cost, seen after so many videos.

    `by`: the one with the largest share in the mixture it was compared with.
    """

    by: int
    videos: int


@dataclass(frozen=True)
class TrialRecord:
    """A row of knobs; `outcome` is None while answers are missing, and for a pruned trial."""

    number: int
    search: int
    configuration: Configuration
    binding_ratio: float
    outcome: Outcome | None
    purpose: Purpose = "search"
    pruned: Pruned | None = None

    @property
    def unfinished(self) -> bool:
        """Neither complete nor pruned: a run that goes on finishes it first."""
        return self.outcome is None and self.pruned is None


@dataclass(frozen=True)
class InfeasibleRecord:
    """A proposal over the budget, with the search space parameters the sampler proposed it by."""

    search: int
    number: int
    attempt: int
    configuration: Configuration
    proposed: dict[str, float]
    binding_ratio: float


@dataclass(frozen=True)
class Derived:
    """What a definition of the study makes of a trial."""

    binding_ratio: float
    # None where answers are missing.
    outcome: Outcome | None


@dataclass(frozen=True)
class Look:
    """What held-out videos said of a search's choice, or of a trial that a person chose, at a margin.

    Levels of the tests hold for the looks that were planned: who sees one can move the next.
    """

    goal: LookGoal
    budget: float
    seed: int
    max_drop: str
    # Completed trials of the study then, and the one that was chosen.
    trials: int
    trial: int
    verdict: Verdict
    # Significance level of the test, and trial numbers in the order they were tested; older looks lack them.
    level: float | None = None
    candidates: tuple[int, ...] = ()
    created: datetime | None = field(default=None, compare=False)
