"""What a study costs, counted from its records or by plan alone: exact FLOPs in baseline passes.

Counted as in `pipeline.flops`, in multiply-adds; lm_head and the answers' own tokens are left out, and so is
what `tuner run` measures at its end for a server. One pass is the unpruned model asked once about everything,
every video encoded once and every question a whole prefill: the denominator of `flops_ratio`, with vision.
A study costs less per answer, as it is computed (docs/method.md, "How a question is run"):

    once per video        vision tower, projector, aligned frame embeddings
    once per question     text embedding
    once per video held   system prompt and video through the layers before the first pruning
    per answer            the question's own tokens through those layers, then the pruned rest

Done naively, every question of every trial encodes its video anew and prefills in one pass; nothing is
shared and nothing is raced.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.flops import (
    chunk_flops,
    encoder_flops,
    layer_flops,
    pruned_by_question,
    unpruned_by_question,
)
from pipeline.layout import IntArray, Layouts
from pipeline.methods import AdaTP
from pipeline.methods.base import Method, Partition
from pipeline.plan import ScoreRows, StudyPlans
from tuner.planning.planner import Planner
from tuner.records.store import Store
from tuner.records.values import StoredAnswer
from tuner.statistics.values import Noise
from tuner.study.values import Configuration


@dataclass(frozen=True)
class Workers:
    """Where prefixes are kept: by so many workers, each within a bound of its own (as `Runtime` does).

    `value_bytes`: of one stored number, 4 on a CPU and 2 in half precision.
    """

    count: int = 1
    prefix_bytes: int = 512 * 2**20
    value_bytes: int = 4


ONE_WORKER = Workers()


@dataclass(frozen=True)
class StudyCost:
    """What a study cost, in multiply-adds; `_language`: of which the language model.

    `pass_`: one baseline pass. `spent`: all of the study, baseline, encoding and noise floor included.
    `naive`: the same baseline, trials and held-out measurements done naively.
    """

    pass_flops: int
    pass_language: int
    spent: int
    spent_language: int
    naive: int
    naive_language: int
    # Model time of the answers, measured; None for a plan.
    seconds: float | None
    # Evaluated, by baseline, trials and held-out measurements.
    answers: int
    # Tune answers that the trials asked for; of which found through equal plans, and not asked because the
    # race stopped their trial.
    wanted: int
    shared: int
    raced: int
    # Complete, and stopped by the race.
    trials: int
    stopped: int

    @property
    def passes(self) -> float:
        """Baseline passes that the study cost."""
        return self.spent / self.pass_flops

    @property
    def passes_language(self) -> float:
        """The same with the language model alone, above and below."""
        return self.spent_language / self.pass_language

    @property
    def naive_passes(self) -> float:
        """Baseline passes of the study done naively."""
        return self.naive / self.pass_flops

    @property
    def naive_passes_language(self) -> float:
        """The same with the language model alone."""
        return self.naive_language / self.pass_language

    @property
    def shared_share(self) -> float:
        """Share of the trials' answers that equal plans gave."""
        return self.shared / self.wanted if self.wanted else 0.0

    @property
    def raced_share(self) -> float:
        """Share of the trials' answers that the race made unnecessary."""
        return self.raced / self.wanted if self.wanted else 0.0


def study_cost(store: Store, planner: Planner, *, workers: Workers = ONE_WORKER) -> StudyCost:
    """What the study in use in this store cost so far; read from its records, also while it runs.

    With one worker the prefixes are counted as it built them; with more it is an upper bound, for the records
    do not say which worker answered. What killed runs lost, and prefixes that a continued run built again,
    are in no record.
    Errors: ValueError when the model's shape has no vision part.
    """
    count = _Count(planner, workers)
    baseline = planner.fingerprints(None)[0]
    trials, measured = store.trials(), store.measured()
    stored = store.stored_answers()
    pairs = {(count.position[one.question], one.fingerprint) for one in stored}

    prunings: dict[str, Method] = {}
    asked = np.array([(q, baseline) in pairs for q in range(len(planner.questions))], dtype=bool)
    naive = count.naive(None, asked)
    wanted = found = raced = 0
    trial_pairs: set[tuple[int, str]] = set()
    for trial in trials:
        method = trial.configuration.build()
        prunings |= dict.fromkeys(trial.fingerprints, method)
        here = np.zeros_like(asked)
        here[[q for q in count.tune if (q, trial.fingerprints[q]) in pairs]] = True
        # A stopped trial wanted all questions; any other one has those that it was asked so far.
        needed = count.is_tune & asked if trial.stopped is not None else here
        trial_pairs.update((q, trial.fingerprints[q]) for q in np.flatnonzero(here).tolist())
        wanted += int((needed | here).sum())
        found += int(here.sum())
        raced += int((needed & ~here).sum())
        naive += count.naive(method, needed | here)
    for configuration in measured:
        method = configuration.build()
        prunings |= dict.fromkeys(planner.fingerprints(method), method)
        naive += count.naive(method, ~count.is_tune & asked)
    fresh = sum(fingerprint != baseline for _, fingerprint in trial_pairs)
    return count.total(
        count.recorded(stored, prunings),
        naive,
        noise=store.noise(),
        seconds=math.fsum(one.seconds for one in stored),
        wanted=wanted,
        shared=found - fresh,
        raced=raced,
        trials=sum(trial.outcome is not None for trial in trials),
        stopped=sum(trial.stopped is not None for trial in trials),
    )


def planned_cost(
    configurations: Iterable[Configuration],
    planner: Planner,
    *,
    measured: Iterable[Configuration] = (),
    raced: float = 0.0,
    workers: Workers = ONE_WORKER,
) -> StudyCost:
    """The same count by plan alone, for a study that asks these configurations on the tune part in this
    order and `measured` on the held-out one.

    raced: share of the tune videos, the last ones, that every trial is spared; a race spares some trials
    most of them and others none, which costs the same. Which trials are stopped is not known: `stopped` is 0.
    Errors: ValueError when `raced` is not in [0, 1), or the model's shape has no vision part.
    """
    if not 0 <= raced < 1:
        raise ValueError(f"The share raced away lies in [0, 1), but got {raced!r}.")
    count = _Count(planner, workers)
    everything = np.ones(len(planner.questions), dtype=bool)
    videos = list(dict.fromkeys(count.video[count.is_tune].tolist()))
    reached = count.is_tune & np.isin(count.video, videos[: math.ceil((1 - raced) * len(videos) - 1e-9)])
    parts = [count.planned(None, everything)]
    naive = count.naive(None, everything)
    seen = set(enumerate(planner.fingerprints(None)))
    trials = wanted = fresh = 0
    for configuration, questions, spared in (
        *((one, count.is_tune, ~reached) for one in configurations),
        *((one, ~count.is_tune, np.zeros_like(reached)) for one in measured),
    ):
        method = configuration.build()
        new = questions & ~spared
        fingerprints = planner.fingerprints(method)
        for q in np.flatnonzero(new).tolist():
            new[q] = (q, fingerprints[q]) not in seen
            seen.add((q, fingerprints[q]))
        parts.append(count.planned(method, new))
        naive += count.naive(method, questions)
        if questions is count.is_tune:
            trials, wanted, fresh = trials + 1, wanted + int(questions.sum()), fresh + int(new.sum())
    kept_away = trials * int((count.is_tune & ~reached).sum())
    return count.total(
        _Passes(*map(np.concatenate, zip(*parts, strict=True))),
        naive,
        noise=None,
        seconds=None,
        wanted=wanted,
        shared=wanted - fresh - kept_away,
        raced=kept_away,
        trials=trials,
        stopped=0,
    )


class _Passes(NamedTuple):
    """Answers (A,) in the order they were asked."""

    question: IntArray
    # Layers that the prefix stands for.
    stored: IntArray
    # Multiply-adds of the language model from there on.
    flops: IntArray


class _Naive(NamedTuple):
    """Multiply-adds; ints of Python, for a large study does not fit into 64 bits."""

    encoders: int
    language: int

    def __add__(self, other: object) -> _Naive:
        assert isinstance(other, _Naive)
        return _Naive(self.encoders + other.encoders, self.language + other.language)


class _Count:
    """The questions of a study as arrays, and what asking them costs."""

    def __init__(self, planner: Planner, workers: Workers) -> None:
        self._shape = planner.shape
        self._workers = workers
        self._layouts = Layouts.of([one.layout for one in planner.questions])
        self.position = {one.id: index for index, one in enumerate(planner.questions)}
        self.is_tune = np.array([one.split == "tune" for one in planner.questions], dtype=bool)
        self.tune: list[int] = np.flatnonzero(self.is_tune).tolist()
        _, first, inverse = np.unique(
            [one.video for one in planner.questions], return_index=True, return_inverse=True
        )
        self.video: IntArray = inverse
        self._first = first  # one question of each video
        self._before = self._layouts.visual + self._layouts.text - self._layouts.text_after

    def _picked(self, questions: NDArray[np.bool_] | IntArray) -> Layouts:
        index = np.arange(len(self._layouts))[questions].tolist()
        return Layouts(tuple(self._layouts.items[one] for one in index))

    def naive(self, method: Method | None, questions: NDArray[np.bool_]) -> _Naive:
        """These questions one by one, each with its video."""
        if not questions.any():
            return _Naive(0, 0)
        layouts, shape = self._picked(questions), self._shape
        plans = _unpruned(layouts) if method is None else StudyPlans.of(method, layouts, shape.layers)
        return _Naive(_sum(encoder_flops(plans, shape)[0]), _sum(pruned_by_question(plans, shape)))

    def planned(self, method: Method | None, questions: NDArray[np.bool_]) -> _Passes:
        """These questions, each a pass from its video's prefix on."""
        index = np.flatnonzero(questions)
        index = index[np.argsort(self.video[index], kind="stable")]  # whole videos, as the loop asks
        if not index.size:
            return _Passes(index, index, index)
        layouts, shape = self._picked(index), self._shape
        plans = _unpruned(layouts) if method is None else StudyPlans.of(method, layouts, shape.layers)
        return self._passes(index, plans)

    def recorded(self, stored: Sequence[StoredAnswer], prunings: Mapping[str, Method]) -> _Passes:
        """What was answered, by the tokens that were kept.

        `prunings`: the method behind a fingerprint; it says before which layers the counts were taken. An
        answer that none explains (a comparison that was interrupted) is AdaTP's.
        """
        groups: dict[tuple[tuple[int, ...], ScoreRows], list[int]] = {}
        layers_of: dict[type[Method], tuple[int, ...]] = {}
        adatp = AdaTP()
        for place, answer in enumerate(stored):
            method = prunings.get(answer.fingerprint, adatp)
            layers: tuple[int, ...] = ()
            if answer.kept:
                if type(method) not in layers_of:
                    example = method.plan(self._layouts.items[0], self._shape.layers)
                    layers_of[type(method)] = example.layers
                layers = layers_of[type(method)]
            groups.setdefault((layers, method.score_rows if layers else "none"), []).append(place)
        result = _Passes(*(np.zeros(len(stored), dtype=np.int64) for _ in _Passes._fields))
        for (layers, rows), places in groups.items():
            index = np.array([self.position[stored[place].question] for place in places], dtype=np.int64)
            layouts = self._picked(index)
            kept = np.array([stored[place].kept for place in places], dtype=np.int64).reshape(
                len(places), len(layers)
            )
            plans = StudyPlans(
                "", layouts, Partition.whole(layouts), layers, kept.T, None, rows, aligned=False
            )
            for all_of_them, some in zip(result, self._passes(index, plans), strict=True):
                all_of_them[places] = some
        return result

    def _passes(self, index: IntArray, plans: StudyPlans) -> _Passes:
        shape, before, after = self._shape, self._before[index], plans.layouts.text_after
        stored = plans.layers[0] if plans.layers else shape.layers
        # The prefix attends to itself alone: a square and a rectangle in place of the whole square.
        own = chunk_flops(shape, after, before) - layer_flops(shape, before + after)
        flops = pruned_by_question(plans, shape) + stored * own
        return _Passes(index, np.full(len(index), stored, dtype=np.int64), flops)

    def total(
        self,
        passes: _Passes,
        naive: _Naive,
        *,
        noise: Noise | None,
        seconds: float | None,
        wanted: int,
        shared: int,
        raced: int,
        trials: int,
        stopped: int,
    ) -> StudyCost:
        shape, vision = self._shape, self._shape.vision
        if vision is None:
            raise ValueError("What a study costs needs the shape of the vision tower, but it is None.")
        frames = int(self._layouts.frames[self._first].sum())
        seen = frames * vision.frame(shape.hidden)
        pass_language = _sum(unpruned_by_question(self._layouts, shape))
        # Without the questions' texts two that are worded alike count twice; they are embedded once.
        aligned = frames * vision.frame_embedding() + len(self._layouts) * vision.text_embedding()
        spent_language = _sum(passes.flops) + self._prefixes(passes) + self._noise_floor(noise)
        return StudyCost(
            pass_flops=seen + pass_language,
            pass_language=pass_language,
            spent=seen + aligned + spent_language,
            spent_language=spent_language,
            naive=naive.encoders + naive.language,
            naive_language=naive.language,
            seconds=seconds,
            answers=len(passes.question),
            wanted=wanted,
            shared=shared,
            raced=raced,
            trials=trials,
            stopped=stopped,
        )

    def _prefixes(self, passes: _Passes) -> int:
        """Building the prefixes: the workers' stores are replayed, least recently used out first.

        Several workers: each builds what one would have built, and no visit of a video builds more than one.
        """
        video = self.video[passes.question]
        # A visit: answers in a row that start from the same prefix.
        begins = np.ones(len(video), dtype=bool)
        begins[1:] = (video[1:] != video[:-1]) | (passes.stored[1:] != passes.stored[:-1])
        visits = list(zip(video[begins].tolist(), passes.stored[begins].tolist(), strict=True))
        held: OrderedDict[tuple[int, int], int] = OrderedDict()
        size, built = 0, Counter[tuple[int, int]]()
        for key in visits:
            if key in held:
                held.move_to_end(key)
                continue
            built[key] += 1
            held[key] = self._prefix_bytes(*key)
            size += held[key]
            while len(held) > 1 and size > self._workers.prefix_bytes:
                size -= held.popitem(last=False)[1]
        visited = Counter(visits)
        return sum(
            min(self._workers.count * times, visited[key]) * self._prefix_flops(*key)
            for key, times in built.items()
        )

    def _prefix_flops(self, video: int, layers: int) -> int:
        return layers * int(layer_flops(self._shape, int(self._before[self._first[video]])))

    def _prefix_bytes(self, video: int, layers: int) -> int:
        """As `pipeline.prefix.Prefix.nbytes`: keys, values; hidden states and rotary embeddings to go on."""
        shape = self._shape
        go_on = shape.hidden + 2 * (shape.hidden // shape.heads) if layers < shape.layers else 0
        per_token = 2 * shape.kv_width * layers + go_on
        return int(self._before[self._first[video]]) * per_token * self._workers.value_bytes

    def _noise_floor(self, noise: Noise | None) -> int:
        """The unpruned model asked again: at the mean of all questions and videos, for the records say how
        many, not which.
        """
        if noise is None:
            return 0
        own = self._passes(np.arange(len(self._layouts)), _unpruned(self._layouts)).flops
        prefix = [self._prefix_flops(video, self._shape.layers) for video in range(len(self._first))]
        return round(noise.questions * _sum(own) / len(own) + noise.videos * sum(prefix) / len(prefix))


def _unpruned(layouts: Layouts) -> StudyPlans:
    whole = Partition.whole(layouts)
    kept = np.zeros((0, len(layouts)), dtype=np.int64)
    return StudyPlans("unpruned", layouts, whole, (), kept, None, "none", aligned=False)


def _sum(values: IntArray) -> int:
    return sum(values.tolist())
