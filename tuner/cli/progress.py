"""Progress bars with rate and time left, on the terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class RichProgress:
    """A `tuner.evaluation.progress.Progress` that draws one bar per phase and keeps the finished ones."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._running: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, phase: str, total: int) -> None:
        """A new bar below the ones before."""
        if self._running is not None:
            self._bars.stop_task(self._running)
        self._running = self._bars.add_task(phase, total=total)

    def advanced(self, count: int = 1) -> None:
        """The running bar grows."""
        if self._running is not None:
            self._bars.advance(self._running, count)

    def message(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(Text(text))


class _Rate(ProgressColumn):
    """Steps a second, or seconds a step where they are slow."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")
