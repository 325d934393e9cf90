"""The demo without its model: answers looked up in the table of `tests.benchmarks.table`.

The table stands for itself: it holds its study's questions and layouts, so it goes on describing the demo
that it was made of when another one ships. That of `DATA` is the demo of 12 layers and 16 frames that shipped
until November 2026.

    python -m tests.benchmarks.tabulated pack .tuner/table    # the files of the table -> data/demo_table.npz
    python -m tests.benchmarks.tabulated check design.csv     # against real answers off the lattice

tau_s and tau_t are taken to the nearest tabulated value. Between tabulated values of p and the boost each
question takes the answer of one of the four neighbours: by two random numbers of its own, drawn once, and
more often the nearer one (in logarithms). So every answer is one that the model gave; their mean would be
right more often than the model is. What a configuration costs is exact.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from pipeline.flops import ModelShape, VisionShape
from pipeline.layout import Layout
from pipeline.methods import AdaTP, from_dict
from tests.benchmarks.table import ALPHA, TAU_S, TAU_T, P, method_at
from tuner.planning.planner import Planner, fingerprint_base
from tuner.records.values import StoredQuestion
from tuner.study import Study, StudyQuestion, Video

DATA = Path(__file__).parent / "data" / "demo_table.npz"

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Graded:
    """One configuration's answers. Q questions, in the study's order."""

    margin: Floats  # (Q,) log-probability of the right option minus that of the best other one
    logprob: Floats  # (Q,) of the right option

    @property
    def correct(self) -> NDArray[np.bool_]:
        return self.margin > 0


@dataclass(frozen=True, eq=False)
class Tabulated:
    """The table of one study. Q questions, N different answers."""

    study: Study
    planner: Planner
    margin: NDArray[np.float16]  # (N,)
    logprob: NDArray[np.float16]  # (N,)
    row: NDArray[np.int32]  # (Q, tau_s, tau_t, alpha, p) of `margin`
    baseline: NDArray[np.int32]  # (Q,)

    @classmethod
    def load(cls, path: Path = DATA) -> Tabulated:
        with np.load(path) as file:
            study = _study(file)
            planner = _planner(study, file)
            return cls(study, planner, file["margin"], file["logprob"], _rows(file), file["baseline"])

    @cached_property
    def questions(self) -> list[str]:
        return [question.id for question in self.planner.questions]

    @cached_property
    def index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.questions)}

    @cached_property
    def videos(self) -> NDArray[np.str_]:
        return np.array([question.video for question in self.planner.questions])

    @cached_property
    def tune(self) -> NDArray[np.bool_]:
        return np.array([question.split == "tune" for question in self.planner.questions])

    def unpruned(self) -> Graded:
        return self._graded(self.baseline)

    def answers(self, method: AdaTP) -> Graded:
        """Of all questions."""
        s = int(np.argmin(np.abs(self._cuts(TAU_S) - self._cuts([method.tau_s]))))
        if method.tau_t > TAU_T[-1]:  # nothing is boosted
            t, alpha = len(TAU_T) - 1, 1.0
        else:
            t, alpha = int(np.argmin(np.abs(np.array(TAU_T) - method.tau_t))), method.boosted_ratio / method.p
        place = np.arange(len(self.row))
        j, i = _between(ALPHA, alpha, self._drawn[0]), _between(P, method.p, self._drawn[1])
        return self._graded(self.row[place, s, t, j, i])

    @cached_property
    def _drawn(self) -> Floats:
        """(2, Q) numbers in [0, 1)."""
        return np.random.default_rng(0).random((2, len(self.row)))

    def _graded(self, rows: NDArray[np.int32]) -> Graded:
        return Graded(self.margin[rows].astype(np.float64), self.logprob[rows].astype(np.float64))

    def _cuts(self, tau_s: Sequence[float]) -> Floats:
        """The share of neighbouring frames that are less similar."""
        similarities = self.planner.similarities
        return np.searchsorted(similarities, np.asarray(tau_s)) / similarities.size


def _between(levels: Sequence[float], value: float, drawn: Floats) -> NDArray[np.int64]:
    """(Q,) index of one of the two levels around a value, the upper one where its share exceeds the draw."""
    logs = np.log(levels)
    place = float(np.interp(np.log(value), logs, np.arange(len(levels))))
    low = min(int(place), len(levels) - 2)
    return low + (drawn < place - low).astype(np.int64)


@dataclass
class TabulatedEvaluator:
    """`tuner.evaluation.evaluator.Evaluator` over the table."""

    table: Tabulated
    seconds: float = 0.0

    def __call__(self) -> TabulatedEvaluator:
        return self

    def answer(
        self,
        configuration: Mapping[str, Any] | None,
        questions: Sequence[str],
        references: Mapping[str, str],
        *,
        reshaped: bool = False,
    ) -> list[dict[str, Any]]:
        table = self.table
        if configuration is None:
            graded = table.unpruned()
        else:
            method = from_dict(configuration)
            assert isinstance(method, AdaTP)
            graded = table.answers(method)
        return [self._one(name, graded, table.index[name]) for name in questions]

    def cache_use(self) -> dict[str, int]:
        return {}

    def _one(self, name: str, graded: Graded, index: int) -> dict[str, Any]:
        question = self.table.study.question(name)
        assert question.options is not None
        assert question.answer is not None
        right = question.options.index(question.answer)
        # One other option carries the margin; what is left of the probability goes to the rest.
        logprob = min(graded.logprob[index], -1e-6)
        best_other = logprob - graded.margin[index]
        rest = max(1.0 - np.exp(logprob) - np.exp(best_other), 1e-12) / (len(question.options) - 2)
        logprobs = [float(min(np.log(rest), best_other - 1e-6))] * len(question.options)
        wrong = (right + 1) % len(question.options)
        logprobs[right], logprobs[wrong] = float(logprob), float(best_other)
        option = right if graded.correct[index] else wrong
        return {
            "question": name,
            "text": question.options[option],
            "option": option,
            "option_logprobs": tuple(logprobs),
            "logprob": logprobs[option],
            "kept": (),
            "seconds": 0.0,
        }


def pack(folder: Path, target: Path = DATA) -> None:
    """One file from those of all videos, with the layouts that plans need."""
    from tests.benchmarks.demo import Demo

    demo = Demo.load(Path(os.environ.get("TUNER_BENCHMARKS", ".tuner/benchmarks")))
    study, runtime = demo.study, demo.runtime
    found: dict[str, NDArray[np.float32]] = {}
    for video in study.videos:
        with np.load(folder / f"{Path(video.name).stem}.npz") as file:
            found.update(zip(file["names"].tolist(), file["logprobs"], strict=True))
    layouts = [
        runtime.layout(runtime.encode(study.video_of(question).path), question)
        for question in study.questions
    ]
    base = fingerprint_base(runtime.encoding, study.scoring, study.max_new_tokens)
    stored = tuple(
        StoredQuestion(question.id, question.video, study.split_of(question), layout)
        for question, layout in zip(study.questions, layouts, strict=True)
    )
    planner = Planner(stored, runtime.shape, base)
    rows: dict[str, int] = {}
    margins: list[float] = []
    logprobs: list[float] = []

    def row(question: int, fingerprint: str) -> int:
        name = f"{study.questions[question].id}|{fingerprint}"
        if name not in rows:
            one = study.questions[question]
            assert one.options is not None
            assert one.answer is not None
            right = one.options.index(one.answer)
            options = found[name].astype(np.float64)
            options = options - np.logaddexp.reduce(options)
            rows[name] = len(margins)
            margins.append(options[right] - np.delete(options, right).max())
            logprobs.append(options[right])
        return rows[name]

    baseline = [row(i, fingerprint) for i, fingerprint in enumerate(planner.fingerprints(None))]
    table = np.empty((len(TAU_S), len(TAU_T), len(ALPHA), len(P), len(stored)), dtype=np.int32)
    for place in np.ndindex(table.shape[:-1]):
        s, t, j, i = place
        fingerprints = planner.fingerprints(method_at(TAU_S[s], TAU_T[t], ALPHA[j], P[i]))
        table[place] = [row(q, fingerprint) for q, fingerprint in enumerate(fingerprints)]
    # Plans that (tau_s, tau_t) share make equal slices: each is kept once.
    slices = np.moveaxis(table, -1, 0).reshape(len(stored) * len(TAU_S) * len(TAU_T), -1)
    unique, which = np.unique(slices, axis=0, return_inverse=True)
    vision = runtime.shape.vision
    assert vision is not None
    target.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        target,
        margin=np.array(margins, dtype=np.float16),
        logprob=np.array(logprobs, dtype=np.float16),
        slices=unique.astype(np.int32),
        which=which.reshape(-1).astype(np.int32),
        baseline=np.array(baseline, dtype=np.int32),
        similarity=np.array([layout.frame_similarity for layout in layouts]),
        relevance=np.array([layout.frame_relevance for layout in layouts]),
        tokens=np.array(
            [
                [layout.frames, layout.cells, layout.trailing, layout.text_before, layout.text_after]
                for layout in layouts
            ]
        ),
        shape=np.array([[*(getattr(runtime.shape, name) for name in _SHAPE)]]),
        vision=np.array([[*(getattr(vision, name) for name in _VISION)]]),
        base=np.array(base),
        **_questions(study),
    )
    print(f"{len(margins)} answers, {target.stat().st_size / 2**20:.1f} MiB in {target}")


_SHAPE = ("layers", "hidden", "kv_width", "mlp_width", "heads")
_VISION = tuple(VisionShape.__dataclass_fields__)


def _questions(study: Study) -> dict[str, NDArray[Any]]:
    """What `_study` needs of every question, as columns."""
    options = [question.options for question in study.questions]
    return {
        "id": np.array([question.id for question in study.questions]),
        "video": np.array([question.video for question in study.questions]),
        "held_out": np.array([question.video in study.held_out for question in study.questions]),
        "options": np.array(options),
        "answer": np.array([question.answer for question in study.questions]),
    }


def _study(file: Any) -> Study:
    """The table's study; what only the model would need is left empty."""
    columns = (file[name].tolist() for name in ("id", "video", "options", "answer"))
    questions = tuple(
        StudyQuestion(id=name, text=name, options=tuple(options), video=video, answer=answer)
        for name, video, options, answer in zip(*columns, strict=True)
    )
    return Study(
        name="tabulated",
        folder=DATA.parent,
        questions_file=DATA,
        model="",
        revision=None,
        text_encoder="",
        frames=int(file["tokens"][0][0]),
        scoring="words",
        max_new_tokens=16,
        videos=tuple(Video(name, DATA) for name in sorted({question.video for question in questions})),
        questions=questions,
        held_out=frozenset(file["video"][file["held_out"]].tolist()),
    )


def _planner(study: Study, file: Any) -> Planner:
    layouts = [
        Layout(*(int(token) for token in tokens), similarity.astype(np.float64), relevance.astype(np.float64))
        for tokens, similarity, relevance in zip(
            file["tokens"], file["similarity"], file["relevance"], strict=True
        )
    ]
    # Fields that came later have defaults.
    vision = VisionShape(**dict(zip(_VISION, map(int, file["vision"][0]), strict=False)))
    shape = ModelShape(**dict(zip(_SHAPE, map(int, file["shape"][0]), strict=True)), vision=vision)
    stored = tuple(
        StoredQuestion(question.id, question.video, study.split_of(question), layout)
        for question, layout in zip(study.questions, layouts, strict=True)
    )
    return Planner(stored, shape, str(file["base"]))


def _rows(file: Any) -> NDArray[np.int32]:
    whole = file["slices"][file["which"]]
    return whole.reshape(-1, len(TAU_S), len(TAU_T), len(ALPHA), len(P))


def check(design: Path) -> None:
    """Accuracies of a real design (`tests.benchmarks.demo_tradeoff --table`) against the table's."""
    table = Tabulated.load()
    real, looked_up = [], []
    with design.open() as file:
        for line in csv.DictReader(file):
            method = AdaTP(
                *(float(line[name]) for name in ("tau_s", "tau_t", "alpha_boost", "gamma_cap", "p"))
            )
            real.append(float(line["accuracy"]))
            looked_up.append(float(table.answers(method).correct[table.tune].mean()))
    error = np.array(looked_up) - np.array(real)
    print(
        f"{len(real)} configurations: mean error {100 * error.mean():+.2f} points, root mean square "
        f"{100 * np.sqrt((error**2).mean()):.2f}, correlation {np.corrcoef(real, looked_up)[0, 1]:.3f}, "
        f"of ranks {spearmanr(real, looked_up).statistic:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("pack", "check"))
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    (pack if arguments.command == "pack" else check)(arguments.path)


if __name__ == "__main__":
    main()
