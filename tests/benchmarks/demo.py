"""Asking the demo's questions directly, without the tuner: shared by the benchmarks in this folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import track

from pipeline.cache import FeatureCache
from pipeline.clip import Clip
from pipeline.layout import Layouts
from pipeline.methods import Method
from pipeline.runtime import Runtime
from tuner.results import Part
from tuner.study.definition import Study, StudyQuestion
from tuner.study.loading import load_study


@dataclass
class Demo:
    """The demo study with its model loaded; answers are kept by fingerprint, so equal plans are asked
    once."""

    study: Study
    runtime: Runtime
    answers: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def load(cls, cache: Path) -> Demo:
        study = load_study("demo")
        runtime = Runtime.load(
            study.model,
            text_encoder=study.text_encoder,
            frames=study.frames,
            scoring=study.scoring,
            cache=FeatureCache(cache, 2**30),
        )
        return cls(study, runtime)

    def questions(self, part: Part) -> list[tuple[StudyQuestion, Clip]]:
        """In order of the file, so that a video's questions follow one another."""
        return [(q, self.runtime.encode(self.study.video_of(q).path)) for q in self.study.questions_of(part)]

    def layouts(self, asked: Sequence[tuple[StudyQuestion, Clip]]) -> Layouts:
        return Layouts.of([self.runtime.layout(clip, question) for question, clip in asked])

    def correct(
        self, asked: Sequence[tuple[StudyQuestion, Clip]], method: Method | None, label: str = ""
    ) -> np.ndarray:
        """(questions,) bool: which answers are right."""
        right = []
        for question, clip in track(asked, description=label or "asking", transient=True):
            key = (question.id, self.runtime.fingerprint(method, self.runtime.layout(clip, question)))
            if key not in self.answers:
                self.answers[key] = self.runtime.answer(clip, question, method).text
            right.append(self.answers[key] == question.answer)
        return np.array(right)
