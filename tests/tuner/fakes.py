"""A study without a model: synthetic layouts, and an evaluator whose answers depend on question and plan."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.flops import ModelShape, VisionShape
from pipeline.layout import Layout
from pipeline.methods import AdaTP, from_dict
from tuner.evaluation.description import ModelDescription
from tuner.evaluation.evaluator import EncodedVideo
from tuner.evaluation.search_loop import SearchLoop
from tuner.planning.planner import Planner
from tuner.records.definition import definition
from tuner.records.store import Store
from tuner.records.values import Goal, SearchRecord, StoredQuestion, StudyRecord
from tuner.search.sampler import Sampler
from tuner.search.space import Candidate, Point, SearchSpace
from tuner.study import Study, StudyQuestion, Video, study_identity
from tuner.study.values import Configuration

SHAPE = ModelShape(
    layers=12,
    hidden=160,
    kv_width=80,
    mlp_width=432,
    heads=4,
    vision=VisionShape(patches=64, patch_inputs=192, width=128, mlp_width=512, layers=3, extra_layers=1),
)
BASE = "encoding|words|16"
OPTIONS = ("red", "green", "blue", "white")


def make_study(videos: int = 8, per_video: int = 3, *, labelled: bool = True) -> Study:
    names = [f"v{index:02}.mp4" for index in range(videos)]
    return Study(
        name="fake",
        folder=Path("fake"),
        model="model",
        revision=None,
        text_encoder="siglip",
        questions_file=Path("fake/questions.jsonl"),
        frames=16,
        scoring="words",
        max_new_tokens=16,
        videos=tuple(Video(name, Path("fake") / name) for name in names),
        questions=tuple(
            StudyQuestion(
                id=f"{name}-q{index}",
                text=f"What color is thing {index}?",
                options=OPTIONS,
                video=name,
                answer=OPTIONS[_number(name, index) % 4] if labelled else None,
            )
            for name in names
            for index in range(per_video)
        ),
        held_out=frozenset(names[1::2]),
    )


def stored_questions(study: Study) -> tuple[StoredQuestion, ...]:
    return tuple(
        StoredQuestion(
            question.id,
            question.video,
            study.split_of(question),
            _layout(question.video, question.id),
            question.tags,
        )
        for question in study.questions
    )


def _layout(video: str, question: str) -> Layout:
    scenes = np.random.default_rng(_number(video))
    similarity = np.where(
        scenes.random(15) < 0.3, scenes.uniform(0.2, 0.6, 15), scenes.uniform(0.9, 0.99, 15)
    )
    relevance = np.random.default_rng(_number(question)).uniform(-0.1, 0.2, 16)
    return Layout(16, 16, 1, 6, 14, similarity, relevance)


def make_planner(study: Study) -> Planner:
    return Planner(stored_questions(study), SHAPE, BASE)


def open_store(path: Path, study: Study) -> Store:
    """The store at this place, with the study in it."""
    store = Store.open(f"sqlite:///{path}")
    begin(store, study)
    return store


def begin(store: Store, study: Study, *, archive: bool = False) -> None:
    """The study in the store, written if it is not there yet; archive: anew, whatever is there."""
    if archive:
        store.archive(study.name)
    if store.find(study.name) is None:
        store.begin(study_record(study))


def study_record(study: Study) -> StudyRecord:
    """The study as the records keep it; a video's name stands for its bytes."""
    contents = {video.name: video.name for video in study.videos}
    return StudyRecord(
        name=study.name,
        hash="hash",
        parts=study_identity(study, model=study.model, encoding=BASE, content_hashes=contents).parts,
        setting={},
        shape=asdict(SHAPE),
        fingerprint_base=BASE,
        text_encoder_identity="siglip",
        skipped=(),
        questions=stored_questions(study),
        definition=definition(study),
    )


class UnsolvedSpace(SearchSpace):
    """Takes p from `compute` as it stands, whatever that costs: many of its candidates are infeasible."""

    def candidate(self, point: Point) -> Candidate:
        p = self._knobs["p"]
        method = super().candidate(point).configuration.build()
        assert isinstance(method, AdaTP)
        method = method.with_ratio(p.low + point["compute"] * (p.high - p.low))
        return Candidate(Configuration.from_method(method), self._planner.binding_ratio(method))


def make_loop(
    study: Study,
    store: Store,
    *,
    trials: int = 6,
    budget: float = 0.35,
    seed: int = 0,
    unsolved: bool = False,
    sampler: Sampler | None = None,
    goal: Goal = "budget",
    max_drop: str = "0.02",
    **options: Any,
) -> SearchLoop:
    """Without race and without configurations above the budget, unless the options say so.

    unsolved: many proposals are over the budget, see `UnsolvedSpace`.
    """
    planner = make_planner(study)
    search: SearchRecord = store.search(budget, seed, "budget", trials, goal=goal, max_drop=max_drop)
    space = (UnsolvedSpace if unsolved else SearchSpace)(planner, study.search, budget, goal)
    options = {"race": False, "above_budget": (), "batch_videos": 2, **options}
    if sampler is None:
        # Here, because workers import this module for its evaluator and Optuna is half of what they import.
        from tuner.search.optuna_sampler import OptunaSampler

        # Few random trials, so that short tests reach the model of the sampler.
        sampler = OptunaSampler(startup_trials=3)
    return SearchLoop(study, store, planner, search, space, sampler, **options)


@dataclass
class FakeEvaluator:
    """Answers as a model might that needs tokens: the more stay in the video, the more it gets right."""

    study: Study
    # Set: the process is killed once, in the middle of the batch after this many.
    kill_marker: Path | None = None
    kill_after: int = 0
    # Every call dies this way.
    always: str | None = None
    # Asking this question kills the process each time; asking that one finds too little memory.
    deadly: str | None = None
    hungry: str | None = None
    # Such questions harm only after this many calls.
    harmless_calls: int = 0
    # Names of videos: that cannot be read, and that kill the process which encodes them: each time, or once.
    unreadable: tuple[str, ...] = ()
    deadly_video: str | None = None
    kill_marker_video: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    calls: list[tuple[str | None, tuple[str, ...]]] = field(default_factory=list)
    # Calls whose use of caches was told.
    counted: int = 0

    def __call__(self) -> FakeEvaluator:
        return self

    def answer(
        self,
        configuration: Mapping[str, Any] | None,
        questions: Sequence[str],
        references: Mapping[str, str],
        *,
        reshaped: bool = False,
    ) -> list[dict[str, Any]]:
        if self.always is not None:
            raise RuntimeError(self.always)
        if (
            self.kill_marker is not None
            and len(self.calls) >= self.kill_after
            and not self.kill_marker.exists()
        ):
            self.kill_marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        if len(self.calls) >= self.harmless_calls:
            if self.deadly in questions:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
            if self.hungry in questions:
                raise MemoryError("no room for so many tokens")
        self.calls.append((None if configuration is None else str(configuration["method"]), tuple(questions)))
        return [self._one(configuration, question) for question in questions]

    def cache_use(self) -> dict[str, int]:
        """As of a worker whose memory holds all features, but no prefix from one call to the next."""
        calls, self.counted = self.calls[self.counted :], len(self.calls)
        asked = sum(len(questions) for _, questions in calls)
        return {
            "features_in_memory": asked,
            "prefixes_built": len(calls),
            "prefixes_reused": asked - len(calls),
        }

    def expect(self, contents: Mapping[str, str]) -> None:
        """Ignored: there are no files."""

    def describe(self) -> list[ModelDescription]:
        """A model of `SHAPE` on this machine's CPU."""
        return [
            ModelDescription(
                host="here",
                machine="CPU",
                identity=self.study.model,
                encoder_identity="siglip",
                encoding=BASE,
                dtype=self.dtype,
                device=self.device,
                attention="sdpa",
                pooling=None,
                checkpoint_pooling=None,
                shape=asdict(SHAPE),
            )
        ]

    def encode(self, video: str, questions: Sequence[str]) -> list[EncodedVideo]:
        """The layouts of `stored_questions`; a video's name stands for its bytes."""
        name = Path(video).name
        again = self.kill_marker is None or self.kill_marker.exists()
        if name == self.deadly_video or (name == self.kill_marker_video and not again):
            if self.kill_marker is not None:
                self.kill_marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        if name in self.unreadable:
            return [EncodedVideo("", {}, f"video {video} is empty")]
        return [EncodedVideo(name, {question: _layout(name, question) for question in questions})]

    def _one(self, configuration: Mapping[str, Any] | None, question_id: str) -> dict[str, Any]:
        question = self.study.question(question_id)
        right = OPTIONS.index(question.answer) if question.answer is not None else _number(question_id) % 4
        ease = _number(question_id, "ease") / 2**32
        kept: tuple[int, ...] = ()
        strength = 0.95
        if configuration is not None:
            method = from_dict(configuration)
            plan = method.plan(_layout(question.video, question_id), SHAPE.layers)
            kept = tuple(plan.total(j) for j in range(len(plan.layers)))
            strength = min(0.95, 0.4 + kept[-1] / 100)
            if isinstance(method, AdaTP):
                strength -= abs(method.tau_t - 0.6) / 4
        margin = 4 * (strength - ease)
        option = right if margin > 0 else (right + 1) % 4
        logprobs = [-2.0] * 4
        logprobs[right] = -2.0 + margin
        return {
            "question": question_id,
            "text": OPTIONS[option],
            "option": option,
            "option_logprobs": tuple(logprobs),
            "logprob": max(logprobs),
            "kept": kept,
            "seconds": 0.001,
        }


def _number(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little")
