"""Do a worker's stores hold what a study asks for again? Counted at the 7B shape by a model that only has
sizes: its tensors lie on torch's meta device.

    python -m tests.benchmarks.stores --videos 100 --questions 5 --trials 40 --gpu-gb 80 --host-gb 128

The search, the executor, the evaluator and the stores are the program's own; the forwards are left out, and
answers are made up. A visit is a video with its questions in one evaluation: it finds its prefix where none
of its questions has to build one.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from pipeline import hashes, video
from pipeline.answering import Answer
from pipeline.break_even import stored_numbers
from pipeline.clip import Clip, Saliency
from pipeline.layout import Layout, Layouts
from pipeline.methods import to_dict
from pipeline.runtime import Request, Runtime
from tests.benchmarks.shapes import build
from tests.tuner.fakes import BASE, FakeEvaluator, make_study, open_store, stored_questions
from tuner.evaluation.evaluator import EvaluatorSpec, PipelineEvaluator
from tuner.evaluation.memory import DEVICE_SHARE, HOST_SHARE
from tuner.evaluation.search_loop import SearchLoop
from tuner.executors.in_process import InProcessExecutor
from tuner.planning.planner import Planner
from tuner.search.optuna_sampler import OptunaSampler
from tuner.search.space import SearchSpace
from tuner.study import Study

FRAMES, CELLS = 32, 196
BUDGET = 0.35
GB = 10**9


@dataclass(frozen=True)
class Counted:
    """What a search asked of the stores of one worker."""

    visits: int
    found: int  # visits that built no prefix
    trial_visits: int
    trial_found: int
    prefix_bytes: int  # room
    prefix_peak: int  # held at most
    prefix_planned: int  # of all prefixes together, by formula, and at most the room
    clip_bytes: int
    clip_peak: int
    hashed: int  # files read to be hashed
    files: int


class SizedRuntime:
    """Wraps a runtime on the meta device: clips and prefixes have their sizes, answers are made up."""

    def __init__(self, runtime: Runtime, study: Study, layouts: dict[str, Layout]) -> None:
        self.runtime = runtime
        self.family = runtime.family
        self.cache_counts = runtime.cache_counts
        self._layouts = layouts
        self._answers = FakeEvaluator(study)
        self._last: tuple[str, object] = ("", None)
        # By whether it is a trial's: visits, and those that built a prefix.
        self.visits: Counter[bool] = Counter()
        self.built: Counter[bool] = Counter()
        self._building = False
        self.peak = 0

    def encode(self, path: str) -> Clip:
        hidden = self.runtime.shape.hidden
        trailing = 1

        def sized(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        return Clip(
            path=path,
            content_hash=video.content_hash(path),
            frame_times=np.arange(FRAMES, dtype=np.float64),
            features=sized(FRAMES * CELLS + trailing, hidden, dtype=torch.bfloat16),
            frame_embeddings=sized(FRAMES, 1152),
            saliency=Saliency(sized(FRAMES, CELLS), sized(FRAMES, CELLS), sized(FRAMES, CELLS, 72)),
            cells=CELLS,
            trailing=trailing,
            seconds=float(FRAMES),
        )

    @torch.inference_mode()
    def answer_many(self, requests: Sequence[Request]) -> list[Answer]:
        answers = []
        for clip, question, method, _ in requests:
            layers = self.runtime.shape.layers
            if method is not None:
                plan = method.plan(self._layouts[question.id], layers)
                layers = layers if plan.keeps_everything else plan.layers[0]
            before = self.cache_counts["prefixes_built"]
            self.runtime.prefix(clip, layers)
            self._count(clip, method, built=self.cache_counts["prefixes_built"] > before)
            made_up = self._answers._one(None if method is None else to_dict(method), question.id)
            answers.append(Answer(**made_up, peak_bytes=None))
        self.peak = max(self.peak, sum(tensor.nbytes for tensor in self.runtime._prefixes._held.values()))
        return answers

    def _count(self, clip: Clip, method: object, *, built: bool) -> None:
        trial = method is not None
        if self._last != (clip.path, method):
            self._last, self._building = (clip.path, method), False
            self.visits[trial] += 1
        if built and not self._building:
            self._building = True
            self.built[trial] += 1


def count(
    folder: Path,
    *,
    videos: int,
    questions: int,
    trials: int,
    gpu_bytes: int,
    host_bytes: int,
    shape: str = "7b",
    prefix_bytes: int | None = None,
) -> Counted:
    """A search on `videos` videos, and a quarter as many that are held out.

    prefix_bytes: instead of the share of the GPU's free memory.
    """
    runtime = build(shape, folder / "model", device=torch.device("meta"), dtype=torch.bfloat16, frames=FRAMES)
    weights = sum(parameter.nbytes for parameter in runtime.model.parameters())
    runtime.prefix_bytes = prefix_bytes or int(DEVICE_SHARE * (gpu_bytes - weights))
    study = _study(folder, videos, questions)
    layouts = {question.id: _layout(question.layout) for question in stored_questions(study)}
    sized = SizedRuntime(runtime, study, layouts)
    evaluator = PipelineEvaluator(
        replace(EvaluatorSpec.of(study, None), batch=8),
        sized,  # type: ignore[arg-type]
        clip_bytes=int(HOST_SHARE * host_bytes),
    )
    planner = Planner(
        tuple(replace(question, layout=layouts[question.id]) for question in stored_questions(study)),
        runtime.shape,
        BASE,
    )
    hashed: list[Any] = []
    digest = hashlib.file_digest

    def counting(file: Any, name: Any) -> Any:
        hashed.append(file.name)
        return digest(file, name)

    with (
        open_store(folder / "t.db", study) as store,
        closing(InProcessExecutor(lambda: evaluator)) as executor,
        mock.patch.object(hashes.hashlib, "file_digest", counting),
    ):
        # The driver hashes the files too.
        for item in study.videos:
            video.content_hash(item.path)
        search = store.search(BUDGET, 0, "budget", trials, goal="budget", max_drop="0.02")
        space = SearchSpace(planner, study.search, BUDGET, "budget")
        executor.run(
            SearchLoop(study, store, planner, search, space, OptunaSampler(), race=False, above_budget=())
        )
    method = space.defaults().configuration.build()
    plans = method.plans(Layouts.of(tuple(layouts.values())), runtime.shape.layers)
    planned = sum(stored_numbers(plans, runtime.shape)) * len(study.videos) * torch.bfloat16.itemsize
    return Counted(
        visits=sized.visits.total(),
        found=sized.visits.total() - sized.built.total(),
        trial_visits=sized.visits[True],
        trial_found=sized.visits[True] - sized.built[True],
        prefix_bytes=runtime.prefix_bytes,
        prefix_peak=sized.peak,
        prefix_planned=min(int(planned), runtime.prefix_bytes),
        clip_bytes=int(HOST_SHARE * host_bytes),
        clip_peak=sum(clip.features.nbytes for clip in evaluator._clips.values()),
        hashed=len(hashed),
        files=len(study.videos),
    )


def _study(folder: Path, videos: int, questions: int) -> Study:
    """A study with a small file for each video."""
    study = make_study(videos + -(-videos // 4), questions)
    files = tuple(replace(video, path=folder / video.name) for video in study.videos)
    for item in files:
        item.path.write_text(item.name)
    return replace(study, videos=files, held_out=frozenset(file.name for file in files[videos:]))


def _layout(small: Layout) -> Layout:
    """A layout of the fakes, at the benchmark's size."""
    places = np.linspace(0, small.frames - 1, FRAMES).round().astype(int)
    similarity = np.resize(small.frame_similarity, FRAMES - 1)
    return Layout(FRAMES, CELLS, 1, 14, 40, similarity, small.frame_relevance[places])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=100, help="tuned on (default: 100)")
    parser.add_argument("--questions", type=int, default=5, help="about each video (default: 5)")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--gpu-gb", type=float, default=80.0)
    parser.add_argument("--host-gb", type=float, default=128.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = count(
            Path(folder),
            videos=options.videos,
            questions=options.questions,
            trials=options.trials,
            gpu_bytes=int(options.gpu_gb * GB),
            host_bytes=int(options.host_gb * GB),
        )
    print(f"visits that found their prefix: {found.found:,} of {found.visits:,}")
    print(f"of trials: {found.trial_found:,} of {found.trial_visits:,}")
    print(
        f"prefixes: at most {found.prefix_peak / 2**30:.2f} GiB held, {found.prefix_planned / 2**30:.2f} "
        f"planned, room for {found.prefix_bytes / 2**30:.2f}"
    )
    print(f"clips: {found.clip_peak / 2**30:.2f} GiB held, room for {found.clip_bytes / 2**30:.2f}")
    print(f"files hashed: {found.hashed} times, {found.files} files")


if __name__ == "__main__":
    main()
