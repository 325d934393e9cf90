"""The loop decides what is evaluated next and records what was answered. It runs nothing itself.

An executor asks `propose()` for a task, evaluates its batches (whole videos with all their questions) and
hands each batch to `record()`, which writes it in one transaction, or reports to `failed()` that an attempt
ended without an answer (`failures` decides what follows). The loop knows neither Ray nor Optuna.

Subclasses say what follows the baseline: `search_loop` searches, `ad_hoc_loop` asks what a comparison or a
sensitivity study needs. Answers that the database holds are not asked for again. So a run that is killed at
any moment loses at most the batches in flight, and the same command continues from there.
"""

from __future__ import annotations

import hashlib
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from tuner.errors import UserError
from tuner.evaluation.events import tell
from tuner.evaluation.failures import Failures, keeps_failing, too_many_quarantined
from tuner.evaluation.progress import NoProgress, Progress
from tuner.evaluation.scoring import judge, outcome, outcome_without, reference, same_elsewhere
from tuner.evaluation.tasks import Decision, Evaluation, FailureKind, Kind, Task, VideoBatch
from tuner.planning.planner import Planner
from tuner.records.measurements import CacheUse, ModelUse
from tuner.records.store import Store
from tuner.records.values import Pair, Pruned, RecordedAnswer, TrialRecord
from tuner.search import pruner
from tuner.statistics.guessing import against_guessing
from tuner.statistics.wording import weak_baseline
from tuner.study import Study, StudyQuestion
from tuner.study.values import Configuration, Outcome, QuestionResult, Split


class Loop(ABC):
    """One run over one study: the baseline, then what `_phases` yields. It is called from one thread only."""

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
        """Reads what is recorded already.

        batch_videos: videos in a batch; None derives it from the number of tune videos. accept_weak_baseline:
        continue even if the unpruned model does no better than guessing.
        """
        self._all_questions = len(study.questions)
        self._quarantined = store.quarantined()
        # Without the quarantined questions. Their FLOPs stay in every ratio: else the budget would change.
        self._study = study = study.without(self._quarantined)
        self._store = store
        self._planner = planner
        self._progress: Progress = NoProgress() if progress is None else progress
        self._accept_weak_baseline = accept_weak_baseline
        self._batch_videos = batch_videos or pruner.batch_videos(len(study.videos_of("tune")))

        self._questions: dict[Split, tuple[str, ...]] = {
            "tune": tuple(question.id for question in study.questions_of("tune")),
            "held_out": tuple(question.id for question in study.questions_of("held_out")),
        }
        self._trials = {trial.number: trial for trial in store.trials()}
        self._measured = store.measured()
        self._baseline_answers: dict[str, RecordedAnswer] = {}
        self._baseline: dict[str, QuestionResult] = {}

        # All that are referred to anywhere: by the scheduler, `_waiting` or `_in_flight`.
        self._evaluations: weakref.WeakSet[Evaluation] = weakref.WeakSet()
        self._upcoming = self._schedule()
        self._waiting: deque[tuple[Evaluation, tuple[VideoBatch, ...]]] = deque()
        self._in_flight: dict[int, tuple[Evaluation, Task]] = {}
        # The worker that was last asked about a video: its memory may still hold the video's features.
        self._seen_by: dict[str, str] = {}
        self._failures = Failures()
        self._next_id = 0
        self._exhausted = False
        self._interrupted = False

    # What subclasses add

    @abstractmethod
    def _phases(self) -> Iterator[Evaluation | None]:
        """The evaluations after the baseline, in order; None where the next one depends on answers in
        flight.
        """

    def _pruned(self, evaluation: Evaluation) -> Pruned | None:
        """What the pruner says of a trial's evaluation; None: it is not pruned."""
        return None

    def _so_far(self, evaluation: Evaluation) -> str:
        """How far a trial's evaluation is, in a few words."""
        return (
            f"trial {evaluation.number}: {len(evaluation.answers)} of {len(evaluation.fingerprints)} answers"
        )

    def _know(self, trial: TrialRecord) -> None:
        """Keeps a new trial, or what became of one."""
        self._trials[trial.number] = trial

    def _forget(self, question: str) -> None:
        """Removes a quarantined question from what was derived from its answers."""
        self._baseline_answers.pop(question, None)
        self._baseline.pop(question, None)

    # What an executor calls

    def propose(self, worker: str = "") -> Task | None:
        """The next task; None if there is none left (`finished`) or it depends on answers in flight.

        worker: who asks. Of what waits for the same evaluation it gets videos that it was asked about before,
        or nobody was, so that its memory holds what it needs of them.
        Errors: UserError if the baseline is complete, does no better than guessing and is not accepted.
        """
        while not self._interrupted:
            if self._waiting:
                return self._hand_out(*self._waiting_for(worker), worker)
            evaluation = next(self._upcoming, _END)
            if evaluation is _END:
                self._exhausted = True
                return None
            if evaluation is None:
                return None
            assert isinstance(evaluation, Evaluation)
            if evaluation.complete:
                self._complete(evaluation, {})
            elif (pruned := self._pruned(evaluation)) is not None:
                # Answers shared with other trials can be enough to prune it.
                self._prune(evaluation, {}, pruned)
            else:
                self._waiting.extend((evaluation, share) for share in self._shares(evaluation))
        return None

    def record(
        self,
        task: Task,
        batch_index: int,
        answers: Sequence[RecordedAnswer],
        cache_use: CacheUse | None = None,
    ) -> Decision:
        """Writes one batch in one transaction; returns "stop" if this task needs no further batch.

        cache_use: how often the caches were hit for it; for a batch that is never recorded this is lost.
        Errors: ValueError if the answers are not exactly the ones that the batch asked for.
        """
        evaluation, _ = self._in_flight[task.id]
        asked = task.batches[batch_index]
        if sorted(answer.question for answer in answers) != sorted(asked):
            raise ValueError(
                f"The answers of a batch are the ones it asked for ({', '.join(asked)}), "
                f"but got {', '.join(answer.question for answer in answers)}."
            )
        if cache_use is not None:
            self._store.count_cache_use(cache_use)
        took = ModelUse(len(answers), sum(answer.seconds for answer in answers))
        use = cache_use or CacheUse()
        tell(
            "answered",
            self._study.name,
            kind=evaluation.kind,
            trial=evaluation.number,
            questions=asked,
            seconds=took.seconds,
            cache_asked=use.features + use.prefixes,
            cache_hits=use.features - use.features_computed + use.prefixes_reused,
        )
        self._store.count_model_use(
            evaluation.kind, evaluation.number if evaluation.kind == "trial" else None, took
        )
        # A question may have been quarantined while it was being asked.
        answers = [answer for answer in answers if answer.question in evaluation.fingerprints]
        evaluation.answers.update((answer.question, answer) for answer in answers)
        pairs = {(answer.question, evaluation.fingerprints[answer.question]): answer for answer in answers}
        pruned = None
        if pairs and evaluation.complete:
            self._complete(evaluation, pairs)
        elif (pruned := self._pruned(evaluation)) is not None:
            self._prune(evaluation, pairs, pruned)
        elif pairs and evaluation.kind != "noise":
            self._store.record(pairs)
        if evaluation.kind == "trial":
            self._progress.now(self._so_far(evaluation))
        else:
            self._progress.advanced(len(answers))
        last = pruned is not None or not any(evaluation.missing(batch) for batch in task.batches)
        if last or self._interrupted:
            del self._in_flight[task.id]
            return "stop"
        return "continue"

    def failed(self, task: Task, reason: str, kind: FailureKind = "raised") -> None:
        """An attempt ended without an answer: what it had not recorded is proposed again, or quarantined.

        Errors: EvaluationError if the same questions keep failing, or too many would be quarantined.
        """
        found = self._in_flight.pop(task.id, None)
        if found is None:  # it had already answered everything
            return
        evaluation, _ = found
        missing = tuple(batch for batch in (evaluation.missing(batch) for batch in task.batches) if batch)
        if not missing:
            return
        # Batches are answered in order: it failed at the first one that is not answered.
        batch = missing[0]
        self._waiting.appendleft((evaluation, missing))
        asked = next(other for other in task.batches if batch[0] in other)
        if kind != "raised" and any(question in self._quarantined for question in asked):
            return  # at a question that another attempt has been found to fail at in the meantime
        what = _described(task)
        tell(
            "failed",
            self._study.name,
            kind=evaluation.kind,
            trial=evaluation.number,
            questions=batch,
            failure=kind,
            reason=reason,
        )
        configuration = task.configuration or task.configurations.get(batch[0])
        consequence = self._failures.add(configuration, batch, kind)
        if consequence == "end_run":
            self._interrupted = True
            raise keeps_failing(what, batch[0], self._study.question(batch[0]).video, reason)
        if consequence == "retry":
            self._progress.message(f"Evaluating {what} failed and is tried again: {reason}")
        elif consequence == "quarantine":
            self._quarantine(batch[0], f"asked alone for {what}: {reason}")
        else:
            self._waiting[0] = (evaluation, (*((question,) for question in batch), *missing[1:]))
            self._progress.message(
                f"Evaluating {what} failed. Its {len(batch)} questions are now asked one at a time, to "
                f"find the question that causes it: {reason}"
            )

    def _quarantine(self, question: str, reason: str) -> None:
        """Leaves a question out of what is recorded, waits or is in flight, and of all that follows."""
        tell("quarantined", self._study.name, question=question, reason=reason)
        found = self._study.question(question)
        split = self._study.split_of(found)
        study = self._study.without({question})
        self._quarantined[question] = reason
        too_many = too_many_quarantined(
            self._quarantined, self._all_questions, reason, split_is_empty=not study.questions_of(split)
        )
        if too_many is not None:
            self._interrupted = True
            raise too_many
        unfinished = [
            evaluation
            for evaluation in dict.fromkeys(task for task, _ in (*self._waiting, *self._in_flight.values()))
            if not evaluation.complete
        ]
        before, answer_before = self._baseline.get(question), self._baseline_answers.get(question)
        self._study = study
        self._questions[split] = tuple(other for other in self._questions[split] if other != question)
        self._forget(question)
        for evaluation in self._evaluations:
            evaluation.leave_out(question)
        rests = (
            (evaluation, tuple(filter(None, map(evaluation.missing, batches))))
            for evaluation, batches in self._waiting
        )
        self._waiting = deque((evaluation, batches) for evaluation, batches in rests if batches)
        trials, measured = self._outcomes_without(found, split, answer_before, before)
        self._store.quarantine(question, reason, trials, measured)
        for number, found_anew in trials.items():
            self._know(replace(self._trials[number], outcome=found_anew))
        self._measured |= measured
        for evaluation in unfinished:
            if evaluation.complete:
                self._complete(evaluation, {})
        self._progress.message(
            f"Question {question!r} (video {found.video}) is quarantined (left out from now on): {reason}"
        )

    def _outcomes_without(
        self,
        question: StudyQuestion,
        split: Split,
        answer_before: RecordedAnswer | None,
        before: QuestionResult | None,
    ) -> tuple[dict[int, Outcome], dict[Configuration, Outcome]]:
        """The recorded outcomes of the question's split without it; the study is already without it.

        answer_before, before: the unpruned model's, None as long as the baseline is not complete.
        """
        trials = {trial.number: trial for trial in self.trials if trial.outcome is not None}
        configurations = (
            {trial.configuration for trial in trials.values()} if split == "tune" else set(self._measured)
        )
        pairs = {
            configuration: (question.id, self._planner.fingerprints(configuration.build(), [question.id])[0])
            for configuration in configurations
        }
        answers = self._store.answers(pairs.values())
        left = self._study.questions_of(split)

        def without(configuration: Configuration, found: Outcome) -> Outcome | None:
            answer = answers.get(pairs[configuration])
            if answer is None or before is None:
                return None
            after = judge(question, split, answer, answer_before)
            return outcome_without(found, after, before, self._baseline, left)

        if split == "held_out":
            return {}, {
                configuration: without(configuration, found)
                or self._outcome(self._held_out_evaluation(configuration, None), split)
                for configuration, found in self._measured.items()
            }
        return {
            number: without(trial.configuration, trial.outcome)
            or self._outcome(self._trial_evaluation(trial), split)
            for number, trial in trials.items()
            if trial.outcome is not None
        }, {}

    @property
    def finished(self) -> bool:
        """Whether nothing is left to hand out and nothing is in flight."""
        return not self._in_flight and (self._interrupted or (self._exhausted and not self._waiting))

    def say(self, text: str) -> None:
        """Passes on a line from the executor that the user should read."""
        self._progress.message(text)

    def interrupt(self) -> None:
        """Ends the run after the batches in flight, which are still recorded."""
        self._interrupted = True

    @property
    def interrupted(self) -> bool:
        """Whether the run was ended early, by `interrupt` or because evaluations kept failing."""
        return self._interrupted

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """All trials of the study in order of number, other searches' trials included."""
        # Read in this order, and a new one has the next number.
        return tuple(self._trials.values())

    # Phases

    def _schedule(self) -> Iterator[Evaluation | None]:
        yield from self._baseline_phase()
        yield from self._phases()

    def _baseline_phase(self) -> Iterator[Evaluation | None]:
        fingerprints = self._fingerprints(None)
        everything = (*self._questions["tune"], *self._questions["held_out"])
        evaluation = self._evaluation(
            "baseline", None, None, {question: fingerprints[question] for question in everything}
        )
        new = not evaluation.complete
        self._start("baseline", len(evaluation.missing(everything)))
        yield evaluation
        while not evaluation.complete:
            yield None
        self._baseline_answers = evaluation.answers
        self._baseline = {
            question.id: judge(question, self._study.split_of(question), evaluation.answers[question.id])
            for question in self._study.questions
        }
        same, compared = same_elsewhere(self._study.questions, self._baseline_answers)
        if compared:
            self._progress.message(
                f"{same} of {compared} unpruned answers ({same / compared:.1%}) are those of another program "
                "(`baseline` in the questions)."
            )
        self._check_baseline(new)

    def _check_baseline(self, new: bool) -> None:
        """Warns of a weak baseline that is `new`, that is, was completed by this run.

        Errors: UserError if it does no better than guessing and that is not accepted.
        """
        found = against_guessing(self._study, list(self._baseline.values()))
        if found is None or found.shown_better:
            return
        if found.no_better and not self._accept_weak_baseline:
            self._interrupted = True
            raise UserError(
                weak_baseline(found),
                "Its answers are kept. --accept-weak-baseline continues all the same; a study that was "
                "corrected uses them again where they fit.",
            )
        if new:
            self._progress.message(weak_baseline(found))

    def _held_out_evaluations(
        self, wanted: Mapping[Configuration, int | None]
    ) -> Iterator[Evaluation | None]:
        """Evaluates what is missing of these configurations on the held-out split, and waits for it."""
        evaluations = []
        if self._questions["held_out"]:
            for configuration, number in wanted.items():
                if configuration not in self._measured:
                    evaluations.append(self._held_out_evaluation(configuration, number))
        trials = sorted(evaluation.number for evaluation in evaluations if evaluation.number is not None)
        self._start(
            f"held-out, trial{'s' * (len(trials) > 1)} {', '.join(map(str, trials))}"
            if trials
            else "held-out",
            sum(len(evaluation.missing(self._questions["held_out"])) for evaluation in evaluations),
        )
        yield from evaluations
        while self._busy():
            yield None

    def _start(self, phase: str, total: int) -> None:
        if total:
            self._progress.started(phase, total)

    def _busy(self) -> bool:
        return bool(self._in_flight or self._waiting)

    # Evaluations

    def _fingerprints(self, configuration: Configuration | None) -> dict[str, str]:
        method = None if configuration is None else configuration.build()
        ids = (question.id for question in self._planner.questions)
        return dict(zip(ids, self._planner.fingerprints(method), strict=True))

    def _trial_evaluation(self, trial: TrialRecord) -> Evaluation:
        fingerprints = self._fingerprints(trial.configuration)
        tune = {question: fingerprints[question] for question in self._questions["tune"]}
        return self._evaluation("trial", trial.configuration, trial.number, tune)

    def _held_out_evaluation(self, configuration: Configuration, number: int | None) -> Evaluation:
        fingerprints = self._fingerprints(configuration)
        held_out = {question: fingerprints[question] for question in self._questions["held_out"]}
        return self._evaluation("held_out", configuration, number, held_out)

    def _evaluation(
        self,
        kind: Kind,
        configuration: Configuration | None,
        number: int | None,
        fingerprints: dict[str, str],
        configurations: Mapping[str, Configuration] = MappingProxyType({}),
    ) -> Evaluation:
        found = self._store.answers(fingerprints.items())
        evaluation = Evaluation(
            kind,
            configuration,
            number,
            fingerprints,
            {question: answer for (question, _), answer in found.items()},
            configurations,
        )
        self._evaluations.add(evaluation)
        return evaluation

    def _shares(self, evaluation: Evaluation) -> list[tuple[VideoBatch, ...]]:
        """What is handed out at once: a whole trial; else single batches, so that all workers share them."""
        batches = [batch for batch in map(evaluation.missing, self._batches(evaluation)) if batch]
        if evaluation.kind == "noise":
            # All at once: the noise floor is recorded for all of them together.
            return [(tuple(item for batch in batches for item in batch),)]
        return [tuple(batches)] if evaluation.kind == "trial" else [(batch,) for batch in batches]

    def _batches_of_split(self, split: Split, most: int) -> Iterator[VideoBatch]:
        """The first batches of a split, at most so many."""
        everything = dict.fromkeys(self._questions[split], "")
        yield from list(self._batches(Evaluation("baseline", None, None, everything, {})))[:most]

    def _batches(self, evaluation: Evaluation) -> Iterator[VideoBatch]:
        """All of its questions, `batch_videos` videos at a time; no batch holds questions of both splits."""
        for split in ("tune", "held_out"):
            by_video: dict[str, list[str]] = {}
            for question in self._study.questions_of(split):
                if question.id in evaluation.fingerprints:
                    by_video.setdefault(question.video, []).append(question.id)
            # In a random order that is the same for every trial: the pruner sees a random sample of videos.
            videos = [by_video[name] for name in sorted(by_video, key=hashed)]
            for start in range(0, len(videos), self._batch_videos):
                yield tuple(item for video in videos[start : start + self._batch_videos] for item in video)

    def _waiting_for(self, worker: str) -> tuple[Evaluation, tuple[VideoBatch, ...]]:
        """Takes from what waits for the first evaluation the part that this worker knows best."""
        first = self._waiting[0]
        mine = self._seen_by.get
        for share in self._waiting:
            if share[0] is not first[0]:
                break
            if mine(self._study.question(share[1][0][0]).video, worker) == worker:
                first = share
                break
        self._waiting.remove(first)
        return first

    def _hand_out(self, evaluation: Evaluation, batches: tuple[VideoBatch, ...], worker: str) -> Task:
        references = {}
        for one in (item for batch in batches for item in batch):
            text = reference(self._study.question(one), self._baseline_answers.get(one))
            if text is not None:
                references[one] = text
        asked = {item for batch in batches for item in batch}
        self._seen_by |= dict.fromkeys((self._study.question(question).video for question in asked), worker)
        task = Task(
            self._next_id,
            evaluation.kind,
            evaluation.number,
            evaluation.configuration,
            batches,
            references,
            {
                question: configuration
                for question, configuration in evaluation.configurations.items()
                if question in asked
            },
        )
        self._next_id += 1
        self._in_flight[task.id] = (evaluation, task)
        return task

    def _complete(self, evaluation: Evaluation, pairs: Mapping[Pair, RecordedAnswer]) -> None:
        """Writes the last answers of an evaluation together with the outcome that they complete."""
        if evaluation.kind in ("baseline", "asked"):
            if pairs:
                self._store.record(pairs)
        elif evaluation.kind == "trial":
            assert evaluation.number is not None
            result = self._outcome(evaluation, "tune")
            self._store.record(pairs, completed=(evaluation.number, result))
            self._know(replace(self._trials[evaluation.number], outcome=result, pruned=None))
            self._progress.advanced(1)
            tell("trial_ended", self._study.name, trial=evaluation.number, end="complete")
        else:
            assert evaluation.configuration is not None
            result = self._outcome(evaluation, "held_out")
            self._store.record(pairs, measured=(evaluation.configuration, result))
            self._measured[evaluation.configuration] = result

    def _outcome(self, evaluation: Evaluation, split: Split) -> Outcome:
        assert evaluation.configuration is not None
        results = [
            judge(question, split, evaluation.answers[question.id], self._baseline_answers[question.id])
            for question in self._study.questions_of(split)
        ]
        return outcome(
            split,
            self._planner.cost(evaluation.configuration.build()).compute[split],
            results,
            self._baseline,
        )

    def _prune(self, evaluation: Evaluation, pairs: Mapping[Pair, RecordedAnswer], pruned: Pruned) -> None:
        assert evaluation.number is not None
        self._store.record(pairs, pruned=(evaluation.number, pruned))
        self._know(replace(self._trials[evaluation.number], pruned=pruned))
        self._progress.advanced(1)
        tell("trial_ended", self._study.name, trial=evaluation.number, end="pruned")


def hashed(name: str) -> str:
    """A key that sorts names in a random order, which is the same on every machine."""
    return hashlib.sha256(name.encode()).hexdigest()


def _described(task: Task) -> str:
    """What was evaluated, for a message."""
    if task.kind == "asked":
        return "a comparison or sensitivity study"
    if task.configuration is None:
        return "the baseline"
    return task.configuration.method if task.trial is None else f"trial {task.trial}"


class _End:
    """There are no more evaluations; None means that the next one depends on answers in flight."""


_END = _End()
