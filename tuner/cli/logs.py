"""`--log-format json`: a JSON object a line on stderr, for programs that collect logs."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from tuner.errors import without_passwords

_OURS = logging.getLogger("tuner")
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
        return without_passwords(json.dumps(line, ensure_ascii=False, default=str))


class LoggedProgress:
    """A `tuner.evaluation.progress.Progress` as log records: phases and lines, and nothing at each step."""

    def __init__(self, study: str) -> None:
        self._study = study
        self._handler = logging.StreamHandler(sys.stderr)
        self._handler.setFormatter(JsonLines())
        self._level = logging.NOTSET
        # For those who print a line of their own.
        self.console = Console(file=_Lines(self), width=10_000, color_system=None)  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self._handler)
        self._level = _OURS.level
        _OURS.setLevel(logging.INFO)
        logging.captureWarnings(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger().removeHandler(self._handler)
        _OURS.setLevel(self._level)
        logging.captureWarnings(False)

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


class _Lines:
    """A text file whose lines are messages."""

    def __init__(self, progress: LoggedProgress) -> None:
        self._progress = progress

    def write(self, text: str) -> int:
        if text.strip():
            self._progress.message(text.strip())
        return len(text)

    def flush(self) -> None: ...
