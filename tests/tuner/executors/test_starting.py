"""What is said of workers that start, wait or fail, and which machines are left out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tuner.errors import UserError
from tuner.evaluation.failures import EvaluationError
from tuner.executors.placement import Machine
from tuner.executors.starting import MOST_FAILED_STARTS, Starting

pytestmark = pytest.mark.quick

GOOD, BAD = Machine("1", "good", {"CPU": 2.0}), Machine("2", "bad", {"CPU": 2.0})


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def begin(wanted: int, wait: float | None = None) -> tuple[Starting, list[str], Clock]:
    """So many workers; what is said; the clock."""
    said, clock = list[str](), Clock()
    return Starting(wanted, said.append, clock, wait=wait), said, clock


def fail(
    starting: Starting, machine: Machine, times: int, machines: Sequence[Machine], *, certain: bool = False
) -> None:
    for number in range(times):
        assert starting.has_place(f"f{number}", machine)
        starting.failed(f"f{number}", "no such model", machines, certain=certain)


def test_starts_that_keep_failing_on_all_machines_end_the_run_with_the_reasons_of_each() -> None:
    starting, said, _ = begin(2)
    fail(starting, BAD, MOST_FAILED_STARTS, [GOOD, BAD])
    fail(starting, GOOD, MOST_FAILED_STARTS - 1, [GOOD, BAD])
    assert starting.has_place("last", GOOD)
    with pytest.raises(EvaluationError) as found:
        starting.failed("last", "disk full", [GOOD, BAD])
    assert str(found.value).splitlines()[:3] == [
        "No worker can be started on any machine.",
        "Machine bad: 3 workers in a row failed there. The last reason: no such model",
        "Machine good: 3 workers in a row failed there. The last reason: disk full",
    ]
    assert said == [
        "A worker on bad could not be started and is tried again: no such model",
        (
            "Machine bad is left out from now on: 3 workers in a row failed there. "
            "The last reason: no such model"
        ),
        "A worker on good could not be started and is tried again: no such model",
    ]


def test_a_bad_machine_is_left_out_and_no_worker_starts_there_again() -> None:
    starting, _, _ = begin(2)
    fail(starting, BAD, MOST_FAILED_STARTS, [GOOD, BAD])
    assert starting.left_out == ("2",)
    assert not starting.has_place("again", BAD)
    assert starting.has_place("elsewhere", GOOD)


def test_a_reason_that_is_certain_to_come_again_leaves_a_machine_out_at_once() -> None:
    starting, said, _ = begin(2)
    fail(starting, BAD, 1, [GOOD, BAD], certain=True)
    assert said == ["Machine bad is left out from now on: no such model"]


def test_where_it_is_certain_for_all_machines_it_is_the_users_mistake() -> None:
    """Exit code 2: a job that is tried again would end the same way."""
    starting, _, _ = begin(2)
    fail(starting, BAD, 1, [GOOD, BAD], certain=True)
    with pytest.raises(UserError) as found:
        fail(starting, GOOD, 1, [GOOD, BAD], certain=True)
    assert found.value.problems == ("no such model",)


def test_machines_without_room_for_a_worker_are_no_hope() -> None:
    starting, _, _ = begin(1)
    with pytest.raises(UserError):
        fail(starting, BAD, 1, [BAD, Machine("head", "head", {"CPU": 0.0})], certain=True)


def test_failures_before_something_was_done_there_do_not_count() -> None:
    starting, _, _ = begin(2)
    fail(starting, BAD, MOST_FAILED_STARTS - 1, [BAD])
    starting.has_place("w", BAD)
    starting.got_ready("w")
    starting.answered("w")
    starting.died("w")
    fail(starting, BAD, MOST_FAILED_STARTS - 1, [BAD])
    assert starting.left_out == ()


def test_errors_leave_a_machine_out_only_where_others_do_without() -> None:
    """As where it has the model and lacks the videos."""
    starting, _, _ = begin(2)
    for number in range(2 * MOST_FAILED_STARTS):
        if number == MOST_FAILED_STARTS:
            assert starting.left_out == ()
            starting.has_place("other", GOOD)
            starting.got_ready("other")
        starting.has_place(f"w{number}", BAD)
        starting.got_ready(f"w{number}")
        starting.raised(f"w{number}", "no such video")
        if starting.left_out:
            break
    assert starting.left_out == (BAD.id,)


def test_failures_whose_machine_is_not_known_end_nothing_while_others_work() -> None:
    starting, _, clock = begin(2)
    starting.has_place("w", GOOD)
    for number in range(2 * MOST_FAILED_STARTS):
        starting.failed(f"f{number}", "gone", [GOOD])
    # Not at once and for ever.
    assert starting.paused
    clock.now = 60.0
    assert not starting.paused
    starting.died("w")
    with pytest.raises(EvaluationError, match="A machine: 3 workers in a row failed"):
        starting.failed("f", "gone", [GOOD])


def test_it_says_once_how_many_have_room() -> None:
    starting, said, clock = begin(5)
    starting.look(lambda: [GOOD])
    assert said == []  # they have only just been asked for
    for clock.now in (5.0, 10.0, 15.0):
        starting.look(lambda: [GOOD])
    text = "2 of 5 workers, waiting for CPUs: each takes 1 CPU, and the machines have room for no more."
    assert said == [text]
    clock.now = 20.0
    starting.look(list)
    assert said[1:] == [text.replace("2 of 5", "0 of 5")]


def test_it_waits_for_gpus_by_name() -> None:
    said, clock = list[str](), Clock()
    starting = Starting(4, said.append, clock, gpus=1.0, each="1 CPU and 1 GPU")
    clock.now = 5.0
    starting.look(lambda: [GOOD])
    (text,) = said
    assert text.startswith("0 of 4 workers, waiting for GPUs: each takes 1 CPU and 1 GPU, and the machines")


def test_it_says_when_workers_do_not_come_though_there_is_room() -> None:
    starting, said, clock = begin(2)
    clock.now = 30.0
    starting.has_place("w0", GOOD)
    for clock.now in (80.0, 90.0, 100.0):
        starting.look(lambda: [GOOD])
    (text,) = said
    assert text.startswith("1 of 2 workers, waiting for processes that do not start, or for resources")


def test_it_is_silent_when_all_have_a_place() -> None:
    starting, said, clock = begin(1)
    starting.has_place("w0", GOOD)
    clock.now = 1000.0
    starting.look(list)
    assert said == []


def test_it_waits_for_the_first_worker_only_as_long_as_it_may() -> None:
    starting, _, clock = begin(2, wait=20.0)
    clock.now = 15.0
    starting.look(list)
    starting.has_place("w0", GOOD)
    clock.now = 100.0
    starting.look(list)  # one is there
    starting.died("w0")
    clock.now = 119.0
    starting.look(list)
    clock.now = 120.0
    with pytest.raises(EvaluationError, match=r"^No worker has started for 20 s, .* room for no more\.\n"):
        starting.look(list)
