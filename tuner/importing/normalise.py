"""Options and answers in the many ways in which they are published, as texts; nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from tuner.importing.rows import UnreadableError

# "A. Red", "A) Red", "A: Red", "(A) Red".
_LETTERED = re.compile(r"(?:\(([A-Z])\)[.:]?|([A-Z])[.):])\s*(.*)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")

_RESPOND = (
    r"(please )?(answer|respond)( directly)? with (only )?(the option's letter|the letter)"
    r"( of the correct (option|answer)| from the given choices)?( directly)?"
    r"( and (only give the best option|nothing else))?"
)
# lmms-eval asks VideoMME in the words "and the subtitles" with and without them.
_SELECT = (
    r"select the best answer to the following multiple-choice question based on the video"
    r"( and the subtitles)?\. respond with only the letter \([a-z, ]+ or [a-z]\) of the correct option"
)
_WATCH = (
    r"carefully watch (the|this) video and pay attention to .+ select the best option that accurately "
    r"addresses the question"
)
# Lines around a question that tell the model how to answer: this program writes its own.
_INSTRUCTIONS = tuple(
    re.compile(rf"(?:{pattern})\.?", re.IGNORECASE)
    for pattern in (
        _RESPOND,
        _SELECT,
        _WATCH,
        r"options:",
        r"((the )?(best|correct) )?(answer|option)( is)?: ?\(?",
        r"only give the best option",
        r"please answer directly with only the letter of the correct option and nothing else",
        r"please select the correct answer from the options above",
        r"please provide your answer by stating the letter followed by the full option",
    )
)


def options_of(value: Any) -> tuple[str, ...]:
    """The options' texts, without letters where each has its own: A., B., C. in this order.

    value: a list of texts, or a text with an option a line. Errors: UnreadableError.
    """
    if isinstance(value, str):
        value = [line for line in value.splitlines() if line.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
        raise UnreadableError(f"the options are {value!r}; allowed is a list of texts")
    texts = [entry.strip() for entry in value]
    found = [_LETTERED.fullmatch(text) for text in texts]
    if all(found) and [match[1] or match[2] for match in found if match] == list(
        ascii_uppercase[: len(texts)]
    ):
        texts = [match[3].strip() for match in found if match]
    if not 2 <= len(texts) <= len(ascii_uppercase):
        raise UnreadableError(f"there are {len(texts)} options; allowed are 2 to {len(ascii_uppercase)}")
    if not all(texts):
        raise UnreadableError("an option is empty")
    repeated = sorted({text for text in texts if texts.count(text) > 1})
    if repeated:
        raise UnreadableError(f"option {repeated[0]!r} occurs more than once")
    return tuple(texts)


def answer_of(value: Any, options: Sequence[str] | None) -> str:
    """The option that a letter, a letter with the option's text, or the text means; without options the text.

    A text is also recognised with other case, spaces or full stop at its end, where only one option fits.
    Errors: UnreadableError where none or several options fit.
    """
    if not isinstance(value, str) or not value.strip():
        raise UnreadableError(f"the answer is {'missing' if value is None else repr(value)}; allowed is text")
    text = value.strip()
    if options is None:
        return text
    fitting = {place for place, option in enumerate(options) if option == text}
    if not fitting:
        fitting = {place for place, option in enumerate(options) if _plain(option) == _plain(text)}
    if letter := _LETTER.fullmatch(text):
        fitting |= {_place(letter[1])} & set(range(len(options)))
    elif not fitting and (lettered := _LETTERED.fullmatch(text)):
        place = _place(lettered[1] or lettered[2])
        if place < len(options) and _plain(options[place]) == _plain(lettered[3]):
            fitting = {place}
    if len(fitting) != 1:
        listed = ", ".join(map(repr, options))
        how = "fits several options" if fitting else "is none of the options"
        raise UnreadableError(f"the answer {text!r} {how}: {listed}")
    return options[fitting.pop()]


def answer_to_prompt(value: Any, options: Sequence[str] | None) -> str:
    """As `answer_of`, of a question that `split_prompt` took from a prompt: a mere letter without options
    means that the options were not found. Errors: UnreadableError.
    """
    answer = answer_of(value, options)
    if options is None and _LETTER.fullmatch(answer):
        raise UnreadableError(f"the answer is {answer!r}, but there are no options")
    return answer


def option_at(number: Any, options: Sequence[str]) -> str:
    """The option of this number, counted from 0. Errors: UnreadableError."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(options):
        raise UnreadableError(
            f"the right option's number is {number!r}; allowed is 0 to {len(options) - 1} here"
        )
    return options[number]


def split_prompt(text: str) -> tuple[str, tuple[str, ...] | None]:
    """Question and options of a prompt in which each option has a line and a letter; None without options.

    Instructions on how to answer are left out. Errors: UnreadableError where something else follows the
    options, so that it may be part of the last one.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    block = _last_block(lines)
    if block is None:
        return "\n".join(lines), None
    first, end = block
    for line in lines[end:]:
        if not _is_instruction(line):
            raise UnreadableError(f"{line!r} follows the options: it is neither an option nor known")
    stem = [line for line in lines[:first] if not _is_instruction(line)]
    question = "\n".join(stem).removeprefix("Question:").strip()
    if not question:
        raise UnreadableError("there are options, but no question in front of them")
    return question, options_of(lines[first:end])


def _last_block(lines: Sequence[str]) -> tuple[int, int] | None:
    """Where lines with the letters A, B, C, ... begin and end; of several such places the last."""
    for first in range(len(lines) - 1, -1, -1):
        end = first
        while end < len(lines) and (found := _LETTERED.fullmatch(lines[end])):
            if end - first >= len(ascii_uppercase) or (found[1] or found[2]) != ascii_uppercase[end - first]:
                break
            end += 1
        if end - first >= 2:
            return first, end
    return None


def _is_instruction(line: str) -> bool:
    return any(pattern.fullmatch(line) for pattern in _INSTRUCTIONS)


def _place(letter: str) -> int:
    return ascii_uppercase.index(letter.upper())


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
