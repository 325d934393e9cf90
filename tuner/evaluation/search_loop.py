"""The search as a loop: trials within the budget, and the holdout results of the best of them.

Phases after the baseline: some questions again, for the noise floor; trials on the tune split, some of which
the pruner stops early; a few configurations above the budget; the best trials and AdaTP's defaults on the
held-out split. A run that was killed finishes its unfinished trials before it proposes others. Trial k is
proposed from the seed, k and the observations alone: with one worker a run that was killed ends like one that
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
from tuner.evaluation.tasks import Evaluation
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
from tuner.search.front import trials_since_growth
from tuner.search.sampler import Observation, Sampler
from tuner.search.selection import Choice, Looks, choose, eligible, ordered
from tuner.search.space import TOLERANCE, Bins, Point, SearchSpace
from tuner.statistics.margin import MaxDrop
from tuner.statistics.values import Noise
from tuner.statistics.wording import noise_floor
from tuner.study import Study, StudyQuestion
from tuner.study.values import Configuration, QuestionResult

# Infeasible proposals in a row before a search gives up.
MOST_INFEASIBLE = 200

# After the search, its best configuration is solved for these multiples of the budget too: the front then
# says what more compute would buy.
ABOVE_BUDGET = (4 / 3, 5 / 3, 2.0)

# A trial that lies this close to a target above the budget already answers for it.
_NEAR = 0.03

# The noise floor is measured on so many batches of the tune split.
_NOISE_BATCHES = 2


class SearchLoop(Loop):
    """One run of one search."""

    def __init__(
        self,
        study: Study,
        store: Store,
        planner: Planner,
        search: SearchRecord,
        space: SearchSpace,
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

        race: whether the pruner may end trials early; without it, trials pruned before run to their end.
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
        self._outside = self._trials.keys() - {trial.number for trial in eligible(self.trials, study.search)}
        # The completed trials that it allows, the best first, as long as that is known.
        self._ranked: list[TrialRecord] | None = None
        # Of the completed trials that others were compared with, by number and question.
        self._signals_of: dict[int, dict[str, float]] = {}
        # What the sampler sees of each trial, by number, as long as its record is this one.
        self._observed: dict[int, tuple[TrialRecord, Observation | None]] = {}
        self.timed_out = False
        # Whether infeasible proposals in a row ended the search.
        self.gave_up = False

    def best(self) -> TrialRecord | None:
        """The completed trial within the budget that answers best on the tune split."""
        within = self._search.budget + TOLERANCE
        return next((trial for trial in self._best_first() if trial.binding_ratio <= within), None)

    def choice(self) -> Choice | None:
        """What the held-out split says of the best ones, as far as it was asked; None before the baseline."""
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
        if not self._outside:
            return self.trials
        return tuple(trial for trial in self.trials if trial.number not in self._outside)

    def _know(self, trial: TrialRecord) -> None:
        super()._know(trial)
        if trial.outcome is not None:
            self._ranked = None

    def _best_first(self) -> list[TrialRecord]:
        """All completed trials that the study's search allows, see `ordered`. Asked for after every batch,
        so it is kept until the next trial is complete.
        """
        if self._ranked is None:
            self._ranked = ordered(self._eligible, 1.0)
        return self._ranked

    def best_so_far(self) -> str:
        """The best trial in a few words; nothing where there is none."""
        best = self.best()
        if best is None or best.outcome is None:
            return ""
        reached = f"{100 * best.outcome.accuracy:.1f} % on tune videos at {best.binding_ratio:.3f}"
        return f"best so far: trial {best.number}, {reached}"

    def _so_far(self, evaluation: Evaluation) -> str:
        return "; ".join(filter(None, (self.best_so_far(), super()._so_far(evaluation))))

    def _forget(self, question: str) -> None:
        super()._forget(question)
        for signals in self._signals_of.values():
            signals.pop(question, None)

    # Phases

    def _phases(self) -> Iterator[Evaluation | None]:
        yield from self._noise_phase()
        yield from self._trial_phase()
        yield from self._above_phase()
        yield from self._held_out_phase()

    def _noise_phase(self) -> Iterator[Evaluation | None]:
        """Some baseline questions again, in packs of another size: other shapes of every product."""
        if self._store.noise() is not None or not self._questions["tune"]:
            return
        asked = sorted(
            (item for batch in self._batches_of_split("tune", _NOISE_BATCHES) for item in batch), key=hashed
        )
        fingerprints = dict.fromkeys(asked, "")
        self._start("noise floor", len(asked))
        evaluation = Evaluation("noise", None, None, fingerprints, {})
        self._evaluations.add(evaluation)
        yield evaluation
        # It takes seconds, and tells what tuning can find at all.
        while not evaluation.complete:
            yield None

    def _trial_phase(self) -> Iterator[Evaluation | None]:
        unfinished = [trial for trial in self._eligible if self._to_finish(trial)]
        proposed = self._proposed()
        self._start("search", len(unfinished) + max(0, self._search.trials - proposed))
        for trial in unfinished:
            if not self._out_of_time():
                yield self._trial_evaluation(trial)
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
            yield self._trial_evaluation(trial_or_none)
        while self._busy():
            yield None

    def _to_finish(self, trial: TrialRecord) -> bool:
        if trial.pruned is not None:
            beaten = self._race and not self._pruned_by_outside(trial)
            return not beaten and trial.search == self._search.id
        return trial.outcome is None

    def _pruned_by_outside(self, trial: TrialRecord) -> bool:
        """Whether it was pruned in favour of a trial that the study's search does not allow any more."""
        return trial.pruned is not None and trial.pruned.by in self._outside

    def _proposed(self) -> int:
        """Trials this search proposed so far, without infeasible proposals and those above the budget."""
        return sum(trial.search == self._search.id and trial.purpose == "search" for trial in self._eligible)

    def _out_of_patience(self) -> bool:
        """Whether the last `patience` finished trials of this search added nothing to the front."""
        if self._patience is None:
            return False
        since = trials_since_growth(
            (
                None if trial.outcome is None else (trial.binding_ratio, trial.outcome.accuracy)
                for trial in self._eligible
                if trial.search == self._search.id and trial.purpose == "search" and not trial.unfinished
            ),
            (self._search.budget + TOLERANCE, 0.0),
        )
        if since < self._patience:
            return False
        self._progress.message(f"The last {since} trials added nothing to the front: no further one begins.")
        return True

    def _out_of_time(self) -> bool:
        if not self.timed_out and self._deadline is not None and self._clock() >= self._deadline:
            self.timed_out = True
            self._progress.message("The time is up: no further trial begins.")
        return self.timed_out

    def _above_phase(self) -> Iterator[Evaluation | None]:
        """The best configuration solved for more compute than the budget; none of it can be chosen."""
        best = self.best()
        if best is None or self._search.goal != "budget" or not self._search.trials or self.timed_out:
            return
        evaluations = []
        for factor in self._above_budget:
            target = factor * self._search.budget
            known = any(
                trial.outcome is not None and abs(trial.binding_ratio - target) <= _NEAR * target
                for trial in self._eligible
            )
            if target < 1 and not known:
                found = self._space.above(best.configuration, target)
                if found.binding_ratio > self._search.budget + TOLERANCE:
                    number = max(self._trials) + 1
                    trial = self._accept(number, found.configuration, found.binding_ratio, "above")
                    evaluations.append(self._trial_evaluation(trial))
        self._start("above the budget", len(evaluations))
        yield from evaluations
        while self._busy():
            yield None

    def _held_out_phase(self) -> Iterator[Evaluation | None]:
        best = self.best()
        wanted: dict[Configuration, int | None] = {}
        first = self.choice()
        if first is not None and first.pending is not None:
            wanted[first.pending.configuration] = first.pending.number
        defaults = self._defaults_trial()
        if defaults is not None:
            wanted[defaults.configuration] = defaults.number
        yield from self._held_out_evaluations(wanted)
        # Each further candidate is measured only where the ones before it leave it a chance.
        while (choice := self.choice()) is not None and choice.pending is not None and not self._interrupted:
            yield from self._held_out_evaluations({choice.pending.configuration: choice.pending.number})
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
                    candidates=[candidate.trial for candidate in choice.tested],
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

    def _complete(self, evaluation: Evaluation, pairs: Mapping[Pair, RecordedAnswer]) -> None:
        if evaluation.kind != "noise":
            super()._complete(evaluation, pairs)
        elif evaluation.answers:  # not all of them are left out
            noise = self._noise(evaluation)
            self._store.record_noise(noise)
            self._progress.message(noise_floor(noise, labelled=self._study.labelled))

    def _noise(self, evaluation: Evaluation) -> Noise:
        """The answers of a noise evaluation against those of the baseline."""
        again = [
            judge(question, "tune", evaluation.answers[question.id], self._baseline_answers[question.id])
            for question in self._study.questions_of("tune")
            if question.id in evaluation.answers
        ]
        before = [self._baseline[answer.question] for answer in again]
        changes = [
            abs(answer.logprob_right - other.logprob_right)
            for answer, other in zip(again, before, strict=True)
            if answer.logprob_right is not None and other.logprob_right is not None
        ]
        return Noise(
            questions=len(again),
            videos=len({answer.video for answer in again}),
            flips=sum(answer.correct != other.correct for answer, other in zip(again, before, strict=True)),
            logprob_mean=sum(changes) / len(changes) if changes else 0.0,
            logprob_max=max(changes, default=0.0),
        )

    # The pruner

    def _pruned(self, evaluation: Evaluation) -> Pruned | None:
        """The pruner's decision where completed trials confidently beat this one at its cost, naming the
        trial with the largest weight among them; None: it goes on.
        """
        if not self._race or evaluation.kind != "trial" or evaluation.number is None:
            return None
        trial = self._trials[evaluation.number]
        if trial.purpose != "search":
            return None
        others = [item for item in self._best_first() if item.number != trial.number]
        weights = pruner.reference_weights(
            np.array([other.binding_ratio for other in others]),
            # They are in the order of their scores.
            -np.arange(len(others), dtype=np.float64),
            trial.binding_ratio,
        )
        if weights is None:
            return None
        reference = [
            (float(weight), other) for weight, other in zip(weights, others, strict=True) if weight > 0
        ]
        signals = [(weight, self._signals(answers_)) for weight, answers_ in reference]
        questions = [
            question
            for video in self._complete_videos(evaluation)
            for question in video
            if all(question.id in signal for _, signal in signals)
        ]
        if not questions:
            return None
        change = [
            self._signal(question, evaluation.answers[question.id])
            - sum(weight * signal[question.id] for weight, signal in signals)
            for question in questions
        ]
        found = pruner.interim_analysis(
            pruner.VideoSums.of(change, [question.video for question in questions]),
            len(self._study.videos_of("tune")),
            self._batch_videos,
        )
        if found is None or not found.inferior:
            return None
        return Pruned(
            max(reference, key=lambda item: item[0])[1].number,
            len({question.video for question in questions}),
        )

    def _complete_videos(self, evaluation: Evaluation) -> Iterator[list[StudyQuestion]]:
        """The questions of each tune video that is answered as a whole."""
        by_video: dict[str, list[StudyQuestion]] = {}
        for question in self._study.questions_of("tune"):
            if question.id in evaluation.fingerprints:
                by_video.setdefault(question.video, []).append(question)
        for questions in by_video.values():
            if all(question.id in evaluation.answers for question in questions):
                yield questions

    def _signal(self, question: StudyQuestion, answer: RecordedAnswer) -> float:
        result = judge(question, "tune", answer, self._baseline_answers[question.id])
        return graded(result, self._baseline[question.id])

    def _signals(self, trial: TrialRecord) -> dict[str, float]:
        """The graded signal of a completed trial, by tune question."""
        if trial.number not in self._signals_of:
            answers = self._trial_evaluation(trial).answers
            self._signals_of[trial.number] = {
                question.id: self._signal(question, answers[question.id])
                for question in self._study.questions_of("tune")
                if question.id in answers
            }
        return self._signals_of[trial.number]

    # Proposals

    def _next_trial(self) -> TrialRecord | None:
        """A new trial, written before it is evaluated; None after too many infeasible proposals in a row."""
        number = max(self._trials, default=-1) + 1
        rejected = [
            proposal
            for proposal in self._infeasible
            if proposal.search == self._search.id and proposal.number == number
        ]
        defaults = self._defaults
        if self._defaults_trial() is None and not any(
            proposal.proposed == {} and proposal.configuration == defaults.configuration
            for proposal in self._infeasible_of_search()
        ):
            if defaults.binding_ratio <= self._search.budget + TOLERANCE:
                return self._accept(number, defaults.configuration, defaults.binding_ratio)
            rejected.append(self._reject(number, 0, defaults.configuration, {}, defaults.binding_ratio))
        # What the sampler proposed before: AdaTP's defaults are not its own.
        index = self._proposed() - any(
            trial.search == self._search.id and trial.configuration == defaults.configuration
            for trial in self.trials
        )
        # Infeasible proposals of before the study changed its search space do not count in the new one.
        outdated = sum(not self._says_something(proposal) for proposal in rejected)
        while len(rejected) - outdated < MOST_INFEASIBLE:
            point = self._sampler.propose(
                self._space.ranges, self._observations(), self._search.seed, index, len(rejected)
            )
            candidate = self._space.candidate(point)
            if candidate.binding_ratio <= self._search.budget + TOLERANCE:
                return self._accept(number, candidate.configuration, candidate.binding_ratio)
            rejected.append(
                self._reject(number, len(rejected), candidate.configuration, point, candidate.binding_ratio)
            )
        return None

    def _accept(
        self, number: int, configuration: Configuration, binding_ratio: float, purpose: Purpose = "search"
    ) -> TrialRecord:
        self._store.propose(self._search, number, configuration, binding_ratio, purpose)
        trial = TrialRecord(number, self._search.id, configuration, binding_ratio, None, purpose)
        self._know(trial)
        return trial

    def _reject(
        self, number: int, attempt: int, configuration: Configuration, proposed: Point, binding_ratio: float
    ) -> InfeasibleRecord:
        infeasible = InfeasibleRecord(
            self._search.id, number, attempt, configuration, proposed, binding_ratio
        )
        self._store.record_infeasible(infeasible)
        self._infeasible.append(infeasible)
        return infeasible

    def _infeasible_of_search(self) -> list[InfeasibleRecord]:
        return [proposal for proposal in self._infeasible if proposal.search == self._search.id]

    def _says_something(self, proposal: InfeasibleRecord) -> bool:
        """Whether the search could propose it today."""
        if not proposal.proposed:
            return proposal.configuration == self._defaults.configuration
        return self._space.covers(proposal.proposed, proposal.configuration)

    def _defaults_trial(self) -> TrialRecord | None:
        defaults = self._defaults
        if defaults.binding_ratio > self._search.budget + TOLERANCE:
            return None
        return next((trial for trial in self.trials if trial.configuration == defaults.configuration), None)

    def _observations(self) -> list[Observation]:
        """What the sampler learns from, in order of number: finished trials, this search's infeasible
        proposals and its trials that workers are evaluating.

        Trials of other searches count where they have a place in this search's space, and where that
        search made each choice in every way listed now: forty trials with one value tell nothing of another,
        but a sampler takes what it is told of for what is worth proposing.
        """
        known: list[tuple[TrialRecord, Observation]] = []
        places: defaultdict[int, set[tuple[str, float]]] = defaultdict(set)
        bins = {name: range_ for name, range_ in self._space.ranges.items() if isinstance(range_, Bins)}
        for trial in self._eligible:
            own = trial.search == self._search.id
            # What another search left unfinished is not being evaluated.
            if self._pruned_by_outside(trial) or (trial.unfinished and not own):
                continue
            observation = self._observation(trial)
            if observation is not None:
                known.append((trial, observation))
                if not own and not trial.unfinished:
                    places[trial.search].update((name, observation.point[name]) for name in bins)
        wanted = {(name, place) for name, bin_ in bins.items() for place in bin_.places}
        complete = {search for search, seen in places.items() if wanted <= seen} | {self._search.id}
        told = [
            ((trial.number, 1, 0), observation) for trial, observation in known if trial.search in complete
        ]
        for proposal in self._infeasible_of_search():
            # AdaTP's defaults were not the sampler's proposal.
            if proposal.proposed and self._says_something(proposal):
                over = self._over_budget(proposal.binding_ratio)
                told.append(
                    (
                        (proposal.number, 0, proposal.attempt),
                        Observation(proposal.proposed, None, over, "infeasible"),
                    )
                )
        return [observation for _, observation in sorted(told, key=lambda item: item[0])]

    def _observation(self, trial: TrialRecord) -> Observation | None:
        """A trial as the sampler sees it; None where it has no place in this search's space."""
        trial_before, known = self._observed.get(trial.number, (None, None))
        if trial_before is trial:  # finding its point takes most of the time
            return known
        point = self._space.point(trial.configuration, trial.binding_ratio)
        found = None
        if point is not None:
            over = self._over_budget(trial.binding_ratio)
            if trial.outcome is not None:
                signal = trial.outcome.graded
                score = trial.outcome.accuracy if signal is None else signal
                found = Observation(point, (score, trial.binding_ratio), over)
            else:
                # What a pruned trial answered so far is not comparable with whole ones: it has no values.
                found = Observation(point, None, over, "pending" if trial.unfinished else "pruned")
        self._observed[trial.number] = (trial, found)
        return found

    def _over_budget(self, ratio: float) -> float:
        over = ratio - self._search.budget
        return 0.0 if over <= TOLERANCE else over
