"""What was measured beside the answers: caches, times, and what a server pays for a configuration."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from operator import add

from pipeline.break_even import Serving, break_even


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
        before, after = (part.per_video + part.per_question for part in (self.baseline, self.best))
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

    Each answer asks for both, and the encoding of the study for every video's features. Not counted: a batch
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
class ModelUse:
    """What answering took: how many answers the model gave, and their seconds together."""

    answers: int = 0
    seconds: float = 0.0

    def __add__(self, other: ModelUse) -> ModelUse:
        return ModelUse(self.answers + other.answers, self.seconds + other.seconds)


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
