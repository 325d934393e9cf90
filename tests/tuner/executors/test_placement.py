"""How many workers fit where, and how many there are where nobody says so."""

from __future__ import annotations

import pytest

from tuner.executors.placement import Machine, Placement, placement, refusal

pytestmark = pytest.mark.quick


def machine(cpus: float, gpus: float = 0.0) -> Machine:
    return Machine("id", "host", {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus})


@pytest.mark.parametrize(
    ("offered", "gpus", "workers"),
    [
        (machine(4), 0.0, 4),
        (machine(4, 2), 1.0, 2),
        (machine(4, 1), 2.0, 0),
        (machine(16, 1), 0.1, 10),
        (machine(16, 2), 0.4, 4),  # 0.2 of each are of no use
        (Machine("id", "host", {"GPU": 2.0}), 0.0, 0),
    ],
)
def test_the_room_on_a_machine(offered: Machine, gpus: float, workers: int) -> None:
    assert offered.fitting(gpus) == workers


def test_gpus_of_several_machines_make_no_room_for_a_worker_of_two() -> None:
    machines = (machine(8, 1), machine(8, 1))
    assert sum(machine.fitting(2.0) for machine in machines) == 0
    assert str(refusal(machines, 2.0, may_grow=True, waits=False)).startswith(
        "A worker needs 2 GPUs of one machine, but the largest of 2 machines has 1: a worker cannot be "
    )


@pytest.mark.parametrize(
    ("machines", "gpus", "may_grow", "waits", "refused"),
    [
        ((machine(8, 1),), 1.0, True, False, False),
        # Machines with GPUs may still join.
        ((machine(8),), 1.0, True, False, False),
        ((), 0.0, True, False, False),
        # Larger ones are waited for where that is asked for.
        ((machine(8, 1),), 2.0, True, False, True),
        ((machine(8, 1),), 2.0, True, True, False),
        # This machine has none, and none will come.
        ((machine(8),), 1.0, False, True, True),
    ],
)
def test_what_cannot_fit_is_refused(
    machines: tuple[Machine, ...], gpus: float, may_grow: bool, waits: bool, refused: bool
) -> None:
    assert (refusal(machines, gpus, may_grow=may_grow, waits=waits) is not None) == refused


@pytest.mark.parametrize(
    ("machines", "workers", "gpus", "found"),
    [
        ((machine(0), machine(8, 4), machine(8, 2)), None, None, Placement(6, 1.0, 4)),
        ((machine(0), machine(8), machine(1)), None, None, Placement(3, 0.0, 3)),
        ((machine(8, 4),), None, 0.5, Placement(8, 0.5, 8)),
        ((machine(8, 4),), 2, None, Placement(2, 1.0, 2)),
        # None is there yet.
        ((machine(4),), 4, 1.0, Placement(4, 1.0, 4)),
        ((), None, None, Placement(1, 0.0, 1)),
    ],
)
def test_what_nobody_named_follows_the_cluster(
    machines: tuple[Machine, ...], workers: int | None, gpus: float | None, found: Placement
) -> None:
    assert placement(machines, workers, gpus) == found
