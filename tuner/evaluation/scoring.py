"""From answers to results to outcomes: what counts as right is decided here alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from pipeline.flops import Compute
from tuner.records.values import RecordedAnswer
from tuner.study import StudyQuestion
from tuner.study.values import AnswerCost, Outcome, QuestionResult, Split

# Natural logarithm: a right answer of a probability below 1/20 counts as much as one of probability 1/20.
CLIP = 3.0


def judge(
    question: StudyQuestion, split: Split, answer: RecordedAnswer, baseline: RecordedAnswer | None = None
) -> QuestionResult:
    """Judges an answer by the label or, if the question has none, by the baseline's answer.

    Without a label and without `baseline` the answer is the baseline's own, which agrees with itself.
    """
    right = _right_option(question, answer if baseline is None else baseline)
    if right is not None:
        correct = answer.option == right
        logprob = None if answer.option_logprobs is None else _log_softmax(answer.option_logprobs)[right]
    else:
        from pipeline.answering import matches

        expected = question.answer if question.answer is not None else (baseline or answer).text
        correct = matches(answer.text, expected)
        logprob = answer.logprob
    return QuestionResult(
        question=question.id,
        video=question.video,
        split=split,
        correct=correct,
        logprob_right=logprob,
        text=answer.text,
        option=answer.option,
        option_logprobs=answer.option_logprobs,
        seconds=answer.seconds,
        peak_bytes=answer.peak_bytes,
    )


def outcome(
    split: Split, compute: Compute, results: Sequence[QuestionResult], baseline: Mapping[str, QuestionResult]
) -> Outcome:
    """Summarises a configuration's results on a split; `baseline` holds the unpruned model's by question id.

    A regression is a question that the baseline answered right and this configuration did not; `gained`
    counts the reverse.
    """
    if not results:
        raise ValueError(f"An outcome needs at least one result, but the {split} split has none.")
    took = answer_cost(results)
    before = [baseline[result.question] for result in results]
    changes = [
        after.logprob_right - reference.logprob_right
        for after, reference in zip(results, before, strict=True)
        if after.logprob_right is not None and reference.logprob_right is not None
    ]
    return Outcome(
        split=split,
        questions=len(results),
        videos=len({result.video for result in results}),
        accuracy=sum(result.correct for result in results) / len(results),
        flops_ratio=compute.flops_ratio,
        flops_ratio_end_to_end=compute.flops_ratio_end_to_end,
        flops_ratio_visual=compute.flops_ratio_visual,
        flops_ratio_p95=compute.flops_ratio_p95,
        flops_ratio_max=compute.flops_ratio_max,
        regressions=sum(
            reference.correct and not after.correct for after, reference in zip(results, before, strict=True)
        ),
        gained=sum(
            after.correct and not reference.correct for after, reference in zip(results, before, strict=True)
        ),
        logprob_change=math.fsum(changes) / len(changes) if changes else 0.0,
        seconds=math.fsum(result.seconds for result in results),
        peak_bytes_mean=took.peak_bytes_mean,
        peak_bytes_max=took.peak_bytes_max,
        graded=math.fsum(graded(after, reference) for after, reference in zip(results, before, strict=True))
        / len(results),
    )


def outcome_without(
    found: Outcome,
    after: QuestionResult,
    before: QuestionResult,
    baseline: Mapping[str, QuestionResult],
    left: Collection[StudyQuestion],
) -> Outcome | None:
    """A split's outcome without one of its questions. Counts are exact; means equal those of `outcome` up to
    rounding. So a question is left out of a thousand trials without reading all their answers again.

    after: the question's result, before: the unpruned model's. left: the other questions, of which `baseline`
    has the unpruned results. None where only all answers tell: the largest memory was this question's, or
    memory was measured for all but this one.
    """
    others = [baseline[question.id] for question in left]
    if found.graded is None or (
        after.peak_bytes == found.peak_bytes_max
        if found.peak_bytes_mean is not None
        else after.peak_bytes is None and any(other.peak_bytes is not None for other in others)
    ):
        return None

    def without(mean: float, value: float, count: int) -> float:
        return (mean * (count + 1) - value) / count if count else 0.0

    logprob_change, peak_bytes_mean = found.logprob_change, found.peak_bytes_mean
    if after.logprob_right is not None and before.logprob_right is not None:
        compared = sum(other.logprob_right is not None for other in others)
        logprob_change = without(logprob_change, after.logprob_right - before.logprob_right, compared)
    if peak_bytes_mean is not None and after.peak_bytes is not None:
        peak_bytes_mean = without(peak_bytes_mean, after.peak_bytes, len(others))
    return replace(
        found,
        questions=len(others),
        videos=len({question.video for question in left}),
        accuracy=(round(found.accuracy * found.questions) - after.correct) / len(others),
        regressions=found.regressions - (before.correct and not after.correct),
        gained=found.gained - (after.correct and not before.correct),
        logprob_change=logprob_change,
        seconds=max(0.0, found.seconds - after.seconds),
        peak_bytes_mean=peak_bytes_mean,
        graded=without(found.graded, graded(after, before), len(others)),
    )


def graded(after: QuestionResult, before: QuestionResult) -> float:
    """The signal by which trials are ordered and pruned: it moves before an answer changes.

    With options it is the log-probability of the right option, without them the change of the expected text's
    log-probability from the baseline (`before`). It is limited to `CLIP` in size: else a few hopeless
    questions would outweigh all others. Without probabilities it is 1 for a right answer. Of the signals
    tried on the demo's design it tells configurations apart with the fewest videos (docs/experiments.md).
    """
    if after.logprob_right is None or before.logprob_right is None:
        return float(after.correct)
    if after.option_logprobs is not None:
        return max(after.logprob_right, -CLIP)
    return min(max(after.logprob_right - before.logprob_right, -CLIP), CLIP)


def answer_cost(results: Sequence[QuestionResult]) -> AnswerCost:
    """Seconds and memory of these answers; memory only if it was measured for all of them.

    Errors: ValueError for no answers.
    """
    if not results:
        raise ValueError("The cost of an answer needs at least one answer.")
    seconds = math.fsum(result.seconds for result in results) / len(results)
    known = [result.peak_bytes for result in results if result.peak_bytes is not None]
    if len(known) < len(results):
        return AnswerCost(seconds)
    return AnswerCost(seconds, sum(known) / len(known), max(known))


def same_elsewhere(
    questions: Iterable[StudyQuestion], answers: Mapping[str, RecordedAnswer]
) -> tuple[int, int]:
    """How many of the unpruned model's answers, by question id, are those of another program that the study
    brings (`StudyQuestion.baseline`), and how many there are to compare.
    """
    same = compared = 0
    for question in questions:
        if question.baseline is not None and question.id in answers:
            by_words = replace(question, answer=question.baseline)
            same += judge(by_words, "tune", answers[question.id]).correct
            compared += 1
    return same, compared


def reference(question: StudyQuestion, baseline: RecordedAnswer | None) -> str | None:
    """The text whose log-probability a free answer is judged by: the baseline's answer, label or not.

    None for a question with options, and for the baseline itself, which is scored on its own text.
    """
    return None if question.options is not None or baseline is None else baseline.text


def divergence(baseline: QuestionResult, pruned: QuestionResult) -> float | None:
    """KL(baseline || pruned) of the normalised option probabilities, in nats; None without options."""
    if baseline.option_logprobs is None or pruned.option_logprobs is None:
        return None
    before, after = _log_softmax(baseline.option_logprobs), _log_softmax(pruned.option_logprobs)
    terms = (math.exp(was) * (was - now) for was, now in zip(before, after, strict=True) if was > -math.inf)
    # For equal distributions rounding can give a tiny negative value.
    return max(0.0, math.fsum(terms))


def _right_option(question: StudyQuestion, baseline: RecordedAnswer) -> int | None:
    if question.options is None:
        return None
    return question.options.index(question.answer) if question.answer is not None else baseline.option


def _log_softmax(logprobs: Sequence[float]) -> list[float]:
    highest = max(logprobs)
    total = highest + math.log(math.fsum(math.exp(value - highest) for value in logprobs))
    return [value - total for value in logprobs]
