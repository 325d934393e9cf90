"""How many workers fit where, and how many there are where nobody says so."""

from __future__ import annotations

import pytest

from tuner.executors.placement import Cluster, Machine, Placement, placement

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
    cluster = Cluster((machine(8, 1), machine(8, 1)))
    assert cluster.room(2.0) == 0
    refusal = cluster.refusal(2.0, may_grow=True)
    assert refusal is not None
    assert refusal.startswith(
        "A worker needs 2 GPUs of one machine, but the largest of the cluster's machines has 1."
    )


@pytest.mark.parametrize(
    ("cluster", "gpus", "may_grow", "refused"),
    [
        (Cluster((machine(8, 1),)), 1.0, True, False),
        # Machines with GPUs may still join, or an autoscaler starts them.
        (Cluster((machine(8),)), 1.0, True, False),
        (Cluster((machine(8, 1),), (machine(8, 4),)), 2.0, True, False),
        (Cluster((machine(8, 1),), (machine(8, 1),)), 2.0, True, True),
        # This machine has none, and none will come.
        (Cluster((machine(8),)), 1.0, False, True),
        (Cluster(()), 0.0, True, False),
    ],
)
def test_what_can_never_fit_is_refused(cluster: Cluster, gpus: float, may_grow: bool, refused: bool) -> None:
    assert (cluster.refusal(gpus, may_grow=may_grow) is not None) == refused


@pytest.mark.parametrize(
    ("cluster", "workers", "gpus", "found"),
    [
        (Cluster((machine(0), machine(8, 4), machine(8, 2))), None, None, Placement(6, 1.0, 4)),
        (Cluster((machine(0), machine(8), machine(1))), None, None, Placement(3, 0.0, 3)),
        (Cluster((machine(8, 4),)), None, 0.5, Placement(8, 0.5, 8)),
        (Cluster((machine(8, 4),)), 2, None, Placement(2, 1.0, 2)),
        # The autoscaler's machines have GPUs, and none is there yet.
        (Cluster((machine(4),), (machine(8, 2),)), None, None, Placement(1, 1.0, 1)),
        (Cluster((machine(4),), (machine(8, 2),)), 4, None, Placement(4, 1.0, 2)),
    ],
)
def test_what_nobody_named_follows_the_cluster(
    cluster: Cluster, workers: int | None, gpus: float | None, found: Placement
) -> None:
    assert placement(cluster, workers, gpus) == found
