from __future__ import annotations

import pytest

from tuner.executors.deadlines import FIRST, LEAST, MULTIPLE, Deadlines

pytestmark = pytest.mark.quick


def test_a_batch_may_take_a_multiple_of_the_slowest_of_its_kind() -> None:
    deadlines = Deadlines()
    assert deadlines.seconds("answer") == FIRST
    deadlines.took("answer", 1.0)
    assert deadlines.seconds("answer") == LEAST
    deadlines.took("answer", 200.0)
    deadlines.took("answer", 100.0)
    assert deadlines.seconds("answer") == MULTIPLE * 200.0
    assert deadlines.seconds("encode") == FIRST


def test_seconds_that_are_named_hold_for_all() -> None:
    deadlines = Deadlines(30.0)
    deadlines.took("answer", 200.0)
    assert deadlines.seconds("answer") == deadlines.seconds("encode") == 30.0
