"""What a study is, as frozen values: the parsed form of study.yaml, questions.jsonl and the videos folder.

Nothing here reads a file: `tuner.study.loading` does, and makes these values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pipeline.question import Question, Scoring
from pipeline.video import TIMEOUT
from tuner.study.values import Split

CHOICES = ("deduplicate", "score_query")
"""AdaTP's discrete choices that a search may make. `relevance_norm` is none: tau_t's range depends on it."""


@dataclass(frozen=True)
class Video:
    """A video file of the study; `name` is its path inside the videos folder, with `/`, and identifies it."""

    name: str
    path: Path


@dataclass(frozen=True)
class SkippedVideo:
    """A video left out because it cannot be read, and the number of its questions, left out with it."""

    name: str
    path: Path
    reason: str
    questions: int


@dataclass(frozen=True, kw_only=True)
class StudyQuestion(Question):
    """A question of the study; usable wherever the pipeline wants a `Question`."""

    video: str
    """Name of its `Video`."""
    answer: str | None = None
    """The label: one of the options, or the expected words without options; None without labels."""
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Free key-value pairs that regressions and sensitivities are broken down by."""
    line: int = 0
    """Line of questions.jsonl, counted from 1."""
    baseline: str | None = None
    """The unpruned model's answer by another program: one of the options, or words. It is only compared."""


HELD_OUT = 0.8
"""Fraction of the videos held out unless the study says otherwise: some dozens of videos choose nearly as
well as hundreds, but hundreds are needed to show what is lost (docs/statistics.md).
"""


@dataclass(frozen=True)
class SplitSettings:
    """Which videos are held out: they measure a result and choose nothing."""

    held_out: float = HELD_OUT
    """Fraction of the videos held out."""
    seed: int = 0
    held_out_videos: tuple[str, ...] | None = None
    """The held-out videos by name; replaces fraction and seed."""


@dataclass(frozen=True)
class Search:
    """What the study says about the search; it is not part of the study's identity."""

    fixed: tuple[tuple[str, float], ...] = ()
    """Knobs that keep one value."""
    bounds: tuple[tuple[str, tuple[float, float]], ...] = ()
    """Knobs whose range is narrowed to (low, high)."""
    choices: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Members of `CHOICES` that the study sets: a single value is fixed, several are searched."""


@dataclass(frozen=True)
class Study:
    """What a study is about: its videos, its questions and its model."""

    name: str
    folder: Path
    questions_file: Path
    model: str
    """Path of a checkpoint folder, absolute, or a Hugging Face id."""
    revision: str | None
    """Of a Hugging Face id: branch, tag or commit."""
    text_encoder: str
    """The SigLIP aligned with the model's vision tower: as `model`, a path or an id."""
    frames: int
    """Frames sampled from each video."""
    scoring: Scoring
    max_new_tokens: int
    videos: tuple[Video, ...]
    """In order of name; each has at least one question."""
    questions: tuple[StudyQuestion, ...]
    """In order of the file."""
    held_out: frozenset[str]
    """Names of the videos of the held-out split."""
    split: SplitSettings = SplitSettings()
    search: Search = Search()
    description: str = ""
    pooling: str | None = None
    """How a LLaVA-Video pools patches (`pipeline.families.POOLINGS`); None: as its checkpoint says."""
    allow_pickle: bool = False
    """Whether weights stored as pickles may be read."""
    decode_timeout: float = TIMEOUT
    """Seconds without progress after which decoding a video is given up."""
    skipped: tuple[SkippedVideo, ...] = ()
    """Videos left out, with their questions, because they cannot be read."""

    @property
    def labelled(self) -> bool:
        """Whether the questions carry answers; without them the baseline's answers are the reference."""
        return self.questions[0].answer is not None

    @cached_property
    def _questions_by_id(self) -> dict[str, StudyQuestion]:
        return {question.id: question for question in self.questions}

    @cached_property
    def _videos_by_name(self) -> dict[str, Video]:
        return {video.name: video for video in self.videos}

    def question(self, question_id: str) -> StudyQuestion:
        """The question with this id; KeyError if there is none."""
        return self._questions_by_id[question_id]

    def without(self, questions: Collection[str]) -> Study:
        """The study without the questions with these ids, and without videos that have no other question."""
        if isinstance(questions, str):  # an id would be looked for among its parts
            raise ValueError(f"questions is a collection of ids, but got the text {questions!r}.")
        kept = tuple(question for question in self.questions if question.id not in questions)
        asked = {question.video for question in kept}
        return replace(
            self,
            questions=kept,
            videos=tuple(video for video in self.videos if video.name in asked),
            held_out=self.held_out & asked,
        )

    def video_of(self, question: StudyQuestion) -> Video:
        """The video a question is about."""
        return self._videos_by_name[question.video]

    def split_of(self, question: StudyQuestion) -> Split:
        """The split of its video: all questions of a video belong to the same split."""
        return "held_out" if question.video in self.held_out else "tune"

    def questions_of(self, split: Split) -> tuple[StudyQuestion, ...]:
        """The questions of a split, in order of the file."""
        return tuple(question for question in self.questions if self.split_of(question) == split)

    def videos_of(self, split: Split) -> tuple[Video, ...]:
        """The videos of a split, in order of name."""
        return tuple(video for video in self.videos if (video.name in self.held_out) == (split == "held_out"))
