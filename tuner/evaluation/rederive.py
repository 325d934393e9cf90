"""What a changed definition of a study makes of its trials: outcomes follow from answers and labels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tuner.evaluation.scoring import judge, outcome
from tuner.planning.planner import Planner
from tuner.records.store import Store
from tuner.records.values import Derived, RecordedAnswer
from tuner.study import Study
from tuner.study.values import Configuration, Outcome, Split


@dataclass(frozen=True)
class Rederived:
    """For `Store.revise`; and of the answers that the baseline, the trials and what was measured need under
    the new definition, how many there are already.
    """

    trials: dict[int, Derived]
    measured: dict[Configuration, Outcome | None]
    needed: int
    found: int


def rederive(
    study: Study, store: Store, planner: Planner, quarantined: Collection[str] | None = None
) -> Rederived:
    """All of it anew, without a model; `store` has registered the definition that `planner` plans.

    quarantined: questions to leave out; None: those that the records leave out.

    A trial without an outcome, be it that answers are missing or that it was pruned, is finished by the next
    run; that begins with looking whether it is to be pruned.
    """
    study = study.without(store.quarantined() if quarantined is None else quarantined)
    ids = [question.id for question in study.questions]

    def answers(configuration: Configuration | None, questions: list[str]) -> dict[str, RecordedAnswer]:
        method = None if configuration is None else configuration.build()
        pairs = zip(questions, planner.fingerprints(method, questions), strict=True)
        return {question: answer for (question, _), answer in store.answers(pairs).items()}

    before = answers(None, ids)
    needed, found = len(ids), len(before)
    complete = len(before) == len(ids)
    baseline = {
        question.id: judge(question, study.split_of(question), before[question.id])
        for question in study.questions
        if question.id in before
    }

    def derived(configuration: Configuration, split: Split) -> Outcome | None:
        nonlocal needed, found
        questions = study.questions_of(split)
        given = answers(configuration, [question.id for question in questions])
        needed, found = needed + len(questions), found + len(given)
        if not complete or len(given) < len(questions):
            return None
        results = [judge(question, split, given[question.id], before[question.id]) for question in questions]
        return outcome(split, planner.cost(configuration.build()).compute[split], results, baseline)

    trials = {}
    for trial in store.trials():
        trials[trial.number] = Derived(
            planner.binding_ratio(trial.configuration.build()),
            None if trial.pruned is not None else derived(trial.configuration, "tune"),
        )
    measured = {configuration: derived(configuration, "held_out") for configuration in store.measured()}
    return Rederived(trials, measured, needed, found)
