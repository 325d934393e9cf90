"""The values a study produces: plain, frozen, without a database, a model or a figure behind them.

The loop and the records fill them; the statistics, the export, the summary, the MLflow mirror and the
dashboards read them. Ratios are fractions of the unpruned cost (0.3 = 30 %), accuracies are fractions in
[0, 1], times are seconds, log-probabilities are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from operator import add
from typing import TYPE_CHECKING, Any, Literal

from pipeline.break_even import Serving, break_even

if TYPE_CHECKING:
    from pipeline.methods.base import Method
    from tuner.costs import StudyCost

Part = Literal["tune", "held_out"]
Binding = Literal["alpha_boost", "gamma_cap", "none"]
# Whether the chosen configuration loses no more held-out accuracy than the margin: shown; tested and not
# shown; or never tested, because nothing fits or nothing was measured there.
Verdict = Literal["shown", "not_shown", "untested"]


@dataclass(frozen=True)
class Configuration:
    """A method's name and its parameters: what a trial is a row of; equal rows are equal values."""

    method: str
    parameters: tuple[tuple[str, float | str | int], ...]

    @classmethod
    def from_method(cls, method: Method) -> Configuration:
        """The row that `build` turns back into an equal method."""
        from pipeline.methods import to_dict

        return cls.from_dict(to_dict(method))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Configuration:
        """From the flat form `{"method": name, **parameters}`; parameters keep their order."""
        return cls(str(values["method"]), tuple((k, v) for k, v in values.items() if k != "method"))

    def build(self) -> Method:
        """A fresh method; two calls share nothing."""
        from pipeline.methods import from_dict

        return from_dict(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The flat form `{"method": name, **parameters}`, ready for JSON."""
        return {"method": self.method, **dict(self.parameters)}

    def get(self, name: str) -> float | str | int:
        """One parameter; an unknown name lists the known ones."""
        parameters = dict(self.parameters)
        if name not in parameters:
            raise KeyError(f"{self.method} has no parameter {name!r}; it has {', '.join(parameters)}")
        return parameters[name]


@dataclass(frozen=True)
class Interval:
    """A confidence interval; 95 % unless its maker says otherwise."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"`low <= high` must hold, but got (low={self.low}, high={self.high}).")


@dataclass(frozen=True)
class Measured:
    """A measured value and, where one is meaningful, its interval."""

    value: float
    interval: Interval | None = None


@dataclass(frozen=True)
class QuestionResult:
    """One question answered under one configuration, judged."""

    question: str
    video: str
    part: Part
    correct: bool
    # Of the right option, normalised over the options, and of the baseline's option without labels; of the
    # baseline's whole text for a free answer.
    logprob_right: float | None
    text: str
    option: int | None
    option_logprobs: tuple[float, ...] | None
    seconds: float
    # As `pipeline.meter.PeakMemory` measures it; None where it could not.
    peak_bytes: int | None = None


@dataclass(frozen=True)
class AnswerCost:
    """What answering took: mean seconds of an answer, and the memory answers added (mean, most)."""

    seconds: float
    # None where an answer's memory is not known: it could not be measured, or an older version answered.
    peak_bytes_mean: float | None = None
    peak_bytes_max: int | None = None


@dataclass(frozen=True)
class Outcome:
    """One configuration on one part of the study, all questions answered and set against the baseline."""

    part: Part
    questions: int
    videos: int
    accuracy: float
    flops_ratio: float
    flops_ratio_end_to_end: float
    flops_ratio_visual: float
    flops_ratio_p95: float
    flops_ratio_max: float
    regressions: int
    gained: int
    logprob_change: float
    # Of all answers together.
    seconds: float
    # As in `AnswerCost`.
    peak_bytes_mean: float | None = None
    peak_bytes_max: int | None = None
    # Mean of `tuner.scoring.graded`.
    graded: float | None = None

    @property
    def per_answer(self) -> AnswerCost:
        """Seconds and memory of one answer."""
        return AnswerCost(self.seconds / self.questions, self.peak_bytes_mean, self.peak_bytes_max)


@dataclass(frozen=True)
class Trial:
    """One evaluated configuration; its outcome is the tune part's and so never the headline."""

    number: int
    configuration: Configuration
    outcome: Outcome
    within_budget: bool


@dataclass(frozen=True)
class StoppedTrial:
    """A trial that the race ended early: after `videos` videos of the tune part others beat it at its cost.

    `by`: the one with the largest share in what it was compared with.
    """

    number: int
    configuration: Configuration
    # Its larger FLOPs ratio of the two parts: what the budget binds.
    binding_ratio: float
    by: int
    videos: int


@dataclass(frozen=True)
class Tested:
    """One candidate's test on the held-out part; the candidates are in the order they were tested in."""

    trial: int
    # Absolute, as are difference and bound: fractions of the questions.
    margin: float
    difference: float
    # One-sided lower confidence bound of the difference, at 1 - level.
    bound: float
    level: float
    shown: bool


@dataclass(frozen=True)
class Look:
    """What held-out videos said of a search's choice when they were first asked at this margin.

    Levels of the tests hold for one look at one margin; who sees the first can move the second.
    """

    goal: Literal["budget", "max_drop"]
    budget: float
    seed: int
    max_drop: str
    # Completed trials of the study then, and the one that was chosen.
    trials: int
    trial: int
    verdict: Verdict


@dataclass(frozen=True)
class Refusal:
    """A proposal that the plans showed to be over budget; it cost no model time and is no trial."""

    configuration: Configuration
    flops_ratio: float


@dataclass(frozen=True)
class Noise:
    """The noise floor: the unpruned model against itself, asked in packs of another size.

    `logprob_mean`, `logprob_max`: size of the change in the right answer's log-probability.
    """

    questions: int
    videos: int
    flips: int
    logprob_mean: float
    logprob_max: float

    @property
    def flip_rate(self) -> float:
        """Share of the answers that changed."""
        return self.flips / self.questions


@dataclass(frozen=True)
class Guessing:
    """The unpruned model against guessing, on all labelled questions with options."""

    questions: int
    videos: int
    right: int
    # Mean over these questions of one over the number of options.
    chance: float
    # One-sided 95 % lower bound of the accuracy; the video is the unit, so one video gives none.
    bound: float | None

    @property
    def accuracy(self) -> float:
        """Share that it has right."""
        return self.right / self.questions

    @property
    def no_better(self) -> bool:
        """Whether it has no more right than guessing would on average."""
        return self.right <= self.chance * self.questions + 1e-9  # a sum of thirds is rounded

    @property
    def shown_better(self) -> bool:
        """Whether so many videos tell it from guessing."""
        return self.bound is not None and self.bound > self.chance


@dataclass(frozen=True)
class RegressionRow:
    """A question the baseline got right and the pruned model does not, with how sure each was."""

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
    """One configuration on the held-out part: the outcome and the intervals that belong beside it."""

    configuration: Configuration
    outcome: Outcome
    accuracy: Measured
    # Accuracy minus the baseline's, paired on the same questions; the video is the unit.
    difference: Measured
    # Two-sided p-value of a sign-flip permutation over videos.
    p_value: float | None = None
    # Regressions as a share of the part's questions, with an interval.
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
class Setting:
    """How a study calls its model: enough for production to call it the same way.

    `model` and `text_encoder` are absolute paths of checkpoint folders, or Hugging Face ids.
    """

    model: str
    model_revision: str | None
    model_identity: str  # the runtime's, by which production knows the model again
    text_encoder: str
    text_encoder_revision: str | None
    frames: int
    scoring: str
    max_new_tokens: int
    pruning_layers: tuple[int, ...]
    layers: int  # decoder layers of the model
    text_encoder_identity: str | None = None  # as model_identity
    labelled: bool = True  # without labels accuracy is agreement with the baseline's answers
    # What was measured; None in records of versions that did not keep it.
    encoding: str | None = None  # the runtime's: changes with whatever changes how videos are encoded
    dtype: str | None = None
    attention: str | None = None  # transformers' attention implementation
    device: str | None = None  # kind of device: cpu or cuda
    # How patches are pooled, and how the checkpoint says they are; None where the family has one way only.
    pooling: str | None = None
    checkpoint_pooling: str | None = None


@dataclass(frozen=True)
class Profiled:
    """One held-out question's prefill in multiply-adds: as torch.profiler counts it, and as planned.

    It is the question with the median planned FLOPs; lm_head is left out of both counts.
    """

    question: str
    counted_baseline: int
    counted_best: int
    planned_baseline: int
    planned_best: int


@dataclass(frozen=True)
class MeasuredServing:
    """Seconds of what a server pays, measured on this device: means over so many held-out questions."""

    device: str
    questions: int
    # Bytes of one stored number.
    value_bytes: int
    baseline: Serving
    best: Serving
    # None where the profiler's pass did not fit into memory.
    profiled: Profiled | None = None

    @property
    def break_even(self) -> float:
        """Questions per video up to which pruning is the faster choice; may be infinite."""
        return break_even(self.baseline, self.best)

    @property
    def first_question(self) -> tuple[float, float]:
        """Seconds for a video and one question, nothing kept from before: unpruned, and at the best."""
        before, after = (one.per_video + one.per_question for one in (self.baseline, self.best))
        return before, after


@dataclass(frozen=True)
class ServingCost:
    """The best configuration against the unpruned model on a server that keeps each video's prefix.

    `pipeline.break_even` says what is counted. Multiply-adds, means over the held-out questions.
    """

    baseline: Serving
    best: Serving
    # Numbers kept per video.
    stored_baseline: float
    stored_best: float
    measured: MeasuredServing | None = None

    @property
    def break_even(self) -> float:
        """Questions per video up to which pruning needs fewer FLOPs; may be infinite."""
        return break_even(self.baseline, self.best)

    @property
    def stored_bytes(self) -> tuple[float, float] | None:
        """Memory kept per video, unpruned and pruned; None until the number format is known."""
        if self.measured is None:
            return None
        return (
            self.stored_baseline * self.measured.value_bytes,
            self.stored_best * self.measured.value_bytes,
        )


@dataclass(frozen=True)
class CacheUse:
    """How often what is kept of a video was at hand: its vision features, its prefix (system prompt and video
    through the layers that can be kept).

    Each answer asks for both, and the encoding of the study for every video's features. Not counted: a rung
    that was lost with its worker, an encoding that never ended, what `tuner run` measures at its end.
    """

    # Asked for: in the worker's memory, in the cache on disk, or in neither.
    features_in_memory: int = 0
    features_read: int = 0
    features_computed: int = 0
    prefixes_reused: int = 0
    prefixes_built: int = 0

    def __add__(self, other: CacheUse) -> CacheUse:
        return CacheUse(*map(add, astuple(self), astuple(other)))

    @property
    def features(self) -> int:
        """Times that vision features were asked for."""
        return self.features_in_memory + self.features_read + self.features_computed

    @property
    def prefixes(self) -> int:
        """Times that a prefix was asked for: answers."""
        return self.prefixes_reused + self.prefixes_built

    @property
    def feature_hit_rate(self) -> float | None:
        """Share of `features` that were not computed; None where none were asked for."""
        return 1 - self.features_computed / self.features if self.features else None

    @property
    def prefix_hit_rate(self) -> float | None:
        """Share of `prefixes` that were not built; None where none were asked for."""
        return self.prefixes_reused / self.prefixes if self.prefixes else None


@dataclass(frozen=True)
class RunSummary:
    """All that `tuner run` reports at its end, and all that export, mirror and figures are drawn from."""

    study: str
    study_hash: str
    budget: float
    seed: int
    # Unpruned accuracy per part.
    baseline: dict[Part, Measured]
    trials: tuple[Trial, ...]
    # Best trial within the budget, as the tune part orders them; None when nothing fits.
    best: Trial | None
    best_held_out: HeldOut | None
    # AdaTP's defaults at the budget: the other four knobs at their defaults, p solved for the budget.
    defaults: Trial | None
    defaults_held_out: HeldOut | None
    binds: Binding | None
    regressions: tuple[RegressionRow, ...] = ()
    # Closest trial or refused proposal when nothing fits the budget.
    closest: Refusal | None = None
    refused: int = 0
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
    # Whether the best configuration holds on the held-out part, and every test behind that.
    verdict: Verdict = "untested"
    # The largest drop as asked for ("0.02", "1%"; empty: nothing was), and as a fraction of the questions.
    max_drop: str = ""
    margin: float | None = None
    tested: tuple[Tested, ...] = ()
    # Of the whole study, in the order they were taken; and those of this search at other margins, before the
    # first at this one.
    looks: tuple[Look, ...] = ()
    earlier_looks: tuple[Look, ...] = ()
    # The smallest margin the held-out part can show: `tuner.statistics.provable_drop`.
    provable_drop: float | None = None
    noise: Noise | None = None
    stopped: tuple[StoppedTrial, ...] = ()
    # Complete trials with a knob or a choice that the study's search does not allow any more: on no front and
    # never chosen; not among `trials`.
    outside: tuple[Trial, ...] = ()
    # Trials beyond the budget that only the front shows; not among `trials`.
    above: tuple[Trial, ...] = ()
    # Of the whole study so far, all its searches together.
    cost: StudyCost | None = None
    # Videos of the study, without those skipped.
    videos: int = 0
    # As `cost`; None where nothing was counted: an older version answered.
    cache_use: CacheUse | None = None
    # None in a study without labelled options.
    guessing: Guessing | None = None

    @property
    def test_of_best(self) -> Tested | None:
        """The held-out test of the chosen trial; None where it was not tested."""
        return next(
            (one for one in self.tested if self.best is not None and one.trial == self.best.number), None
        )

    # "budget": the best within it; "max_drop": the cheapest that holds.
    goal: Literal["budget", "max_drop"] = "budget"
    sampler: str = "tpe"


@dataclass(frozen=True)
class Timed:
    """Seconds of prefill and answer, nothing of the prompt kept from before; the vision tower is left out.

    Means over so many held-out questions, asked one at a time and of all ways to prune in turn, in one
    process on one device.
    """

    device: str
    questions: int
    seconds: float
    # The unpruned model's, in the same turns.
    baseline_seconds: float

    @property
    def ratio(self) -> float:
        """Of the unpruned model's time."""
        return self.seconds / self.baseline_seconds


@dataclass(frozen=True)
class Compared:
    """One way to prune, solved for the budget and measured on the held-out part."""

    # As people call it: "FastV", "AdaTP without the boost".
    name: str
    held_out: HeldOut
    # One line: what it is and where it comes from.
    about: str = ""
    # None where the times were not measured.
    timed: Timed | None = None


@dataclass(frozen=True)
class Comparison:
    """Ways to prune side by side at the same FLOPs, the tuned and the default AdaTP among them."""

    study: str
    study_hash: str
    budget: float
    # On the held-out part, unpruned.
    baseline: Measured
    baseline_cost: AnswerCost | None
    rows: tuple[Compared, ...]
    # Methods that cannot reach the budget, with the smallest FLOPs ratio they can.
    unreachable: dict[str, float] = field(default_factory=dict)
    labelled: bool = True
