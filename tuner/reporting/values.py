"""What a run, a comparison and their reports are made of: plain, frozen values.

The statistics, the export, the tables, the MLflow mirror and the dashboards read them. Ratios are fractions
of the unpruned cost (0.3 = 30 %), accuracies are fractions in [0, 1], times are seconds, log-probabilities
are natural logarithms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tuner.planning.study_cost import StudyCost
from tuner.records.measurements import CacheUse, ServingCost, Timed
from tuner.records.values import Look
from tuner.statistics.values import Guessing, Measured, Noise, Tested, Verdict
from tuner.study.values import AnswerCost, Binding, Configuration, Outcome, Setting, Split


@dataclass(frozen=True)
class Recorded:
    """Where a copy of a study is kept, and what the call that returned it had to write."""

    # An MLflow run id.
    run: str
    # The page that shows it.
    page: str
    # Whether a server shows that page; otherwise `mlflow ui` does, once it is started.
    served: bool = False
    # Runs created or changed, and artifacts written; 0 where they were there already.
    runs: int = field(default=0, compare=False)
    files: int = field(default=0, compare=False)
    # Where MLflow looked for artifacts until the project's folder was moved; None where it was not.
    moved_from: Path | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Trial:
    """One evaluated configuration; its outcome is the tune split's and so never the headline."""

    number: int
    configuration: Configuration
    outcome: Outcome
    within_budget: bool


@dataclass(frozen=True)
class PrunedTrial:
    """A pruned trial: after `videos` videos of the tune split others beat it at its cost.

    `by`: the one with the largest share in what it was compared with.
    """

    number: int
    configuration: Configuration
    # Its larger FLOPs ratio of the two splits: what the budget binds.
    binding_ratio: float
    by: int
    videos: int


@dataclass(frozen=True)
class InfeasibleProposal:
    """A proposal that the plans showed to be over budget; it cost no model time and is no trial."""

    configuration: Configuration
    flops_ratio: float


@dataclass(frozen=True)
class RegressionRow:
    """A held-out question that one of baseline and pruned model has right, with how sure each was."""

    question: str
    video: str
    text: str
    options: tuple[str, ...]
    answer: str
    baseline_text: str
    # Log-probability of the right answer minus that of the best other option; None for free answers.
    baseline_margin: float | None
    pruned_text: str
    pruned_margin: float | None
    tags: dict[str, str]

    @property
    def margin_change(self) -> float | None:
        """The pruned model's margin minus the baseline's; None without both."""
        if self.baseline_margin is None or self.pruned_margin is None:
            return None
        return self.pruned_margin - self.baseline_margin


@dataclass(frozen=True)
class TagRow:
    """What pruning did to the held-out questions that carry the tag `key`: `value`."""

    key: str
    value: str
    questions: int
    videos: int
    baseline: float
    accuracy: float
    # As in `HeldOut`.
    difference: Measured
    lost: int
    gained: int


@dataclass(frozen=True)
class HeldOut:
    """One configuration on the held-out split: the outcome and the intervals that belong beside it."""

    configuration: Configuration
    outcome: Outcome
    accuracy: Measured
    # Accuracy minus the baseline's, paired on the same questions; the video is the unit.
    difference: Measured
    # Two-sided p-value of a sign-flip permutation over videos.
    p_value: float | None = None
    # Regressions as a share of the split's questions, with an interval.
    regression_rate: Measured | None = None
    # McNemar's exact two-sided test, which takes questions as independent.
    mcnemar_p: float | None = None
    # Mean KL divergence of the pruned distribution over the options from the baseline's, in natural
    # logarithms; None without questions that have options.
    divergence: float | None = None
    # By tag and value, in the order of their names.
    by_tag: tuple[TagRow, ...] = ()

    @property
    def flips(self) -> int:
        """Questions that are right on one side only: regressions and gains together."""
        return self.outcome.regressions + self.outcome.gained


@dataclass(frozen=True)
class HeldOutAnswer:
    """What a configuration and the unpruned model answered to a held-out question."""

    question: str
    # `tuner.records.values.asked_hash`.
    asked: str
    text: str
    unpruned: str


@dataclass(frozen=True)
class RunSummary:
    """All that `tuner run` reports at its end, and all that export, mirror and figures are drawn from."""

    study: str
    study_hash: str
    budget: float
    seed: int
    # Unpruned accuracy per split.
    baseline: dict[Split, Measured]
    trials: tuple[Trial, ...]
    # Best trial within the budget, as the tune split orders them; None when nothing fits.
    best: Trial | None
    best_held_out: HeldOut | None
    # AdaTP's defaults at the budget: the other four knobs at their defaults, p solved for the budget.
    defaults: Trial | None
    defaults_held_out: HeldOut | None
    binds: Binding | None
    regressions: tuple[RegressionRow, ...] = ()
    # Wrong unpruned, right pruned.
    gains: tuple[RegressionRow, ...] = ()
    # Closest trial or infeasible proposal when nothing fits the budget.
    closest: InfeasibleProposal | None = None
    infeasible: int = 0
    shared_answers: int = 0
    evaluated_answers: int = 0
    seconds: float = 0.0
    skipped_videos: tuple[str, ...] = ()
    # Questions that are left out because they kill their workers: reasons by id.
    quarantined: dict[str, str] = field(default_factory=dict)
    smallest_reachable: float | None = None
    # AdaTP's discrete choices that the study's search makes or fixes, by name.
    choices: tuple[str, ...] = ()
    # How the model was called: what best.json needs besides the knobs.
    setting: Setting | None = None
    # Answers of the unpruned model to the held-out questions.
    baseline_cost: AnswerCost | None = None
    # When the best configuration pays; None when nothing fits.
    serving: ServingCost | None = None
    # Whether the best configuration holds on the held-out split, and every test behind that.
    verdict: Verdict = "untested"
    # The largest drop as asked for ("0.02", "1%"; empty: nothing was), and as a fraction of the questions.
    max_drop: str = ""
    margin: float | None = None
    tested: tuple[Tested, ...] = ()
    # Of the whole study, in the order they were taken; `look`: the number of this one, taken or not.
    looks: tuple[Look, ...] = ()
    look: int = 1
    # Of lost held-out answers within a video: `tuner.statistics.paired.correlation`.
    loss_correlation: float | None = None
    # Held-out accuracy of the best minus that of AdaTP's defaults at the same budget.
    over_defaults: Measured | None = None
    # The smallest margin the held-out split can show: `tuner.statistics.paired.provable_drop`.
    provable_drop: float | None = None
    noise: Noise | None = None
    pruned: tuple[PrunedTrial, ...] = ()
    # Complete trials with a knob or a choice that the study's search does not allow any more: on no front and
    # never chosen; not among `trials`.
    outside: tuple[Trial, ...] = ()
    # Trials beyond the budget that only the front shows; not among `trials`.
    above: tuple[Trial, ...] = ()
    # Of the whole study so far, all its searches together.
    cost: StudyCost | None = None
    # Videos of the study, without those skipped.
    videos: int = 0
    # Those of the held-out part.
    held_out_videos: int = 0
    # As `cost`; None where nothing was counted: an older version answered.
    cache_use: CacheUse | None = None
    # None in a study without labelled options.
    guessing: Guessing | None = None
    # Whether a person chose `best`, not the search.
    chosen_by_hand: bool = False
    # Of `best` to the held-out questions, in the study's order.
    answers: tuple[HeldOutAnswer, ...] = ()
    # "budget": the best within it; "max_drop": the cheapest that holds.
    goal: Literal["budget", "max_drop"] = "budget"
    sampler: str = "tpe"
    # The coordinates that its proposals are made in, as `SearchRecord` has them.
    space: str = ""
    # Whose study it is on a shared database; "": nobody's in particular.
    owner: str = ""
    # Numbers of the trials that this search proposed; None: all of them.
    own: frozenset[int] | None = None
    # Whether it came to its end: as many trials as were asked for, and the chosen one measured.
    ended: bool = True

    def proposed(self, trial: int) -> bool:
        """Whether this search proposed the trial; others of the study count it, too."""
        return self.own is None or trial in self.own

    @property
    def test_of_best(self) -> Tested | None:
        """The held-out test of the chosen trial; None where it was not tested."""
        return next(
            (
                candidate
                for candidate in self.tested
                if self.best is not None and candidate.trial == self.best.number
            ),
            None,
        )


@dataclass(frozen=True)
class Compared:
    """One way to prune, solved for the budget and measured on the held-out split."""

    # As people call it: "FastV", "AdaTP without the boost".
    name: str
    held_out: HeldOut
    # One line: what it is and where it comes from.
    about: str = ""
    # None where the times were not measured.
    timed: Timed | None = None


@dataclass(frozen=True)
class EndToEnd:
    """AdaTP and its peers at the same FLOPs end to end: vision tower, projector and aligned encoder included.

    The first row is AdaTP, tuned or at its defaults; the others are set to its ratio on the held-out part.
    """

    rows: tuple[Compared, ...]
    # Peers that cannot come down to it, with the smallest end-to-end FLOPs ratio they can.
    unreachable: dict[str, float] = field(default_factory=dict)

    @property
    def flops_ratio(self) -> float:
        """AdaTP's end-to-end FLOPs over the unpruned model's."""
        return self.rows[0].held_out.outcome.flops_ratio_end_to_end


@dataclass(frozen=True)
class Comparison:
    """Ways to prune side by side at the same LLM prefill FLOPs, the tuned and the default AdaTP among them,
    and AdaTP's peers at its end-to-end FLOPs.
    """

    study: str
    study_hash: str
    budget: float
    # On the held-out split, unpruned.
    baseline: Measured
    baseline_cost: AnswerCost | None
    rows: tuple[Compared, ...]
    # Methods that cannot reach the budget, with the smallest FLOPs ratio they can.
    unreachable: dict[str, float] = field(default_factory=dict)
    labelled: bool = True
    # None where AdaTP does not reach the budget, or this was not measured (since AdaTP was tuned).
    end_to_end: EndToEnd | None = None
