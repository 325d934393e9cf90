"""Whether the unpruned model does better than guessing: if not, no loss can be measured against it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tuner.statistics import paired
from tuner.statistics.values import Guessing
from tuner.study import Study
from tuner.study.values import QuestionResult

# Of the one-sided bound.
_ERROR = 0.05


def against_guessing(study: Study, baseline: Sequence[QuestionResult]) -> Guessing | None:
    """The unpruned model's answers (`baseline`) to the questions with options and a label, against guessing.

    None where there are none: free answers cannot be guessed, and without labels the model is right by
    definition. All parts count: nothing is chosen by it.
    """
    asked = [(answer, study.question(answer.question)) for answer in baseline]
    shares = [1 / len(question.options) for _, question in asked if question.options and question.answer]
    known = [answer for answer, question in asked if question.options and question.answer]
    if not known:
        return None
    videos = [question.video for question in known]
    found = paired.share([answer.correct for answer in known], videos, level=1 - 2 * _ERROR)
    return Guessing(
        questions=len(known),
        videos=len(set(videos)),
        right=sum(answer.correct for answer in known),
        chance=math.fsum(shares) / len(shares),
        bound=None if found.interval is None else found.interval.low,
    )
