from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pipeline.flops import Compute
from tuner.evaluation.scoring import answer_cost, divergence, judge, outcome, reference, same_elsewhere
from tuner.records.values import RecordedAnswer
from tuner.study import StudyQuestion
from tuner.study.values import AnswerCost, QuestionResult

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
@pytest.mark.parametrize("label", ["the ring", None])
def test_a_free_answer_is_judged_by_the_log_probability_of_the_baselines_whole_answer(
    label: str | None,
) -> None:
    free = replace(FREE, answer=label)
    assert reference(free, answer("a green cube", None, None)) == "a green cube"
    # The baseline itself is scored on what it said.
    assert reference(free, None) is None
    assert reference(QUESTION, None) is None
    assert reference(QUESTION, answer("green", 1, (-1.0, -2.0))) is None
    before = answer("a green cube", None, None, -0.5)
    judged = judge(free, "tune", answer("a ring", None, None, -3.0), before)
    assert judged.logprob_right == -3.0
    assert judged.correct is (label is not None)  # the match is with the label where there is one


@pytest.mark.quick
def test_the_divergence_of_two_distributions_over_the_options() -> None:
    def judged(*logprobs: float) -> QuestionResult:
        return judge(QUESTION, "tune", answer("red", 0, logprobs))

    even, sure = judged(math.log(0.1), math.log(0.1)), judged(math.log(0.9), math.log(0.1))
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert divergence(even, sure) == pytest.approx(expected)
    assert divergence(sure, even) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert divergence(even, judged(-7.0, -7.0)) == 0.0
    assert divergence(judged(0.0, -math.inf), sure) == pytest.approx(-math.log(0.9))


@pytest.mark.quick
def test_free_answers_have_no_distribution_to_compare() -> None:
    one = judge(FREE, "tune", answer("ring", None, None))
    assert divergence(one, one) is None


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
    made = outcome("tune", COMPUTE, after, {answer.question: answer for answer in before})
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


def test_answers_that_are_those_of_another_program_are_counted() -> None:
    questions = (
        replace(QUESTION, id="same", baseline="red"),
        replace(QUESTION, id="other", baseline="green"),
        replace(QUESTION, id="not asked there"),
        replace(QUESTION, id="not answered here", baseline="red"),
        replace(FREE, id="free", baseline="A ring"),
    )
    red = answer("red", 0, (-0.1, -3.0))
    answers = {"same": red, "other": red, "not asked there": red, "free": answer("the ring.", None, None)}
    assert same_elsewhere(questions, answers) == (2, 3)
