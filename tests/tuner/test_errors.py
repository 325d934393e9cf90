from __future__ import annotations

import pickle

import pytest

from tuner.errors import UserError


def test_problems_are_shown_one_a_line_with_the_hint_last() -> None:
    error = UserError(["a is wrong", "b is wrong"], "do c")
    assert str(error) == "a is wrong\nb is wrong\ndo c"
    assert str(UserError("only this")) == "only this"
    assert error.exit_code == 2


def test_of_very_many_problems_the_first_are_shown() -> None:
    lines = str(UserError([f"line {number}" for number in range(1200)])).splitlines()
    assert len(lines) == 51
    assert lines[-1] == "... and 1150 more mistakes like these"


def test_an_error_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(UserError(["a", "b"], "c")))
    assert (copy.problems, copy.hint) == (("a", "b"), "c")


def test_no_problem_is_no_error() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        UserError([])
