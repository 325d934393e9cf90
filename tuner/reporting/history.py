"""How a study came to its result: trial by trial, by model time, told from the records alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from tuner.errors import UserError
from tuner.planning.planner import Planner
from tuner.records.database import default_database
from tuner.records.store import Store
from tuner.records.values import Purpose, SearchRecord, StoredAnswer, StudyRecord, TrialRecord
from tuner.reporting.from_records import make_planner
from tuner.search.selection import eligible, hypervolume
from tuner.search.space import TOLERANCE
from tuner.study import Search, Study
from tuner.study.values import Configuration


@dataclass(frozen=True)
class HistoryRow:
    """One trial that is complete or was stopped, and where the study stood when it ended."""

    number: int
    # "search", or "above": beyond the budget, for the front alone.
    purpose: Purpose
    # Whether the search the history is of asked for it; another search's trials count for the front, too.
    own: bool
    # On the tune part; None where the race stopped it.
    accuracy: float | None
    # The larger FLOPs ratio of the two parts: what the budget binds.
    ratio: float
    # The trial that weighed most in what it was compared with, and the tune videos judged until then.
    pruned_by: int | None
    videos: int
    # Answers that no earlier trial had asked for, and their model time in seconds.
    answers: int
    seconds: float
    # Model time of all trials' answers until this one ended, in seconds; the unpruned answers come before.
    seconds_so_far: float
    # The area that completed trials dominated by then: FLOPs ratio below the budget times accuracy above 0.
    hypervolume_so_far: float


@dataclass(frozen=True)
class ModelTime:
    """Seconds of the study's stored answers by what asked for them first."""

    # The unpruned model on all questions.
    baseline: float
    trials: float
    # Configurations on the held-out part.
    held_out: float
    # What else was asked on the study's questions, such as for `tuner sensitivity`.
    other: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.baseline + self.trials + self.held_out + self.other


@dataclass(frozen=True)
class History:
    """A search's history, trials in the order they ended in."""

    study: str
    budget: float
    # Tune videos: what a complete trial was judged on.
    videos: int
    rows: tuple[HistoryRow, ...]
    model_time: ModelTime

    @property
    def stopped(self) -> tuple[HistoryRow, ...]:
        """The trials that the race ended."""
        return tuple(row for row in self.rows if row.pruned_by is not None)


def load_history(
    study: Study, *, budget: float | None = None, seed: int | None = None, database: str | None = None
) -> History:
    """The history of the study's latest search, or of the latest with this budget and seed.

    Errors: UserError when the study was never run or has no such search.
    """
    with Store.open(database or default_database(study.name), create=False) as store:
        record = store.require(study.name)
        searches = [
            one
            for one in store.searches()
            if (budget is None or one.budget == budget) and (seed is None or one.seed == seed)
        ]
        if not searches:
            raise UserError(f"the study {study.name!r} has no such search; `tuner status` lists its searches")
        return history(store, record, searches[-1], study.search)


def history(store: Store, record: StudyRecord, search: SearchRecord, allowing: Search) -> History:
    """The history of one search. `store` has found `record`; trials still under way are left out, and those
    that the study's search does not allow (`allowing`) dominate nothing.
    """
    planner, left_out = make_planner(record), store.quarantined()
    answers, trials = store.stored_answers(), store.trials()
    videos: dict[str, list[tuple[int, str]]] = {}
    for index, question in enumerate(record.questions):
        if question.split == "tune" and question.id not in left_out:
            videos.setdefault(question.video, []).append((index, question.id))
    place = {(one.question, one.fingerprint): at for at, one in enumerate(answers)}
    unpruned = planner.fingerprints(None)[0]
    ended, asked_by = _in_time(
        [one for trial in trials if (one := _end(trial, videos, place)) is not None], unpruned, answers
    )
    clock = list(accumulate(one.seconds if at in asked_by else 0.0 for at, one in enumerate(answers)))
    own: dict[int, list[float]] = {}
    for at, number in asked_by.items():
        own.setdefault(number, []).append(answers[at].seconds)
    rows, points = [], list[tuple[float, float]]()
    allowed = {one.number for one in eligible(trials, allowing)}
    for trial, end, judged, _ in sorted(ended, key=lambda one: (one.at, one.trial.number)):
        if trial.outcome is not None and trial.number in allowed:
            points.append((trial.binding_ratio, trial.outcome.accuracy))
        rows.append(
            HistoryRow(
                number=trial.number,
                purpose=trial.purpose,
                own=trial.search == search.id,
                accuracy=None if trial.outcome is None else trial.outcome.accuracy,
                ratio=trial.binding_ratio,
                pruned_by=None if trial.stopped is None else trial.stopped.by,
                videos=judged,
                answers=len(own.get(trial.number, ())),
                seconds=math.fsum(own.get(trial.number, ())),
                seconds_so_far=clock[end],
                # As the search's own patience counts it.
                hypervolume_so_far=hypervolume(points, (search.budget + TOLERANCE, 0.0)),
            )
        )
    model_time = _model_time(answers, unpruned, asked_by, _held_out(planner, store.measured()))
    return History(record.name, search.budget, len(videos), tuple(rows), model_time)


class _Ended(NamedTuple):
    """A trial that ended, with the answer after which it did; its own answers by their places."""

    trial: TrialRecord
    at: int
    videos: int
    places: tuple[int, ...]


def _end(
    trial: TrialRecord, videos: Mapping[str, Sequence[tuple[int, str]]], place: Mapping[tuple[str, str], int]
) -> _Ended | None:
    """None for a trial under way.

    Answers are stored in the order they were written. A trial that was stopped after V videos ended when the
    V-th of them was answered as a whole; what other trials with the same plans asked later does not count.
    """
    if trial.unfinished:
        return None
    places = [
        [place.get((question, trial.fingerprints[index]), math.inf) for index, question in questions]
        for questions in videos.values()
    ]
    whole = sorted(end for end in map(max, places) if end < math.inf)
    judged = len(whole) if trial.stopped is None else min(trial.stopped.videos, len(whole))
    if not judged:
        return None
    end = int(whole[judged - 1])
    return _Ended(trial, end, judged, tuple(int(at) for one in places for at in one if at <= end))


def _in_time(
    ended: Sequence[_Ended], unpruned: str, answers: Sequence[StoredAnswer]
) -> tuple[list[_Ended], dict[int, int]]:
    """The trials, none of them ended before it began; and by an answer's place the first that needed it.

    A trial that finds its answers through equal plans may have had them before it was proposed. It was not
    proposed before those of lower number, and these not after the first answer that they alone needed.
    """
    asked: dict[int, int] = {}
    result, began = [], 0
    for one in ended:
        own = [at for at in one.places if answers[at].fingerprint != unpruned and at not in asked]
        asked |= dict.fromkeys(own, one.trial.number)
        began = max([began, *([min(own)] if own else [])])
        result.append(one._replace(at=max(one.at, began)))
    return result, asked


def _held_out(planner: Planner, measured: Mapping[Configuration, object]) -> set[tuple[str, str]]:
    return {
        (question.id, fingerprint)
        for configuration in measured
        for question, fingerprint in zip(
            planner.questions, planner.fingerprints(configuration.build()), strict=True
        )
        if question.split == "held_out"
    }


def _model_time(
    answers: Sequence[StoredAnswer],
    unpruned: str,
    asked_by: Mapping[int, int],
    held_out: set[tuple[str, str]],
) -> ModelTime:
    def of() -> Iterator[tuple[str, float]]:
        for at, one in enumerate(answers):
            if one.fingerprint == unpruned:
                yield "baseline", one.seconds
            elif at in asked_by:
                yield "trials", one.seconds
            else:
                yield "held_out" if (one.question, one.fingerprint) in held_out else "other", one.seconds

    times: dict[str, list[float]] = {}
    for name, seconds in of():
        times.setdefault(name, []).append(seconds)
    return ModelTime(
        **{name: math.fsum(times.get(name, ())) for name in ("baseline", "trials", "held_out", "other")}
    )
