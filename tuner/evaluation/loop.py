"""The loop: what to evaluate next, what was answered, who died of it. It runs nothing itself.

An executor asks `propose()` for work, evaluates its batches (whole videos with all their questions) and hands
each to `record()`, which writes it in one transaction. The loop knows neither Ray nor Optuna.

What follows the baseline is the kind of loop's: `search_loop` searches, `ad_hoc_loop` asks what a comparison
or a sensitivity study needs. Whatever the database already holds is not asked again, so killing everything
at any instant loses at most the batches in flight, and the same command carries on.
"""

from __future__ import annotations

import hashlib
import weakref
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from tuner.errors import UserError
from tuner.evaluation.progress import NoProgress, Progress
from tuner.evaluation.scoring import judge, outcome, reference
from tuner.evaluation.tasks import Ending, EvaluationError, Job, Kind, VideoBatch, Work
from tuner.planning.planner import Planner
from tuner.records.measurements import CacheUse
from tuner.records.store import Store
from tuner.records.values import Pair, Pruned, RecordedAnswer, TrialRecord
from tuner.search import pruner
from tuner.statistics.guessing import against_guessing
from tuner.statistics.wording import weak_baseline
from tuner.study import Study
from tuner.study.values import Configuration, Outcome, QuestionResult, Split

Decision = Literal["continue", "stop"]

# Attempts at the same questions that may raise an error before the study stops.
MOST_FAILURES = 3

# Workers that may die of the same questions before these are asked one by one, and of one question before it
# is quarantined. Dying of want of memory needs no second time: it would come again.
MOST_DEATHS = 2

# So many questions may be quarantined in any study; in a large one a quarter of them.
MOST_QUARANTINED = 3


class Loop(ABC):
    """One run over one study: the baseline, then what `_phases` yields. Not thread-safe: an executor calls it
    from one thread.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        planner: Planner,
        *,
        progress: Progress | None = None,
        batch_videos: int | None = None,
        accept_weak_baseline: bool = False,
    ) -> None:
        """Reads what is there already. `rung_videos`: None follows from the number of tune videos.

        accept_weak_baseline: goes on where the unpruned model does no better than guessing.
        """
        self._all_questions = len(study.questions)
        self._quarantined = store.quarantined()
        # Without the quarantined questions; their FLOPs stay in every ratio, or the budget would move.
        self._study = study = study.without(self._quarantined)
        self._store = store
        self._planner = planner
        self._progress: Progress = NoProgress() if progress is None else progress
        self._accept_weak_baseline = accept_weak_baseline
        # A batch is this many videos with all their questions.
        self._batch_videos = batch_videos or pruner.batch_videos(len(study.videos_of("tune")))

        self._questions: dict[Split, tuple[str, ...]] = {
            "tune": tuple(question.id for question in study.questions_of("tune")),
            "held_out": tuple(question.id for question in study.questions_of("held_out")),
        }
        self._trials = {trial.number: trial for trial in store.trials()}
        self._measured = store.measured()
        self._baseline_answers: dict[str, RecordedAnswer] = {}
        self._baseline: dict[str, QuestionResult] = {}

        # All jobs somebody still holds: the scheduler, `_waiting` or `_in_flight`.
        self._made: weakref.WeakSet[Job] = weakref.WeakSet()
        self._jobs = self._schedule()
        self._waiting: deque[tuple[Job, tuple[VideoBatch, ...]]] = deque()
        self._in_flight: dict[int, tuple[Job, Work]] = {}
        # By configuration and the missing questions of the batch.
        self._failures: Counter[tuple[Configuration | None, VideoBatch]] = Counter()
        self._next_id = 0
        self._exhausted = False
        self._interrupted = False

    # What a kind of loop adds

    @abstractmethod
    def _phases(self) -> Iterator[Job | None]:
        """The jobs after the baseline, in order; None where the next one depends on answers in flight."""

    def _beaten(self, job: Job) -> Pruned | None:
        """Why a job needs no further answers; None: it goes on."""
        return None

    def _forget(self, question: str) -> None:
        """A question that is left out from here on has no part in what was derived."""
        self._baseline_answers.pop(question, None)
        self._baseline.pop(question, None)

    # What an executor calls

    def propose(self) -> Work | None:
        """The next work. None: there is none left (`finished`), or it depends on answers in flight.

        Errors: UserError once the baseline is there, does no better than guessing and is not accepted.
        """
        while not self._interrupted:
            if self._waiting:
                return self._hand_out(*self._waiting.popleft())
            job = next(self._jobs, _END)
            if job is _END:
                self._exhausted = True
                return None
            if job is None:
                return None
            assert isinstance(job, Job)
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
        batch_index: int,
        answers: Sequence[RecordedAnswer],
        cache_use: CacheUse | None = None,
    ) -> Decision:
        """Writes one batch in one transaction; "stop" when this work needs no further batch.

        cache_use: what the caches did for it. That of a batch that is never recorded is lost.
        Errors: ValueError when the answers are not exactly those the batch asked for.
        """
        job, _ = self._in_flight[work.id]
        asked = work.batches[batch_index]
        if sorted(answer.question for answer in answers) != sorted(asked):
            raise ValueError(
                f"The answers of a batch are those it asked for ({', '.join(asked)}), "
                f"but got {', '.join(answer.question for answer in answers)}."
            )
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
        last = stopped is not None or not any(job.missing(batch) for batch in work.batches)
        if last or self._interrupted:
            del self._in_flight[work.id]
            return "stop"
        return "continue"

    def failed(self, work: Work, reason: str, end: Ending = "raised") -> None:
        """The evaluation of this work ended without an answer; what it had not recorded is proposed again.

        Where workers die, or memory does not suffice, the question that does it is found and quarantined.

        Errors: EvaluationError when the same questions raised an error `MOST_FAILURES` times, or too many
        questions would be quarantined.
        """
        found = self._in_flight.pop(work.id, None)
        if found is None:  # it had already answered everything
            return
        job, _ = found
        missing = tuple(batch for batch in (job.missing(batch) for batch in work.batches) if batch)
        if not missing:
            return
        # Batches are answered in order: it ended in the first that is not.
        batch = missing[0]
        self._waiting.appendleft((job, missing))
        what = "the baseline" if work.configuration is None else f"trial {work.trial}"
        if work.kind == "asked":
            what = "what was asked beside the searches"
        elif work.configuration is not None and work.trial is None:
            what = work.configuration.method
        asked = next(one for one in work.batches if batch[0] in one)
        if end in ("killed", "out_of_memory") and any(one in self._quarantined for one in asked):
            return  # of a question that another attempt has meanwhile been found to die of
        key = (work.configuration or work.configurations.get(batch[0]), batch)
        self._failures[key] += 1
        again = self._failures[key]
        if end == "raised":
            if again >= MOST_FAILURES:
                self._give_up(what, batch[0], reason)
            self._progress.message(f"An evaluation of {what} died and is tried again: {reason}")
        elif end == "killed" and again < MOST_DEATHS:
            self._progress.message(f"An evaluation of {what} died and is tried again: {reason}")
        elif len(batch) == 1:
            self._quarantine(batch[0], f"asked alone for {what}: {reason}")
        else:
            self._waiting[0] = (job, (*((one,) for one in batch), *missing[1:]))
            self._progress.message(
                f"An evaluation of {what} died, and its {len(batch)} questions are now asked one by one to "
                f"find the one to blame: {reason}"
            )

    def _give_up(self, what: str, question: str, reason: str) -> None:
        self._interrupted = True
        raise EvaluationError(
            f"Evaluating {what} died {MOST_FAILURES} times in a row on the same questions, from {question!r} "
            f"(video {self._study.question(question).video}) on. The last time: {reason}\n"
            "Everything answered before is kept, and the same command goes on from there."
        )

    def _quarantine(self, question: str, reason: str) -> None:
        """Leaves a question out of outcomes, of what waits, of what is in flight and of all that follows."""
        found = self._study.question(question)
        split = self._study.split_of(found)
        study = self._study.without({question})
        self._quarantined[question] = reason
        count = len(self._quarantined)
        if not study.questions_of(split) or count > max(MOST_QUARANTINED, self._all_questions / 4):
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
        self._questions[split] = tuple(one for one in self._questions[split] if one != question)
        self._forget(question)
        for job in self._made:
            job.leave_out(question)
        rests = ((job, tuple(filter(None, map(job.missing, batches)))) for job, batches in self._waiting)
        self._waiting = deque((job, batches) for job, batches in rests if batches)
        trials, measured = self._outcomes_without(split)
        self._store.quarantine(question, reason, trials, measured)
        self._trials |= {number: replace(self._trials[number], outcome=one) for number, one in trials.items()}
        self._measured |= measured
        for job in unfinished:
            if job.complete:
                self._complete(job, {})
        self._progress.message(
            f"Question {question!r} (video {found.video}) is left out from here on: {reason}"
        )

    def _outcomes_without(self, split: Split) -> tuple[dict[int, Outcome], dict[Configuration, Outcome]]:
        """The part's outcomes that are there, anew from the stored answers to the questions that are left."""
        trials: dict[int, Outcome] = {}
        measured: dict[Configuration, Outcome] = {}
        if split == "tune":
            for trial in self.trials:
                if trial.outcome is not None:
                    trials[trial.number] = self._outcome(self._trial_job(trial), split)
        else:
            for configuration in self._measured:
                measured[configuration] = self._outcome(self._held_out_job(configuration, None), split)
        return trials, measured

    @property
    def finished(self) -> bool:
        """Nothing is left to hand out and nothing is in flight."""
        return not self._in_flight and (self._interrupted or (self._exhausted and not self._waiting))

    def say(self, text: str) -> None:
        """One line from the executor that a person should read."""
        self._progress.message(text)

    def interrupt(self) -> None:
        """Ends the run after the batches in flight; they are still recorded."""
        self._interrupted = True

    @property
    def interrupted(self) -> bool:
        """Whether the run was ended early, by `interrupt` or by evaluations that kept dying."""
        return self._interrupted

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """All trials of the study in order of number, those of other searches included."""
        return tuple(self._trials[number] for number in sorted(self._trials))

    # Phases

    def _schedule(self) -> Iterator[Job | None]:
        yield from self._baseline_phase()
        yield from self._phases()

    def _baseline_phase(self) -> Iterator[Job | None]:
        fingerprints = self._fingerprints(None)
        everything = (*self._questions["tune"], *self._questions["held_out"])
        job = self._job("baseline", None, None, {question: fingerprints[question] for question in everything})
        new = not job.complete
        self._start("baseline", len(job.missing(everything)))
        yield job
        while not job.complete:
            yield None
        self._baseline_answers = job.answers
        self._baseline = {
            question.id: judge(question, self._study.split_of(question), job.answers[question.id])
            for question in self._study.questions
        }
        self._check_baseline(new)

    def _check_baseline(self, new: bool) -> None:
        """new: it was asked just now, and what it is worth was not said before.

        Errors: UserError where it does no better than guessing and that is not accepted.
        """
        found = against_guessing(self._study, list(self._baseline.values()))
        if found is None or found.shown_better:
            return
        if found.no_better and not self._accept_weak_baseline:
            self._interrupted = True
            raise UserError(
                weak_baseline(found),
                "Its answers are kept. --accept-weak-baseline goes on all the same; a study that was "
                "corrected uses them again where they fit.",
            )
        if new:
            self._progress.message(weak_baseline(found))

    def _held_out_jobs(self, wanted: Mapping[Configuration, int | None]) -> Iterator[Job | None]:
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

    def _start(self, phase: str, total: int) -> None:
        if total:
            self._progress.started(phase, total)

    def _busy(self) -> bool:
        return bool(self._in_flight or self._waiting)

    # Jobs

    def _fingerprints(self, configuration: Configuration | None) -> dict[str, str]:
        method = None if configuration is None else configuration.build()
        ids = (question.id for question in self._planner.questions)
        return dict(zip(ids, self._planner.fingerprints(method), strict=True))

    def _trial_job(self, trial: TrialRecord) -> Job:
        ids = (question.id for question in self._planner.questions)
        fingerprints = dict(zip(ids, trial.fingerprints, strict=True))
        tune = {question: fingerprints[question] for question in self._questions["tune"]}
        return self._job("trial", trial.configuration, trial.number, tune)

    def _held_out_job(self, configuration: Configuration, number: int | None) -> Job:
        fingerprints = self._fingerprints(configuration)
        held_out = {question: fingerprints[question] for question in self._questions["held_out"]}
        return self._job("held_out", configuration, number, held_out)

    def _job(
        self,
        kind: Kind,
        configuration: Configuration | None,
        number: int | None,
        fingerprints: dict[str, str],
        configurations: Mapping[str, Configuration] = MappingProxyType({}),
    ) -> Job:
        found = self._store.answers(fingerprints.items())
        job = Job(
            kind,
            configuration,
            number,
            fingerprints,
            {question: answer for (question, _), answer in found.items()},
            configurations,
        )
        self._made.add(job)
        return job

    def _bundles(self, job: Job) -> list[tuple[VideoBatch, ...]]:
        """What is handed out at once: a whole trial; otherwise single batches, for all workers to share."""
        batches = [batch for batch in map(job.missing, self._batches(job)) if batch]
        if job.kind == "noise":
            # All at once: what is written is what all of them together say.
            return [(tuple(one for batch in batches for one in batch),)]
        return [tuple(batches)] if job.kind == "trial" else [(batch,) for batch in batches]

    def _batches_of_split(self, split: Split, most: int) -> Iterator[VideoBatch]:
        """The first batches of a part."""
        everything = dict.fromkeys(self._questions[split], "")
        yield from list(self._batches(Job("baseline", None, None, everything, {})))[:most]

    def _batches(self, job: Job) -> Iterator[VideoBatch]:
        """All questions of the job, `rung_videos` videos at a time, parts apart."""
        for split in ("tune", "held_out"):
            by_video: dict[str, list[str]] = {}
            for question in self._study.questions_of(split):
                if question.id in job.fingerprints:
                    by_video.setdefault(question.video, []).append(question.id)
            # In a random order that is the same for every trial: what the race has seen is a random sample.
            videos = [by_video[name] for name in sorted(by_video, key=hashed)]
            for start in range(0, len(videos), self._batch_videos):
                yield tuple(one for video in videos[start : start + self._batch_videos] for one in video)

    def _hand_out(self, job: Job, batches: tuple[VideoBatch, ...]) -> Work:
        references = {}
        for one in (one for batch in batches for one in batch):
            text = reference(self._study.question(one), self._baseline_answers.get(one))
            if text is not None:
                references[one] = text
        asked = {one for batch in batches for one in batch}
        work = Work(
            self._next_id,
            job.kind,
            job.number,
            job.configuration,
            batches,
            references,
            {question: one for question, one in job.configurations.items() if question in asked},
        )
        self._next_id += 1
        self._in_flight[work.id] = (job, work)
        return work

    def _complete(self, job: Job, pairs: Mapping[Pair, RecordedAnswer]) -> None:
        """The last answers of a job, written together with the outcome they complete."""
        if job.kind in ("baseline", "asked"):
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

    def _outcome(self, job: Job, split: Split) -> Outcome:
        assert job.configuration is not None
        results = [
            judge(question, split, job.answers[question.id], self._baseline_answers[question.id])
            for question in self._study.questions_of(split)
        ]
        return outcome(
            split, self._planner.cost(job.configuration.build()).compute[split], results, self._baseline
        )

    def _stop(self, job: Job, pairs: Mapping[Pair, RecordedAnswer], stopped: Pruned) -> None:
        assert job.number is not None
        self._store.record(pairs, stopped=(job.number, stopped))
        self._trials[job.number] = replace(self._trials[job.number], stopped=stopped)
        self._progress.advanced(1)


def hashed(name: str) -> str:
    """A key that sorts names at random, the same way everywhere and always."""
    return hashlib.sha256(name.encode()).hexdigest()


class _End:
    """Told apart from None, which means "wait"."""


_END = _End()
