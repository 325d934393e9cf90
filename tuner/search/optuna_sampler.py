"""Proposals by Optuna: the only module that imports it.

Nothing is kept between two proposals. Each rebuilds an in-memory study from our records (12 ms for 300
trials) and seeds its sampler from (seed, trial number, attempt): what is proposed depends on the evidence
alone, so a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner.search.evidence import Evidence
from tuner.search.space import Point, Range

CONSTRAINT = "flops_ratio - budget"

# Proposals drawn at random before the sampler models anything.
STARTUP_TRIALS = 10

# TPE models a tenth of all trials it is told of as good, and fills that group with infeasible ones when the
# feasible ones do not suffice. Never telling more than nine infeasible ones per feasible one keeps it clean.
INFEASIBLE_PER_FEASIBLE = 9


@dataclass(frozen=True)
class OptunaSampler:
    """Multi-objective TPE: accuracy up, FLOPs ratio down, the ratio constrained to the budget."""

    startup_trials: int = STARTUP_TRIALS

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def propose(
        self, ranges: Mapping[str, Range], evidence: Sequence[Evidence], seed: int, number: int, attempt: int
    ) -> Point:
        """The point to try as trial `number`, after `attempt` proposals for it were refused."""
        distributions = distributions_of(ranges)
        study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=self._sampler(_mixed(seed, number, attempt))
        )
        study.add_trials([_told(one, distributions) for one in told(evidence)])
        trial = study.ask(distributions)
        return {name: float(trial.params[name]) for name in ranges}

    def _sampler(self, seed: int) -> BaseSampler:
        return TPESampler(n_startup_trials=self.startup_trials, seed=seed, multivariate=True)


def distributions_of(ranges: Mapping[str, Range]) -> dict[str, BaseDistribution]:
    """The ranges as Optuna knows them."""
    return {name: FloatDistribution(one.low, one.high) for name, one in ranges.items()}


def told(evidence: Sequence[Evidence]) -> list[Evidence]:
    """The evidence the sampler gets to see, in order: all that is feasible, of the rest the latest."""
    infeasible = [index for index, one in enumerate(evidence) if one.over_budget > 0]
    allowed = INFEASIBLE_PER_FEASIBLE * sum(one.over_budget <= 0 for one in evidence)
    dropped = set(infeasible[: max(0, len(infeasible) - allowed)])
    return [one for index, one in enumerate(evidence) if index not in dropped]


def _told(one: Evidence, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    # A refused proposal has no values, and none are invented: it is a pruned trial with its constraint.
    return create_trial(
        state=TrialState.PRUNED if one.values is None else TrialState.COMPLETE,
        values=one.values,
        params=dict(one.point),
        distributions=dict(distributions),
        constraints={CONSTRAINT: one.over_budget},
    )


def _mixed(seed: int, number: int, attempt: int) -> int:
    return int(np.random.SeedSequence([seed, number, attempt]).generate_state(1)[0])
