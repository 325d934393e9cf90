"""What Optuna does for us, proposals and PED-ANOVA: the only module that imports it.

Nothing is kept between two proposals. Each builds an in-memory study from our records and seeds its sampler
from (seed, index, attempt): a proposal depends on the observations alone, so a run that was killed goes on
as if it had not been. The time of a proposal is bounded, because the sampler is told of so many observations
at most (`told`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner.errors import UserError
from tuner.search.sampler import SAMPLERS, Observation, Sampler, SamplerName
from tuner.search.space import Bins, Point, Range

CONSTRAINT = "flops_ratio - budget"

# Proposals drawn at random before the sampler models anything.
STARTUP_TRIALS = 10

# TPE models a tenth of all trials it is told of as good, and fills that group with pruned and infeasible
# ones when those that completed within the budget do not suffice. Never telling more than nine of the others
# per completed one keeps it clean.
OTHERS_PER_COMPLETED = 9

# The most trials TPE is told of: completed within the budget, and of all others. What a proposal costs grows
# with their number. (Up to about 300 trials, with half of them pruned, nothing is left out.)
MOST_COMPLETED = 150
MOST_OTHERS = 150


@dataclass(frozen=True)
class OptunaSampler:
    """Accuracy up, FLOPs ratio down, the ratio constrained to the budget.

    tpe     multi-objective TPE; learns from pruned and infeasible trials too, and keeps away from pending
            ones (`constant_liar`)
    random  uniform: the baseline that TPE is measured against
    """

    name: SamplerName = "tpe"
    startup_trials: int = STARTUP_TRIALS

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def propose(
        self,
        ranges: Mapping[str, Range],
        observations: Sequence[Observation],
        seed: int,
        index: int,
        attempt: int,
    ) -> Point:
        """See `Sampler.propose`."""
        distributions = distributions_of(ranges)
        mixed = _mixed(seed, index, attempt)
        sampler: BaseSampler = RandomSampler(seed=mixed)
        if self.name == "tpe":
            sampler = TPESampler(
                n_startup_trials=self.startup_trials, seed=mixed, multivariate=True, constant_liar=True
            )
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        if self.name == "tpe":
            study.add_trials([_trial(observation, distributions) for observation in told(observations)])
        trial = study.ask(distributions)
        return {name: float(trial.params[name]) for name in ranges}


def make_sampler(name: SamplerName, startup: int = STARTUP_TRIALS) -> Sampler:
    """The sampler of this name; it models nothing before `startup` trials are there.

    Errors: UserError for an unknown name.
    """
    if name not in SAMPLERS:
        raise UserError(f"the samplers are {', '.join(SAMPLERS)}, but got {name!r}")
    return OptunaSampler(name, startup)


def distributions_of(ranges: Mapping[str, Range]) -> dict[str, BaseDistribution]:
    """The ranges as Optuna knows them; values without an order are categories."""
    return {
        name: CategoricalDistribution(range_.places)
        if isinstance(range_, Bins)
        else FloatDistribution(range_.low, range_.high)
        for name, range_ in ranges.items()
    }


def told(observations: Sequence[Observation]) -> list[Observation]:
    """The observations TPE is told of, in order: every pending trial, and a bounded number of the others.

    Of the trials that completed within the budget the best half of `MOST_COMPLETED` and the latest ones; of
    the rest the latest. The good group of TPE, a tenth of what it is told, rounded up, then holds nothing but
    trials within the budget, and the best of the search are always among them.
    """
    within, others, kept = list[int](), list[int](), set[int]()
    for index, observation in enumerate(observations):
        if observation.state == "pending":
            kept.add(index)
        elif observation.values is not None and observation.over_budget <= 0:
            within.append(index)
        else:
            others.append(index)
    if len(within) > MOST_COMPLETED:
        best = leading([observations[index].values or (0.0, 0.0) for index in within], MOST_COMPLETED // 2)
        elite = {within[place] for place in best}
        rest = [index for index in within if index not in elite]
        within = [*elite, *rest[len(elite) - MOST_COMPLETED :]]
    allowed = min(MOST_OTHERS, OTHERS_PER_COMPLETED * len(within))
    kept.update(within, others[max(0, len(others) - allowed) :])
    return [observations[index] for index in sorted(kept)]


def leading(values: Sequence[tuple[float, float]], count: int) -> list[int]:
    """Positions of the first `count` by non-domination rank; within the last rank taken, the latest ones.

    values: (score, FLOPs ratio), the score to be high and the ratio low. Of equal values each later one ranks
    one lower.
    """
    score, ratio = np.array(values).T
    left = np.lexsort((-score, ratio))
    found = list[int]()
    while left.size and len(found) < count:
        # In order of the ratio, a trial is on the front where it scores more than all before it.
        highest = np.maximum.accumulate(score[left])
        front = score[left] > np.concatenate(([-np.inf], highest[:-1]))
        found += sorted(left[front].tolist(), reverse=True)
        left = left[~front]
    return found[:count]


_STATES = {
    "completed": TrialState.COMPLETE,
    # Neither has values, and none are invented: a pruned trial with its constraint.
    "pruned": TrialState.PRUNED,
    "infeasible": TrialState.PRUNED,
    "pending": TrialState.RUNNING,
}


class _Told(FrozenTrial):
    """A trial that a study takes as it is; copying all of them was most of what a proposal cost."""

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTrial:
        return self


# Optuna requires the times at which a trial began and ended; TPE does not look at them.
_SOME_TIME = datetime(2000, 1, 1, tzinfo=UTC)


def _trial(observation: Observation, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    state = _STATES[observation.state]
    trial = _Told(
        # Both are given by the study.
        number=-1,
        trial_id=-1,
        state=state,
        value=None,
        values=observation.values,
        datetime_start=_SOME_TIME,
        datetime_complete=_SOME_TIME if state.is_finished() else None,
        params=dict(observation.point),
        distributions=distributions,
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )
    trial.set_constraint(CONSTRAINT, observation.over_budget)
    return trial


def _mixed(seed: int, index: int, attempt: int) -> int:
    return int(np.random.SeedSequence([seed, index, attempt]).generate_state(1)[0])


def ped_anova(
    names: Sequence[str],
    unit: np.ndarray,
    values: np.ndarray,
    direction: Literal["maximize", "minimize"],
    quantile: float = 0.25,
) -> dict[str, float]:
    """Each input's share in whether a run is among the best quarter; the shares add up to 1.

    unit: (R, D) points in [0, 1], D as `names`; values: (R,). PED-ANOVA (Watanabe, Bansal and Hutter 2023)
    compares the distribution of the best runs along one input with that of all runs, input by input: it sees
    what an input does alone, and near the optimum, where Sobol's indices speak of the whole space.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in names}
    study = optuna.create_study(direction=direction)
    study.add_trials(
        [
            create_trial(
                value=float(value),
                params=dict(zip(names, map(float, point), strict=True)),
                distributions=distributions,
            )
            for point, value in zip(unit, values, strict=True)
        ]
    )
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=quantile))
    return {name: float(found[name]) for name in names}
