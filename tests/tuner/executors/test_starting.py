from __future__ import annotations

import pytest

from tuner.evaluation.failures import EvaluationError
from tuner.executors.starting import MOST_FAILED_STARTS, Starting

pytestmark = pytest.mark.quick


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def begin(wanted: int) -> tuple[Starting, list[str], Clock]:
    """So many workers, asked for; what is said; the clock."""
    said, clock = list[str](), Clock()
    starting = Starting(wanted, said.append, clock)
    for number in range(wanted):
        starting.asked_for(f"w{number}")
    return starting, said, clock


def fail(starting: Starting, times: int, host: str = "bad") -> None:
    """The last worker of two and its successors fail on this host."""
    for number in range(1, times + 1):
        if number > 1:
            starting.asked_for(f"w{number}")
        starting.has_place(f"w{number}", host)
        starting.failed(f"w{number}", "no such model")


def test_starts_that_keep_failing_end_the_run_and_name_the_machine() -> None:
    starting, said, _ = begin(2)
    starting.has_place("w0", "bad")
    starting.failed("w0", "no such model")
    fail(starting, MOST_FAILED_STARTS - 2)
    starting.asked_for("last")
    starting.has_place("last", "bad")
    wanted = r"No worker could be started 3 times in a row\. The last reason: no such model \(on bad\)"
    with pytest.raises(EvaluationError, match=wanted):
        starting.failed("last", "no such model")
    assert said == ["A worker on bad could not be started and is tried again: no such model"]


def test_a_bad_machine_ends_nothing_while_another_still_loads_or_answers() -> None:
    starting, said, clock = begin(2)
    starting.has_place("w0", "good")
    fail(starting, MOST_FAILED_STARTS + 1)
    starting.got_ready("w0")
    fail(starting, MOST_FAILED_STARTS + 1)
    assert len(said) == 1
    # Not at once and for ever.
    assert starting.paused
    clock.now = 60.0
    assert not starting.paused


def test_a_worker_that_loads_since_the_failures_began_gives_no_further_hope() -> None:
    """It is one of those that are tried again: with two workers, one of them always loads."""
    starting, _, _ = begin(2)
    starting.has_place("w0", "bad")
    starting.failed("w0", "no such model")
    starting.asked_for("again")
    starting.has_place("again", "bad")
    starting.failed("w1", "no such model")
    starting.asked_for("once more")
    with pytest.raises(EvaluationError, match="3 times in a row"):
        starting.failed("again", "no such model")


def test_failures_before_the_last_success_do_not_count() -> None:
    starting, _, _ = begin(2)
    fail(starting, MOST_FAILED_STARTS - 1)
    starting.got_ready("w0")
    starting.died("w0")
    for name in ("a", "b"):
        starting.asked_for(name)
        starting.failed(name, "no such model")
    starting.asked_for("c")
    with pytest.raises(EvaluationError, match="3 times in a row"):
        starting.failed("c", "no such model")


def test_it_says_once_how_many_have_room() -> None:
    starting, said, clock = begin(5)
    starting.look(lambda: 2, "1 CPU")
    assert said == []  # they have only just been asked for
    for clock.now in (5.0, 10.0, 15.0):
        starting.look(lambda: 2, "1 CPU")
    assert said == ["There is room for 2 of 5 workers (1 CPU each): the others start when there is more."]
    clock.now = 20.0
    starting.look(lambda: 0, "1 CPU")
    assert said[1:] == ["There is room for 0 of 5 workers (1 CPU each): the run waits until there is."]


def test_it_says_when_workers_do_not_come_though_there_is_room() -> None:
    starting, said, clock = begin(2)
    clock.now = 30.0
    starting.has_place("w0", "here")
    for clock.now in (80.0, 90.0, 100.0):
        starting.look(lambda: 2, "1 CPU")
    (text,) = said
    assert text.startswith(
        "1 of 2 workers run: the others wait for their processes to start, or for resources"
    )


def test_it_is_silent_when_all_have_a_place() -> None:
    starting, said, clock = begin(1)
    starting.has_place("w0", "here")
    clock.now = 1000.0
    starting.look(lambda: 0, "1 CPU")
    assert said == []


@pytest.mark.parametrize(
    ("offered", "gpus", "workers"),
    [
        ({"CPU": 4.0}, 0.0, 4),
        ({"CPU": 4.0, "GPU": 2.0}, 1.0, 2),
        ({"CPU": 4.0, "GPU": 1.0}, 2.0, 0),
        ({"CPU": 16.0, "GPU": 1.0}, 0.1, 10),
        ({"CPU": 16.0, "GPU": 2.0}, 0.4, 4),  # 0.2 of each are of no use
        ({"GPU": 2.0}, 0.0, 0),
    ],
)
def test_the_room_on_a_node(offered: dict[str, float], gpus: float, workers: int) -> None:
    from tuner.executors.ray_tune import fitting

    assert fitting(offered, gpus) == workers
