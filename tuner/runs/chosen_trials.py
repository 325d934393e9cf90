"""Trials that a person chose, measured on the held-out videos: a look of its own for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tuner.evaluation.progress import NoProgress, Progress
from tuner.reporting.from_records import choice_of_trial, complete_trial, find_search
from tuner.runs.run import RunOptions, prepared
from tuner.study import Study


def measure_trials(
    study: Study,
    numbers: Sequence[int],
    options: RunOptions,
    progress: Progress | None = None,
    *,
    seed: int | None = None,
) -> None:
    """Asks what is missing of these trials' held-out answers, tests each at the margin of the latest search
    (or the latest with the options' budget and this seed), and records that as a look at the held-out videos.
    A trial that was tested at this margin before is not tested again.

    Errors: as `run`, and UserError where there is no such search or trial, or it cannot be chosen.
    """
    # Trials beyond the search's budget can be chosen, too.
    with prepared(study, replace(options, budget=None), progress or NoProgress()) as session:
        study, store, planner = session.study, session.store, session.planner
        search = find_search(study, store, budget=options.budget, seed=seed)
        trials = store.trials()
        wanted = [complete_trial(trials, study, number).configuration for number in numbers]
        session.execute(session.beside(wanted))
        completed = sum(trial.outcome is not None for trial in trials)
        for number in numbers:
            choice = choice_of_trial(study, store, planner, search, number)
            if choice.tested and not choice.recorded:
                store.record_look(
                    search,
                    completed,
                    number,
                    choice.verdict,
                    level=choice.level,
                    candidates=[number],
                    goal="trial",
                )
