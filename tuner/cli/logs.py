"""`--log-format json`: a JSON object a line on stderr, for programs that collect logs."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from tuner.errors import without_passwords

_LOG = logging.getLogger("tuner.cli")

# What every record has; anything else was given to it, or begins with an underscore and is a library's own.
_KNOWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """time (UTC), level, logger, message, and what the record was given: study, trial, questions."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _KNOWN and name[0] != "_"},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # In ASCII: a stream that has not every character would write what is no JSON in its place.
        return without_passwords(json.dumps(line, default=str))


def write_objects() -> None:
    """From now on every line that this process writes to stderr is an object: log records, warnings, and what
    is printed there.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.getLogger().addHandler(handler)
    logging.getLogger("tuner").setLevel(logging.INFO)
    logging.captureWarnings(True)
    # A record that cannot be written is lost: what would be said of it could not be written either.
    logging.raiseExceptions = False
    sys.stderr = _Lines(logging.getLogger("stderr").warning)


def log_end(message: str, code: int, error: BaseException | None = None) -> None:
    """The last record of a command that did not come to its end: why, and its exit code. error: to be shown
    with its traceback.
    """
    _LOG.error(message, extra={"event": "ended", "exit_code": code}, exc_info=error)


class LoggedProgress:
    """A `tuner.evaluation.progress.Progress` as log records: phases and lines, and nothing at each step."""

    def __init__(self, study: str) -> None:
        self._study = study
        # For those who print a line of their own.
        lines: Any = _Lines(self.message)
        self.console = Console(file=lines, width=10_000, color_system=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def started(self, phase: str, total: int | None) -> None:
        """A record for each phase."""
        values = {"event": "phase", "study": self._study, "phase": phase, "total": total}
        _LOG.info("phase %s", phase, extra=values)

    def advanced(self, count: int = 1) -> None:
        """Nothing: what is answered has records of its own."""

    def now(self, text: str) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """A record."""
        _LOG.info(text, extra={"event": "message", "study": self._study})


class _Lines(io.TextIOBase):
    """A text file each line of which is said; what is flushed counts as one."""

    # Typer looks for them.
    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, lines):
            self._say(line.strip())
        return len(text)

    def fileno(self) -> int:
        """For processes that inherit it."""
        return 2

    def flush(self) -> None:
        begun, self._begun = self._begun, ""
        if begun.strip():
            self._say(begun.strip())
