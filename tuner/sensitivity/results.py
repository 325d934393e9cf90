"""The results of a sensitivity study: frozen values that the terminal, the figures and the report show.

Ratios and accuracies are fractions, log-probabilities natural logarithms. The reference is the configuration
under study, usually the exported one. Curves show the held-out split where there is one; recommendations come
from the tune split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tuner.statistics.values import Interval, Measured
from tuner.study.values import Binding, Configuration, Split

# "accuracy" is agreement in a study without labels.
OutputName = Literal["accuracy", "logprob", "regressions"]


@dataclass(frozen=True)
class CurvePoint:
    """The reference with one knob changed, measured on all questions of the split."""

    # The knob's value, and up to where no answer changes between right and wrong: equal where that is not
    # known exactly. (In a study with more steps than can be shown: the worst step up to `until`.)
    value: float
    until: float
    accuracy: Measured
    # Accuracy minus the reference's, paired; the video is the unit.
    difference: Measured
    # The ratio that the budget limits, the larger of both splits'; its largest value up to `until`.
    flops_ratio: float
    # Against the unpruned model.
    regressions: int
    gained: int
    # Mean change of the right answer's log-probability from the unpruned model's, up to `until`.
    logprob_change: float
    # Whether a drop from the reference by more than the margin is excluded.
    safe: bool


@dataclass(frozen=True)
class Curve:
    """One knob over its range, the others at the reference."""

    knob: str
    # Whether the points are all steps, from the study's similarities or relevances; otherwise a grid.
    exact: bool
    # The reference's value.
    chosen: float
    points: tuple[CurvePoint, ...]
    # The values around `chosen` over which every point is safe; None if `chosen` is not among the points.
    safe: Interval | None
    # (key, value) of the tag whose questions the curve is about; None: all questions.
    tag: tuple[str, str] | None = None
    questions: int = 0
    # The values around `chosen` within the budget, exact for an exact curve, otherwise among the grid's; None
    # if `chosen` is over it.
    within_budget: Interval | None = None


@dataclass(frozen=True)
class Index:
    """The share of an output's variance due to an input, alone (first) and with interactions (total)."""

    input: str
    first: Measured
    total: Measured
    # Optuna's PED-ANOVA importance (over the best quarter), which adds up to 1 over the inputs.
    ped_anova: float | None = None


@dataclass(frozen=True)
class Output:
    """One output over the design, the quality of its surrogate, and its indices."""

    name: OutputName
    # Cross-validated: 1 is perfect, 0 no better than the mean.
    r2: float
    # Whether r2 is high enough for indices.
    good: bool
    # Further design runs that would probably be enough; None if it is good, or if they are not expected to
    # help.
    more_runs: int | None
    indices: tuple[Index, ...]  # empty where the surrogate is too poor


@dataclass(frozen=True)
class PairMap:
    """The surrogate's accuracy over two knobs, the others at the reference."""

    first: str
    second: str
    first_values: tuple[float, ...]
    second_values: tuple[float, ...]
    # [i][j] belongs to first_values[i], second_values[j]; None outside the design, where a surrogate does not
    # predict.
    accuracy: tuple[tuple[float | None, ...], ...]
    # Exact, from the plans, for all cells: the budget is a contour of this.
    flops_ratio: tuple[tuple[float, ...], ...]
    # The reference's values of both knobs.
    reference: tuple[float, float]


@dataclass(frozen=True)
class Alternative:
    """The reference with another `deduplicate`, p solved for at most its FLOPs, on the tune split."""

    deduplicate: str
    p: float
    flops_ratio: float
    # Accuracy minus the reference's, paired; `level` makes the intervals of all alternatives simultaneous.
    difference: Measured
    level: float
    # Whether the study's search may choose it.
    searched: bool


@dataclass(frozen=True)
class FailureMode:
    """A failure of AdaTP that digests of the paper name, tested in this study."""

    name: Literal["middle frames over-pruned", "small things lost to deduplication"]
    # None: the study's tags do not allow the test.
    found: bool | None
    # One sentence with its numbers.
    evidence: str


@dataclass(frozen=True)
class Sensitivity:
    """A whole sensitivity study."""

    study: str
    study_hash: str
    budget: float
    split: Split
    reference: Configuration
    # Trial number of the reference; None: AdaTP's defaults at the budget.
    trial: int | None
    binds: Binding
    accuracy: Measured
    # As in `tuner.reporting.values.RunSummary`.
    labelled: bool
    max_drop: str
    margin: float
    # The smallest change of accuracy from the reference that can be detected with these videos.
    detectable: float | None
    curves: tuple[Curve, ...]
    by_tag: tuple[Curve, ...]
    design_runs: int
    # Inputs of the design, in the order of its columns.
    inputs: tuple[str, ...]
    # The range of FLOPs ratios of its runs; None if compute is not an input.
    design_compute: Interval | None
    outputs: tuple[Output, ...]
    maps: tuple[PairMap, ...]
    failures: tuple[FailureMode, ...]
    # Plain sentences, the most useful first.
    sentences: tuple[str, ...]
    # Questions behind `alternatives`, the second failure and the design. (Files of a version that used
    # held-out videos for these lack it and are not read.)
    tune_questions: int
    # The best first.
    alternatives: tuple[Alternative, ...] = ()
