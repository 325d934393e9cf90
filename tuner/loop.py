"""The loop: what to evaluate next, what was answered, what that means. It runs nothing itself.

An executor asks `propose()` for work, evaluates its rungs (whole videos with all their questions) and hands
each to `record()`, which writes it in one transaction. The loop knows neither Ray nor Optuna.

Phases: baseline answers of all questions; a few of them again, for the noise floor; trials on the tune part,
of which the race stops those that others confidently beat; a few configurations above the budget; the best
trials, AdaTP's defaults and whatever else is compared on the held-out part. Whatever the database already
holds is not asked again, so killing everything at any instant loses at most the rungs in flight, and the same
command carries on: an unfinished trial first, then the next. Trial k is proposed from (seed, k, the trials
before it) alone: with one worker a run that was killed ends like one that was not.
"""

from __future__ import annotations

import hashlib
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from tuner import racing
from tuner.margin import MaxDrop
from tuner.planning import Planner
from tuner.progress import NoProgress, Progress
from tuner.records.store import (
    Pair,
    Purpose,
    RecordedAnswer,
    RefusalRecord,
    SearchRecord,
    Stopped,
    Store,
    TrialRecord,
)
from tuner.results import CacheUse, Configuration, Noise, Outcome, Part, QuestionResult
from tuner.scoring import graded, judge, outcome, reference
from tuner.search.evidence import Evidence, Sampler
from tuner.search.space import TOLERANCE, Point, Space
from tuner.selection import Choice, choose, choose_best, hypervolume, ordered
from tuner.sentences import noise_floor
from tuner.study import Study, StudyQuestion

Kind = Literal["baseline", "noise", "trial", "held_out", "asked"]
Decision = Literal["continue", "stop"]

# Proposals over the budget in a row before a search gives up.
MOST_REFUSALS = 200

# Attempts at the same questions that may raise an error, or find no worker, before the study stops.
MOST_FAILURES = 3

# After the search, its best configuration is solved for these multiples of the budget too: the front then
# says what more compute would buy.
ABOVE_BUDGET = (4 / 3, 5 / 3, 2.0)

# A trial that lies this close to a target above the budget already answers for it.
_NEAR = 0.03

# The noise floor is measured on so many rungs of the tune part.
_NOISE_RUNGS = 2

# Workers that may die of the same questions before these are asked one by one, and of one question before it
# is quarantined. Dying of want of memory needs no second time: it would come again.
MOST_DEATHS = 2

# So many questions may be quarantined in any study; in a large one a quarter of them.
MOST_QUARANTINED = 3

# How an attempt ended without an answer: its process died; memory did not suffice; the evaluator raised
# another error; there was no worker to begin with (its model did not load).
Ending = Literal["killed", "out_of_memory", "raised", "not_started"]

Rung = tuple[str, ...]


class EvaluationError(Exception):
    """Evaluations keep failing, and not for a few questions' sake; what was answered before is kept."""

    exit_code: int = 1


@dataclass(frozen=True)
class Work:
    """One attempt at one evaluation: its rungs hold the ids of the questions still missing."""

    id: int
    kind: Kind
    trial: int | None
    # None: the unpruned baseline.
    configuration: Configuration | None
    rungs: tuple[Rung, ...]
    # Text whose log-probability judges a free answer, by question id; questions with options need none.
    references: Mapping[str, str] = field(default_factory=dict)
    # Where questions have configurations of their own, by id.
    configurations: Mapping[str, Configuration] = field(default_factory=dict)

    @property
    def reshaped(self) -> bool:
        """Whether the questions are asked in packs of another size than usual."""
        return self.kind == "noise"

    def calls(self, rung_index: int) -> list[tuple[dict[str, Any] | None, Rung]]:
        """What answers a rung: configurations as plain data (None: the unpruned model), each with its
        questions.
        """
        groups: dict[Configuration | None, list[str]] = {}
        for question in self.rungs[rung_index]:
            groups.setdefault(self.configurations.get(question, self.configuration), []).append(question)
        return [
            (None if configuration is None else configuration.as_dict(), tuple(questions))
            for configuration, questions in groups.items()
        ]


@dataclass(frozen=True, eq=False)
class Ask:
    """Questions to be asked beside any search, each with a configuration of its own.

    Their answers join all others in the records; nothing is derived from them here.
    """

    configurations: Mapping[str, Configuration]  # by question id


@dataclass(eq=False)
class _Job:
    """An evaluation under way: one configuration (None: the baseline) on some questions."""

    kind: Kind
    configuration: Configuration | None
    number: int | None
    fingerprints: dict[str, str]  # by question id, in the study's order
    answers: dict[str, RecordedAnswer]  # by question id; complete when it has all of them
    configurations: Mapping[str, Configuration] = field(default_factory=dict)  # as in `Work`

    def missing(self, questions: Iterable[str]) -> Rung:
        return tuple(one for one in questions if one in self.fingerprints and one not in self.answers)

    def leave_out(self, question: str) -> None:
        self.fingerprints.pop(question, None)
        self.answers.pop(question, None)

    @property
    def complete(self) -> bool:
        return len(self.answers) == len(self.fingerprints)


class Loop:
    """One run of one search over one study. Not thread-safe: an executor calls it from one thread."""

    def __init__(
        self,
        study: Study,
        store: Store,
        planner: Planner,
        search: SearchRecord,
        space: Space,
        sampler: Sampler,
        *,
        compare: Sequence[Configuration] = (),
        asks: Sequence[Ask] | None = None,
        race: bool = True,
        patience: int | None = None,
        above_budget: Sequence[float] = ABOVE_BUDGET,
        timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        progress: Progress | None = None,
        rung_videos: int | None = None,
    ) -> None:
        """Reads what is there already.

        `timeout`: seconds from now after which no further trial begins. `asks`: no search,
        only the baseline, these, and the configurations of `compare` on the held-out part. `race`: whether
        beaten trials are stopped; without it, those that were stopped run to their end. `patience`: trials in
        a row that add no hypervolume after which no further one begins. `above_budget`: multiples of the
        budget that the best configuration is solved for at the end.
        """
        self._all_questions = len(study.questions)
        self._quarantined = store.quarantined()
        # Without the quarantined questions; their FLOPs stay in every ratio, or the budget would move.
        self._study = study = study.without(self._quarantined)
        self._store = store
        self._planner = planner
        self._search = search
        self._space = space
        self._sampler = sampler
        self._compare = tuple(compare)
        self._asks = None if asks is None else tuple(asks)
        self._race = race
        self._patience = patience
        self._above_budget = tuple(above_budget)
        self._defaults = space.defaults()
        self._clock = clock
        self._deadline = None if timeout is None else clock() + timeout
        self._progress: Progress = NoProgress() if progress is None else progress
        # A rung is this many videos with all their questions.
        self._rung_videos = rung_videos or racing.rung_videos(len(study.videos_of("tune")))

        self._questions: dict[Part, tuple[str, ...]] = {
            "tune": tuple(question.id for question in study.questions_of("tune")),
            "held_out": tuple(question.id for question in study.questions_of("held_out")),
        }
        self._trials = {trial.number: trial for trial in store.trials()}
        self._refusals = list(store.refusals())
        self._measured = store.measured()
        self._baseline_answers: dict[str, RecordedAnswer] = {}
        self._baseline: dict[str, QuestionResult] = {}
        # Of the completed trials that others were compared with, by number and question.
        self._signals_of: dict[int, dict[str, float]] = {}

        # All jobs somebody still holds: the scheduler, `_waiting` or `_in_flight`.
        self._made: weakref.WeakSet[_Job] = weakref.WeakSet()
        self._jobs = self._schedule()
        self._waiting: deque[tuple[_Job, tuple[Rung, ...]]] = deque()
        self._in_flight: dict[int, tuple[_Job, Work]] = {}
        # By configuration and the missing questions of the rung; None: no worker could be started.
        self._failures: Counter[tuple[Configuration | None, Rung] | None] = Counter()
        self._next_id = 0
        self._exhausted = False
        self._interrupted = False
        self.timed_out = False
        # Proposals refused in a row ended the search.
        self.gave_up = False

    # What an executor calls

    def propose(self) -> Work | None:
        """The next work. None: there is none left (`finished`), or it depends on answers in flight."""
        while not self._interrupted:
            if self._waiting:
                return self._hand_out(*self._waiting.popleft())
            job = next(self._jobs, _END)
            if job is _END:
                self._exhausted = True
                return None
            if job is None:
                return None
            assert isinstance(job, _Job)
            if job.complete:
                self._complete(job, {})
            elif (stopped := self._beaten(job)) is not None:
                # Answers shared with other trials can be enough to tell.
                self._stop(job, {}, stopped)
            else:
                self._waiting.extend((job, bundle) for bundle in self._bundles(job))
        return None

    def record(
        self,
        work: Work,
        rung_index: int,
        answers: Sequence[RecordedAnswer],
        cache_use: CacheUse | None = None,
    ) -> Decision:
        """Writes one rung in one transaction; "stop" when this work needs no further rung.

        cache_use: what the caches did for it. That of a rung that is never recorded is lost.
        Errors: ValueError when the answers are not exactly those the rung asked for.
        """
        job, _ = self._in_flight[work.id]
        asked = work.rungs[rung_index]
        if sorted(answer.question for answer in answers) != sorted(asked):
            raise ValueError(
                f"The answers of a rung are those it asked for ({', '.join(asked)}), "
                f"but got {', '.join(answer.question for answer in answers)}."
            )
        del self._failures[None]
        if cache_use is not None:
            self._store.count_cache_use(cache_use)
        # A question that was quarantined while it was being asked here is no part of the job any more.
        answers = [answer for answer in answers if answer.question in job.fingerprints]
        job.answers.update((answer.question, answer) for answer in answers)
        pairs = {(answer.question, job.fingerprints[answer.question]): answer for answer in answers}
        stopped = None
        if pairs and job.complete:
            self._complete(job, pairs)
        elif (stopped := self._beaten(job)) is not None:
            self._stop(job, pairs, stopped)
        elif pairs and job.kind != "noise":
            self._store.record(pairs)
        if job.kind != "trial":
            self._progress.advanced(len(answers))
        last = stopped is not None or not any(job.missing(rung) for rung in work.rungs)
        if last or self._interrupted:
            del self._in_flight[work.id]
            return "stop"
        return "continue"

    def failed(self, work: Work, reason: str, end: Ending = "raised") -> None:
        """The evaluation of this work ended without an answer; what it had not recorded is proposed again.

        Where workers die, or memory does not suffice, the question that does it is found and quarantined.

        Errors: EvaluationError when there is no worker `MOST_FAILURES` times in a row, the same questions
        raised an error so often, or too many questions would be quarantined.
        """
        found = self._in_flight.pop(work.id, None)
        if found is None:  # it had already answered everything
            return
        job, _ = found
        missing = tuple(rung for rung in (job.missing(rung) for rung in work.rungs) if rung)
        if not missing:
            return
        # Rungs are answered in order: it ended in the first that is not.
        rung = missing[0]
        self._waiting.appendleft((job, missing))
        what = "the baseline" if work.configuration is None else f"trial {work.trial}"
        if work.kind == "asked":
            what = "what was asked beside the searches"
        elif work.configuration is not None and work.trial is None:
            what = work.configuration.method
        asked = next(one for one in work.rungs if rung[0] in one)
        if end in ("killed", "out_of_memory") and any(one in self._quarantined for one in asked):
            return  # of a question that another attempt has meanwhile been found to die of
        key = None if end == "not_started" else (work.configuration or work.configurations.get(rung[0]), rung)
        self._failures[key] += 1
        again = self._failures[key]
        if end in ("raised", "not_started"):
            if again >= MOST_FAILURES:
                self._give_up(work, what, rung[0], reason, end)
            self._progress.message(f"An evaluation of {what} died and is tried again: {reason}")
        elif end == "killed" and again < MOST_DEATHS:
            self._progress.message(f"An evaluation of {what} died and is tried again: {reason}")
        elif len(rung) == 1:
            self._quarantine(rung[0], f"asked alone for {what}: {reason}")
        else:
            self._waiting[0] = (job, (*((one,) for one in rung), *missing[1:]))
            self._progress.message(
                f"An evaluation of {what} died, and its {len(rung)} questions are now asked one by one to "
                f"find the one to blame: {reason}"
            )

    def _give_up(self, work: Work, what: str, question: str, reason: str, end: Ending) -> None:
        self._interrupted = True
        kept = "Everything answered before is kept, and the same command goes on from there."
        if end == "not_started":
            raise EvaluationError(
                f"No worker could be started {MOST_FAILURES} times in a row. The last time: {reason}\n{kept}"
            )
        raise EvaluationError(
            f"Evaluating {what} died {MOST_FAILURES} times in a row on the same questions, from {question!r} "
            f"(video {self._study.question(question).video}) on. The last time: {reason}\n{kept}"
        )

    def _quarantine(self, question: str, reason: str) -> None:
        """Leaves a question out of outcomes, of what waits, of what is in flight and of all that follows."""
        found = self._study.question(question)
        part = self._study.part_of(found)
        study = self._study.without({question})
        self._quarantined[question] = reason
        count = len(self._quarantined)
        if not study.questions_of(part) or count > max(MOST_QUARANTINED, self._all_questions / 4):
            self._interrupted = True
            raise EvaluationError(
                f"{count} of {self._all_questions} questions kill their workers, too many to leave out: "
                f"{', '.join(self._quarantined)}. The last, {question!r}: {reason}\n"
                "More memory for each worker, a smaller model or other videos may help. Everything answered "
                "before is kept, and the same command goes on from there."
            )
        unfinished = [
            job
            for job in dict.fromkeys(
                [job for job, _ in self._waiting] + [job for job, _ in self._in_flight.values()]
            )
            if not job.complete
        ]
        self._study = study
        self._questions[part] = tuple(one for one in self._questions[part] if one != question)
        self._baseline_answers.pop(question, None)
        self._baseline.pop(question, None)
        for job in self._made:
            job.leave_out(question)
        for signals in self._signals_of.values():
            signals.pop(question, None)
        rests = ((job, tuple(filter(None, map(job.missing, rungs)))) for job, rungs in self._waiting)
        self._waiting = deque((job, rungs) for job, rungs in rests if rungs)
        trials, measured = self._outcomes_without(part)
        self._store.quarantine(question, reason, trials, measured)
        self._trials |= {number: replace(self._trials[number], outcome=one) for number, one in trials.items()}
        self._measured |= measured
        for job in unfinished:
            if job.complete:
                self._complete(job, {})
        self._progress.message(
            f"Question {question!r} (video {found.video}) is left out from here on: {reason}"
        )

    def _outcomes_without(self, part: Part) -> tuple[dict[int, Outcome], dict[Configuration, Outcome]]:
        """The part's outcomes that are there, anew from the stored answers to the questions that are left."""
        trials: dict[int, Outcome] = {}
        measured: dict[Configuration, Outcome] = {}
        if part == "tune":
            for trial in self.trials:
                if trial.outcome is not None:
                    trials[trial.number] = self._outcome(self._trial_job(trial), part)
        else:
            for configuration in self._measured:
                measured[configuration] = self._outcome(self._held_out_job(configuration, None), part)
        return trials, measured

    @property
    def finished(self) -> bool:
        """Nothing is left to hand out and nothing is in flight."""
        return not self._in_flight and (self._interrupted or (self._exhausted and not self._waiting))

    def interrupt(self) -> None:
        """Ends the run after the rungs in flight; they are still recorded."""
        self._interrupted = True

    @property
    def interrupted(self) -> bool:
        """Whether the run was ended early, by `interrupt` or by evaluations that kept dying."""
        return self._interrupted

    @property
    def beside(self) -> bool:
        """Whether it asks beside any search, and searches nothing."""
        return self._asks is not None

    # What came out of it

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """All trials of the study in order of number, those of other searches included."""
        return tuple(self._trials[number] for number in sorted(self._trials))

    def best(self) -> TrialRecord | None:
        """The completed trial within the budget that answers best on the tune part."""
        return choose_best(self.trials, self._search.budget)

    def choice(self) -> Choice | None:
        """What the held-out part says of the best ones, as far as it was asked; None before the baseline."""
        if not self._baseline:
            return None
        return choose(
            self.trials,
            self._search.goal,
            self._search.budget,
            MaxDrop.parse(self._search.max_drop),
            [self._baseline[question] for question in self._questions["tune"]],
            self._held_out_results,
        )

    # Phases

    def _schedule(self) -> Iterator[_Job | None]:
        """The jobs in order; None where the next one depends on answers that are in flight."""
        yield from self._baseline_phase()
        if self._asks is not None:
            yield from self._held_out_jobs(dict.fromkeys(self._compare))
            yield from self._asked_phase(self._asks)
            return
        yield from self._noise_phase()
        yield from self._trial_phase()
        yield from self._above_phase()
        yield from self._held_out_phase()

    def _baseline_phase(self) -> Iterator[_Job | None]:
        fingerprints = self._fingerprints(None)
        everything = (*self._questions["tune"], *self._questions["held_out"])
        job = self._job("baseline", None, None, {question: fingerprints[question] for question in everything})
        self._start("baseline", len(job.missing(everything)))
        yield job
        while not job.complete:
            yield None
        self._baseline_answers = job.answers
        self._baseline = {
            question.id: judge(question, self._study.part_of(question), job.answers[question.id])
            for question in self._study.questions
        }

    def _noise_phase(self) -> Iterator[_Job | None]:
        """Some baseline questions again, in packs of another size: other shapes of every product."""
        if self._store.noise() is not None or not self._questions["tune"]:
            return
        asked = sorted(
            (one for rung in self._rungs_of_part("tune", _NOISE_RUNGS) for one in rung), key=_hashed
        )
        fingerprints = dict.fromkeys(asked, "")
        self._start("noise floor", len(asked))
        job = _Job("noise", None, None, fingerprints, {})
        self._made.add(job)
        yield job
        # It takes seconds, and tells what tuning can find at all.
        while not job.complete:
            yield None

    def _trial_phase(self) -> Iterator[_Job | None]:
        unfinished = [trial for trial in self.trials if self._to_finish(trial)]
        proposed = self._proposed()
        self._start("trials", len(unfinished) + max(0, self._search.trials - proposed))
        for trial in unfinished:
            if not self._out_of_time():
                yield self._trial_job(trial)
        while (proposed := self._proposed()) < self._search.trials and not self._out_of_time():
            if self._out_of_patience():
                break
            trial_or_none = self._next_trial()
            if trial_or_none is None:
                self.gave_up = True
                self._progress.message(
                    f"{MOST_REFUSALS} proposals in a row were over the budget: no further trial begins."
                )
                break
            yield self._trial_job(trial_or_none)
        while self._busy():
            yield None

    def _to_finish(self, trial: TrialRecord) -> bool:
        if trial.stopped is not None:
            return not self._race and trial.search == self._search.id
        return trial.outcome is None

    def _proposed(self) -> int:
        """Trials this search proposed so far, its refusals and what lies above the budget not counted."""
        return sum(one.search == self._search.id and one.purpose == "search" for one in self.trials)

    def _out_of_patience(self) -> bool:
        """Whether the last `patience` finished trials of this search added nothing to the front."""
        if self._patience is None:
            return False
        mine = [
            one
            for one in self.trials
            if one.search == self._search.id and one.purpose == "search" and not one.unfinished
        ]
        since, points, area = 0, list[tuple[float, float]](), 0.0
        for trial in mine:
            if trial.outcome is not None:
                points.append((trial.binding_ratio, trial.outcome.accuracy))
            grown = hypervolume(points, (self._search.budget + TOLERANCE, 0.0))
            since, area = (0, grown) if grown > area else (since + 1, area)
        if since < self._patience:
            return False
        self._progress.message(f"The last {since} trials added nothing to the front: no further one begins.")
        return True

    def _above_phase(self) -> Iterator[_Job | None]:
        """The best configuration solved for more compute than the budget; none of it can be chosen."""
        best = self.best()
        if best is None or self._search.goal != "budget" or not self._search.trials or self.timed_out:
            return
        jobs = []
        for factor in self._above_budget:
            target = factor * self._search.budget
            known = any(
                one.outcome is not None and abs(one.binding_ratio - target) <= _NEAR * target
                for one in self.trials
            )
            if target < 1 and not known:
                found = self._space.above(best.configuration, target)
                if found.binding_ratio > self._search.budget + TOLERANCE:
                    number = max(self._trials) + 1
                    trial = self._accept(number, found.configuration, found.binding_ratio, "above")
                    jobs.append(self._trial_job(trial))
        self._start("above the budget", len(jobs))
        yield from jobs
        while self._busy():
            yield None

    def _held_out_phase(self) -> Iterator[_Job | None]:
        best = self.best()
        wanted: dict[Configuration, int | None] = {}
        first = self.choice()
        if first is not None and first.pending is not None:
            wanted[first.pending.configuration] = first.pending.number
        defaults = self._defaults_trial()
        if defaults is not None:
            wanted[defaults.configuration] = defaults.number
        yield from self._held_out_jobs(wanted)
        # Each further candidate is measured only where the ones before it leave it a chance.
        while (choice := self.choice()) is not None and choice.pending is not None and not self._interrupted:
            yield from self._held_out_jobs({choice.pending.configuration: choice.pending.number})
        if best is not None and choice is not None:
            completed = sum(trial.outcome is not None for trial in self.trials)
            self._store.select(self._search, completed, choice.trial.number)

    def _held_out_jobs(self, wanted: Mapping[Configuration, int | None]) -> Iterator[_Job | None]:
        """Asks what is missing of these configurations and waits for it."""
        jobs = []
        if self._questions["held_out"]:
            for configuration, number in wanted.items():
                if configuration not in self._measured:
                    jobs.append(self._held_out_job(configuration, number))
        self._start("held-out", sum(len(job.missing(self._questions["held_out"])) for job in jobs))
        yield from jobs
        while self._busy():
            yield None

    def _asked_phase(self, asks: Sequence[Ask]) -> Iterator[_Job | None]:
        """What was asked beside any search; jobs are made when they are due, so that they share answers."""
        self._start("asked", sum(len(self._asked_job(ask).missing(ask.configurations)) for ask in asks))
        for ask in asks:
            yield self._asked_job(ask)
        while self._busy():
            yield None

    def _held_out_results(self, configuration: Configuration | None) -> list[QuestionResult] | None:
        """See `selection.HeldOutResults`."""
        questions = self._study.questions_of("held_out")
        if configuration is None:
            return [self._baseline[question.id] for question in questions]
        if configuration not in self._measured:
            return None
        fingerprints = self._fingerprints(configuration)
        found = self._store.answers((question.id, fingerprints[question.id]) for question in questions)
        return [
            judge(
                question,
                "held_out",
                found[question.id, fingerprints[question.id]],
                self._baseline_answers[question.id],
            )
            for question in questions
        ]

    def _start(self, phase: str, total: int) -> None:
        if total:
            self._progress.started(phase, total)

    def _busy(self) -> bool:
        return bool(self._in_flight or self._waiting)

    def _out_of_time(self) -> bool:
        if not self.timed_out and self._deadline is not None and self._clock() >= self._deadline:
            self.timed_out = True
            self._progress.message("The time is up: no further trial begins.")
        return self.timed_out

    # Jobs

    def _fingerprints(self, configuration: Configuration | None) -> dict[str, str]:
        method = None if configuration is None else configuration.build()
        ids = (question.id for question in self._planner.questions)
        return dict(zip(ids, self._planner.fingerprints(method), strict=True))

    def _trial_job(self, trial: TrialRecord) -> _Job:
        ids = (question.id for question in self._planner.questions)
        fingerprints = dict(zip(ids, trial.fingerprints, strict=True))
        tune = {question: fingerprints[question] for question in self._questions["tune"]}
        return self._job("trial", trial.configuration, trial.number, tune)

    def _held_out_job(self, configuration: Configuration, number: int | None) -> _Job:
        fingerprints = self._fingerprints(configuration)
        held_out = {question: fingerprints[question] for question in self._questions["held_out"]}
        return self._job("held_out", configuration, number, held_out)

    def _asked_job(self, ask: Ask) -> _Job:
        by_configuration: dict[Configuration, list[str]] = {}
        for question, configuration in ask.configurations.items():
            if question not in self._quarantined:
                by_configuration.setdefault(configuration, []).append(question)
        fingerprints: dict[str, str] = {}
        for configuration, questions in by_configuration.items():
            found = self._planner.fingerprints(configuration.build(), questions)
            fingerprints |= zip(questions, found, strict=True)
        return self._job("asked", None, None, fingerprints, ask.configurations)

    def _job(
        self,
        kind: Kind,
        configuration: Configuration | None,
        number: int | None,
        fingerprints: dict[str, str],
        configurations: Mapping[str, Configuration] = MappingProxyType({}),
    ) -> _Job:
        found = self._store.answers(fingerprints.items())
        job = _Job(
            kind,
            configuration,
            number,
            fingerprints,
            {question: answer for (question, _), answer in found.items()},
            configurations,
        )
        self._made.add(job)
        return job

    def _bundles(self, job: _Job) -> list[tuple[Rung, ...]]:
        """What is handed out at once: a trial as a whole; else single rungs, so that all workers share it."""
        rungs = [rung for rung in map(job.missing, self._rungs(job)) if rung]
        if job.kind == "noise":
            # All at once: what is written is what all of them together say.
            return [(tuple(one for rung in rungs for one in rung),)]
        return [tuple(rungs)] if job.kind == "trial" else [(rung,) for rung in rungs]

    def _rungs_of_part(self, part: Part, most: int) -> Iterator[Rung]:
        """The first rungs of a part."""
        everything = dict.fromkeys(self._questions[part], "")
        yield from list(self._rungs(_Job("baseline", None, None, everything, {})))[:most]

    def _rungs(self, job: _Job) -> Iterator[Rung]:
        """All questions of the job, `rung_videos` videos at a time, parts apart."""
        for part in ("tune", "held_out"):
            by_video: dict[str, list[str]] = {}
            for question in self._study.questions_of(part):
                if question.id in job.fingerprints:
                    by_video.setdefault(question.video, []).append(question.id)
            # In a random order that is the same for every trial: what the race has seen is a random sample.
            videos = [by_video[name] for name in sorted(by_video, key=_hashed)]
            for start in range(0, len(videos), self._rung_videos):
                yield tuple(one for video in videos[start : start + self._rung_videos] for one in video)

    def _hand_out(self, job: _Job, rungs: tuple[Rung, ...]) -> Work:
        references = {}
        for one in (one for rung in rungs for one in rung):
            text = reference(self._study.question(one), self._baseline_answers.get(one))
            if text is not None:
                references[one] = text
        asked = {one for rung in rungs for one in rung}
        work = Work(
            self._next_id,
            job.kind,
            job.number,
            job.configuration,
            rungs,
            references,
            {question: one for question, one in job.configurations.items() if question in asked},
        )
        self._next_id += 1
        self._in_flight[work.id] = (job, work)
        return work

    def _complete(self, job: _Job, pairs: Mapping[Pair, RecordedAnswer]) -> None:
        """The last answers of a job, written together with the outcome they complete."""
        if job.kind == "noise":
            if job.answers:  # not all of them are left out
                noise = self._noise(job)
                self._store.record_noise(noise)
                self._progress.message(noise_floor(noise, labelled=self._study.labelled))
        elif job.kind in ("baseline", "asked"):
            if pairs:
                self._store.record(pairs)
        elif job.kind == "trial":
            assert job.number is not None
            result = self._outcome(job, "tune")
            self._store.record(pairs, completed=(job.number, result))
            self._trials[job.number] = replace(self._trials[job.number], outcome=result, stopped=None)
            self._progress.advanced(1)
        else:
            assert job.configuration is not None
            result = self._outcome(job, "held_out")
            self._store.record(pairs, measured=(job.configuration, result))
            self._measured[job.configuration] = result

    def _outcome(self, job: _Job, part: Part) -> Outcome:
        assert job.configuration is not None
        results = [
            judge(question, part, job.answers[question.id], self._baseline_answers[question.id])
            for question in self._study.questions_of(part)
        ]
        return outcome(
            part, self._planner.cost(job.configuration.build()).compute[part], results, self._baseline
        )

    def _noise(self, job: _Job) -> Noise:
        """The answers of a noise job against those of the baseline."""
        again = [
            judge(question, "tune", job.answers[question.id], self._baseline_answers[question.id])
            for question in self._study.questions_of("tune")
            if question.id in job.answers
        ]
        before = [self._baseline[one.question] for one in again]
        changes = [
            abs(one.logprob_right - other.logprob_right)
            for one, other in zip(again, before, strict=True)
            if one.logprob_right is not None and other.logprob_right is not None
        ]
        return Noise(
            questions=len(again),
            videos=len({one.video for one in again}),
            flips=sum(one.correct != other.correct for one, other in zip(again, before, strict=True)),
            logprob_mean=sum(changes) / len(changes) if changes else 0.0,
            logprob_max=max(changes, default=0.0),
        )

    # The race

    def _beaten(self, job: _Job) -> Stopped | None:
        """That completed trials confidently beat this one at its cost, told by the one with the largest share
        in what it was compared with; None: it goes on.
        """
        if not self._race or job.kind != "trial" or job.number is None:
            return None
        trial = self._trials[job.number]
        if trial.purpose != "search":
            return None
        others = ordered((one for one in self.trials if one.number != trial.number), 1.0)
        weights = racing.rivals(
            np.array([one.binding_ratio for one in others]),
            # They are in the order of their scores.
            -np.arange(len(others), dtype=np.float64),
            trial.binding_ratio,
        )
        if weights is None:
            return None
        rivals = [(float(weight), one) for weight, one in zip(weights, others, strict=True) if weight > 0]
        signals = [(weight, self._signals(one)) for weight, one in rivals]
        questions = [
            question
            for video in self._complete_videos(job)
            for question in video
            if all(question.id in one for _, one in signals)
        ]
        if not questions:
            return None
        change = [
            self._signal(question, job.answers[question.id])
            - sum(weight * one[question.id] for weight, one in signals)
            for question in questions
        ]
        found = racing.look(
            racing.VideoSums.of(change, [question.video for question in questions]),
            len(self._study.videos_of("tune")),
            self._rung_videos,
        )
        if found is None or not found.beaten:
            return None
        return Stopped(
            max(rivals, key=lambda one: one[0])[1].number, len({question.video for question in questions})
        )

    def _complete_videos(self, job: _Job) -> Iterator[list[StudyQuestion]]:
        """The questions of each tune video that is answered as a whole."""
        by_video: dict[str, list[StudyQuestion]] = {}
        for question in self._study.questions_of("tune"):
            if question.id in job.fingerprints:
                by_video.setdefault(question.video, []).append(question)
        for questions in by_video.values():
            if all(question.id in job.answers for question in questions):
                yield questions

    def _signal(self, question: StudyQuestion, answer: RecordedAnswer) -> float:
        result = judge(question, "tune", answer, self._baseline_answers[question.id])
        return graded(result, self._baseline[question.id])

    def _signals(self, trial: TrialRecord) -> dict[str, float]:
        """The graded signal of a completed trial, by tune question."""
        if trial.number not in self._signals_of:
            answers = self._trial_job(trial).answers
            self._signals_of[trial.number] = {
                question.id: self._signal(question, answers[question.id])
                for question in self._study.questions_of("tune")
                if question.id in answers
            }
        return self._signals_of[trial.number]

    def _stop(self, job: _Job, pairs: Mapping[Pair, RecordedAnswer], stopped: Stopped) -> None:
        assert job.number is not None
        self._store.record(pairs, stopped=(job.number, stopped))
        self._trials[job.number] = replace(self._trials[job.number], stopped=stopped)
        self._progress.advanced(1)

    # Proposals

    def _next_trial(self) -> TrialRecord | None:
        """A new trial, written before it is evaluated; None when too many proposals in a row were refused."""
        number = max(self._trials, default=-1) + 1
        refused = [one for one in self._refusals if one.search == self._search.id and one.number == number]
        defaults = self._defaults
        if self._defaults_trial() is None and not any(
            one.proposed == {} for one in self._refusals_of_search()
        ):
            if defaults.binding_ratio <= self._search.budget + TOLERANCE:
                return self._accept(number, defaults.configuration, defaults.binding_ratio)
            refused.append(self._refuse(number, 0, defaults.configuration, {}, defaults.binding_ratio))
        # What the sampler proposed before: AdaTP's defaults are not its own.
        index = self._proposed() - any(
            one.search == self._search.id and one.configuration == defaults.configuration
            for one in self.trials
        )
        while len(refused) < MOST_REFUSALS:
            point = self._sampler.propose(
                self._space.ranges, self._evidence(), self._search.seed, index, len(refused)
            )
            candidate = self._space.candidate(point)
            if candidate.binding_ratio <= self._search.budget + TOLERANCE:
                return self._accept(number, candidate.configuration, candidate.binding_ratio)
            refused.append(
                self._refuse(number, len(refused), candidate.configuration, point, candidate.binding_ratio)
            )
        return None

    def _accept(
        self, number: int, configuration: Configuration, binding_ratio: float, purpose: Purpose = "search"
    ) -> TrialRecord:
        fingerprints = self._planner.fingerprints(configuration.build())
        self._store.propose(self._search, number, configuration, fingerprints, binding_ratio, purpose)
        trial = TrialRecord(
            number, self._search.id, configuration, fingerprints, binding_ratio, None, purpose
        )
        self._trials[number] = trial
        return trial

    def _refuse(
        self, number: int, attempt: int, configuration: Configuration, proposed: Point, binding_ratio: float
    ) -> RefusalRecord:
        refusal = RefusalRecord(self._search.id, number, attempt, configuration, proposed, binding_ratio)
        self._store.refuse(refusal)
        self._refusals.append(refusal)
        return refusal

    def _refusals_of_search(self) -> list[RefusalRecord]:
        return [one for one in self._refusals if one.search == self._search.id]

    def _defaults_trial(self) -> TrialRecord | None:
        defaults = self._defaults
        if defaults.binding_ratio > self._search.budget + TOLERANCE:
            return None
        return next((trial for trial in self.trials if trial.configuration == defaults.configuration), None)

    def _evidence(self) -> list[Evidence]:
        """Trials, complete or stopped, and this search's refusals as the sampler sees them, by number.

        Trials of other searches count where they have a place in this search's coordinates.
        """
        told: list[tuple[tuple[int, int, int], Evidence]] = []
        for trial in self.trials:
            point = None if trial.unfinished else self._space.point(trial.configuration, trial.binding_ratio)
            if point is not None:
                # What a stopped trial answered so far is not comparable with whole ones: it has no values.
                values = None
                if trial.outcome is not None:
                    signal = trial.outcome.graded
                    values = (trial.outcome.accuracy if signal is None else signal, trial.binding_ratio)
                over = self._over_budget(trial.binding_ratio)
                told.append(((trial.number, 1, 0), Evidence(point, values, over, values is None)))
        for refusal in self._refusals_of_search():
            # AdaTP's defaults were not the sampler's proposal.
            if refusal.proposed:
                evidence = Evidence(refusal.proposed, None, self._over_budget(refusal.binding_ratio))
                told.append(((refusal.number, 0, refusal.attempt), evidence))
        return [evidence for _, evidence in sorted(told, key=lambda one: one[0])]

    def _over_budget(self, ratio: float) -> float:
        over = ratio - self._search.budget
        return 0.0 if over <= TOLERANCE else over


def _hashed(name: str) -> str:
    """A key that sorts names at random, the same way everywhere and always."""
    return hashlib.sha256(name.encode()).hexdigest()


class _End:
    """Told apart from None, which means "wait"."""


_END = _End()
