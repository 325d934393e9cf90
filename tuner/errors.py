"""Errors of the study side.

UserError        a mistake in what the user supplied: printed without a traceback, exit code 2
DiskFullError    nothing more can be written: printed without a traceback, exit code 1
RecordsLostError the records are out of reach, or another process writes them: likewise
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

EXIT_CODE = 2

# A file of thousands of lines can have a mistake in each; nobody reads more than this at once.
_MOST_SHOWN = 50


class UserError(Exception):
    """One or several mistakes of the user, reported together.

    `problems` holds a sentence for each, beginning with `file:line` if it is about a file. `hint` says what
    to do about all of them. `str()` is what the command line prints before it ends with `exit_code`.
    """

    exit_code: int = EXIT_CODE

    def __init__(self, problems: str | Iterable[str], hint: str = "") -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        if not self.problems:
            raise ValueError("a UserError needs at least one problem")
        self.hint = hint
        super().__init__(self.problems, hint)

    def __str__(self) -> str:
        lines = list(self.problems[:_MOST_SHOWN])
        if len(self.problems) > _MOST_SHOWN:
            lines.append(f"... and {len(self.problems) - _MOST_SHOWN} more mistakes like these")
        if self.hint:
            lines.append(self.hint)
        return "\n".join(lines)


class DiskFullError(Exception):
    """A full disk, a quota or a limit of the file system keeps a run from writing."""

    exit_code: int = 1

    @classmethod
    def of(cls, what: str, reason: object) -> Self:
        """`what` could not be written, for `reason`."""
        return cls(
            f"There is no room to write {what}: {reason}. Everything recorded is kept: make room, and the "
            "same command continues from there."
        )


class RecordsLostError(Exception):
    """A run can no longer write its records: their server does not answer, or another process took over."""

    exit_code: int = 1


# EFBIG: a process's or a file system's limit for the size of a file.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: OSError) -> bool:
    """Whether this error means that there is no room left."""
    return error.errno in _FULL


@contextmanager
def disk_may_be_full(what: str = "a file or the output") -> Iterator[None]:
    """Turns an OSError that means a full disk into a DiskFullError; any other error is passed on.

    what: is said to have no room where the error names no file.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise DiskFullError.of(str(error.filename or what), error.strerror) from error


# No permission; a file system that may only be read; a file where a folder should be.
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST})


@contextmanager
def files_may_be_refused() -> Iterator[None]:
    """Turns an OSError by which the system refuses a file or folder into a UserError that names it; any other
    error is passed on.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED or error.filename is None:
            raise
        where = Path(os.fsdecode(error.filename)).absolute()
        raise UserError(f"{where} cannot be read or written: {error.strerror}.") from error


# In scheme://user:password@host. A password that was not quoted may hold any of /?#@, so that it ends at the
# last @.
_IN_AUTHORITY = re.compile(r"(://[^\s:/@]*):\S*@")


# In scheme://host/name?password=..., as libpq takes it.
_IN_QUERY = re.compile(r"([?&](?:ssl)?password=)[^&\s]*", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """The same text with *** for the passwords of the URLs in it."""
    return _IN_QUERY.sub(r"\1***", _IN_AUTHORITY.sub(r"\1:***@", text))


def without_user(url: str) -> str:
    """The same address without user and password, to be shown as a link."""
    authority = urlsplit(url).netloc
    return url.replace(authority, authority.rpartition("@")[2], 1) if "@" in authority else url
