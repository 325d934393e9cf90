"""The loop: what to evaluate next, what was answered, what that means. It runs nothing itself.

An executor asks `propose()` for work, evaluates its rungs (whole videos with all their questions) and hands
each to `record()`, which writes it in one transaction. The loop knows neither Ray nor Optuna.

Phases: baseline answers of all questions; trials on the tune part; the best trial, AdaTP's defaults and
whatever else is compared on the held-out part. Whatever the database already holds is not asked again, so
killing everything at any instant loses at most the rungs in flight, and the same command carries on: an
unfinished trial first, then the next. Trial k is proposed from (seed, k, the completed trials before it)
alone: with one worker a run that was killed ends like one that was not.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tuner.planning import Planner
from tuner.progress import NoProgress, Progress
from tuner.records.store import Pair, RecordedAnswer, RefusalRecord, SearchRecord, Store, TrialRecord
from tuner.results import Configuration, Outcome, Part, QuestionResult
from tuner.scoring import judge, outcome, reference
from tuner.search.evidence import Evidence, Sampler
from tuner.search.space import TOLERANCE, Point, Space
from tuner.study import Study

Kind = Literal["baseline", "trial", "held_out"]
Decision = Literal["continue", "stop"]

# A rung is this many videos with all their questions.
RUNG_VIDEOS = 10

# Proposals over the budget in a row before a search gives up.
MOST_REFUSALS = 200

# Evaluations of the same questions that may die (a worker killed, out of memory) before the study stops.
MOST_FAILURES = 3

Rung = tuple[str, ...]


class EvaluationError(Exception):
    """The same questions killed their evaluation several times; what was answered before is kept."""

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


@dataclass(eq=False)
class _Job:
    """An evaluation under way: one configuration (None: the baseline) on some questions."""

    kind: Kind
    configuration: Configuration | None
    number: int | None
    fingerprints: dict[str, str]  # by question id, in the study's order
    answers: dict[str, RecordedAnswer]  # by question id; complete when it has all of them

    def missing(self, questions: Iterable[str]) -> Rung:
        return tuple(question for question in questions if question not in self.answers)

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
        timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        progress: Progress | None = None,
        rung_videos: int = RUNG_VIDEOS,
    ) -> None:
        """Reads what is there already.

        `timeout`: seconds from now after which no further trial begins. `compare`: configurations that are
        measured on the held-out part besides the best trial and AdaTP's defaults.
        """
        self._study = study
        self._store = store
        self._planner = planner
        self._search = search
        self._space = space
        self._sampler = sampler
        self._compare = tuple(compare)
        self._defaults = space.defaults()
        self._clock = clock
        self._deadline = None if timeout is None else clock() + timeout
        self._progress: Progress = NoProgress() if progress is None else progress
        self._rung_videos = rung_videos

        self._questions: dict[Part, tuple[str, ...]] = {
            "tune": tuple(question.id for question in study.questions_of("tune")),
            "held_out": tuple(question.id for question in study.questions_of("held_out")),
        }
        self._trials = {trial.number: trial for trial in store.trials()}
        self._refusals = list(store.refusals())
        self._measured = store.measured()
        self._baseline_answers: dict[str, RecordedAnswer] = {}
        self._baseline: dict[str, QuestionResult] = {}

        self._jobs = self._schedule()
        self._waiting: deque[tuple[_Job, tuple[Rung, ...]]] = deque()
        self._in_flight: dict[int, tuple[_Job, Work]] = {}
        self._failures: Counter[tuple[Configuration | None, tuple[Rung, ...]]] = Counter()
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
            else:
                self._waiting.extend((job, bundle) for bundle in self._bundles(job))
        return None

    def record(self, work: Work, rung_index: int, answers: Sequence[RecordedAnswer]) -> Decision:
        """Writes one rung in one transaction; "stop" when this work needs no further rung.

        Errors: ValueError when the answers are not exactly those the rung asked for.
        """
        job, _ = self._in_flight[work.id]
        asked = work.rungs[rung_index]
        if sorted(answer.question for answer in answers) != sorted(asked):
            raise ValueError(
                f"The answers of a rung are those it asked for ({', '.join(asked)}), "
                f"but got {', '.join(answer.question for answer in answers)}."
            )
        job.answers.update((answer.question, answer) for answer in answers)
        pairs = {(answer.question, job.fingerprints[answer.question]): answer for answer in answers}
        if job.complete:
            self._complete(job, pairs)
        else:
            self._store.record(pairs)
        if job.kind != "trial":
            self._progress.advanced(len(answers))
        last = not any(job.missing(rung) for rung in work.rungs)
        if last or self._interrupted:
            del self._in_flight[work.id]
            return "stop"
        return "continue"

    def failed(self, work: Work, reason: str) -> None:
        """The evaluation of this work died; what it had not recorded is proposed again.

        Errors: EvaluationError when the same questions died `MOST_FAILURES` times.
        """
        found = self._in_flight.pop(work.id, None)
        if found is None:  # it had already answered everything
            return
        job, _ = found
        missing = tuple(rung for rung in (job.missing(rung) for rung in work.rungs) if rung)
        if not missing:
            return
        key = (work.configuration, missing)
        self._failures[key] += 1
        what = "the baseline" if work.configuration is None else f"trial {work.trial}"
        if self._failures[key] >= MOST_FAILURES:
            self._interrupted = True
            question = self._study.question(missing[0][0])
            raise EvaluationError(
                f"Evaluating {what} died {MOST_FAILURES} times in a row on the same questions, "
                f"from {question.id!r} (video {question.video}) on. The last time: {reason}\n"
                "Everything answered before is kept, and the same command goes on from there."
            )
        self._progress.message(f"An evaluation of {what} died and is tried again: {reason}")
        self._waiting.appendleft((job, missing))

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

    # What came out of it

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """All trials of the study in order of number, those of other searches included."""
        return tuple(self._trials[number] for number in sorted(self._trials))

    def best(self) -> TrialRecord | None:
        """The completed trial within the budget that answers best on the tune part."""
        return choose_best(self.trials, self._search.budget)

    # Phases

    def _schedule(self) -> Iterator[_Job | None]:
        """The jobs in order; None where the next one depends on answers that are in flight."""
        yield from self._baseline_phase()
        yield from self._trial_phase()
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

    def _trial_phase(self) -> Iterator[_Job | None]:
        unfinished = [trial for trial in self.trials if trial.outcome is None]
        proposed = sum(trial.search == self._search.id for trial in self.trials)
        self._start("trials", len(unfinished) + max(0, self._search.trials - proposed))
        for trial in unfinished:
            if not self._out_of_time():
                yield self._trial_job(trial)
        while proposed < self._search.trials and not self._out_of_time():
            trial_or_none = self._next_trial()
            if trial_or_none is None:
                self.gave_up = True
                self._progress.message(
                    f"{MOST_REFUSALS} proposals in a row were over the budget: no further trial begins."
                )
                break
            proposed += 1
            yield self._trial_job(trial_or_none)
        while self._busy():
            yield None

    def _held_out_phase(self) -> Iterator[_Job | None]:
        wanted: dict[Configuration, int | None] = {}
        best = self.best()
        if best is not None:
            completed = sum(trial.outcome is not None for trial in self.trials)
            self._store.select(self._search, completed, best.number)
            wanted[best.configuration] = best.number
        defaults = self._defaults_trial()
        if defaults is not None:
            wanted[defaults.configuration] = defaults.number
        for configuration in self._compare:
            wanted.setdefault(configuration, None)
        jobs = []
        if self._questions["held_out"]:
            for configuration, number in wanted.items():
                if configuration not in self._measured:
                    fingerprints = self._fingerprints(configuration)
                    held_out = {question: fingerprints[question] for question in self._questions["held_out"]}
                    jobs.append(self._job("held_out", configuration, number, held_out))
        self._start("held-out", sum(len(job.missing(self._questions["held_out"])) for job in jobs))
        yield from jobs
        while self._busy():
            yield None

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

    def _job(
        self,
        kind: Kind,
        configuration: Configuration | None,
        number: int | None,
        fingerprints: dict[str, str],
    ) -> _Job:
        found = self._store.answers(fingerprints.items())
        return _Job(
            kind,
            configuration,
            number,
            fingerprints,
            {question: answer for (question, _), answer in found.items()},
        )

    def _bundles(self, job: _Job) -> list[tuple[Rung, ...]]:
        """What is handed out at once: a trial as a whole; else single rungs, so that all workers share it."""
        rungs = [rung for rung in map(job.missing, self._rungs(job)) if rung]
        return [tuple(rungs)] if job.kind == "trial" else [(rung,) for rung in rungs]

    def _rungs(self, job: _Job) -> Iterator[Rung]:
        """All questions of the job, `rung_videos` videos at a time, parts apart."""
        for part in ("tune", "held_out"):
            by_video: dict[str, list[str]] = {}
            for question in self._study.questions_of(part):
                if question.id in job.fingerprints:
                    by_video.setdefault(question.video, []).append(question.id)
            videos = [by_video[video.name] for video in self._study.videos_of(part) if video.name in by_video]
            for start in range(0, len(videos), self._rung_videos):
                yield tuple(one for video in videos[start : start + self._rung_videos] for one in video)

    def _hand_out(self, job: _Job, rungs: tuple[Rung, ...]) -> Work:
        references = {}
        for one in (one for rung in rungs for one in rung):
            text = reference(self._study.question(one), self._baseline_answers.get(one))
            if text is not None:
                references[one] = text
        work = Work(self._next_id, job.kind, job.number, job.configuration, rungs, references)
        self._next_id += 1
        self._in_flight[work.id] = (job, work)
        return work

    def _complete(self, job: _Job, pairs: Mapping[Pair, RecordedAnswer]) -> None:
        """The last answers of a job, written together with the outcome they complete."""
        if job.configuration is None:
            if pairs:
                self._store.record(pairs)
        elif job.kind == "trial":
            assert job.number is not None
            result = self._outcome(job, "tune")
            self._store.record(pairs, completed=(job.number, result))
            trial = self._trials[job.number]
            self._trials[job.number] = TrialRecord(
                trial.number,
                trial.search,
                trial.configuration,
                trial.fingerprints,
                trial.binding_ratio,
                result,
            )
            self._progress.advanced(1)
        else:
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
        while len(refused) < MOST_REFUSALS:
            point = self._sampler.propose(
                self._space.ranges, self._evidence(), self._search.seed, number, len(refused)
            )
            candidate = self._space.candidate(point)
            if candidate.binding_ratio <= self._search.budget + TOLERANCE:
                return self._accept(number, candidate.configuration, candidate.binding_ratio)
            refused.append(
                self._refuse(number, len(refused), candidate.configuration, point, candidate.binding_ratio)
            )
        return None

    def _accept(self, number: int, configuration: Configuration, binding_ratio: float) -> TrialRecord:
        fingerprints = self._planner.fingerprints(configuration.build())
        self._store.propose(self._search, number, configuration, fingerprints, binding_ratio)
        trial = TrialRecord(number, self._search.id, configuration, fingerprints, binding_ratio, None)
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
        """Completed trials and this search's refusals as the sampler sees them, in order of number.

        Trials of other searches count where they have a place in this search's coordinates.
        """
        told: list[tuple[tuple[int, int, int], Evidence]] = []
        for trial in self.trials:
            point = (
                None if trial.outcome is None else self._space.point(trial.configuration, trial.binding_ratio)
            )
            if trial.outcome is not None and point is not None:
                values = (trial.outcome.accuracy, trial.binding_ratio)
                evidence = Evidence(point, values, self._over_budget(trial.binding_ratio))
                told.append(((trial.number, 1, 0), evidence))
        for refusal in self._refusals_of_search():
            # AdaTP's defaults were not the sampler's proposal.
            if refusal.proposed:
                evidence = Evidence(refusal.proposed, None, self._over_budget(refusal.binding_ratio))
                told.append(((refusal.number, 0, refusal.attempt), evidence))
        return [evidence for _, evidence in sorted(told, key=lambda one: one[0])]

    def _over_budget(self, ratio: float) -> float:
        over = ratio - self._search.budget
        return 0.0 if over <= TOLERANCE else over


def choose_best(trials: Iterable[TrialRecord], budget: float) -> TrialRecord | None:
    """The most accurate completed trial within the budget; ties: log-probability, then fewer FLOPs."""
    candidates = [
        one for one in trials if one.outcome is not None and one.binding_ratio <= budget + TOLERANCE
    ]

    def order(trial: TrialRecord) -> tuple[float, float, float, int]:
        assert trial.outcome is not None
        return (-trial.outcome.accuracy, -trial.outcome.logprob_change, trial.binding_ratio, trial.number)

    return min(candidates, key=order, default=None)


class _End:
    """Told apart from None, which means "wait"."""


_END = _End()
