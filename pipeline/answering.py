"""What the model said to a question, and when two free answers are the same."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

MATCHING_VERSION = 3
"""Raise it when `normalise` changes: it is part of the identity of studies with free answers."""

# An article that belongs to a word after it. A capital A inside the text is a name: vitamin A tablets.
_ARTICLE = re.compile(r"(?:^(?:an?|the)|(?<=\s)(?-i:a|[Aa][Nn]|[Tt][Hh][Ee]))\s+(?=\S)", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# What separates digits or makes a number another one says something: 3.5, .5, 1:30, -5, 5%. So does the # of
# a name: C#.
_SPEAKS = re.compile(r"(?<=\d)[.,:/-](?=\d)|(?<![\w)])[-.](?=\.?\d)|(?<=\d)%|(?<=\w)#(?!\w)")
# Soft hyphens, joiners, marks of direction, variation selectors: what Unicode ignores by default.
_UNSEEN = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]")
_MINUS = str.maketrans("\N{MINUS SIGN}\N{EN DASH}", "--")


@dataclass(frozen=True)
class Answer:
    """What the model said to one question."""

    question: str  # its id
    text: str  # the chosen option, or the free answer
    option: int | None  # index of the most probable option; None for a free answer
    # Per option, natural log, not normalised over the options; `Pack.score` says when its end is included.
    option_logprobs: tuple[float, ...] | None
    logprob: float | None  # of `text`; of the reference where one was given
    kept: tuple[int, ...]  # visual tokens that really stayed, per pruning layer; empty for the unpruned model
    seconds: float  # from question to answer, encoding of the video not included
    peak_bytes: int | None = None  # memory added meanwhile: see pipeline.peak_memory.PeakMemory
    # What pruning saved, by this question's plan: the language model's prefill in FLOPs over the unpruned
    # one's, and the visual tokens that the video has. 1 and all tokens where nothing was pruned.
    flops_ratio: float = 1.0
    visual_tokens: int = 0

    @property
    def tokens_left(self) -> int:
        """Visual tokens after the last pruning."""
        return self.kept[-1] if self.kept else self.visual_tokens


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: SQuAD's way of comparing answers.

    Punctuation is Unicode's, as in MLQA, and stays where it belongs to a number (3.5 is not 35), as in the
    VQA evaluation. Characters are compared as NFKC_Casefold has them, which also leaves out those that are
    not seen. Our choice: symbols such as + stay, digits of all scripts are the same, an article goes only
    where a word follows it, so that the answer "A" is not an empty one, and of an answer that is punctuation
    alone nothing is taken off.
    """
    text = unicodedata.normalize("NFKC", _UNSEEN.sub("", text)).translate(_MINUS)
    text = "".join(str(unicodedata.decimal(char, char)) for char in text)
    text = _ARTICLE.sub("", " ".join(_THOUSANDS.sub("", text).split()))
    speaks = {place for found in _SPEAKS.finditer(text) for place in range(*found.span())}
    kept = (
        char for i, char in enumerate(text) if i in speaks or not unicodedata.category(char).startswith("P")
    )
    words = " ".join("".join(kept).split()) or text
    return unicodedata.normalize("NFKC", words.casefold())


def matches(text: str, answer: str) -> bool:
    """Whether two free answers are the same after normalisation."""
    return normalise(text) == normalise(answer)
