"""The start of workers: which have a place, which are ready, and which machines are left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tuner.errors import UserError
from tuner.evaluation.failures import EvaluationError
from tuner.executors.placement import Machine, scarce

# Failures in a row after which a machine is left out.
MOST_FAILED_STARTS = 3

# Seconds between two looks at the machines, and after which a worker without a place is reported although
# there is room for it.
_LOOK = 5.0
_MISSED = 60.0

# Seconds before the next start after so many failed on machines that are not known.
_PAUSE = 30.0

# Failed starts of which the machine is not known.
_NOWHERE = Machine("", "")


class Starting:
    """The workers that a run asked for, by the executor's name for them, until they end.

    A worker is first asked for, then has a place (its process runs on a machine), then is ready (its model is
    loaded).
    """

    def __init__(
        self,
        wanted: int,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        gpus: float = 0.0,
        each: str = "1 CPU",
        wait: float | None = None,
    ) -> None:
        """say: called with a line for the user; clock: in seconds. gpus: that a worker takes; each: its
        resources in words. wait: seconds without any worker after which the run ends; None: it waits.
        """
        self._wanted = wanted
        self._say = say
        self._clock = clock
        self._gpus = gpus
        self._each = each
        self._wait = wait
        self._places: dict[str, Machine] = {}
        self._ready: set[str] = set()
        # Failures in a row by machine, and the last reason with whether it is certain to come again.
        self._failures: dict[str, int] = {}
        self._left_out: dict[str, tuple[Machine, str, bool]] = {}
        self._paused_until = 0.0
        self._told: set[str] = set()
        self._shortage = ""
        self._next_look = clock() + _LOOK
        self._changed = self._without_since = clock()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Ids of the machines that no worker may start on any more."""
        return tuple(sorted(self._left_out))

    @property
    def paused(self) -> bool:
        """Whether no worker is asked for at the moment because too many starts failed."""
        return self._clock() < self._paused_until

    def is_ready(self, worker: str) -> bool:
        """Whether the worker has loaded its model and has not died since."""
        return worker in self._ready

    def machine(self, worker: str) -> Machine:
        """Where the worker runs; a machine without a name where that is not known."""
        return self._places.get(worker, _NOWHERE)

    @property
    def stand(self) -> str:
        """How many workers are ready, in words; empty when all are."""
        ready, loading = len(self._ready), len(self._places.keys() - self._ready)
        if ready >= self._wanted:
            return ""
        text = f"{ready} of {self._wanted} workers ready"
        return text + (f", {loading} loading the model" if loading else "")

    def has_place(self, worker: str, machine: Machine) -> bool:
        """The worker's process runs and begins to load the model; False: not on this machine."""
        if machine.id in self._left_out:
            return False
        self._places[worker] = machine
        self._changed = self._clock()
        return True

    def got_ready(self, worker: str) -> None:
        """The worker has loaded its model."""
        self._ready.add(worker)

    def answered(self, worker: str) -> None:
        """The worker has done something: nothing is wrong with its machine."""
        self._failures.pop(self.machine(worker).id, None)

    def died(self, worker: str) -> None:
        """The worker ended after it was ready, or its machine is gone."""
        self._ready.discard(worker)
        if self._places.pop(worker, None) is not None:
            self._changed = self._clock()
            if not self._places:
                self._without_since = self._clock()

    def failed(
        self,
        worker: str,
        reason: str,
        machines: Sequence[Machine],
        *,
        certain: bool = False,
        machine: Machine | None = None,
    ) -> None:
        """The worker ended before it was ready.

        certain: the next worker there would meet the same. machines: that are alive. machine: where it was,
        if it never had a place. A machine on which workers keep failing is left out; others are not touched.
        Errors: where no machine is left, UserError if all reasons are certain, else EvaluationError.
        """
        machine = self._places.get(worker, machine) or _NOWHERE
        machine = machine if machine.id else _NOWHERE
        self.died(worker)
        self._failures[machine.id] = self._failures.get(machine.id, 0) + 1
        few = self._failures[machine.id] < MOST_FAILED_STARTS
        if machine is _NOWHERE and not few and self._places:
            # Others work: not at once and for ever.
            self._paused_until = self._clock() + _PAUSE
        if not certain and (few or (machine is _NOWHERE and self._places)):
            where = f" on {machine.host}" if machine.host else ""
            self._tell(f"A worker{where} could not be started and is tried again: {reason}")
            return
        self._left_out[machine.id] = (machine, reason, certain)
        left = [
            machine
            for machine in machines
            if machine.id not in self._left_out and machine.fitting(self._gpus)
        ]
        if not left or machine is _NOWHERE:
            raise self._none_left()
        self._tell(self._bad(machine.id, " is left out from now on"))

    def raised(self, worker: str, reason: str) -> None:
        """The worker answered with an error: where that is always so on its machine and workers elsewhere are
        ready, the machine is left out. Where it is so everywhere, the work ends the run.
        """
        machine = self.machine(worker)
        self.died(worker)
        self._failures[machine.id] = self._failures.get(machine.id, 0) + 1
        elsewhere = any(self._places[item].id != machine.id for item in self._ready)
        if elsewhere and self._failures[machine.id] >= MOST_FAILED_STARTS:
            self._left_out[machine.id] = (machine, reason, False)
            self._tell(self._bad(machine.id, " is left out from now on"))

    def _none_left(self) -> UserError | EvaluationError:
        reasons = [self._bad(item) for item in self._left_out]
        if all(certain for *_, certain in self._left_out.values()):
            return UserError(list(dict.fromkeys(reason for _, reason, _ in self._left_out.values())))
        return EvaluationError(
            "No worker can be started on any machine.\n"
            + "\n".join(reasons)
            + "\nEverything answered before is kept, and the same command continues from there."
        )

    def _bad(self, id_: str, then: str = "") -> str:
        machine, reason, certain = self._left_out[id_]
        name = f"Machine {machine.host}" if machine.host else "A machine"
        times = "" if certain else f"{MOST_FAILED_STARTS} workers in a row failed there. The last reason: "
        return f"{name}{then}: {times}{reason}"

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._say(text)

    def look(self, machines: Callable[[], Sequence[Machine]]) -> None:
        """Reports from time to time how many workers there are, if some wait for a place.

        Errors: EvaluationError if there has been none for as long as the run may wait.
        """
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + _LOOK
            text = self._short_of(machines)
            if text and text != self._shortage:
                self._say(text)
            self._shortage = text
        if self._wait is not None and not self._places and now - self._without_since >= self._wait:
            raise EvaluationError(
                f"No worker has started for {self._wait:g} s, as long as --wait-for-workers allows. "
                f"{self._short_of(machines) or 'There is room for them, but their processes do not start.'}\n"
                "Everything answered before is kept, and the same command continues from there."
            )

    def _short_of(self, machines: Callable[[], Sequence[Machine]]) -> str:
        """Why workers wait for a place; "" if none does, or if the reason is not known yet."""
        placed = len(self._places)
        if placed >= self._wanted:
            return ""
        usable = [machine for machine in machines() if machine.id not in self._left_out]
        room = sum(item.fitting(self._gpus) for item in usable)
        missed = self._clock() - self._changed >= _MISSED
        if room < self._wanted and (placed >= room or not missed):
            return (
                f"{room} of {self._wanted} workers, waiting for {scarce(usable, self._gpus)}: each takes "
                f"{self._each}, and the machines have room for no more."
            )
        if missed:
            return (
                f"{placed} of {self._wanted} workers, waiting for processes that do not start, or for "
                f"resources ({self._each} each) that are in use elsewhere."
            )
        return ""
