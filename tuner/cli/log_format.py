"""What stderr gets, by a command's arguments alone: known before they are parsed and anything is imported."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def json_asked(arguments: Sequence[str]) -> bool:
    """Whether the last `--log-format` says json. Looked for here, for mistakes in the arguments and an
    interrupt at the first moment are told in the same way as all else.
    """
    values = [
        following if argument == "--log-format" else argument.partition("=")[2]
        for argument, following in pairwise([*arguments, ""])
        if argument.partition("=")[0] == "--log-format"
    ]
    return values[-1:] == ["json"]
