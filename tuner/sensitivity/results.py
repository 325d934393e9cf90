"""What a sensitivity study finds: plain, frozen values that the terminal, the figures and the report show.

Ratios and accuracies are fractions and log-probabilities natural logarithms. The
reference is the configuration that the study is about, usually the exported one; the part is the one whose
answers the curves show, the held-out part where there is one. What recommends something is of the tune part.
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
    """The reference with one knob elsewhere, all questions of the part answered."""

    # Where the knob is, and up to where no answer turns right or wrong from there: equal where that is not
    # known exactly. (In a study with more steps than can be shown, the worst of those up to `until`.)
    value: float
    until: float
    accuracy: Measured
    # Accuracy minus the reference's, paired; the video is the unit.
    difference: Measured
    # What the budget binds, the larger of both parts'; its largest value up to `until`.
    flops_ratio: float
    # Against the unpruned model.
    regressions: int
    gained: int
    # Mean change of the right answer's log-probability from the unpruned model's, up to `until`.
    logprob_change: float
    # Whether the drop from the reference is shown to be no more than the margin.
    safe: bool


@dataclass(frozen=True)
class Curve:
    """One knob over its range, the others as in the reference."""

    knob: str
    # Every step there is, from the study's own similarities or relevances; else points of a grid.
    exact: bool
    # The reference's value.
    chosen: float
    points: tuple[CurvePoint, ...]
    # The values around `chosen` over which every point is safe; None where `chosen` is not among the points.
    safe: Interval | None
    # Questions of one kind: (key, value) of their tag; None: all.
    tag: tuple[str, str] | None = None
    questions: int = 0
    # The values around `chosen` that fit the budget, exact for an exact curve, else among the grid's; None
    # where `chosen` does not.
    within_budget: Interval | None = None


@dataclass(frozen=True)
class Index:
    """How much of an output's variance one input explains, alone (first) and with the others (total)."""

    input: str
    first: Measured
    total: Measured
    # Optuna's PED-ANOVA importance (over the best quarter), which adds up to 1 over the inputs.
    ped_anova: float | None = None


@dataclass(frozen=True)
class Output:
    """One output over the design, its surrogate, and what may be claimed from that."""

    name: OutputName
    # Cross-validated: 1 is perfect, 0 no better than the mean.
    r2: float
    # Whether that is enough to speak of indices.
    good: bool
    # So many more design runs would probably make it so; None where it is, or nothing suggests that it would.
    more_runs: int | None
    indices: tuple[Index, ...]  # empty where the surrogate is too poor


@dataclass(frozen=True)
class PairMap:
    """The surrogate's accuracy over two knobs as they are set, the others as in the reference."""

    first: str
    second: str
    first_values: tuple[float, ...]
    second_values: tuple[float, ...]
    # [i][j] belongs to first_values[i], second_values[j]; None beyond what the design covers: a surrogate
    # says nothing there.
    accuracy: tuple[tuple[float | None, ...], ...]
    # Exact, from the plans, and everywhere: the budget is a line of this.
    flops_ratio: tuple[tuple[float, ...], ...]
    # The reference's values of both knobs.
    reference: tuple[float, float]


@dataclass(frozen=True)
class Alternative:
    """The reference with another `deduplicate` and p solved for no more than its FLOPs, on the tune part."""

    deduplicate: str
    p: float
    flops_ratio: float
    # Accuracy minus the reference's, paired; the interval's level is that of all alternatives together.
    difference: Measured
    level: float
    # Whether the study's search may choose it.
    searched: bool


@dataclass(frozen=True)
class FailureMode:
    """One way in which the paper's digests say AdaTP fails, looked for in this study."""

    name: Literal["middle frames over-pruned", "small things lost to deduplication"]
    # None: the study's tags cannot show it.
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
    # Trial number of the reference; None: it is AdaTP's defaults at the budget.
    trial: int | None
    binds: Binding
    accuracy: Measured
    # As `tuner.reporting.values.RunSummary`.
    labelled: bool
    max_drop: str
    margin: float
    # The smallest change of accuracy that so many videos can show between the reference and a neighbour.
    detectable: float | None
    curves: tuple[Curve, ...]
    by_tag: tuple[Curve, ...]
    design_runs: int
    # Inputs of the design, in the order of its coordinates.
    inputs: tuple[str, ...]
    # The FLOPs ratios between which it has its runs; None where compute is no input.
    design_compute: Interval | None
    outputs: tuple[Output, ...]
    maps: tuple[PairMap, ...]
    failures: tuple[FailureMode, ...]
    # Plain sentences, the most important first.
    sentences: tuple[str, ...]
    # What `alternatives` and the second failure are judged on, as the design is. (Files of a version that
    # judged them on held-out videos lack it, and are not read.)
    tune_questions: int
    # The best first.
    alternatives: tuple[Alternative, ...] = ()
