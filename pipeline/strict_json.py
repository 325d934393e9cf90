"""JSON as its standard has it: each key once, no NaN, no infinity, no nesting without end."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn


def loads(text: str) -> Any:
    """The value that a text holds.

    Errors: ValueError, which is a json.JSONDecodeError where line and column are known.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse, parse_int=_integer, parse_float=_float
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"key {twice!r} occurs twice")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON value")


def _integer(digits: str) -> int:
    if len(digits) > 20:  # of more than 64 bits: no program but Python's reads it
        raise ValueError(f"{digits[:20]}... has too many digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:20]} is too large")
    return value
