"""Measures the demo as shipped, through the product's own pipeline: accuracy, blanked video, where answers
move, where attention looks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from pipeline.clip import Clip
from pipeline.layout import Layouts
from pipeline.methods import AdaTP, Method
from pipeline.methods.base import Counts, Partition
from pipeline.runtime import Request, Runtime
from pipeline.trace import trace
from tuner.reporting.inspection import TOP_SHARE, last_frames, relative
from tuner.study.definition import StudyQuestion
from tuner.study.loading import load_study

from .scenes import SAMPLED

if TYPE_CHECKING:
    from pipeline.ranking import Stage

PACK = 8  # questions in one forward


@dataclass(frozen=True)
class DropAll(Method):
    """All visual tokens leave before one layer: shows in which layers answers move out of them."""

    layer: int = 0

    name: ClassVar[str] = "drop_all"
    ratio_field: ClassVar[str] = "layer"

    def __post_init__(self) -> None:
        return

    def count(self, layouts: Layouts, partition: Partition, num_layers: int) -> Counts:
        return Counts((self.layer,), np.zeros((1, partition.size.size), dtype=np.int64))

    def select(
        self, stage: Stage, scores: torch.Tensor | None, tokens: torch.Tensor, seed: str
    ) -> torch.Tensor:
        return tokens[:0]


class Blanked(DropAll):
    """The model without its video: text alone, positions renumbered."""

    positions: ClassVar[Literal["original", "compact"]] = "compact"


def _asked(runtime: Runtime, folder: Path, held_out: bool | None) -> Iterator[tuple[StudyQuestion, Clip]]:
    study = load_study(str(folder))
    for question in study.questions:
        if held_out is None or (question.video in study.held_out) == held_out:
            yield question, runtime.encode(study.video_of(question).path)


def accuracy(
    runtime: Runtime, folder: Path, method: Method | None, held_out: bool | None = True
) -> dict[str, float]:
    """Accuracy over all questions and per type."""
    right: dict[str, list[bool]] = defaultdict(list)
    asked = list(_asked(runtime, folder, held_out))
    for begin in range(0, len(asked), PACK):
        some = asked[begin : begin + PACK]
        answers = runtime.answer_many([Request(clip, question, method) for question, clip in some])
        for (question, _), answer in zip(some, answers, strict=True):
            right["all"].append(answer.text == question.answer)
            right[question.tags["type"]].append(answer.text == question.answer)
    return {name: round(float(np.mean(values)), 4) for name, values in right.items()}


def without_layer(runtime: Runtime, folder: Path, layer: int) -> dict[str, float]:
    """Accuracy of the unpruned model when one layer adds nothing: whether that layer is used."""

    def skip(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return args[0]

    handle = runtime.family.layers[layer].register_forward_hook(skip)
    try:
        return accuracy(runtime, folder, None)
    finally:
        handle.remove()
        runtime.forget_prefixes()


def attention_bias(runtime: Runtime, folder: Path, videos: int = 40) -> dict[str, float]:
    """The paper's two biases, over so many held-out videos with one question each, nothing pruned.

    As in the figure of the report: the share of the best-attended tenth of the visual tokens in the last
    eighth of the frames, and the largest mean attention of a position in a frame, in units of the mean.
    """
    first = {question.video: (question, clip) for question, clip in _asked(runtime, folder, held_out=True)}
    tops, attention = [], []
    for question, clip in list(first.values())[:videos]:
        layout = runtime.layout(clip, question)
        scores = trace(runtime, clip, question, AdaTP()).attention
        best = np.argsort(-scores, kind="stable")[: round(TOP_SHARE * scores.size)]
        last = (layout.frames - last_frames(layout.frames)) * layout.cells
        tops.append(float((best >= last).mean()))
        attention.append((scores / scores.sum()).reshape(layout.frames, layout.cells))
    return {
        "videos": len(tops),
        "top_tenth_in_last_eighth_of_frames": round(float(np.mean(tops)), 4),
        "largest_position_over_mean": round(float(relative(np.mean(attention, axis=0), "position").max()), 3),
    }


def load(folder: Path) -> Runtime:
    from pipeline.cache import FeatureCache

    cache = FeatureCache(folder / ".work" / "features", 2**30)
    return Runtime.load(
        str(folder / "model"),
        text_encoder=str(folder / "siglip"),
        frames=SAMPLED,
        scoring="words",
        cache=cache,
    )


def measure(folder: Path) -> dict[str, Any]:
    """What build.json records and docs/experiments.md shows."""
    runtime = load(folder)
    result = {
        "held_out_accuracy": accuracy(runtime, folder, None),
        "tune_accuracy": accuracy(runtime, folder, None, held_out=False),
        "attention_bias": attention_bias(runtime, folder),
        "blanked": accuracy(runtime, folder, Blanked(0)),
        "drop_before_layer": {
            str(layer): accuracy(runtime, folder, DropAll(layer)) for layer in range(1, runtime.shape.layers)
        },
        "without_layer": {
            str(layer): without_layer(runtime, folder, layer)["all"] for layer in range(runtime.shape.layers)
        },
    }
    print(json.dumps(result, indent=2))
    return result
