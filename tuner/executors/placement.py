"""Where workers fit: by machine, because a worker cannot be spread over several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# Workers on each machine without a GPU, where nobody says how many.
WORKERS_ON_A_CPU = 2


@dataclass(frozen=True)
class Machine:
    """A node of the cluster that is alive."""

    id: str
    host: str
    # By Ray's name: CPU, GPU.
    resources: dict[str, float] = field(default_factory=dict)

    @property
    def gpus(self) -> float:
        """Its GPUs."""
        return self.resources.get("GPU", 0.0)

    def fitting(self, gpus: float) -> int:
        """Workers with 1 CPU and `gpus` GPUs that fit if nothing else runs there; a fraction of a GPU is of a
        single one.
        """
        cpus = int(self.resources.get("CPU", 0))
        if not gpus:
            return cpus
        # The small number makes up for rounding, as in 1 / 0.1.
        return min(cpus, int(self.gpus) * int(1 / gpus + 1e-9) if gpus < 1 else int(self.gpus / gpus))


def refusal(machines: Sequence[Machine], gpus: float, *, may_grow: bool, waits: bool) -> str | None:
    """Why no worker with so many GPUs can start on these machines; None where one can or may later.

    may_grow: others may join, as in any cluster: where none has a GPU yet, one with GPUs may come. waits: the
    user means to wait, as for an autoscaler, which does not tell what machines it would add.
    """
    most = max((machine.gpus for machine in machines), default=0.0)
    if gpus <= most or (may_grow and (waits or not most)):
        return None
    largest = f"the largest of {len(machines)} machines has" if len(machines) > 1 else "this machine has"
    return (
        f"A worker needs {gpus:g} GPUs of one machine, but {largest} {most:g}: a worker cannot be spread "
        "over several."
        + (" --wait-for-workers SECONDS waits for an autoscaler to add a larger one." if may_grow else "")
    )


class Placement(NamedTuple):
    """How many workers are asked for, and what each takes."""

    workers: int
    gpus_per_worker: float
    # At most so many share a machine's memory.
    per_machine: int

    @property
    def each(self) -> str:
        """A worker's resources in words."""
        return f"1 CPU and {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else "1 CPU"


def placement(machines: Sequence[Machine], workers: int | None, gpus_per_worker: float | None) -> Placement:
    """What the cluster suggests for what nobody named: a GPU for each worker where there are any, and a
    worker for each GPU; else two workers for each machine.
    """
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if any(machine.gpus for machine in machines) else 0.0
    if workers is None:
        workers = max(1, sum(_usual(machine, gpus_per_worker) for machine in machines))
    fit = max((machine.fitting(gpus_per_worker) for machine in machines), default=0)
    return Placement(workers, gpus_per_worker, max(1, min(workers, fit or workers)))


def _usual(machine: Machine, gpus: float) -> int:
    fit = machine.fitting(gpus)
    return fit if gpus else min(WORKERS_ON_A_CPU, fit)


def scarce(machines: Sequence[Machine], gpus: float) -> str:
    """What workers without a place wait for: GPUs or CPUs."""
    return "GPUs" if gpus and sum(machine.fitting(0.0) for machine in machines) else "CPUs"
