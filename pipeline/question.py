"""A question as the model is asked it."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

Scoring = Literal["letter", "words"]

LETTERS = ascii_uppercase

# Part of every answer's fingerprint: raise it when the same question gets another answer from the same model.
# 2: the end of the answer is scored with options of different lengths.
SCORING_VERSION = 2


@dataclass(frozen=True)
class Question:
    """One question about one video."""

    id: str
    text: str  # the stem, without options: this is also what the text encoder sees
    options: tuple[str, ...] | None = None  # None: a free answer

    def __post_init__(self) -> None:
        if isinstance(self.options, str):  # its letters would be taken for options
            raise ValueError(f"options is a tuple of texts, but {self.id!r} has the text {self.options!r}.")
        if self.options is not None and not 2 <= len(self.options) <= len(LETTERS):
            raise ValueError(
                f"A question has 2 to {len(LETTERS)} options, but {self.id!r} has {len(self.options)}."
            )


def prompt_text(question: Question, scoring: Scoring) -> str:
    """The text the model reads after the video.

    "letter" lists the options and asks for a letter, as lmms-eval prompts LLaVA-OneVision; "words" shows the
    stem alone and leaves the options to be scored by their log-probability: `Pack.score` says how. A free
    question is its stem either way.
    """
    if scoring not in ("letter", "words"):
        raise ValueError(f"scoring is 'letter' or 'words', but got {scoring!r}.")
    if question.options is None or scoring == "words":
        return question.text
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False)]
    return "\n".join(
        [question.text, *lines, "Answer with the option's letter from the given choices directly."]
    )


def option_texts(question: Question, scoring: Scoring) -> tuple[str, ...]:
    """What is scored for each option: its letter or its words."""
    if question.options is None:
        raise ValueError(f"Question {question.id!r} has no options to score.")
    return tuple(LETTERS[: len(question.options)]) if scoring == "letter" else question.options
