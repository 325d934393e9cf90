"""Made-up inspections, for everything that is drawn from one."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from pipeline.methods import AdaTP
from pipeline.trace import Segment
from tuner.evaluation.looking import FRAMES_PER_STRIP, Film
from tuner.reporting.inspection import BiasMaps, Card, Inspection
from tuner.study.values import Configuration


def make_film(frames: int = 16) -> Film:
    strips = []
    for first in range(0, frames, FRAMES_PER_STRIP):
        count = min(FRAMES_PER_STRIP, frames - first)
        file = io.BytesIO()
        Image.new("RGB", (16 * count, 12), (200, 30, first % 255)).save(file, "JPEG")
        strips.append(file.getvalue())
    return Film(16, 12, tuple(strips), np.arange(frames) / 2)


def make_card(index: int = 0, frames: int = 16, cells: int = 16, **changes: Any) -> Card:
    """Two segments, the second boosted; half, a quarter and an eighth of the tokens are left."""
    visual = frames * cells
    values: dict[str, Any] = {
        "kind": "regression",
        "question": f"q{index}",
        "video": "v.mp4",
        "text": f"what color is ring {index} ?",
        "options": ("red", "green", "blue"),
        "answer": "red",
        "baseline_text": "red",
        "pruned_text": "blue",
        "baseline_margin": 2.5,
        "pruned_margin": -0.5,
        "baseline_probabilities": (0.9, 0.05, 0.05),
        "pruned_probabilities": (0.3, 0.2, 0.5),
        "tags": {"type": "color", "when": "middle"},
        "segments": (
            Segment(0, frames // 4 - 1, 0.25, False),
            Segment(frames // 4, frames - 1, 1.0, True),
        ),
        "layers": (2, 4, 7),
        "tokens": tuple(np.arange(0, visual, step) for step in (2, 4, 8)),
    }
    return Card(**(values | changes))


def make_bias(frames: int = 16, cells: int = 16, **changes: Any) -> BiasMaps:
    """Attention rises towards the end; one-shot pruning follows it, AdaTP does not."""
    rising = np.arange(1, frames + 1)[:, None] * np.ones(cells)
    values: dict[str, Any] = {
        "questions": 5,
        "attention": rising / rising.sum(),
        "top_in_last": 0.6,
        "to_video": 0.2,
        "kept": np.full((frames, cells), 0.1),
        "one_shot": rising / rising.max() * 0.3,
        "one_shot_ratio": 0.2,
    }
    return BiasMaps(**(values | changes))


def make_inspection(frames: int = 16, cells: int = 16, cards: int = 3, **changes: Any) -> Inspection:
    values: dict[str, Any] = {
        "study": "demo",
        "study_hash": "5f2c9d7be1a0",
        "configuration": Configuration.from_method(AdaTP(p=0.5)),
        "flops_ratio": 0.297,
        "frames": frames,
        "cells": cells,
        "questions": 600,
        "regressions": cards,
        "gains": 0,
        "labelled": True,
        "cards": tuple(make_card(index, frames, cells) for index in range(cards)),
        "films": {"v.mp4": make_film(frames)},
        "bias": make_bias(frames, cells),
    }
    return Inspection(**(values | changes))
