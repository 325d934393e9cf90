"""Time on a device, taken side by side: shared by the speed benchmarks in this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch


def seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """One call, from an idle device to an idle device."""
    _finish(device)
    begin = perf_counter()
    work()
    _finish(device)
    return perf_counter() - begin


def warm_up(device: torch.device) -> int:
    """Turns that do not count: a GPU loads and picks its kernels in the first; a CPU has nothing to load."""
    return 1 if device.type == "cuda" else 0


def side_by_side(
    device: torch.device, variants: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, float]:
    """Median seconds of each variant: A B A B (and on a GPU one turn before that does not count).

    A machine that slows down for a while slows all of them down, and ratios hold.
    """
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-warm_up(device), repeats):
        for name, work in variants.items():
            one = seconds(device, work)
            if turn >= 0:
                taken[name].append(one)
    return {name: median(each) for name, each in taken.items()}


class Clock:
    """Seconds of named parts of a run.

    On a GPU two events in its stream enclose a part, so that nothing waits for the clock: what is counted is
    the time the device needs or is kept waiting there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what happens inside under `name`."""
        begin = self._now()
        yield
        self._marks.append((name, begin, self._now()))

    @contextmanager
    def during(self, name: str, owner: Any, function: str) -> Iterator[None]:
        """Counts every call of `owner.function` inside under `name`."""
        wanted = getattr(owner, function)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return wanted(*args, **kwargs)

        with patch.object(owner, function, call):
            yield

    def take(self) -> dict[str, float]:
        """Seconds by name since the last time, parts of one name summed."""
        _finish(self._device)
        total: dict[str, float] = {}
        for name, begin, end in self._marks:
            spent = begin.elapsed_time(end) / 1000 if self._device.type == "cuda" else end - begin
            total[name] = total.get(name, 0.0) + spent
        self._marks.clear()
        return total

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def medians(several: list[dict[str, float]]) -> dict[str, float]:
    """Median by name over runs that have the same parts."""
    return {name: median(item[name] for item in several) for name in several[0]}


def verdict(value: float, at_most: float | None) -> str:
    """A target beside what was measured, where there is one."""
    if at_most is None:
        return ""
    return f" (target: at most {at_most:g}, {'met' if value <= at_most else 'missed'})"


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
