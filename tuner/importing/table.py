"""CSV of a team's own: `video`, `question`, and what else docs/study-format.md names."""

from __future__ import annotations

import re

from tuner.importing.normalise import answer_of, options_of
from tuner.importing.rows import Record, Row, UnreadableError, text_of
from tuner.study import nearest

SUFFIXES = (".csv", ".tsv")
COLUMNS = ("video", "question", "id", "answer", "baseline")
_OPTION = re.compile(r"option_([a-z])")
_TAG = re.compile(r"tag_(.+)")


def read(record: Record) -> Row:
    """The question of a line. Errors: UnreadableError."""
    for name in record.values:
        if name not in COLUMNS and not _OPTION.fullmatch(name) and not _TAG.fullmatch(name):
            raise UnreadableError(
                f"column {name!r} is unknown{nearest(name, COLUMNS)}; allowed are {', '.join(COLUMNS)}, "
                "option_a to option_z, and tag_ with a name"
            )
    cells = {name: cell.strip() for name, cell in record.values.items() if cell.strip()}
    places = sorted(name for name in cells if _OPTION.fullmatch(name))
    for place, name in enumerate(places):
        if name != f"option_{chr(ord('a') + place)}":
            raise UnreadableError(f"{name} is filled, but not all options in front of it")
    options = options_of([cells[name] for name in places]) if places else None
    return Row(
        place=record.place,
        id=cells.get("id"),
        video=text_of(record, "video"),
        question=text_of(record, "question"),
        options=options,
        answer=answer_of(cells["answer"], options) if "answer" in cells else None,
        baseline=answer_of(cells["baseline"], options) if "baseline" in cells else None,
        tags={found[1]: cell for name, cell in cells.items() if (found := _TAG.fullmatch(name))},
    )
