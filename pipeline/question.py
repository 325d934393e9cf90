"""A question as the model is asked it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal, get_args

Scoring = Literal["letter", "words", "words_per_token"]
SCORINGS = get_args(Scoring)

LETTERS = ascii_uppercase

# "A. ", "A: ", "A) ", "(A) ", "[A] ", and as Chinese texts have it. After . and : there is a space: A.D. and
# B.C. are no letters of options.
_LETTER = re.compile(
    r"\s*[(\[\uff08]?\s*([A-Za-z\uff21-\uff3a])\s*(?:[.:]\s|[)\]\uff09\uff0e\uff1a\u3001])\s*(?=\S)"
)

# Part of every answer's fingerprint: raise it when the same question gets another answer from the same model.
# 2: the end of the answer is scored with options of different lengths.
# 3: nothing in a text is a control token; letters that a study wrote before its options are taken off.
SCORING_VERSION = 3


@dataclass(frozen=True)
class Question:
    """One question about one video."""

    id: str
    text: str  # the stem, without options: this is also what the text encoder sees
    options: tuple[str, ...] | None = None  # None: a free answer

    def __post_init__(self) -> None:
        if isinstance(self.options, str):  # its letters would be taken for options
            raise ValueError(f"options is a tuple of texts, but {self.id!r} has the text {self.options!r}.")
        if not all(isinstance(text, str) for text in (self.text, *(self.options or ()))):
            raise ValueError(
                f"A question and its options are texts, but got {self.text!r}, {self.options!r}."
            )
        if self.options is not None and not 2 <= len(self.options) <= len(LETTERS):
            raise ValueError(
                f"A question has 2 to {len(LETTERS)} options, but {self.id!r} has {len(self.options)}."
            )


def prompt_text(question: Question, scoring: Scoring) -> str:
    """The text the model reads after the video.

    "letter" lists the options and asks for a letter, as lmms-eval prompts LLaVA-OneVision; the others show
    the stem alone and leave the options to be scored by their log-probability: `Pack.score` says how. A free
    question is its stem in any case.
    """
    if scoring not in SCORINGS:
        raise ValueError(f"scoring is one of {', '.join(SCORINGS)}, but got {scoring!r}.")
    if question.options is None or scoring != "letter":
        return question.text
    bare = without_letters(question.options)
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, bare, strict=False)]
    return "\n".join(
        [question.text, *lines, "Answer with the option's letter from the given choices directly."]
    )


def option_texts(question: Question, scoring: Scoring) -> tuple[str, ...]:
    """What is scored for each option: its letter or its words."""
    if question.options is None:
        raise ValueError(f"Question {question.id!r} has no options to score.")
    if scoring == "letter":
        return tuple(LETTERS[: len(question.options)])
    return without_letters(question.options)


def without_letters(options: Sequence[str]) -> tuple[str, ...]:
    """The options without the letters that each begins with, in any style; as they are where one has none.

    So that "A. red" is neither shown as "A. A. red" nor scored with its letter. lmms-eval takes such letters
    off too where it scores options by their words.
    """
    found = [_LETTER.match(option) for option in options]
    lettered = [match is not None and unicodedata.normalize("NFKC", match[1]).upper() for match in found]
    if lettered != list(LETTERS[: len(options)]):
        return tuple(options)
    return tuple(option[match.end() :] for option, match in zip(options, found, strict=True) if match)
