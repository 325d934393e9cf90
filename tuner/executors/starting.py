"""The start of workers: which have a place, which have loaded their model, and when to stop trying."""

from __future__ import annotations

import time
from collections.abc import Callable

from tuner.evaluation.failures import EvaluationError

# Starts that may fail in a row before the run ends, if no worker is ready.
MOST_FAILED_STARTS = 3

# Seconds before the next start after so many failed, if other workers are ready or still loading.
_PAUSE = 30.0

# Seconds between two checks whether there is room for all workers, and after which a worker without a place
# is reported although there is room for it.
_LOOK = 5.0
_MISSED = 60.0


class Starting:
    """The workers that a run asked for, by the executor's name for them, until they end.

    A worker is first asked for, then has a place (its process runs on a host), then is ready (its model is
    loaded).
    """

    def __init__(
        self, wanted: int, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """say: called with a line for the user; clock: in seconds."""
        self._wanted = wanted
        self._say = say
        self._clock = clock
        # Workers that are not ready, with the number of failed starts when they were asked for.
        self._asked: dict[str, int] = {}
        self._hosts: dict[str, str] = {}
        self._ready: set[str] = set()
        self._failures = 0
        # Failed starts when the last worker got ready.
        self._failures_before = 0
        self._paused_until = 0.0
        self._told_reasons: set[str] = set()
        self._told_room = ""
        self._next_look = clock() + _LOOK
        self._changed = clock()

    @property
    def paused(self) -> bool:
        """Whether no worker is asked for at the moment because too many starts failed."""
        return self._clock() < self._paused_until

    def is_ready(self, worker: str) -> bool:
        """Whether the worker has loaded its model and has not died since."""
        return worker in self._ready

    @property
    def stand(self) -> str:
        """How many workers are ready, in words; empty when all are."""
        ready, loading = len(self._ready), len(self._hosts.keys() - self._ready)
        if ready >= self._wanted:
            return ""
        text = f"starting workers: {ready} of {self._wanted} ready"
        return text + (f", {loading} loading the model" if loading else "")

    def asked_for(self, worker: str) -> None:
        """The worker waits for a place."""
        self._asked[worker] = self._failures

    def has_place(self, worker: str, host: str) -> None:
        """The worker's process runs and begins to load the model."""
        self._hosts[worker] = host
        self._changed = self._clock()

    def got_ready(self, worker: str) -> None:
        """The worker has loaded its model."""
        self._asked.pop(worker, None)
        self._ready.add(worker)
        self._failures_before = self._failures

    def died(self, worker: str) -> None:
        """The worker died after it was ready."""
        self._ready.discard(worker)
        self._hosts.pop(worker, None)
        self._changed = self._clock()

    def failed(self, worker: str, reason: str) -> None:
        """The worker died before it was ready.

        Errors: EvaluationError after `MOST_FAILED_STARTS` in a row, unless another worker is ready or was
        asked for before the first of these failures: a run does not end because of one bad machine.
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
                f"No worker could be started {in_a_row} times in a row. The last reason: {reason}"
                f"{'' if host is None else f' (on {host})'}\n"
                "Everything answered before is kept, and the same command continues from there."
            )
        if in_a_row >= MOST_FAILED_STARTS:
            self._paused_until = self._clock() + _PAUSE
        text = f"{what} and is tried again: {reason}"
        if text not in self._told_reasons:
            self._told_reasons.add(text)
            self._say(text)

    def look(self, room: Callable[[], int], each: str) -> None:
        """Reports from time to time how many workers there are, if some wait for a place.

        room: counts the workers that fit on all machines together; each: the resources of a worker, in words.
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
        """Why workers wait for a place; "" if none does, or if the reason is not known yet."""
        placed = len(self._hosts)
        if placed >= self._wanted:
            return ""
        fitting = room()
        if fitting < self._wanted:
            rest = "the others start when there is more" if fitting else "the run waits until there is"
            return f"There is room for {fitting} of {self._wanted} workers ({each} each): {rest}."
        if self._clock() - self._changed >= _MISSED:
            return (
                f"{placed} of {self._wanted} workers run: the others wait for their processes to start, or "
                f"for resources ({each} each) that are in use elsewhere."
            )
        return ""
