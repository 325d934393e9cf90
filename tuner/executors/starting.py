"""Workers on their way: which have a place, which have loaded their model, and when to stop trying."""

from __future__ import annotations

import time
from collections.abc import Callable

from tuner.evaluation.failures import EvaluationError

# Starts that may fail in a row, while nobody can answer, before the run ends.
MOST_FAILED_STARTS = 3

# After so many, where others answer or still load, the next one is tried after this many seconds.
_PAUSE = 30.0

# Seconds between two looks at whether there is room for all workers, and after which one that should have a
# place is missed.
_LOOK = 5.0
_MISSED = 60.0


class Starting:
    """The workers a run asked for, by a name of the executor's, from asking until they have died.

    A worker is asked for, has a place (its process runs, on a host), and is ready (its model is loaded).
    """

    def __init__(
        self, wanted: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`say` takes one line for the person who watches; `clock` counts seconds."""
        self._wanted = wanted
        self._say = say
        self._clock = clock
        # Those not ready, with how many starts had failed when they were asked for.
        self._asked: dict[str, int] = {}
        self._hosts: dict[str, str] = {}
        self._ready: set[str] = set()
        self._failures = 0
        # How many had failed when the last one got ready.
        self._failures_before = 0
        self._paused_until = 0.0
        self._told_reasons: set[str] = set()
        self._told_room = ""
        self._next_look = clock() + _LOOK
        self._changed = clock()

    @property
    def paused(self) -> bool:
        """Whether no further worker is asked for at the moment, because too many starts failed."""
        return self._clock() < self._paused_until

    def is_ready(self, worker: str) -> bool:
        """Whether it has loaded its model and has not died."""
        return worker in self._ready

    def asked_for(self, worker: str) -> None:
        """It gets a place when there is one."""
        self._asked[worker] = self._failures

    def has_place(self, worker: str, host: str) -> None:
        """Its process runs and begins to load the model."""
        self._hosts[worker] = host
        self._changed = self._clock()

    def got_ready(self, worker: str) -> None:
        """It can answer."""
        self._asked.pop(worker, None)
        self._ready.add(worker)
        self._failures_before = self._failures

    def died(self, worker: str) -> None:
        """After it was ready."""
        self._ready.discard(worker)
        self._hosts.pop(worker, None)
        self._changed = self._clock()

    def failed(self, worker: str, reason: str) -> None:
        """It died before it was ready.

        Errors: EvaluationError after `MOST_FAILED_STARTS` in a row, when no other is ready, nor any left of
        those asked for before the first of them: one bad machine is no reason to end what others may do.
        """
        self._asked.pop(worker, None)
        host = self._hosts.pop(worker, None)
        self._changed = self._clock()
        self._failures += 1
        in_a_row = self._failures - self._failures_before
        what = f"A worker{'' if host is None else f' on {host}'} could not be started"
        others = self._ready or any(at <= self._failures_before for at in self._asked.values())
        if in_a_row >= MOST_FAILED_STARTS and not others:
            raise EvaluationError(
                f"No worker could be started {in_a_row} times in a row. The last time: {reason}"
                f"{'' if host is None else f' (on {host})'}\n"
                "Everything answered before is kept, and the same command goes on from there."
            )
        if in_a_row >= MOST_FAILED_STARTS:
            self._paused_until = self._clock() + _PAUSE
        text = f"{what} and is tried again: {reason}"
        if text not in self._told_reasons:
            self._told_reasons.add(text)
            self._say(text)

    def look(self, room: Callable[[], int], each: str) -> None:
        """From time to time says how many workers there are, where some wait for a place.

        `room` counts the workers that fit on all machines together; `each` says what one takes.
        """
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK
        text = self._shortage(room, each)
        if text and text != self._told_room:
            self._say(text)
        self._told_room = text

    def _shortage(self, room: Callable[[], int], each: str) -> str:
        """What keeps workers waiting; "" where nothing does that we know of."""
        placed = len(self._hosts)
        if placed >= self._wanted:
            return ""
        fitting = room()
        if fitting < self._wanted:
            rest = "the others begin when there is more" if fitting else "nothing is answered until there is"
            return f"There is room for {fitting} of {self._wanted} workers ({each} each): {rest}."
        if self._clock() - self._changed >= _MISSED:
            return (
                f"{placed} of {self._wanted} workers run: the others wait for a place ({each} each) that "
                "somebody else holds, or for their process to start."
            )
        return ""
