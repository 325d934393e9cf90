from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pipeline.flops import Compute
from tuner.records.store import RecordedAnswer
from tuner.results import AnswerCost
from tuner.scoring import answer_cost, judge, outcome, reference
from tuner.study import StudyQuestion

QUESTION = StudyQuestion(id="q", text="What?", options=("red", "green"), video="v", answer="green")
FREE = StudyQuestion(id="q", text="What?", video="v", answer="the ring")
COMPUTE = Compute(0.3, 0.4, 0.27, 0.32, 0.35)


def answer(
    text: str, option: int | None, logprobs: tuple[float, ...] | None, logprob: float | None = -1.0
) -> RecordedAnswer:
    return RecordedAnswer("q", text, option, logprobs, logprob, (), 0.5)


@pytest.mark.quick
def test_an_option_is_judged_by_the_label_and_its_share_of_the_probability() -> None:
    result = judge(QUESTION, "tune", answer("green", 1, (math.log(0.02), math.log(0.06))))
    assert result.correct
    assert result.logprob_right == pytest.approx(math.log(0.75))


@pytest.mark.quick
def test_without_a_label_the_baseline_decides() -> None:
    question = replace(QUESTION, answer=None)
    baseline = answer("red", 0, (-0.1, -3.0))
    assert judge(question, "tune", baseline).correct
    assert not judge(question, "tune", answer("green", 1, (-3.0, -0.1)), baseline).correct


def test_a_free_answer_is_matched_after_normalisation() -> None:
    assert judge(FREE, "tune", answer("Ring.", None, None)).correct
    assert not judge(FREE, "tune", answer("a cube", None, None)).correct
    unlabelled = replace(FREE, answer=None)
    assert judge(unlabelled, "tune", answer("A ring", None, None), answer("ring", None, None)).correct


@pytest.mark.quick
def test_a_free_answer_is_judged_by_the_log_probability_of_the_label_or_the_baselines_answer() -> None:
    assert reference(QUESTION, None) is None
    assert reference(FREE, answer("cube", None, None)) == "the ring"
    assert reference(replace(FREE, answer=None), answer("cube", None, None)) == "cube"
    assert reference(replace(FREE, answer=None), None) is None


@pytest.mark.quick
def test_regressions_and_gains_are_counted_apart() -> None:
    def result(name: str, right: bool, logprob: float):  # type: ignore[no-untyped-def]
        made = judge(QUESTION, "tune", answer("green" if right else "red", int(right), (-1.0, -1.0)))
        return replace(made, question=name, video=name[0], logprob_right=logprob)

    before = [
        result("a1", True, -0.1),
        result("a2", True, -0.1),
        result("b1", False, -2.0),
        result("b2", True, -0.5),
    ]
    after = [
        result("a1", False, -1.1),
        result("a2", True, -0.1),
        result("b1", True, -0.5),
        result("b2", False, -1.0),
    ]
    made = outcome("tune", COMPUTE, after, {one.question: one for one in before})
    assert (made.questions, made.videos, made.accuracy) == (4, 2, 0.5)
    assert (made.regressions, made.gained) == (2, 1)
    assert made.logprob_change == pytest.approx((-1.0 + 0.0 + 1.5 - 0.5) / 4)
    assert (made.flops_ratio, made.flops_ratio_p95, made.seconds) == (0.3, 0.32, 2.0)


@pytest.mark.quick
def test_memory_is_told_only_where_every_answer_tells_it() -> None:
    made = judge(QUESTION, "tune", answer("green", 1, (-1.0, -1.0)))
    known = [replace(made, peak_bytes=3, seconds=1.0), replace(made, peak_bytes=9, seconds=2.0)]
    assert answer_cost(known) == AnswerCost(1.5, 6.0, 9)
    assert answer_cost([*known, replace(made, seconds=6.0)]) == AnswerCost(3.0)
    with pytest.raises(ValueError, match="at least one"):
        answer_cost([])


@pytest.mark.quick
def test_an_outcome_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one result"):
        outcome("tune", COMPUTE, [], {})
