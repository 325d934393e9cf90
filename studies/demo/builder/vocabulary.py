"""The demo's words. One word is one token, in the text tower and in the language model alike."""

from __future__ import annotations

import re
from functools import lru_cache

from .questions import WORDS

SPECIAL = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
PAD, UNK, START, END = 0, 1, 2, 3
TEXT_LENGTH = 24  # tokens that the text tower takes
PATTERN = r"[\w-]+|[^\w\s]"


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    return {word: index for index, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}


def words_of(text: str) -> list[int]:
    table = vocabulary()
    return [table.get(word, UNK) for word in re.findall(PATTERN, text.lower())]


def encode_words(text: str, length: int) -> list[int]:
    """Token ids cut and padded to `length`, as the text tower takes them."""
    ids = words_of(text)[:length]
    return ids + [PAD] * (length - len(ids))
