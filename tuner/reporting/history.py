"""How a study came to its result: trial by trial, with the model time each one took."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuner.errors import UserError
from tuner.records.database import default_database
from tuner.records.measurements import ModelUse
from tuner.records.store import Store
from tuner.records.values import Purpose, SearchRecord, StudyRecord
from tuner.search.selection import eligible, hypervolume
from tuner.search.space import TOLERANCE
from tuner.study import Search, Study


@dataclass(frozen=True)
class HistoryRow:
    """One trial that is complete or was pruned, and where the study stood with it."""

    number: int
    # "search", or "above": beyond the budget, for the front alone.
    purpose: Purpose
    # Whether the search the history is of asked for it; another search's trials count for the front, too.
    own: bool
    # On the tune split; None for a pruned trial.
    accuracy: float | None
    # The larger FLOPs ratio of the two splits: what the budget binds.
    ratio: float
    # The trial that weighed most in what it was compared with, and the tune videos judged until then.
    pruned_by: int | None
    videos: int
    # Answers that were not in the records already, and their model time in seconds.
    answers: int
    seconds: float
    # Model time of this trial and those of lower numbers, in seconds; the unpruned answers come before.
    seconds_so_far: float
    # The area that they dominate: FLOPs ratio below the budget times accuracy above 0.
    hypervolume_so_far: float


@dataclass(frozen=True)
class ModelTime:
    """Seconds of answering, by what asked."""

    # The unpruned model on all questions.
    baseline: float
    trials: float
    # Configurations on the held-out split.
    held_out: float
    # What else was asked, such as for the noise floor and `tuner sensitivity`.
    other: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.baseline + self.trials + self.held_out + self.other


@dataclass(frozen=True)
class History:
    """A search's history, trials in order of number."""

    study: str
    budget: float
    # Tune videos: what a complete trial was judged on.
    videos: int
    rows: tuple[HistoryRow, ...]
    model_time: ModelTime

    @property
    def pruned(self) -> tuple[HistoryRow, ...]:
        """The pruned trials."""
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
            search
            for search in store.searches()
            if (budget is None or search.budget == budget) and (seed is None or search.seed == seed)
        ]
        if not searches:
            raise UserError(f"the study {study.name!r} has no such search; `tuner status` lists its searches")
        return history(store, record, searches[-1], study.search)


def history(store: Store, record: StudyRecord, search: SearchRecord, allowing: Search) -> History:
    """The history of one search. `store` has found `record`; trials still under way are left out, and those
    that the study's search does not allow (`allowing`) dominate nothing.
    """
    left_out, trials, use = store.quarantined(), store.trials(), store.trial_use()
    videos = len(
        {
            question.video
            for question in record.questions
            if question.split == "tune" and question.id not in left_out
        }
    )
    allowed = {trial.number for trial in eligible(trials, allowing)}
    rows, points, seconds = [], list[tuple[float, float]](), 0.0
    for trial in trials:
        if trial.unfinished:
            continue
        took = use.get(trial.number, ModelUse())
        seconds += took.seconds
        if trial.outcome is not None and trial.number in allowed:
            points.append((trial.binding_ratio, trial.outcome.accuracy))
        rows.append(
            HistoryRow(
                number=trial.number,
                purpose=trial.purpose,
                own=trial.search == search.id,
                accuracy=None if trial.outcome is None else trial.outcome.accuracy,
                ratio=trial.binding_ratio,
                pruned_by=None if trial.pruned is None else trial.pruned.by,
                videos=videos if trial.pruned is None else trial.pruned.videos,
                answers=took.answers,
                seconds=took.seconds,
                seconds_so_far=seconds,
                # As the search's own patience counts it.
                hypervolume_so_far=hypervolume(points, (search.budget + TOLERANCE, 0.0)),
            )
        )
    by_kind = {kind: took.seconds for kind, took in store.model_use().items()}
    baseline, tuning, held_out = (by_kind.pop(kind, 0.0) for kind in ("baseline", "trial", "held_out"))
    model_time = ModelTime(baseline, tuning, held_out, other=math.fsum(by_kind.values()))
    return History(record.name, search.budget, videos, tuple(rows), model_time)
