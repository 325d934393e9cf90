"""Which trial a search comes to: the tune split orders the candidates, the held-out split decides.

That the chosen one loses no more than the margin is tested on held-out videos, in a sequence that is fixed
before any of them is seen. Within a budget the candidates are those that answer best on the tune split, and
the first that passes is chosen; going on after a failure is another chance to err, so their levels add up to
the level of the look (a fixed sequence with weights, Wiens 2003). For the cheapest that holds, the sequence
goes from the most expensive candidate down and ends at the first failure; then each test may use the level of
the look (fixed-sequence testing; Learn then Test, Angelopoulos et al. 2021, section 4).

Each look at the held-out split is recorded. The levels of all looks of a study add up to `LEVEL` (alpha
spending), so that whatever was asked before, a study errs in at most so many cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from tuner.records.values import Goal, Look, LookGoal, SearchRecord, TrialRecord
from tuner.search.space import TOLERANCE, allows
from tuner.statistics import paired
from tuner.statistics.margin import MaxDrop
from tuner.statistics.values import Tested, Verdict
from tuner.study import Search
from tuner.study.values import Configuration, QuestionResult

# Candidates on the way down to the cheapest that holds; each costs a held-out measurement.
MOST_CANDIDATES = 8

LEVEL = 0.05
"""Probability that a study shows what is not so, over all its looks at the held-out split."""

FIRST_LOOK = 0.8
"""Share of the level for a study's first look; the others have 1/2, 1/6, 1/12, ... of the rest."""

CANDIDATES = (0.8, 0.1, 0.1)
"""Shares of a look's level for the candidates within a budget, in the tune split's order."""

HeldOutResults = Callable[[Configuration | None], Sequence[QuestionResult] | None]
"""The judged held-out answers of a configuration (None: the baseline); None while some are missing."""


def level_of(goal: LookGoal, look: int, position: int = 0) -> float:
    """The level of a look's candidate at that position (from 0); looks are counted from 1, over the study."""
    share = FIRST_LOOK if look == 1 else (1 - FIRST_LOOK) / (look * (look - 1))
    return LEVEL * share * (CANDIDATES[position] if goal == "budget" else 1.0)


@dataclass(frozen=True)
class Looks:
    """Looks at the held-out split before: of the whole study, and of this search at this margin."""

    taken: int = 0
    # Trial numbers that were tested, by the look's number.
    alike: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, looks: Iterable[tuple[int, Look]], search: SearchRecord) -> Self:
        """From the study's looks in their order, each with its search's id."""
        numbered = list(enumerate(looks, start=1))
        alike = {
            number: look_.candidates or (look_.trial,)
            for number, (of_search, look_) in numbered
            if of_search == search.id and look_.max_drop == search.max_drop
        }
        return cls(len(numbered), alike)


@dataclass(frozen=True)
class Choice:
    """What a search comes to, as far as the held-out split was asked."""

    trial: TrialRecord
    verdict: Verdict
    # What may be lost, in accuracy; None where it is a share of a baseline that is not known.
    margin: float | None
    tested: tuple[Tested, ...] = ()
    # The candidate whose held-out answers the sequence needs next.
    pending: TrialRecord | None = None
    # The number of the look over the whole study; `recorded`: it was taken before.
    look: int = 1
    recorded: bool = False

    @property
    def level(self) -> float:
        """Of all its tests together."""
        return level_of("max_drop", self.look)


def eligible(trials: Iterable[TrialRecord], search: Search) -> list[TrialRecord]:
    """The trials that the study's search still allows, whatever it allowed when they were proposed.

    Only these are chosen, teach a sampler or stop others: the rest stay in the records.
    """
    return [trial for trial in trials if allows(search, trial.configuration)]


def choose_best(trials: Iterable[TrialRecord], budget: float) -> TrialRecord | None:
    """The completed trial within the budget that answers best on the tune split; see `ordered`."""
    return next(iter(ordered(trials, budget)), None)


def candidates(
    trials: Iterable[TrialRecord], goal: Goal, budget: float, baseline: float, margin: float
) -> list[TrialRecord]:
    """The trials to test, in order. baseline: its accuracy on the tune split; margin: absolute."""
    fitting = ordered(trials, budget)
    if goal == "budget":
        # The best is tested whatever the tune split says of it; others only where it gives them a chance.
        first, others = fitting[:1], fitting[1 : len(CANDIDATES)]
        return first + [other for other in others if _accuracy(other) >= baseline - margin]
    holding = [trial for trial in fitting if _accuracy(trial) >= baseline - margin]
    if not holding:
        # Nothing holds even here: the best there is, so that there is something to say.
        return fitting[:1]
    # The best of each of some steps from the safe end to the cheapest. The front alone would be the cheapest
    # of those that look alike: a sequence that begins at the cliff ends there.
    high = max(trial.binding_ratio for trial in holding)
    width = (high - min(trial.binding_ratio for trial in holding)) / MOST_CANDIDATES or 1.0
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
    looks: Looks | None = None,
) -> Choice | None:
    """The trial chosen so far, and the candidate to measure next; None where no trial fits the budget.

    The same tests at the same margin again are the look that was taken; everything else is a new one.
    """
    looks = looks or Looks()
    trials = list(trials)
    for number, tested in looks.alike.items():
        found = _choose(trials, goal, budget, max_drop, tune_baseline, held_out, number)
        if found is not None and tuple(trial.trial for trial in found.tested) == tested:
            return replace(found, recorded=True)
    return _choose(trials, goal, budget, max_drop, tune_baseline, held_out, looks.taken + 1)


def _choose(
    trials: Sequence[TrialRecord],
    goal: Goal,
    budget: float,
    max_drop: MaxDrop,
    tune_baseline: Sequence[QuestionResult],
    held_out: HeldOutResults,
    look: int,
) -> Choice | None:
    best = choose_best(trials, budget)
    if best is None:
        return None
    before = {answer.question: answer.correct for answer in held_out(None) or ()}
    if not before:
        return Choice(best, "untested", None if max_drop.relative else max_drop.value, look=look)
    margin = max_drop.absolute(sum(before.values()) / len(before))
    tune = sum(answer.correct for answer in tune_baseline) / max(1, len(tune_baseline))
    tested: list[Tested] = []
    shown: TrialRecord | None = None
    sequence = candidates(trials, goal, budget, tune, margin)
    for position, trial in enumerate(sequence):
        after = held_out(trial.configuration)
        if after is None:
            return Choice(shown or best, "untested", margin, tuple(tested), pending=trial, look=look)
        found = paired.non_inferiority(
            [answer.correct for answer in after],
            [before[answer.question] for answer in after],
            [answer.video for answer in after],
            margin,
            level=level_of(goal, look, position),
        )
        tested.append(Tested(trial.number, margin, found.difference, found.bound, found.level, found.shown))
        if found.shown:
            shown = trial
        if found.shown == (goal == "budget"):
            break
    # Where nothing passes within a budget, the best on the tune split stands, marked as not shown.
    return Choice(shown or sequence[0], "shown" if shown else "not_shown", margin, tuple(tested), look=look)


def examine(
    trial: TrialRecord,
    max_drop: MaxDrop,
    held_out: HeldOutResults,
    looks: Sequence[tuple[int, Look]],
    searches: Collection[int],
) -> Choice:
    """What held-out videos say of one trial that a person chose.

    By the look in which it was tested at this margin already, whoever took it; else by a look of its own that
    is still to be recorded, with all of that look's level. looks: all of the study, each with its search's
    id; searches: the ids of those whose trials have these numbers, which an archived study's have not.
    """
    look, level, recorded = len(looks) + 1, level_of("trial", len(looks) + 1), False
    for number, (search, look_) in enumerate(looks, start=1):
        tested = look_.candidates or (look_.trial,)
        if search in searches and look_.max_drop == str(max_drop) and trial.number in tested:
            look, recorded = number, True
            level = level_of(look_.goal, number, tested.index(trial.number))
            break
    before = {answer.question: answer.correct for answer in held_out(None) or ()}
    after = held_out(trial.configuration)
    if not before or not after:
        margin = None if max_drop.relative else max_drop.value
        return Choice(trial, "untested", margin, pending=trial, look=look)
    margin = max_drop.absolute(sum(before.values()) / len(before))
    found = paired.non_inferiority(
        [answer.correct for answer in after],
        [before[answer.question] for answer in after],
        [answer.video for answer in after],
        margin,
        level=level,
    )
    test = Tested(trial.number, margin, found.difference, found.bound, found.level, found.shown)
    verdict: Verdict = "shown" if found.shown else "not_shown"
    return Choice(trial, verdict, margin, (test,), look=look, recorded=recorded)


def hypervolume(points: Iterable[tuple[float, float]], reference: tuple[float, float]) -> float:
    """The area that (ratio, score) points dominate: ratios below, scores above those of the reference."""
    area, best = 0.0, reference[1]
    for ratio, score in sorted(points):
        if ratio < reference[0] and score > best:
            area += (reference[0] - ratio) * (score - best)
            best = score
    return area


def ordered(trials: Iterable[TrialRecord], budget: float) -> list[TrialRecord]:
    """The completed trials within the budget, those that answer best on the tune split first.

    By the graded signal, which on the demo's design picks the better one for other videos than accuracy does
    (docs/experiments.md); ties: accuracy, then fewer FLOPs.
    """
    fitting = [
        trial for trial in trials if trial.outcome is not None and trial.binding_ratio <= budget + TOLERANCE
    ]

    def order(trial: TrialRecord) -> tuple[float, float, float, int]:
        assert trial.outcome is not None
        graded = -math.inf if trial.outcome.graded is None else trial.outcome.graded
        return (-graded, -trial.outcome.accuracy, trial.binding_ratio, trial.number)

    return sorted(fitting, key=order)


def _accuracy(trial: TrialRecord) -> float:
    assert trial.outcome is not None
    return trial.outcome.accuracy
