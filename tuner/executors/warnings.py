"""What a worker's libraries warn of, for the driver to pass on: else it stays in a file on that machine."""

from __future__ import annotations

import logging

# Different texts of a worker that are kept at most.
_MOST = 1000

# Libraries whose records do not reach the root logger.
_APART = ("", "transformers")


class Warnings(logging.Handler):
    """Keeps the text of each warning or error that is logged or issued in this process, once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[str] = set()
        self._new: list[str] = []

    def listen(self) -> None:
        """From now on, to this process's loggers and to Python's own warnings."""
        logging.captureWarnings(True)
        for name in _APART:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        text = record.getMessage().strip()
        if record.name == "py.warnings":
            # PATH:LINE: CATEGORY: TEXT, and then the line of code.
            text = text.splitlines()[0].split(": ", 1)[-1]
        if text and text not in self._seen and len(self._seen) < _MOST:
            self._seen.add(text)
            self._new.append(text)

    def take(self) -> list[str]:
        """Those since the last call."""
        new, self._new = self._new, []
        return new
