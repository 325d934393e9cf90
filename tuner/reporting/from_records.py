"""From the records to what a run reports: nothing here loads a model or evaluates anything.

`tuner run` ends with it, `tuner status` and `tuner export` are it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.flops import ModelShape, VisionShape
from pipeline.methods import AdaTP
from tuner.errors import UserError
from tuner.evaluation.scoring import answer_cost, divergence, judge
from tuner.planning.planner import SPLITS, Planner
from tuner.planning.study_cost import study_cost
from tuner.records.database import default_database
from tuner.records.measurements import ModelUse, ServingCost
from tuner.records.store import Store
from tuner.records.values import (
    Goal,
    InfeasibleRecord,
    LookGoal,
    RecordedAnswer,
    SearchRecord,
    StudyRecord,
    TrialRecord,
    asked_hash,
)
from tuner.reporting.trial_table import front_numbers
from tuner.reporting.values import (
    HeldOut,
    HeldOutAnswer,
    InfeasibleProposal,
    PrunedTrial,
    RegressionRow,
    RunSummary,
    TagRow,
    Trial,
)
from tuner.reporting.wording import searched_for
from tuner.search.selection import Choice, HeldOutResults, Looks, choose, eligible, examine, level_of
from tuner.search.space import TOLERANCE, SearchSpace, allows, smallest_reachable
from tuner.statistics import paired
from tuner.statistics.guessing import against_guessing
from tuner.statistics.margin import MaxDrop
from tuner.statistics.values import Measured, Verdict
from tuner.study import Study, StudyQuestion
from tuner.study.values import AnswerCost, Binding, Configuration, Outcome, QuestionResult, Setting, Split


@dataclass(frozen=True)
class SearchStatus:
    """How far a search has come."""

    budget: float
    seed: int
    coordinates: str
    trials_asked: int
    trials_completed: int
    infeasible: int
    # What the search has come to, as `tuner run` and `tuner export` say it; None where nothing fits.
    best: Trial | None
    # Its outcome on the held-out split; None until it is there.
    held_out: Outcome | None
    # Pruned trials.
    trials_pruned: int = 0
    goal: Goal = "budget"
    # The largest drop as asked for, and whether `best` is shown to stay within it.
    max_drop: str = ""
    verdict: Verdict = "untested"


@dataclass(frozen=True)
class Status:
    """How far a study has come; read while a run writes, too."""

    study: str
    study_hash: str
    database: str
    baseline_questions: int
    baseline_answered: int
    trials_completed: int
    trials_unfinished: int
    answers: int
    searches: tuple[SearchStatus, ...]
    # Pruned trials.
    trials_pruned: int = 0
    # Questions that are left out: reasons by id.
    quarantined: dict[str, str] = field(default_factory=dict)


class Results:
    """The judged answers of one study, by configuration; each is read once, when it is first asked for."""

    def __init__(self, study: Study, store: Store, planner: Planner) -> None:
        # Of a question whose video could not be read nothing is recorded.
        recorded = {question.id for question in planner.questions}
        left_out = {question.id for question in study.questions if question.id not in recorded}
        self._study = study.without(left_out | set(store.quarantined()))
        self._store = store
        self._planner = planner
        self._answers_of: dict[tuple[Configuration | None, Split], dict[str, RecordedAnswer]] = {}
        self._results_of: dict[tuple[Configuration | None, Split], list[QuestionResult]] = {}

    def _answers(self, configuration: Configuration | None, split: Split) -> dict[str, RecordedAnswer]:
        if (configuration, split) not in self._answers_of:
            method = None if configuration is None else configuration.build()
            ids = [question.id for question in self._study.questions_of(split)]
            found = self._store.answers(zip(ids, self._planner.fingerprints(method, ids), strict=True))
            self._answers_of[configuration, split] = {name: answer for (name, _), answer in found.items()}
        return self._answers_of[configuration, split]

    @property
    def study(self) -> Study:
        """The study whose questions these are."""
        return self._study

    def answered(self) -> int:
        """Questions with a baseline answer."""
        return sum(len(self._answers(None, split)) for split in SPLITS)

    def of(self, configuration: Configuration | None, split: Split) -> list[QuestionResult]:
        """Judged answers in the study's order; None is the baseline. Unanswered questions are left out."""
        if (configuration, split) not in self._results_of:
            answers, baseline = self._answers(configuration, split), self._answers(None, split)
            self._results_of[configuration, split] = [
                judge(question, split, answers[question.id], baseline[question.id])
                for question in self._study.questions_of(split)
                if question.id in answers and question.id in baseline
            ]
        return self._results_of[configuration, split]


def make_planner(record: StudyRecord) -> Planner:
    """The planner over a study's stored layouts."""
    return Planner(record.questions, shape_from(record.shape), record.fingerprint_base)


def shape_from(values: dict[str, Any]) -> ModelShape:
    """The model's shape as `dataclasses.asdict` stored it."""
    vision = values.get("vision")
    return ModelShape(**{**values, "vision": None if vision is None else VisionShape(**vision)})


def setting_from(values: dict[str, Any]) -> Setting | None:
    """The setting as `dataclasses.asdict` stored it; None where none was."""
    return Setting(**{**values, "pruning_layers": tuple(values["pruning_layers"])}) if values else None


def chosen(study: Study, store: Store, planner: Planner, search: SearchRecord) -> Choice | None:
    """What a search has come to, as far as the held-out split was asked; None where nothing fits."""
    return _chosen(search, store, Results(study, store, planner), store.trials())


def choices_of(study: Study, store: Store, record: StudyRecord) -> dict[int, Choice]:
    """What each search has come to, by the search's id; those where nothing fits are left out."""
    return _choices(store, Results(study, store, make_planner(record)), store.trials())


def _choices(store: Store, results: Results, trials: Sequence[TrialRecord]) -> dict[int, Choice]:
    found = {search.id: _chosen(search, store, results, trials) for search in store.searches()}
    return {search: choice for search, choice in found.items() if choice is not None}


def _chosen(
    search: SearchRecord, store: Store, results: Results, trials: Sequence[TrialRecord]
) -> Choice | None:
    """As far as looks were recorded: who reads results takes no look that `tuner run` did not take."""
    found = _choice(search, store, results, trials, taken=True)
    if found is None or not found.tested or found.recorded:
        return found
    return _choice(search, store, results, trials, taken=False)


def _held_out_of(results: Results, measured: Mapping[Configuration, Outcome]) -> HeldOutResults:
    """The held-out answers of the baseline, and of configurations that are among `measured`."""

    def held_out_of(configuration: Configuration | None) -> list[QuestionResult] | None:
        if configuration is not None and configuration not in measured:
            return None
        return results.of(configuration, "held_out")

    return held_out_of


def choice_of_trial(
    study: Study, store: Store, planner: Planner, search: SearchRecord, number: int
) -> Choice:
    """What held-out videos say of a trial that a person chose, at the search's margin.

    Errors: UserError where there is no such trial, or it cannot be chosen.
    """
    return _choice_of_trial(search, store, Results(study, store, planner), number)


def _choice_of_trial(search: SearchRecord, store: Store, results: Results, number: int) -> Choice:
    return examine(
        complete_trial(store.trials(), results.study, number),
        MaxDrop.parse(search.max_drop),
        _held_out_of(results, store.measured()),
        store.looks(),
        {search.id for search in store.searches()},
    )


def complete_trial(trials: Sequence[TrialRecord], study: Study, number: int) -> TrialRecord:
    """The trial of this number. Errors: UserError where there is none that can be chosen."""
    trial = next((trial for trial in trials if trial.number == number), None)
    if trial is None:
        known = f"0 to {trials[-1].number}" if trials else "none"
        raise UserError(f"the study {study.name!r} has no trial {number}; its trials are {known}")
    if trial.pruned is not None:
        raise UserError(
            f"trial {number} was stopped after {trial.pruned.videos} videos, because trial "
            f"{trial.pruned.by} did better at its cost: what it answers is not known"
        )
    if trial.outcome is None:
        raise UserError(f"trial {number} is not complete: `tuner run` finishes it")
    if not allows(study.search, trial.configuration):
        raise UserError(f"study.yaml does not allow the knobs or choices of trial {number} any more")
    return trial


def _choice(
    search: SearchRecord, store: Store, results: Results, trials: Sequence[TrialRecord], *, taken: bool
) -> Choice | None:
    """taken: with the held-out answers of configurations, not of the baseline alone."""
    return choose(
        eligible(trials, results.study.search),
        search.goal,
        search.budget,
        MaxDrop.parse(search.max_drop),
        results.of(None, "tune"),
        _held_out_of(results, store.measured() if taken else {}),
        Looks.of(store.looks(), search),
    )


def summarise(
    study: Study, store: Store, record: StudyRecord, search: SearchRecord, *, trial: int | None = None
) -> RunSummary:
    """What a search has come to so far, or what there is to say of that trial in its place. `store` has found
    `record`.

    Errors: UserError where there is no such trial, or it cannot be chosen.
    """
    planner = make_planner(record)
    results = Results(study, store, planner)
    # Without the questions that are left out: all numbers are about the same ones.
    study = results.study
    quarantined = store.quarantined()
    recorded = store.trials()
    allowed = eligible(recorded, study.search)
    completed = [trial for trial in allowed if trial.outcome is not None]
    # A configuration that another search tried for its front counts here where it fits this budget.
    above = [trial for trial in completed if trial.purpose == "above" and not _fits(trial, search.budget)]
    trials = [trial for trial in completed if trial not in above]
    kept = {trial.number for trial in allowed}
    outside = [trial for trial in recorded if trial.outcome is not None and trial.number not in kept]
    infeasible = [proposal for proposal in store.infeasible() if proposal.search == search.id]
    measured = store.measured()
    baseline = {split: unpruned_share(study, results.of(None, split)) for split in _splits(study)}
    choice = _chosen(search, store, results, recorded)
    if trial is not None:
        choice = _choice_of_trial(search, store, results, trial)
        if not choice.recorded:  # a reader takes no look
            choice = replace(choice, verdict="untested", tested=())
    goal: LookGoal = search.goal if trial is None else "trial"
    best = None if choice is None else choice.trial
    wanted = SearchSpace(planner, study.search, search.budget, search.goal).defaults().configuration
    defaults = next((trial for trial in trials if trial.configuration == wanted), None)
    best_measured = best is not None and best.configuration in measured
    lost: tuple[RegressionRow, ...] = ()
    gained: tuple[RegressionRow, ...] = ()
    if best is not None and best_measured:
        lost, gained = flips(results, best.configuration)
    asked = _asked(store)
    shared = _shared([*completed, *outside], store.trial_use())
    noise, cache_use = store.noise(), store.cache_use()
    return RunSummary(
        study=study.name,
        owner=store.owner,
        study_hash=record.hash,
        budget=search.budget,
        seed=search.seed,
        baseline=baseline,
        trials=tuple(_trial(trial, search.budget) for trial in trials),
        best=None if best is None else _trial(best, search.budget),
        best_held_out=_held_out(best, measured, results),
        defaults=None if defaults is None else _trial(defaults, search.budget),
        defaults_held_out=_held_out(defaults, measured, results),
        binds=None if best is None else _binds(best.configuration, planner),
        regressions=lost,
        gains=gained,
        closest=_closest(
            trials, [proposal for proposal in infeasible if allows(study.search, proposal.configuration)]
        )
        if best is None
        else None,
        infeasible=len(infeasible),
        shared_answers=shared,
        evaluated_answers=asked.answers,
        skipped_videos=tuple(video["name"] for video in record.skipped),
        quarantined=quarantined,
        smallest_reachable=smallest_reachable(planner, study.search),
        choices=tuple(name for name, _ in study.search.choices),
        setting=setting_from(record.setting),
        baseline_cost=_baseline_cost(results, "held_out"),
        serving=None if best is None else _serving(best.configuration, planner, store),
        verdict="untested" if choice is None else choice.verdict,
        max_drop=search.max_drop,
        margin=None if choice is None else choice.margin,
        tested=() if choice is None else choice.tested,
        looks=tuple(look for _, look in store.looks()),
        look=1 if choice is None else choice.look,
        provable_drop=_provable_drop(study, goal, 1 if choice is None else choice.look),
        loss_correlation=_loss_correlation(best.configuration, results)
        if best is not None and best_measured
        else None,
        over_defaults=None
        if best is None or defaults is None
        else _over(best.configuration, defaults.configuration, measured, results),
        noise=noise,
        pruned=tuple(
            PrunedTrial(
                trial.number, trial.configuration, trial.binding_ratio, trial.pruned.by, trial.pruned.videos
            )
            for trial in allowed
            if trial.pruned is not None
        ),
        outside=tuple(_trial(trial, search.budget) for trial in outside),
        above=tuple(_trial(trial, search.budget) for trial in above),
        goal=search.goal,
        sampler=search.sampler,
        space=search.coordinates,
        cost=study_cost(
            planner,
            recorded,
            measured,
            answers=asked.answers,
            shared=shared,
            prefixes=None if cache_use is None else cache_use.prefixes_built,
            noise=noise,
            seconds=asked.seconds,
        ),
        videos=len({question.video for question in record.questions}),
        held_out_videos=len({question.video for question in study.questions_of("held_out")}),
        cache_use=cache_use,
        guessing=against_guessing(study, [item for split in baseline for item in results.of(None, split)]),
        chosen_by_hand=trial is not None,
        own=frozenset(trial.number for trial in recorded if trial.search == search.id),
        ended=_ended(search, recorded) and (best is None or best_measured),
        answers=_held_out_answers(best.configuration, results, record.parts["videos"])
        if best is not None and best_measured
        else (),
    )


def _ended(search: SearchRecord, trials: Sequence[TrialRecord]) -> bool:
    own = [trial for trial in trials if trial.search == search.id]
    asked = sum(item.purpose == "search" for item in own) >= search.trials
    return asked and not any(item.unfinished for item in own)


def _paired(
    configuration: Configuration, results: Results
) -> tuple[list[QuestionResult], list[QuestionResult]]:
    """Held-out results of the configuration and of the baseline, question by question."""
    before = {answer.question: answer for answer in results.of(None, "held_out")}
    after = results.of(configuration, "held_out")
    return after, [before[answer.question] for answer in after]


def _held_out_answers(
    configuration: Configuration, results: Results, contents: Mapping[str, str]
) -> tuple[HeldOutAnswer, ...]:
    pairs = zip(*_paired(configuration, results), strict=True)
    return tuple(
        HeldOutAnswer(
            after.question,
            asked_hash(results.study.question(after.question), contents[after.video]),
            after.text,
            before.text,
        )
        for after, before in pairs
    )


def _provable_drop(study: Study, goal: LookGoal, look: int) -> float | None:
    videos = [question.video for question in study.questions_of("held_out")]
    return paired.provable_drop(videos, level=level_of(goal, look)) if videos else None


def loss_correlation(study: Study, store: Store, planner: Planner) -> float | None:
    """Of lost held-out answers within a video, for the trial of the latest look; None before the first."""
    looks = store.looks()
    if not looks:
        return None
    _, look = looks[-1]
    trial = next((trial for trial in store.trials() if trial.number == look.trial), None)
    if trial is None or trial.configuration not in store.measured():
        return None
    return _loss_correlation(trial.configuration, Results(study, store, planner))


def _loss_correlation(configuration: Configuration, results: Results) -> float | None:
    after, before = _paired(configuration, results)
    now, was = ([answer.correct for answer in split] for split in (after, before))
    return paired.correlation(now, was, [answer.video for answer in after])


def _over(
    best: Configuration, defaults: Configuration, measured: Mapping[Configuration, Outcome], results: Results
) -> Measured | None:
    """Held-out accuracy of the best minus that of the defaults, paired; None where one was not measured."""
    if best not in measured or defaults not in measured:
        return None
    before = {answer.question: answer.correct for answer in results.of(defaults, "held_out")}
    after = results.of(best, "held_out")
    return paired.difference(
        [answer.correct for answer in after],
        [before[answer.question] for answer in after],
        [answer.video for answer in after],
    )


def load_summary(
    study: Study,
    *,
    budget: float | None = None,
    seed: int | None = None,
    database: str | None = None,
    trial: int | None = None,
) -> RunSummary:
    """The summary of the study's latest search, or of the latest with this budget and seed; with that trial
    in the place of what the search has come to.

    Errors: UserError when the study was never run, or has no such search or trial.
    """
    with _recorded(study, database) as (store, record):
        search = find_search(study, store, budget=budget, seed=seed)
        return summarise(study, store, record, search, trial=trial)


def front_trials(
    study: Study,
    most: int,
    *,
    budget: float | None = None,
    seed: int | None = None,
    database: str | None = None,
) -> tuple[int, ...]:
    """Numbers of up to so many trials within the budget: what the search has come to, then the others on the
    front of accuracy against FLOPs ratio (tune videos), the most accurate first.

    Errors: as `load_summary`.
    """
    with _recorded(study, database) as (store, record):
        summary = summarise(study, store, record, find_search(study, store, budget=budget, seed=seed))
    fitting = {trial.number: trial.outcome for trial in summary.trials if trial.within_budget}
    front = front_numbers((number, trial.accuracy, trial.flops_ratio) for number, trial in fitting.items())
    rest = sorted(front, key=lambda number: (-fitting[number].accuracy, fitting[number].flops_ratio, number))
    first = [] if summary.best is None else [summary.best.number]
    return tuple(dict.fromkeys([*first, *rest]))[:most]


def find_search(
    study: Study, store: Store, *, budget: float | None = None, seed: int | None = None
) -> SearchRecord:
    """The study's latest search, or the latest with this budget and seed.

    Errors: UserError where there is none.
    """
    return find_searches(store, study.name, budget=budget, seed=seed)[-1]


def find_summary(study: Study, *, budget: float, database: str | None = None) -> RunSummary | None:
    """The summary of the study's latest search with this budget; None where there is none.

    Errors: UserError when the study was never run.
    """
    with _recorded(study, database) as (store, record):
        searches = [
            search for search in store.searches() if search.goal == "budget" and search.budget == budget
        ]
        return summarise(study, store, record, searches[-1]) if searches else None


def load_summaries(
    study: Study,
    *,
    budget: float | None = None,
    seed: int | None = None,
    database: str | None = None,
) -> tuple[RunSummary, ...]:
    """The summaries of the study's searches, or of those with this budget and seed, the latest at the end.

    Errors: as `load_summary`.
    """
    with _recorded(study, database) as (store, record):
        searches = find_searches(store, study.name, budget=budget, seed=seed)
        return tuple(summarise(study, store, record, search) for search in searches)


def find_searches(
    store: Store, study: str, *, budget: float | None = None, seed: int | None = None
) -> list[SearchRecord]:
    """The study's searches, or those with this budget and seed, the latest at the end.

    Errors: UserError where there is none.
    """
    known = store.searches()
    found = [
        search
        for search in known
        if (budget is None or search.budget == budget) and (seed is None or search.seed == seed)
    ]
    if not known:
        raise UserError(f"nothing was searched in the study {study!r} yet: `tuner run` does that")
    if not found:
        told = ", ".join(
            f"{searched_for(search.goal, search.budget, search.max_drop)} "
            f"(--budget {search.budget:g} --seed {search.seed})"
            for search in known
        )
        raise UserError(f"the study {study!r} has no such search; its searches are: {told}")
    return found


@contextmanager
def _recorded(study: Study, database: str | None) -> Iterator[tuple[Store, StudyRecord]]:
    with Store.open(database or default_database(study.name), create=False) as store:
        yield store, store.require(study.name)


def status_of(study: Study, store: Store, record: StudyRecord) -> Status:
    """How far a study has come. `store` has found `record`."""
    results = Results(study, store, make_planner(record))
    trials, infeasible, measured = store.trials(), store.infeasible(), store.measured()
    choices = _choices(store, results, trials)
    completed = [trial for trial in trials if trial.outcome is not None]
    quarantined = store.quarantined()
    searches = []
    for search in store.searches():
        choice = choices.get(search.id)
        best = None if choice is None else choice.trial
        searches.append(
            SearchStatus(
                budget=search.budget,
                seed=search.seed,
                coordinates=search.coordinates,
                trials_asked=search.trials,
                trials_completed=sum(
                    trial.search == search.id and trial.purpose == "search" for trial in completed
                ),
                infeasible=sum(proposal.search == search.id for proposal in infeasible),
                best=None if best is None else _trial(best, search.budget),
                held_out=None if best is None else measured.get(best.configuration),
                trials_pruned=sum(trial.search == search.id and trial.pruned is not None for trial in trials),
                goal=search.goal,
                max_drop=search.max_drop,
                verdict="untested" if choice is None else choice.verdict,
            )
        )
    return Status(
        study=record.name,
        study_hash=record.hash,
        database=store.url,
        baseline_questions=sum(question.id not in quarantined for question in record.questions),
        baseline_answered=results.answered(),
        trials_completed=sum(trial.purpose == "search" for trial in completed),
        trials_unfinished=sum(trial.unfinished for trial in trials),
        answers=_asked(store).answers,
        searches=tuple(searches),
        trials_pruned=sum(trial.pruned is not None for trial in trials),
        quarantined=quarantined,
    )


def _splits(study: Study) -> tuple[Split, ...]:
    return tuple(split for split in SPLITS if study.questions_of(split))


def unpruned_share(study: Study, results: Sequence[QuestionResult]) -> Measured:
    """The unpruned model's accuracy; without labels it agrees with itself by definition, so that there is no
    interval.
    """
    if not results:
        return Measured(float("nan"))
    if not study.labelled:
        return Measured(1.0)
    return paired.share([result.correct for result in results], [result.video for result in results])


def _baseline_cost(results: Results, split: Split) -> AnswerCost | None:
    unpruned = results.of(None, split)
    return answer_cost(unpruned) if unpruned else None


def _serving(configuration: Configuration, planner: Planner, store: Store) -> ServingCost:
    return planner.serving(configuration.build(), store.serving(configuration))


def _trial(trial: TrialRecord, budget: float) -> Trial:
    assert trial.outcome is not None
    return Trial(trial.number, trial.configuration, trial.outcome, _fits(trial, budget))


def _fits(trial: TrialRecord, budget: float) -> bool:
    return trial.binding_ratio <= budget + TOLERANCE


def _held_out(
    trial: TrialRecord | None, measured: dict[Configuration, Outcome], results: Results
) -> HeldOut | None:
    if trial is None or trial.configuration not in measured:
        return None
    return held_out(trial.configuration, measured[trial.configuration], results)


def held_out(configuration: Configuration, outcome: Outcome, results: Results) -> HeldOut:
    """A configuration's outcome on the held-out split with the intervals that belong beside it."""
    after, before = _paired(configuration, results)
    right, right_before = [answer.correct for answer in after], [answer.correct for answer in before]
    videos = [answer.video for answer in after]
    lost = [was and not now for was, now in zip(right_before, right, strict=True)]
    apart = [
        change
        for change in (divergence(was, now) for was, now in zip(before, after, strict=True))
        if change is not None
    ]
    return HeldOut(
        configuration=configuration,
        outcome=outcome,
        accuracy=paired.share(right, videos),
        difference=paired.difference(right, right_before if results.study.labelled else None, videos),
        p_value=paired.sign_flip_p_value(right, right_before, videos),
        regression_rate=paired.share(lost, videos),
        mcnemar_p=paired.mcnemar_p_value(right, right_before),
        divergence=math.fsum(apart) / len(apart) if apart else None,
        by_tag=_by_tag(results.study, after, before),
    )


def _by_tag(
    study: Study, after: Sequence[QuestionResult], before: Sequence[QuestionResult]
) -> tuple[TagRow, ...]:
    """A row for each value of each tag that the questions carry."""
    groups: dict[tuple[str, str], list[tuple[QuestionResult, QuestionResult]]] = {}
    for pair in zip(after, before, strict=True):
        for tag in study.question(pair[0].question).tags.items():
            groups.setdefault(tag, []).append(pair)
    rows = []
    for (key, value), pairs in sorted(groups.items()):
        now, was = [row.correct for row, _ in pairs], [answer.correct for _, answer in pairs]
        videos = [row.video for row, _ in pairs]
        rows.append(
            TagRow(
                key=key,
                value=value,
                questions=len(pairs),
                videos=len(set(videos)),
                baseline=sum(was) / len(pairs),
                accuracy=sum(now) / len(pairs),
                difference=paired.difference(now, was if study.labelled else None, videos),
                lost=sum(before_ and not other for before_, other in zip(was, now, strict=True)),
                gained=sum(other and not before_ for before_, other in zip(was, now, strict=True)),
            )
        )
    return tuple(rows)


def _binds(configuration: Configuration, planner: Planner) -> Binding | None:
    method = configuration.build()
    if not isinstance(method, AdaTP):
        return None
    return method.binds if planner.boosts(method) else "none"


def flips(
    results: Results, configuration: Configuration
) -> tuple[tuple[RegressionRow, ...], tuple[RegressionRow, ...]]:
    """Held-out questions that pruning decides, in the study's order: regressions, and gains, which the
    baseline had wrong and the configuration has right.
    """
    pairs = zip(*_paired(configuration, results), strict=True)
    decided = [(after, before) for after, before in pairs if after.correct != before.correct]
    lost, gained = (
        tuple(
            _regression(results.study.question(after.question), before, after)
            for after, before in decided
            if after.correct is correct
        )
        for correct in (False, True)
    )
    return lost, gained


def _regression(question: StudyQuestion, before: QuestionResult, after: QuestionResult) -> RegressionRow:
    return RegressionRow(
        question=question.id,
        video=question.video,
        text=question.text,
        options=question.options or (),
        answer=before.text if question.answer is None else question.answer,
        baseline_text=before.text,
        baseline_margin=_margin(question, before, before),
        pruned_text=after.text,
        pruned_margin=_margin(question, before, after),
        tags=dict(question.tags),
    )


def _margin(question: StudyQuestion, before: QuestionResult, result: QuestionResult) -> float | None:
    """How much more probable the right option is than the best other one, in natural logarithms."""
    if question.options is None or result.option_logprobs is None:
        return None
    right = before.option if question.answer is None else question.options.index(question.answer)
    others = [value for index, value in enumerate(result.option_logprobs) if index != right]
    return None if right is None else result.option_logprobs[right] - max(others)


def _closest(
    trials: Sequence[TrialRecord], infeasible: Iterable[InfeasibleRecord]
) -> InfeasibleProposal | None:
    tried = [InfeasibleProposal(trial.configuration, trial.binding_ratio) for trial in trials]
    tried += [InfeasibleProposal(proposal.configuration, proposal.binding_ratio) for proposal in infeasible]
    return min(tried, key=lambda configuration: configuration.flops_ratio, default=None)


def _asked(store: Store) -> ModelUse:
    """Of the study's answers; the noise floor's are kept nowhere."""
    return sum((took for kind, took in store.model_use().items() if kind != "noise"), ModelUse())


def _shared(completed: Sequence[TrialRecord], use: Mapping[int, ModelUse]) -> int:
    """Answers that completed trials found in the records instead of asking for them."""
    judged = sum(trial.outcome.questions for trial in completed if trial.outcome is not None)
    asked = sum(use.get(trial.number, ModelUse()).answers for trial in completed)
    return max(0, judged - asked)
