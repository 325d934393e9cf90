"""What every pruning method is: a frozen value that first plans how many tokens stay, then selects which."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from pipeline.layout import IntArray, Layout, Layouts
from pipeline.plan import Counts, Partition, Plan, ScoreRows, StudyPlans

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from pipeline.merging import Merged, VisualTokens
    from pipeline.ranking import Stage

# r^j n is computed in floating point: without this guard ceil(3.0000000001) would keep a fourth token.
ROUNDING_GUARD = 1e-9


@dataclass(frozen=True)
class Knob:
    """One searched parameter of a method: search space, JSON schema and documentation derive from it."""

    low: float
    high: float
    default: float
    meaning: str
    source: str  # where the default comes from: "paper", "third-party reading" or "our choice"


@dataclass(frozen=True)
class Choice:
    """One option of a method that is chosen, not searched; part of what identifies an answer."""

    values: tuple[str | int, ...]  # empty: any whole number
    default: str | int
    meaning: str
    source: str


def knob(default: float, low: float, high: float, meaning: str, source: str) -> Any:
    """A dataclass field that is searched."""
    return field(default=default, metadata={"knob": Knob(low, high, default, meaning, source)})


def choice(default: str | int, values: tuple[str | int, ...], meaning: str, source: str) -> Any:
    """A dataclass field that is chosen, not searched."""
    return field(default=default, metadata={"choice": Choice(values, default, meaning, source)})


def keep_count(tokens: NDArray[Any], ratio: NDArray[Any] | float) -> IntArray:
    """ceil(ratio * tokens), at least one, guarded against the noise of floating point."""
    return np.maximum(np.ceil(ratio * tokens - ROUNDING_GUARD), 1).astype(np.int64)


@dataclass(frozen=True)
class Method:
    """Base of the methods. A subclass decides the partition, the counts and how tokens rank; nothing else.

    Planning is pure and vectorised over questions; `select` is pure too: scores in, kept indices out.
    """

    name: ClassVar[str]
    ratio_field: ClassVar[str]  # every kept count is monotone in this field; solve_keep_ratio moves it
    positions: ClassVar[Literal["original", "compact"]] = "original"  # position ids of what is kept
    aligned: ClassVar[bool] = False  # whether planning needs frame and text embeddings
    merges: ClassVar[bool] = False  # whether `merge` takes the place of `select`

    @property
    def score_rows(self) -> ScoreRows:
        """Whose attention `select` ranks by: nobody's, the last prompt token's, or the question's tokens'."""
        return "none"

    def partition(self, layouts: Layouts) -> Partition:
        """Groups and boosts. Must not depend on the field named by `ratio_field`."""
        return Partition.whole(layouts)

    def count(self, layouts: Layouts, partition: Partition, num_layers: int) -> Counts:
        """How many tokens stay at each pruning layer in each group."""
        raise NotImplementedError

    def plan(self, layout: Layout, num_layers: int) -> Plan:
        """The plan of one question in a model of `num_layers` decoder layers."""
        return self.plans(Layouts((layout,)), num_layers).plan(0)

    def plans(self, layouts: Layouts, num_layers: int, partition: Partition | None = None) -> StudyPlans:
        """The plans of many questions at once.

        partition: as `partition` returned it, where only the ratio changed since.
        """
        partition = self.partition(layouts) if partition is None else partition
        counts = self.count(layouts, partition, num_layers)
        return StudyPlans(
            self.name,
            layouts,
            partition,
            counts.layers,
            counts.kept,
            counts.frames_encoded,
            self.score_rows,
            self.aligned,
        )

    def select(
        self, stage: Stage, scores: torch.Tensor | None, tokens: torch.Tensor, seed: str
    ) -> torch.Tensor:
        """Which of the visual tokens still there stay at this pruning.

        tokens: (n,) their indices in the original visual sequence, ascending. scores: (n,) float32 where the
        method asked for rows, else None. seed: the question's id, for methods that draw. Returns
        (stage.total,) indices into `tokens`, ascending, without synchronising with the device. Unless a
        method says otherwise: the best-scored tokens of each group.
        """
        from pipeline.ranking import best_in_groups

        assert scores is not None
        return best_in_groups(stage, scores, tokens, debias=False)

    def merge(self, stage: Stage, visual: VisualTokens) -> Merged:
        """Which visual tokens stay, and the states that they go on with, made of others' too.

        For methods whose one pruning comes before layer 0: all visual tokens are still there. Returns
        stage.total of them, without synchronising with the device.
        """
        raise NotImplementedError

    @property
    def ratio(self) -> float:
        """The value of the field named by `ratio_field`."""
        return float(getattr(self, self.ratio_field))

    def with_ratio(self, ratio: float) -> Self:
        """The same method with another ratio."""
        return dataclasses.replace(self, **{self.ratio_field: ratio})

    def selection_options(self) -> dict[str, str | int | float]:
        """What decides which tokens stay, and with which states, given how many: part of an answer's
        fingerprint.
        """
        return {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if "choice" in item.metadata
        }

    def _check_knobs(self) -> None:
        for name, (low, high, closed) in self._limits().items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} is a number, but got {value!r}.")
            if not (low <= value if closed else low < value) or not value <= high:
                raise ValueError(
                    f"{name} lies in {'[' if closed else '('}{low:g}, {high:g}], but got {value!r}."
                )
        for item in dataclasses.fields(self):
            option = item.metadata.get("choice")
            value = getattr(self, item.name)
            if option is not None and option.values and value not in option.values:
                known = ", ".join(repr(known) for known in option.values)
                raise ValueError(f"{item.name} is one of {known}, but got {value!r}.")
            if (
                option is not None
                and not option.values
                and (isinstance(value, bool) or not isinstance(value, int))
            ):
                raise ValueError(f"{item.name} is a whole number, but got {value!r}.")

    def _limits(self) -> dict[str, tuple[float, float, bool]]:
        """What is valid at all (low, high, low included): wider than what is searched."""
        return {self.ratio_field: (0.0, 1.0, False)}

    def __post_init__(self) -> None:
        self._check_knobs()


def knobs(method: type[Method] | Method) -> dict[str, Knob]:
    """The searched fields of a method, in order."""
    return {
        item.name: item.metadata["knob"] for item in dataclasses.fields(method) if "knob" in item.metadata
    }


def choices(method: type[Method] | Method) -> dict[str, Choice]:
    """The selection options of a method, in order."""
    return {
        item.name: item.metadata["choice"] for item in dataclasses.fields(method) if "choice" in item.metadata
    }


def json_schema(method: type[Method]) -> dict[str, Any]:
    """JSON schema of a method's fields, derived from their metadata."""
    properties: dict[str, Any] = {}
    for name, knob in knobs(method).items():
        properties[name] = {
            "type": "number",
            "minimum": knob.low,
            "maximum": knob.high,
            "default": knob.default,
            "description": f"{knob.meaning} (default: {knob.source})",
        }
    for name, option in choices(method).items():
        kind: dict[str, Any] = {"enum": list(option.values)} if option.values else {"type": "integer"}
        properties[name] = kind | {
            "default": option.default,
            "description": f"{option.meaning} (default: {option.source})",
        }
    return {"type": "object", "properties": properties, "additionalProperties": False}
