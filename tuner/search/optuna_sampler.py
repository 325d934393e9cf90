"""What Optuna does for us, proposals and PED-ANOVA: the only module that imports it.

Nothing is kept between two proposals. Each rebuilds an in-memory study from our records (12 ms for 300
trials) and seeds its sampler from (seed, index, attempt): what is proposed depends on the evidence alone, so
a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner.errors import UserError
from tuner.search.evidence import SAMPLERS, Evidence, Sampler, SamplerName
from tuner.search.space import Bins, Point, Range

CONSTRAINT = "flops_ratio - budget"

# Proposals drawn at random before the sampler models anything; NSGA-II's population.
STARTUP_TRIALS = 10

# TPE models a tenth of all trials it is told of as good, and fills that group with stopped and infeasible
# ones when those that completed within the budget do not suffice. Never telling more than nine of the others
# per completed one keeps it clean.
OTHERS_PER_COMPLETED = 9


@dataclass(frozen=True)
class OptunaSampler:
    """Accuracy up, FLOPs ratio down, the ratio constrained to the budget.

    tpe     multi-objective TPE; learns from refused and stopped trials too
    nsga2   NSGA-II, a generation for every `startup_trials` completed trials
    gp      constrained expected hypervolume improvement over Gaussian processes; seconds a proposal
    random  uniform: what the others have to beat

    All but TPE see completed trials only.
    """

    name: SamplerName = "tpe"
    startup_trials: int = STARTUP_TRIALS

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def propose(
        self, ranges: Mapping[str, Range], evidence: Sequence[Evidence], seed: int, index: int, attempt: int
    ) -> Point:
        """See `Sampler.propose`."""
        distributions = distributions_of(ranges)
        study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=self._sampler(_mixed(seed, index, attempt))
        )
        study.add_trials(self._trials(evidence, distributions))
        trial = study.ask(distributions)
        return {name: float(trial.params[name]) for name in ranges}

    def _sampler(self, seed: int) -> BaseSampler:
        if self.name == "tpe":
            return TPESampler(n_startup_trials=self.startup_trials, seed=seed, multivariate=True)
        if self.name == "nsga2":
            return NSGAIISampler(population_size=self._population, seed=seed)
        if self.name == "gp":
            return GPSampler(n_startup_trials=self.startup_trials, seed=seed)
        return RandomSampler(seed=seed)

    def _trials(
        self, evidence: Sequence[Evidence], distributions: Mapping[str, BaseDistribution]
    ) -> list[FrozenTrial]:
        """What this sampler is told, as Optuna's trials."""
        if self.name == "random":
            return []
        if self.name == "tpe":
            return [_trial(one, distributions) for one in told(evidence)]
        completed = [one for one in evidence if one.values is not None]
        if self.name == "gp":
            return [_trial(one, distributions) for one in completed]
        # Optuna notes its generation with each trial it proposes, and takes parents from the one before. A
        # generation is full after so many completed trials: with one worker these are the same generations.
        key = NSGAIISampler._get_generation_key()
        return [
            _trial(one, distributions, {key: place // self._population})
            for place, one in enumerate(completed)
        ]

    @property
    def _population(self) -> int:
        return max(2, self.startup_trials)  # two parents


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
        name: CategoricalDistribution(one.places)
        if isinstance(one, Bins)
        else FloatDistribution(one.low, one.high)
        for name, one in ranges.items()
    }


def told(evidence: Sequence[Evidence]) -> list[Evidence]:
    """The evidence TPE gets to see, in order: all that completed within the budget, of the rest the latest.

    Its good group then holds nothing else: not more than a tenth of what is told is good, rounded up.
    """
    others = [index for index, one in enumerate(evidence) if one.values is None or one.over_budget > 0]
    allowed = OTHERS_PER_COMPLETED * (len(evidence) - len(others))
    dropped = set(others[: max(0, len(others) - allowed)])
    return [one for index, one in enumerate(evidence) if index not in dropped]


def _trial(
    one: Evidence, distributions: Mapping[str, BaseDistribution], attributes: dict[str, int] | None = None
) -> FrozenTrial:
    # A refused or stopped one has no values, and none are invented: it is a pruned trial with its constraint.
    return create_trial(
        state=TrialState.PRUNED if one.values is None else TrialState.COMPLETE,
        values=one.values,
        params=dict(one.point),
        distributions=dict(distributions),
        system_attrs=attributes,
        constraints={CONSTRAINT: one.over_budget},
    )


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
