"""Values used everywhere: splits, configurations, judged answers and outcomes.

Ratios are fractions of the unpruned cost (0.3 = 30 %), accuracies are fractions in [0, 1], times are seconds,
log-probabilities are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pipeline.methods.base import Method


Split = Literal["tune", "held_out"]
Binding = Literal["alpha_boost", "gamma_cap", "none"]


@dataclass(frozen=True)
class Configuration:
    """A method's name and its parameters, as a trial records them."""

    method: str
    parameters: tuple[tuple[str, float | str | int], ...]

    @classmethod
    def from_method(cls, method: Method) -> Configuration:
        """The configuration from which `build` makes an equal method."""
        from pipeline.methods import to_dict

        return cls.from_dict(to_dict(method))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Configuration:
        """From the flat form `{"method": name, **parameters}`; parameters keep their order."""
        return cls(str(values["method"]), tuple((k, v) for k, v in values.items() if k != "method"))

    def build(self) -> Method:
        """A new method; two calls share nothing."""
        from pipeline.methods import from_dict

        return from_dict(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The flat form `{"method": name, **parameters}`, ready for JSON."""
        return {"method": self.method, **dict(self.parameters)}

    def get(self, name: str) -> float | str | int:
        """A parameter's value. Errors: KeyError that lists the known parameters."""
        parameters = dict(self.parameters)
        if name not in parameters:
            raise KeyError(f"{self.method} has no parameter {name!r}; it has {', '.join(parameters)}")
        return parameters[name]


@dataclass(frozen=True)
class QuestionResult:
    """A judged answer: a question under a configuration."""

    question: str
    video: str
    split: Split
    correct: bool
    # Of the right option, normalised over the options, and of the baseline's option without labels; of the
    # baseline's whole text for a free answer.
    logprob_right: float | None
    text: str
    option: int | None
    option_logprobs: tuple[float, ...] | None
    seconds: float
    # As `pipeline.measure.PeakMemory` measures it; None where it could not.
    peak_bytes: int | None = None


@dataclass(frozen=True)
class AnswerCost:
    """What an answer took: its mean seconds, and the memory that answers added (mean and maximum)."""

    seconds: float
    # None if memory is not known for every answer: not measurable, or answered by an older version.
    peak_bytes_mean: float | None = None
    peak_bytes_max: int | None = None


@dataclass(frozen=True)
class Outcome:
    """A configuration on a split: all of its questions answered and compared with the baseline."""

    split: Split
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
    # Mean of `tuner.evaluation.scoring.graded`.
    graded: float | None = None

    @property
    def per_answer(self) -> AnswerCost:
        """Seconds and memory of one answer."""
        return AnswerCost(self.seconds / self.questions, self.peak_bytes_mean, self.peak_bytes_max)


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
    # How it was measured; None in records of versions that did not record it.
    encoding: str | None = None  # the runtime's: changes with whatever changes how videos are encoded
    dtype: str | None = None
    attention: str | None = None  # transformers' attention implementation
    device: str | None = None  # kind of device: cpu or cuda
    # How patches are pooled, and how the checkpoint has it; None if the family has a single way.
    pooling: str | None = None
    checkpoint_pooling: str | None = None
