"""What an importer makes of a record, and how fields are taken from one without guessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class UnreadableError(Exception):
    """A record that cannot be read with certainty; the message is the end of a sentence that begins with its
    place.
    """


class Problem(NamedTuple):
    """What cannot be taken over: where it stands, and a sentence on what is wrong with it."""

    place: str
    sentence: str


@dataclass(frozen=True)
class Record:
    """One record of a source."""

    values: Mapping[str, Any]
    place: str
    """`file:line`, or `file: row N` counted from 1 where the format has no lines."""
    number: int
    """Counted from 1 in its file."""
    stem: str
    """Name of its file without the suffix."""


@dataclass(frozen=True)
class Subtitles:
    """The subtitles of a question: a file in the folder of subtitles, and the seconds the video shows."""

    file: str
    start: float = 0.0
    """Seconds of the subtitles' clock at which the video begins."""
    seconds: float | None = None
    """Length of the video."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A question as a record has it. The driver (`tuner.importing.importing`) finds its video."""

    place: str
    video: str
    """Path or name, with or without a suffix."""
    question: str
    options: tuple[str, ...] | None = None
    answer: str | None = None
    """One of the options, or the words of a free answer."""
    id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    baseline: str | None = None
    """The unpruned model's answer by another program, as `answer`."""
    subtitles: Subtitles | None = None
    notes: tuple[str, ...] = ()
    """What was left out of it."""


def text_of(record: Record, key: str) -> str:
    """A text that must be there. Errors: UnreadableError."""
    value = record.values.get(key)
    if not isinstance(value, str) or not value.strip():
        found = "missing" if value is None else repr(value)
        raise UnreadableError(f"{key} is {found}; allowed is text")
    return value.strip()


def tags_of(values: Mapping[str, Any], *keys: str) -> dict[str, str]:
    """Of these keys those that hold a text or a number."""
    return {
        key: str(values[key]).strip()
        for key in keys
        if isinstance(values.get(key), str | int | float) and str(values[key]).strip()
    }
