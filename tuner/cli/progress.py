"""Progress of a command, on stderr: bars on a terminal, elsewhere a line from time to time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from tuner.cli.logs import LoggedProgress
from tuner.cli.options import LogFormat

# Seconds after which a line is written whatever happened, and before which no step is worth one.
_QUIET = 30.0
_SOON = 5.0
# A line for each such share of a phase, if that is not sooner.
_SHARE = 0.1


def command_progress(
    console: Console | None = None, *, log_format: LogFormat = LogFormat.TEXT, study: str = ""
) -> BarProgress | LineProgress | LoggedProgress:
    """Bars where stderr is a terminal that can redraw them, else lines; log records for JSON.

    study: its name or path, for the records. Errors: UserError where there is none, with JSON.
    """
    if log_format is LogFormat.JSON:
        from tuner.study.loading import find_study, study_name

        return LoggedProgress(study_name(find_study(study)))
    console = console or Console(stderr=True, highlight=False)
    drawn = console.is_terminal and not console.is_dumb_terminal
    return BarProgress(console) if drawn else LineProgress(console)


class BarProgress:
    """A `tuner.evaluation.progress.Progress` that draws one bar per phase and keeps the finished ones.

    Below the bars stands what the current phase is at.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = _Bars(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:<20}", markup=False),
            BarColumn(bar_width=None),
            _Counted(),
            _Timed(),
            console=console,
        )
        self._running: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(failed=kind is not None)
        self._bars.stop()

    def started(self, phase: str, total: int | None) -> None:
        """A new bar below the ones before."""
        self._finish()
        self._running = self._bars.add_task(phase, total=total)

    def advanced(self, count: int = 1) -> None:
        """The running bar grows."""
        if self._running is not None:
            self._bars.advance(self._running, count)

    def now(self, text: str) -> None:
        """A few words below the bars."""
        self._bars.now = text

    def message(self, text: str) -> None:
        """A line above the bars."""
        self.console.print(Text(text))

    def _finish(self, *, failed: bool = False) -> None:
        if self._running is None:
            return
        (task,) = (task for task in self._bars.tasks if task.id == self._running)
        if task.total is None and not failed:
            # A bar without an end has come to it: else it would go on moving.
            self._bars.update(self._running, total=1, completed=1)
        self._bars.now = ""
        self._bars.stop_task(self._running)
        self._running = None


class LineProgress:
    """A `tuner.evaluation.progress.Progress` that writes lines: when a phase begins and ends, at each tenth
    of it, and after half a minute in any case.

    clock: seconds.
    """

    def __init__(
        self, console: Console, *, clock: Callable[[], float] = time.monotonic, quiet: float = _QUIET
    ) -> None:
        self.console = console
        self._clock = clock
        self._quiet = quiet
        # The thread below and the caller write lines.
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ticking = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._phase: str | None = None
        self._total: int | None = None
        self._done = 0
        self._now = ""
        self._began = self._written = clock()
        self._told = 0.0
        self._announced = True

    def __enter__(self) -> Self:
        self._ticking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._ticking.join()
        with self._lock:
            self._finish()

    def started(self, phase: str, total: int | None) -> None:
        """The phase before ends in a line, and this one begins with one."""
        with self._lock:
            self._finish()
            self._phase, self._total, self._done, self._now = phase, total, 0, ""
            self._began, self._told = self._clock(), 0.0
            # What is not counted is often over at once, and then not worth a line.
            self._announced = total is not None
            if total is not None:
                self._write(f"{phase}: {total:,} to do")

    def advanced(self, count: int = 1) -> None:
        """A line at each tenth, if the last one was some seconds ago."""
        with self._lock:
            self._done += count
            if self._total and self._done < self._total:
                share = self._done / self._total
                if share >= self._told + _SHARE and self._clock() - self._written >= _SOON:
                    self._told = share
                    self._write(self._state())

    def now(self, text: str) -> None:
        """Said with the next line."""
        with self._lock:
            self._now = text

    def message(self, text: str) -> None:
        """A line."""
        with self._lock:
            self._write(text)

    def _tick(self) -> None:
        while not self._ended.wait(min(1.0, self._quiet / 4)):
            with self._lock:
                if self._phase is None:
                    continue
                if not self._announced and self._clock() - self._began >= min(_SOON, self._quiet):
                    self._announced = True
                    self._write(self._phase)
                elif self._announced and self._clock() - self._written >= self._quiet:
                    self._write(self._state())

    def _finish(self) -> None:
        if self._phase is not None and self._total is not None and self._done:
            self._write(
                f"{self._phase}: {self._done:,} of {self._total:,} in {_clock(self._clock() - self._began)}"
            )
        self._phase = None

    def _state(self) -> str:
        elapsed = self._clock() - self._began
        text = f"{self._phase}: "
        if self._total is not None:
            text += f"{self._done:,} of {self._total:,}, "
        text += _clock(elapsed)
        if self._total is not None and self._done:
            text += f", about {_clock(elapsed / self._done * (self._total - self._done))} left"
        return text + (f"; {self._now}" if self._now else "")

    def _write(self, text: str) -> None:
        self._written = self._clock()
        self.console.print(Text(text), soft_wrap=True)


class _Bars(Progress):
    """The bars, and below them what the running phase is at."""

    now = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.now:
            yield Text(f"  {self.now}", style="dim", no_wrap=True, overflow="ellipsis")


class _Counted(ProgressColumn):
    """Steps done of all steps."""

    def render(self, task: Task) -> Text:
        if task.total is None or (task.finished and task.total == 1):
            return Text("")
        return Text(f"{task.completed:.0f}/{task.total:.0f}", justify="right")


class _Timed(ProgressColumn):
    """The time taken, and while it goes on an estimate of what is left."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        text = _clock(elapsed or 0.0)
        if not task.finished and task.stop_time is None and task.time_remaining is not None:
            text += f", {_clock(task.time_remaining)} left"
        return Text(text)


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
