"""Tables that fit a terminal: what says least is left out, and no number is cut short."""

from __future__ import annotations

import pytest

from tuner.reporting.columns import Column, fitted

pytestmark = pytest.mark.quick

COLUMNS = (
    Column("name", ("a long name", "b"), right=False),
    Column("first\nsecond", ("1", "22"), rank=1),
    Column("number", ("333", "4"), rank=2),
    Column("tau_\ns", ("0.5", "0.25"), rank=3),
)


def test_what_has_room_stands_side_by_side():
    table = fitted(COLUMNS, None)
    assert table.head[:2] == ("             first        tau_", "name        second number    s")
    assert table.body == ("a long name      1    333  0.5", "b               22      4 0.25")
    assert table.head[2] == "-" * 30
    assert not table.left_out
    assert fitted(COLUMNS, 30) == table


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(29, ("tau_s",)), (24, ("tau_s", "number")), (12, ("tau_s", "number", "first second"))],
)
def test_the_columns_of_the_highest_ranks_go_first(width, left_out):
    table = fitted(COLUMNS, width)
    assert table.left_out == left_out
    assert max(map(len, (*table.head, *table.body))) <= width


def test_a_column_of_rank_0_stays_whatever_the_width():
    assert fitted(COLUMNS, 3).body == ("a long name", "b")


def test_columns_may_stand_further_apart():
    wide = fitted(COLUMNS, 33, gap=2)
    assert (wide.left_out, len(wide.head[2])) == ((), 33)
    assert fitted(COLUMNS, 32, gap=2).left_out == ("tau_s",)
