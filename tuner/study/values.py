"""What every room speaks of: splits, configurations, answers as judged, and what they come to.

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
class QuestionResult:
    """One question answered under one configuration, judged."""

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
    # What was measured; None in records of versions that did not keep it.
    encoding: str | None = None  # the runtime's: changes with whatever changes how videos are encoded
    dtype: str | None = None
    attention: str | None = None  # transformers' attention implementation
    device: str | None = None  # kind of device: cpu or cuda
    # How patches are pooled, and how the checkpoint says they are; None where the family has one way only.
    pooling: str | None = None
    checkpoint_pooling: str | None = None
