"""Subtitles as text: SubRip (`.srt`), and LongVideoBench's JSON in both of its forms."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tuner.importing.rows import Subtitles, UnreadableError

HEADING = "This video's subtitles are listed below:"

_TIMES = re.compile(r"\s*([\d:,.]+)\s*-->\s*([\d:,.]+)")
_MARKUP = re.compile(r"<[^>]+>|\{\\[^}]+\}")


class _Line(NamedTuple):
    start: float  # seconds
    end: float | None
    text: str


def subtitles_text(folder: Path, wanted: Subtitles) -> str | None:
    """What is said while the video runs, a subtitle a line; None where there is no such file.

    Errors: UnreadableError for a file that is none of the two.
    """
    file = folder / PurePosixPath(wanted.file).name
    if not file.is_file():
        return None
    try:
        text = file.read_bytes().decode("utf-8-sig")
        lines = list(_json(text) if file.suffix.lower() == ".json" else _srt(text))
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"the subtitles {file} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableError(f"the subtitles {file} are not readable: {error}") from error
    end = None if wanted.seconds is None else wanted.start + wanted.seconds
    said = [
        line.text
        for line in lines
        if (line.end is None or line.end > wanted.start) and (end is None or line.start < end)
    ]
    return "\n".join(text for text in said if text)


def _srt(text: str) -> Iterator[_Line]:
    blocks = re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip())
    for block in blocks:
        lines = block.split("\n")
        place = next((number for number, line in enumerate(lines) if _TIMES.match(line)), None)
        if place is None:
            raise ValueError(f"{block!r} has no times")
        times = _TIMES.match(lines[place])
        assert times is not None
        yield _Line(_seconds(times[1]), _seconds(times[2]), _plain(" ".join(lines[place + 1 :])))


def _json(text: str) -> Iterator[_Line]:
    for entry in json.loads(text):
        if "timestamp" in entry:
            start, end = entry["timestamp"]
            # The last subtitle of some files has no end.
            yield _Line(float(start), float(end) if _is_number(end) else None, _plain(entry["text"]))
        else:
            yield _Line(_seconds(entry["start"]), _seconds(entry["end"]), _plain(entry["line"]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seconds(text: str) -> float:
    """Of 00:01:02,500 or 00:01:02.500."""
    total = 0.0
    for part in text.replace(",", ".").split(":"):
        total = 60 * total + float(part)
    return total


def _plain(text: str) -> str:
    return " ".join(_MARKUP.sub("", text).split())
