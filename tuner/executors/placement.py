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


@dataclass(frozen=True)
class Cluster:
    """What there is, and what an autoscaler would add."""

    machines: tuple[Machine, ...]
    # One for each kind of machine that an autoscaler starts; None: there is no autoscaler.
    kinds: tuple[Machine, ...] | None = None

    @property
    def possible(self) -> tuple[Machine, ...]:
        """All that workers may come to run on."""
        return (*self.machines, *(self.kinds or ()))

    def room(self, gpus: float) -> int:
        """Workers that fit on the machines that there are."""
        return sum(one.fitting(gpus) for one in self.machines)

    def refusal(self, gpus: float, *, may_grow: bool) -> str | None:
        """Why no worker with so many GPUs can ever start; None where one can.

        may_grow: machines may join, as in any cluster. Where none has a GPU yet, one with GPUs may come.
        """
        most = max((one.gpus for one in self.possible), default=0.0)
        if gpus <= most or (may_grow and not most):
            return None
        what = "kinds of machines it has or would add" if self.kinds else "machines"
        return (
            f"A worker needs {gpus:g} GPUs of one machine, but the largest of the cluster's {what} has "
            f"{most:g}. A worker cannot be spread over several."
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


def placement(cluster: Cluster, workers: int | None, gpus_per_worker: float | None) -> Placement:
    """What the cluster suggests for what nobody named: a GPU for each worker where there are any, and a
    worker for each GPU; else two workers for each machine.
    """
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if any(one.gpus for one in cluster.possible) else 0.0
    if workers is None:
        workers = max(1, sum(_usual(one, gpus_per_worker) for one in cluster.machines))
    fit = max((one.fitting(gpus_per_worker) for one in cluster.possible), default=0)
    return Placement(workers, gpus_per_worker, max(1, min(workers, fit or workers)))


def _usual(machine: Machine, gpus: float) -> int:
    fit = machine.fitting(gpus)
    return fit if gpus else min(WORKERS_ON_A_CPU, fit)


def scarce(machines: Sequence[Machine], gpus: float) -> str:
    """What workers without a place wait for: GPUs or CPUs."""
    return "GPUs" if gpus and sum(one.fitting(0.0) for one in machines) else "CPUs"
