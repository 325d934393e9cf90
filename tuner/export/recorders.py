"""Recorders: told what a study has come to, they write it down elsewhere. They observe and never steer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tuner.errors import without_passwords
from tuner.reporting.values import Recorded, RunSummary


class Recorder(Protocol):
    """Keeps a copy of a study elsewhere. Our database is the truth; any copy can be made again from it."""

    def record(self, summary: RunSummary, files: Sequence[Path] = ()) -> Recorded | None:
        """Makes the copy equal to the summary, with finished files beside it; again, it changes nothing.

        Returns where the copy is, or None where none is kept.
        """


class NoRecorder:
    """No copy is wanted."""

    def record(self, summary: RunSummary, files: Sequence[Path] = ()) -> Recorded | None:
        """Ignored."""
        return None


class HarmlessRecorder:
    """Another recorder whose failures are told once and never end a study."""

    def __init__(self, recorder: Recorder, warn: Callable[[str], None]) -> None:
        self._recorder = recorder
        self._warn = warn

    def record(self, summary: RunSummary, files: Sequence[Path] = ()) -> Recorded | None:
        """As the recorder within; None when it fails, and from then on."""
        return harmless(lambda: self._recorder.record(summary, files), self._give_up)

    def _give_up(self, reason: str) -> None:
        self._warn(f"Recording failed, and the study goes on without: {reason}")
        self._recorder = NoRecorder()


def harmless(action: Callable[[], Recorded | None], failed: Callable[[str], None]) -> Recorded | None:
    """What the action returns; where it raises, None, and `failed` is told the reason in one line."""
    try:
        return action()
    # A server that is down, a full disk, a schema of another version: whatever it is, the study is safe.
    except Exception as error:  # noqa: BLE001
        # MLflow quotes the address it was given.
        text = without_passwords(str(error).strip())
        failed(text.splitlines()[0] if text else type(error).__name__)
        return None
