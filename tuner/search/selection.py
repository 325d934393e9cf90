"""Which trial a search comes to: the tune part orders the candidates, the held-out part decides.

What is claimed of the chosen one, that it loses no more than the margin, is tested on held-out videos in a
sequence fixed before any of them was seen. Within a budget the candidates are those that answer best on the
tune part, and the first that passes is chosen; because going on after a failure is another chance to err,
their levels add up to the level of the whole (`paired.FIXED_SEQUENCE`). For the cheapest that holds the
sequence goes from the most expensive candidate down and ends at the first failure; then each test may use
the whole level (fixed-sequence testing; Learn then Test, Angelopoulos et al. 2021, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tuner.records.values import Goal, TrialRecord
from tuner.search.space import TOLERANCE, allows
from tuner.statistics import paired
from tuner.statistics.margin import MaxDrop
from tuner.statistics.values import Tested, Verdict
from tuner.study import Search
from tuner.study.values import Configuration, QuestionResult

# Candidates on the way down to the cheapest that holds; each costs a held-out measurement.
MOST_CANDIDATES = 8

LEVEL = 0.05

HeldOutResults = Callable[[Configuration | None], Sequence[QuestionResult] | None]
"""The judged held-out answers of a configuration (None: the baseline); None while some are missing."""


@dataclass(frozen=True)
class Choice:
    """What a search comes to, as far as the held-out part was asked."""

    trial: TrialRecord
    verdict: Verdict
    # What may be lost, in accuracy; None where it is a share of a baseline that is not known.
    margin: float | None
    tested: tuple[Tested, ...] = ()
    # The candidate whose held-out answers the sequence needs next.
    pending: TrialRecord | None = None


def eligible(trials: Iterable[TrialRecord], search: Search) -> list[TrialRecord]:
    """The trials that the study's search still allows, whatever it allowed when they were proposed.

    Only these are chosen, teach a sampler or stop others: the rest stay in the records.
    """
    return [one for one in trials if allows(search, one.configuration)]


def choose_best(trials: Iterable[TrialRecord], budget: float) -> TrialRecord | None:
    """The completed trial within the budget that answers best on the tune part; see `ordered`."""
    return next(iter(ordered(trials, budget)), None)


def candidates(
    trials: Iterable[TrialRecord], goal: Goal, budget: float, baseline: float, margin: float
) -> list[TrialRecord]:
    """The trials to test, in order. baseline: its accuracy on the tune part; margin: absolute."""
    fitting = ordered(trials, budget)
    if goal == "budget":
        # The best is tested whatever the tune part says of it; another one only where that gives it a chance.
        first, others = fitting[:1], fitting[1 : len(paired.FIXED_SEQUENCE)]
        return first + [one for one in others if _accuracy(one) >= baseline - margin]
    holding = [one for one in fitting if _accuracy(one) >= baseline - margin]
    if not holding:
        # Nothing holds even here: the best there is, so that there is something to say.
        return fitting[:1]
    # The best of each of some steps from the safe end to the cheapest. The front alone would be the cheapest
    # of those that look alike: a sequence that begins at the cliff ends there.
    high = max(one.binding_ratio for one in holding)
    width = (high - min(one.binding_ratio for one in holding)) / MOST_CANDIDATES or 1.0
    steps: dict[int, TrialRecord] = {}
    for trial in holding:
        step = min(int((high - trial.binding_ratio) / width), MOST_CANDIDATES - 1)
        steps.setdefault(step, trial)
    return [steps[step] for step in sorted(steps)]


def choose(
    trials: Iterable[TrialRecord],
    goal: Goal,
    budget: float,
    max_drop: MaxDrop,
    tune_baseline: Sequence[QuestionResult],
    held_out: HeldOutResults,
) -> Choice | None:
    """The trial chosen so far, and the candidate to measure next; None where no trial fits the budget."""
    trials = list(trials)
    best = choose_best(trials, budget)
    if best is None:
        return None
    before = {one.question: one.correct for one in held_out(None) or ()}
    if not before:
        return Choice(best, "untested", None if max_drop.relative else max_drop.value)
    margin = max_drop.absolute(sum(before.values()) / len(before))
    tune = sum(one.correct for one in tune_baseline) / max(1, len(tune_baseline))
    tested: list[Tested] = []
    shown: TrialRecord | None = None
    sequence = candidates(trials, goal, budget, tune, margin)
    for position, trial in enumerate(sequence):
        after = held_out(trial.configuration)
        if after is None:
            return Choice(shown or best, "untested", margin, tuple(tested), pending=trial)
        level = paired.FIXED_SEQUENCE[position] if goal == "budget" else LEVEL
        found = paired.non_inferiority(
            [one.correct for one in after],
            [before[one.question] for one in after],
            [one.video for one in after],
            margin,
            level=level,
        )
        tested.append(Tested(trial.number, margin, found.difference, found.bound, found.level, found.shown))
        if found.shown:
            shown = trial
        if found.shown == (goal == "budget"):
            break
    # Where nothing passes within a budget, the best on the tune part stands, marked as not shown.
    return Choice(shown or sequence[0], "shown" if shown else "not_shown", margin, tuple(tested))


def hypervolume(points: Iterable[tuple[float, float]], reference: tuple[float, float]) -> float:
    """The area that (ratio, score) points dominate: ratios below, scores above those of the reference."""
    area, best = 0.0, reference[1]
    for ratio, score in sorted(points):
        if ratio < reference[0] and score > best:
            area += (reference[0] - ratio) * (score - best)
            best = score
    return area


def ordered(trials: Iterable[TrialRecord], budget: float) -> list[TrialRecord]:
    """The completed trials within the budget, those that answer best on the tune part first.

    By the graded signal, which on the demo's design picks the better one for other videos than accuracy does
    (docs/experiments.md); ties: accuracy, then fewer FLOPs.
    """
    fitting = [one for one in trials if one.outcome is not None and one.binding_ratio <= budget + TOLERANCE]

    def order(trial: TrialRecord) -> tuple[float, float, float, int]:
        assert trial.outcome is not None
        graded = -math.inf if trial.outcome.graded is None else trial.outcome.graded
        return (-graded, -trial.outcome.accuracy, trial.binding_ratio, trial.number)

    return sorted(fitting, key=order)


def _accuracy(trial: TrialRecord) -> float:
    assert trial.outcome is not None
    return trial.outcome.accuracy
