"""The outcome of a check of a study, a model, a file or a machine. It needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The outcome of one check, in words: `{name}: {found} ({allowed})`."""

    name: str
    passed: bool
    found: str
    allowed: str
    advice: str = ""  # what to do, or to look at, where it did not pass
