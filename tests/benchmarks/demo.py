"""Asking the demo's questions directly, without the tuner: shared by the benchmarks in this folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from pipeline.cache import FeatureCache
from pipeline.clip import Clip
from pipeline.layout import Layouts
from pipeline.methods import Method
from pipeline.runtime import Request, Runtime
from tuner.study.definition import Study, StudyQuestion
from tuner.study.loading import load_study
from tuner.study.values import Split

PACK = 8  # questions in one forward


@dataclass
class Demo:
    """The demo study with its model loaded; answers are kept by fingerprint, so equal plans are asked
    once."""

    study: Study
    runtime: Runtime
    answers: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def load(cls, cache: Path, **options: Any) -> Demo:
        """options: for `Runtime.load`, beside what the study says."""
        study = load_study("demo")
        runtime = Runtime.load(
            study.model,
            text_encoder=study.text_encoder,
            frames=study.frames,
            scoring=study.scoring,
            cache=FeatureCache(cache, 2**30),
            **options,
        )
        return cls(study, runtime)

    def questions(self, split: Split) -> list[tuple[StudyQuestion, Clip]]:
        """In order of the file, so that a video's questions follow one another."""
        return [(q, self.runtime.encode(self.study.video_of(q).path)) for q in self.study.questions_of(split)]

    def layouts(self, asked: Sequence[tuple[StudyQuestion, Clip]]) -> Layouts:
        return Layouts.of([self.runtime.layout(clip, question) for question, clip in asked])

    def correct(
        self, asked: Sequence[tuple[StudyQuestion, Clip]], method: Method | None, label: str = ""
    ) -> np.ndarray:
        """(questions,) bool: which answers are right."""
        keys = [
            (question.id, self.runtime.fingerprint(method, self.runtime.layout(clip, question)))
            for question, clip in asked
        ]
        missing = [i for i, key in enumerate(keys) if key not in self.answers]
        for begin in track(range(0, len(missing), PACK), description=label or "asking", transient=True):
            some = missing[begin : begin + PACK]
            requests = [Request(clip, question, method) for question, clip in (asked[i] for i in some)]
            for i, answer in zip(some, self.runtime.answer_many(requests), strict=True):
                self.answers[keys[i]] = answer.text
        return np.array(
            [self.answers[key] == question.answer for key, (question, _) in zip(keys, asked, strict=True)]
        )
