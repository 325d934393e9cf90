"""The version of best.json, which `tuner export` writes and `pipeline.load` reads.

A new key needs no new version as long as a reader that ignores it answers as measured. VERSION is raised when
that would be wrong: readers of an older version then refuse the file instead of answering otherwise. Files of
all earlier versions are still read.
"""

from __future__ import annotations

from pathlib import Path

_NAME = "adatp-tuner/best/"
VERSION = 2  # 2: score_query "mean" is over the question alone, before over all tokens after the video
SCHEMA = f"{_NAME}{VERSION}"
# The JSON Schema of the current format, which covers the earlier ones; written from `tuner.export.best_file`.
SCHEMA_FILE = Path(__file__).with_name("best.schema.json")
# What the key `schema` may hold.
READABLE = tuple(f"{_NAME}{version}" for version in range(1, VERSION + 1))


def why_unreadable(schema: object) -> str | None:
    """Why a file with this `schema` cannot be read, as the end of a sentence that names it; None: it can."""
    if schema in READABLE:
        return None
    number = schema.removeprefix(_NAME) if isinstance(schema, str) else ""
    if number != schema and number.isdecimal() and len(number) < 10 and int(number) > VERSION:
        return (
            f"has format {number} of a newer adatp-tuner, but the one installed here reads formats up to "
            f"{VERSION}: install the newer one, or export the file again with this one."
        )
    return f"has the schema {schema!r:.80}, but this version reads {' or '.join(map(repr, READABLE))}."
