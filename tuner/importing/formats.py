"""The formats that can be imported: each is one file here with `SUFFIXES` and `read`.

`read(record)` gives the record's question as a `Row`, or raises UnreadableError. Modules are imported when a
format is asked for, so that a command's help stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from tuner.errors import UserError

if TYPE_CHECKING:
    from tuner.importing.rows import Record, Row

FORMATS = {
    "csv": "table",
    "lmms-eval": "lmms_eval",
    "llama-factory": "conversations",
    "longvideobench": "longvideobench",
    "mlvu": "mlvu",
    "videomme": "videomme",
    "vlmevalkit": "vlmevalkit",
}
"""Name of a format -> its module."""


class Format(Protocol):
    """What a format's module has."""

    SUFFIXES: tuple[str, ...]

    def read(self, record: Record) -> Row:
        """The record's question. Errors: UnreadableError."""


def format_of(name: str) -> Format:
    """The module of a format in FORMATS. Errors: UserError for another name."""
    from tuner.study import nearest

    if name not in FORMATS:
        raise UserError(
            f"format {name!r} is unknown{nearest(name, FORMATS)}; allowed are {', '.join(FORMATS)}"
        )
    return cast("Format", import_module(f"tuner.importing.{FORMATS[name]}"))
