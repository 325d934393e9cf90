"""The search as a loop: trials within the budget, and what the held-out part says of the best of them.

Phases after the baseline: some questions again, for the noise floor; trials on the tune part, of which the
race stops those that others confidently beat; a few configurations above the budget; the best trials and
AdaTP's defaults on the held-out part. After a kill an unfinished trial comes first, then the next. Trial k is
proposed from (seed, k, the trials before it) alone: with one worker a run that was killed ends like one that
was not.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tuner.evaluation.loop import Loop, hashed
from tuner.evaluation.progress import Progress
from tuner.evaluation.scoring import graded, judge
from tuner.evaluation.tasks import Job
from tuner.planning.planner import Planner
from tuner.records.store import Store
from tuner.records.values import (
    InfeasibleRecord,
    Pair,
    Pruned,
    Purpose,
    RecordedAnswer,
    SearchRecord,
    TrialRecord,
)
from tuner.search import pruner
from tuner.search.evidence import Evidence, Sampler
from tuner.search.selection import Choice, Looks, choose, choose_best, eligible, hypervolume, ordered
from tuner.search.space import TOLERANCE, Bins, Point, Space
from tuner.statistics.margin import MaxDrop
from tuner.statistics.values import Noise
from tuner.statistics.wording import noise_floor
from tuner.study import Study, StudyQuestion
from tuner.study.values import Configuration, QuestionResult

# Proposals over the budget in a row before a search gives up.
MOST_INFEASIBLE = 200

# After the search, its best configuration is solved for these multiples of the budget too: the front then
# says what more compute would buy.
ABOVE_BUDGET = (4 / 3, 5 / 3, 2.0)

# A trial that lies this close to a target above the budget already answers for it.
_NEAR = 0.03

# The noise floor is measured on so many batches of the tune part.
_NOISE_BATCHES = 2


class SearchLoop(Loop):
    """One run of one search."""

    def __init__(
        self,
        study: Study,
        store: Store,
        planner: Planner,
        search: SearchRecord,
        space: Space,
        sampler: Sampler,
        *,
        race: bool = True,
        patience: int | None = None,
        above_budget: Sequence[float] = ABOVE_BUDGET,
        timeout: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        progress: Progress | None = None,
        batch_videos: int | None = None,
        accept_weak_baseline: bool = False,
    ) -> None:
        """As `Loop`.

        race: whether beaten trials are stopped; without it, those that were stopped run to their end.
        patience: trials in a row that add no hypervolume after which no further one begins. above_budget:
        multiples of the budget that the best configuration is solved for at the end. timeout: seconds from
        now after which no further trial begins.
        """
        super().__init__(
            study,
            store,
            planner,
            progress=progress,
            batch_videos=batch_videos,
            accept_weak_baseline=accept_weak_baseline,
        )
        self._search = search
        self._space = space
        self._sampler = sampler
        self._race = race
        self._patience = patience
        self._above_budget = tuple(above_budget)
        self._defaults = space.defaults()
        self._clock = clock
        self._deadline = None if timeout is None else clock() + timeout
        self._infeasible = list(store.infeasible())
        # What the study's search does not allow any more; nothing proposed from here on is among them.
        self._outside = self._trials.keys() - {one.number for one in eligible(self.trials, study.search)}
        # Of the completed trials that others were compared with, by number and question.
        self._signals_of: dict[int, dict[str, float]] = {}
        self.timed_out = False
        # Proposals refused in a row ended the search.
        self.gave_up = False

    def best(self) -> TrialRecord | None:
        """The completed trial within the budget that answers best on the tune part."""
        return choose_best(self._eligible, self._search.budget)

    def choice(self) -> Choice | None:
        """What the held-out part says of the best ones, as far as it was asked; None before the baseline."""
        if not self._baseline:
            return None
        return choose(
            self._eligible,
            self._search.goal,
            self._search.budget,
            MaxDrop.parse(self._search.max_drop),
            [self._baseline[question] for question in self._questions["tune"]],
            self._held_out_results,
            Looks.of(self._store.looks(), self._search),
        )

    @property
    def _eligible(self) -> tuple[TrialRecord, ...]:
        """The trials that the study's search allows, in order of number: for all else here the others are
        not there.
        """
        return tuple(one for one in self.trials if one.number not in self._outside)

    def _forget(self, question: str) -> None:
        super()._forget(question)
        for signals in self._signals_of.values():
            signals.pop(question, None)

    # Phases

    def _phases(self) -> Iterator[Job | None]:
        yield from self._noise_phase()
        yield from self._trial_phase()
        yield from self._above_phase()
        yield from self._held_out_phase()

    def _noise_phase(self) -> Iterator[Job | None]:
        """Some baseline questions again, in packs of another size: other shapes of every product."""
        if self._store.noise() is not None or not self._questions["tune"]:
            return
        asked = sorted(
            (one for batch in self._batches_of_split("tune", _NOISE_BATCHES) for one in batch), key=hashed
        )
        fingerprints = dict.fromkeys(asked, "")
        self._start("noise floor", len(asked))
        job = Job("noise", None, None, fingerprints, {})
        self._made.add(job)
        yield job
        # It takes seconds, and tells what tuning can find at all.
        while not job.complete:
            yield None

    def _trial_phase(self) -> Iterator[Job | None]:
        unfinished = [trial for trial in self._eligible if self._to_finish(trial)]
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
                    f"{MOST_INFEASIBLE} proposals in a row were over the budget: no further trial begins."
                )
                break
            yield self._trial_job(trial_or_none)
        while self._busy():
            yield None

    def _to_finish(self, trial: TrialRecord) -> bool:
        if trial.stopped is not None:
            beaten = self._race and not self._stopped_by_outside(trial)
            return not beaten and trial.search == self._search.id
        return trial.outcome is None

    def _stopped_by_outside(self, trial: TrialRecord) -> bool:
        """Whether it was stopped in favour of one that the study's search does not allow any more."""
        return trial.stopped is not None and trial.stopped.by in self._outside

    def _proposed(self) -> int:
        """Trials this search proposed so far, its refusals and what lies above the budget not counted."""
        return sum(one.search == self._search.id and one.purpose == "search" for one in self._eligible)

    def _out_of_patience(self) -> bool:
        """Whether the last `patience` finished trials of this search added nothing to the front."""
        if self._patience is None:
            return False
        mine = [
            one
            for one in self._eligible
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

    def _out_of_time(self) -> bool:
        if not self.timed_out and self._deadline is not None and self._clock() >= self._deadline:
            self.timed_out = True
            self._progress.message("The time is up: no further trial begins.")
        return self.timed_out

    def _above_phase(self) -> Iterator[Job | None]:
        """The best configuration solved for more compute than the budget; none of it can be chosen."""
        best = self.best()
        if best is None or self._search.goal != "budget" or not self._search.trials or self.timed_out:
            return
        jobs = []
        for factor in self._above_budget:
            target = factor * self._search.budget
            known = any(
                one.outcome is not None and abs(one.binding_ratio - target) <= _NEAR * target
                for one in self._eligible
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

    def _held_out_phase(self) -> Iterator[Job | None]:
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
            if choice.verdict != "untested" and not choice.recorded:
                self._store.record_look(
                    self._search,
                    completed,
                    choice.trial.number,
                    choice.verdict,
                    level=choice.level,
                    candidates=[one.trial for one in choice.tested],
                )

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

    # The noise floor

    def _complete(self, job: Job, pairs: Mapping[Pair, RecordedAnswer]) -> None:
        if job.kind != "noise":
            super()._complete(job, pairs)
        elif job.answers:  # not all of them are left out
            noise = self._noise(job)
            self._store.record_noise(noise)
            self._progress.message(noise_floor(noise, labelled=self._study.labelled))

    def _noise(self, job: Job) -> Noise:
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

    def _beaten(self, job: Job) -> Pruned | None:
        """That completed trials confidently beat this one at its cost, told by the one with the largest share
        in what it was compared with; None: it goes on.
        """
        if not self._race or job.kind != "trial" or job.number is None:
            return None
        trial = self._trials[job.number]
        if trial.purpose != "search":
            return None
        others = ordered((one for one in self._eligible if one.number != trial.number), 1.0)
        weights = pruner.rivals(
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
        found = pruner.look(
            pruner.VideoSums.of(change, [question.video for question in questions]),
            len(self._study.videos_of("tune")),
            self._batch_videos,
        )
        if found is None or not found.beaten:
            return None
        return Pruned(
            max(rivals, key=lambda one: one[0])[1].number, len({question.video for question in questions})
        )

    def _complete_videos(self, job: Job) -> Iterator[list[StudyQuestion]]:
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

    # Proposals

    def _next_trial(self) -> TrialRecord | None:
        """A new trial, written before it is evaluated; None when too many proposals in a row were refused."""
        number = max(self._trials, default=-1) + 1
        refused = [one for one in self._infeasible if one.search == self._search.id and one.number == number]
        defaults = self._defaults
        if self._defaults_trial() is None and not any(
            one.proposed == {} and one.configuration == defaults.configuration
            for one in self._infeasible_of_search()
        ):
            if defaults.binding_ratio <= self._search.budget + TOLERANCE:
                return self._accept(number, defaults.configuration, defaults.binding_ratio)
            refused.append(self._refuse(number, 0, defaults.configuration, {}, defaults.binding_ratio))
        # What the sampler proposed before: AdaTP's defaults are not its own.
        index = self._proposed() - any(
            one.search == self._search.id and one.configuration == defaults.configuration
            for one in self.trials
        )
        # Those refused before the study changed what it searches say nothing of what it searches now.
        outdated = sum(not self._says_something(one) for one in refused)
        while len(refused) - outdated < MOST_INFEASIBLE:
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
    ) -> InfeasibleRecord:
        refusal = InfeasibleRecord(self._search.id, number, attempt, configuration, proposed, binding_ratio)
        self._store.refuse(refusal)
        self._infeasible.append(refusal)
        return refusal

    def _infeasible_of_search(self) -> list[InfeasibleRecord]:
        return [one for one in self._infeasible if one.search == self._search.id]

    def _says_something(self, refusal: InfeasibleRecord) -> bool:
        """Whether the search could propose it today."""
        if not refusal.proposed:
            return refusal.configuration == self._defaults.configuration
        return self._space.covers(refusal.proposed, refusal.configuration)

    def _defaults_trial(self) -> TrialRecord | None:
        defaults = self._defaults
        if defaults.binding_ratio > self._search.budget + TOLERANCE:
            return None
        return next((trial for trial in self.trials if trial.configuration == defaults.configuration), None)

    def _evidence(self) -> list[Evidence]:
        """Trials, complete or stopped, and this search's refusals as the sampler sees them, by number.

        Trials of other searches count where they have a place in this search's coordinates, and where that
        search made each choice in every way listed now: forty trials with one value tell nothing of another,
        but a sampler takes what it is told of for what is worth proposing.
        """
        points: dict[int, Point] = {}
        places: defaultdict[int, set[tuple[str, float]]] = defaultdict(set)
        known = [one for one in self._eligible if not one.unfinished and not self._stopped_by_outside(one)]
        for trial in known:
            point = self._space.point(trial.configuration, trial.binding_ratio)
            if point is not None:
                points[trial.number] = point
                places[trial.search].update(point.items())
        wanted = {
            (name, place)
            for name, one in self._space.ranges.items()
            if isinstance(one, Bins)
            for place in one.places
        }
        told: list[tuple[tuple[int, int, int], Evidence]] = []
        for trial in known:
            point = points.get(trial.number)
            if point is not None and (trial.search == self._search.id or wanted <= places[trial.search]):
                # What a stopped trial answered so far is not comparable with whole ones: it has no values.
                values = None
                if trial.outcome is not None:
                    signal = trial.outcome.graded
                    values = (trial.outcome.accuracy if signal is None else signal, trial.binding_ratio)
                over = self._over_budget(trial.binding_ratio)
                told.append(((trial.number, 1, 0), Evidence(point, values, over, values is None)))
        for refusal in self._infeasible_of_search():
            # AdaTP's defaults were not the sampler's proposal.
            if refusal.proposed and self._says_something(refusal):
                evidence = Evidence(refusal.proposed, None, self._over_budget(refusal.binding_ratio))
                told.append(((refusal.number, 0, refusal.attempt), evidence))
        return [evidence for _, evidence in sorted(told, key=lambda one: one[0])]

    def _over_budget(self, ratio: float) -> float:
        over = ratio - self._search.budget
        return 0.0 if over <= TOLERANCE else over
