"""Errors of the study side.

UserError        a mistake in what a person supplied: printed without a traceback, exit code 2
"""

from __future__ import annotations

from collections.abc import Iterable

EXIT_CODE = 2

# A file of thousands of lines can be wrong in every one; nobody reads more than this at once.
_MOST_SHOWN = 50


class UserError(Exception):
    """One or several mistakes of the user, reported together.

    `problems` holds one sentence each, with `file:line` in front where there is a file; `hint` is the way on
    where one holds for all of them. `str()` is what the command line prints before it ends with `exit_code`.
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
