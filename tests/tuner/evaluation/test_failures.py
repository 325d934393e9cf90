"""What follows from a failed attempt, and when a run ends because of failures."""

from __future__ import annotations

import pytest

from tuner.evaluation.failures import Consequence, FailureKind, Failures, too_many_quarantined

pytestmark = pytest.mark.quick

ONE, TWO = ("q0",), ("q0", "q1")


@pytest.mark.parametrize(
    ("batch", "kinds", "last"),
    [
        (TWO, ["raised"], "retry"),
        (TWO, ["raised"] * 2, "retry"),
        (TWO, ["raised"] * 3, "end_run"),
        (ONE, ["raised"] * 3, "end_run"),
        (TWO, ["killed"], "retry"),
        (TWO, ["killed"] * 2, "ask_one_by_one"),
        (ONE, ["killed"], "retry"),
        (ONE, ["killed"] * 2, "quarantine"),
        (TWO, ["out_of_memory"], "ask_one_by_one"),
        (ONE, ["out_of_memory"], "quarantine"),
        (ONE, ["raised", "killed"], "quarantine"),
    ],
)
def test_what_follows_from_failed_attempts(
    batch: tuple[str, ...], kinds: list[FailureKind], last: Consequence
) -> None:
    failures = Failures()
    assert [failures.add(None, batch, kind) for kind in kinds][-1] == last


def test_attempts_at_other_questions_are_counted_apart() -> None:
    failures = Failures()
    assert failures.add(None, ONE, "killed") == failures.add(None, ("q1",), "killed") == "retry"


@pytest.mark.parametrize(
    ("quarantined", "questions", "ends"), [(3, 4, False), (4, 4, True), (4, 16, False), (5, 16, True)]
)
def test_a_few_questions_may_be_quarantined_and_a_quarter_of_a_large_study(
    quarantined: int, questions: int, ends: bool
) -> None:
    ids = [f"q{number}" for number in range(quarantined)]
    error = too_many_quarantined(ids, questions, "out of memory", split_is_empty=False)
    assert (error is not None) == ends
    if error is not None:
        assert f"{quarantined} of {questions} questions kill their workers" in str(error)
        assert "The last one: out of memory" in str(error)


def test_the_last_question_of_a_split_is_not_quarantined() -> None:
    assert too_many_quarantined(["q0"], 100, "out of memory", split_is_empty=True) is not None
