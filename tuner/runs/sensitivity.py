"""`tuner sensitivity` as a library function: one call from a study to what its knobs do.

Everything it asks follows from plans alone, so it is asked at once, by the same workers and into the same
records as a search; answers that exist are not asked for. Then it is arithmetic: the same call with all
answers there asks nothing and finds the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline.methods import AdaTP
from pipeline.plan import pruning_layers
from tuner.errors import UserError
from tuner.evaluation.ad_hoc_loop import AdHocRequest
from tuner.evaluation.progress import NoProgress, Progress
from tuner.evaluation.scoring import judge
from tuner.planning.planner import Planner
from tuner.records.database import default_database
from tuner.records.measurements import ModelUse
from tuner.records.store import Store
from tuner.records.values import Pair, StudyRecord
from tuner.reporting.from_records import chosen, make_planner, setting_from
from tuner.runs.run import RunOptions, ask
from tuner.search.space import Range, SearchSpace, knob_ranges
from tuner.sensitivity import failures
from tuner.sensitivity.alternatives import alternatives, others
from tuner.sensitivity.breakpoints import Steps, Threshold, steps
from tuner.sensitivity.curves import (
    MOST_POINTS,
    MOST_POINTS_BY_TAG,
    Compared,
    Track,
    curve,
    exact_track,
    grid,
    grid_track,
)
from tuner.sensitivity.design import Design, DesignSpace
from tuner.sensitivity.maps import plane
from tuner.sensitivity.results import Curve, Output, OutputName, PairMap, Sensitivity
from tuner.sensitivity.sentences import sentences
from tuner.statistics import paired
from tuner.statistics.margin import DEFAULT_MAX_DROP, MaxDrop
from tuner.statistics.values import Interval
from tuner.study import CHOICES, Study
from tuner.study.values import Configuration, QuestionResult, Split

THRESHOLDS: tuple[Threshold, ...] = ("tau_s", "tau_t")
RATIOS = ("alpha_boost", "gamma_cap", "p")

# A power of two fills the space evenly.
RUNS = 64

# Points of the curves that tell what can be detected: this share of their answers differs from the
# reference's. Our choice: fewer say nothing of flips, more are no neighbours.
_NEIGHBOURS = (0.01, 0.1)

Analyse = Callable[[Design], tuple[tuple[Output, ...], tuple[PairMap, ...]]]


def sensitivity(
    study: Study,
    options: RunOptions,
    *,
    analyse: Analyse,
    runs: int = RUNS,
    max_drop: str | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """What each knob does around the study's reference, and globally; asks what is not there yet.

    The reference is what the latest search with `options.budget` came to; AdaTP's defaults at the budget
    where there is no such search or nothing fits. runs: of the design. max_drop: what accuracy may lose
    against the reference in a safe range (None: what that search allowed). analyse: the design's surrogate,
    `tuner.sensitivity.surrogate.analyse`.

    Errors: as `tuner.runs.run.run`; UserError for no budget or fewer than 0 runs.
    """
    if options.budget is None:
        raise UserError(
            "a sensitivity study needs a budget: the FLOPs ratio that its reference was found for"
        )
    if runs < 0:
        raise UserError(f"a design has 0 runs or more, but got {runs}")
    if max_drop is not None:
        MaxDrop.parse(max_drop)
    progress = progress or NoProgress()
    # Encodes and answers the baseline where that is still to be done, and refuses what `tuner run` refuses.
    ask(study, options, (), progress)
    with Store.open(options.database or default_database(study.name), create=False) as store:
        work = _Plan.of(study, store, options.budget, runs, max_drop)
        missing = work.requests(store)
        took = sum(store.model_use().values(), ModelUse())
    if missing:
        asked = sum(len(part.configurations) for part in missing)
        there = work.pairs - asked
        progress.message(
            f"{asked:,} answers to compute{_about(asked, took, options.workers or 1)}; {there:,} are there."
        )
        ask(study, options, missing, progress)
    with Store.open(options.database or default_database(study.name), create=False) as store:
        # Questions may have been quarantined on the way.
        work = _Plan.of(study, store, options.budget, runs, max_drop)
        return work.found(_Answers.of(work, store), analyse, progress)


def _about(answers: int, took: ModelUse, workers: int) -> str:
    """How long so many answers take, judged by those that the study has; nothing where it has none."""
    if not took.answers:
        return ""
    minutes = math.ceil(answers * took.seconds / took.answers / workers / 60)
    return f", about {minutes:,} minute{'' if minutes == 1 else 's'}"


@dataclass(frozen=True, eq=False)
class _Plan:
    """What a sensitivity study asks, and of what; all of it from layouts."""

    study: Study  # without what is left out
    record: StudyRecord
    planner: Planner
    budget: float
    method: AdaTP
    trial: int | None
    max_drop: str
    runs: int

    @classmethod
    def of(cls, study: Study, store: Store, budget: float, runs: int, max_drop: str | None) -> _Plan:
        record = store.require(study.name)
        planner = make_planner(record)
        searches = [
            search for search in store.searches() if search.budget == budget and search.goal == "budget"
        ]
        choice = chosen(study, store, planner, searches[-1]) if searches else None
        if choice is None:
            configuration = SearchSpace(planner, study.search, budget).defaults().configuration
        else:
            configuration = choice.trial.configuration
        method = configuration.build()
        assert isinstance(method, AdaTP)
        return cls(
            study.without(store.quarantined()),
            record,
            planner,
            budget,
            method,
            None if choice is None else choice.trial.number,
            max_drop or (searches[-1].max_drop if searches else DEFAULT_MAX_DROP),
            runs,
        )

    @property
    def split(self) -> Split:
        """What curves are shown on."""
        return "held_out" if self.study.questions_of("held_out") else "tune"

    @cached_property
    def questions(self) -> tuple[str, ...]:
        """Of the part, in the study's order."""
        return tuple(question.id for question in self.study.questions_of(self.split))

    @cached_property
    def tune(self) -> tuple[str, ...]:
        """What the design is asked."""
        return tuple(question.id for question in self.study.questions_of("tune"))

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """Of each knob that is free, with the reference's value inside."""
        found = {}
        for name, range_ in knob_ranges(self.study.search, self.planner.similarities).items():
            value = float(getattr(self.method, name))
            if range_.low < range_.high:
                found[name] = Range(min(range_.low, value), max(range_.high, value))
        return found

    @cached_property
    def steps(self) -> dict[Threshold, Steps]:
        return {
            knob: steps(self.planner, self.method, knob, self.ranges[knob])
            for knob in THRESHOLDS
            if knob in self.ranges
        }

    @cached_property
    def grids(self) -> dict[str, list[AdaTP]]:
        prunings = len(pruning_layers(self.planner.shape.layers))
        return {
            knob: grid(self.method, knob, self.ranges[knob], prunings)
            for knob in RATIOS
            if knob in self.ranges
        }

    @cached_property
    def variants(self) -> dict[str, AdaTP]:
        """The reference with each other `deduplicate`, at its FLOPs: each takes a whole configuration.

        They are asked the tune part: whoever follows what is found there has another configuration chosen,
        and held-out videos that had chosen could not judge it any more.
        """
        return others(self.planner, self.method) if self.tune else {}

    @cached_property
    def space(self) -> DesignSpace:
        """Of the reference's choices: the design says what the knobs do with these."""
        made = tuple((name, (str(getattr(self.method, name)),)) for name in CHOICES)
        return DesignSpace(self.planner, replace(self.study.search, choices=made), self.budget)

    @cached_property
    def unit(self) -> paired.Floats:
        return self.space.sample(self.runs)

    @cached_property
    def design(self) -> tuple[AdaTP, ...]:
        built = (self.space.configuration(point).build() for point in self.unit)
        return tuple(method for method in built if isinstance(method, AdaTP))

    @cached_property
    def _whole(self) -> list[tuple[AdaTP, tuple[str, ...], tuple[str, ...]]]:
        """Configurations with the questions they are asked, and the fingerprints of these."""
        methods = [self.method, *(item for grid in self.grids.values() for item in grid)]
        wanted = [(method, self.questions) for method in dict.fromkeys(methods)]
        wanted += [(method, self.tune) for method in (self.method, *self.variants.values(), *self.design)]
        return [(method, ids, self.planner.fingerprints(method, ids)) for method, ids in wanted if ids]

    @cached_property
    def pairs(self) -> int:
        """How many answers it needs."""
        return len(set(self.needed()))

    def needed(self) -> Iterable[Pair]:
        """Every answer it needs, some more than once."""
        for _, ids, prints in self._whole:
            yield from zip(ids, prints, strict=True)
        mine = set(self.questions)
        for found in self.steps.values():
            yield from (
                (piece.question, piece.fingerprint) for piece in found.pieces if piece.question in mine
            )

    def requests(self, store: Store) -> list[AdHocRequest]:
        """What is missing in the records, each once: whole configurations, and of the thresholds' plans the
        k-th of every question together.
        """
        known = set(store.answers(set(self.needed())))
        requests: list[AdHocRequest] = []

        def new(question: str, fingerprint: str) -> bool:
            if (question, fingerprint) in known:
                return False
            known.add((question, fingerprint))
            return True

        for method, ids, prints in self._whole:
            configuration = Configuration.from_method(method)
            missing = {id_: configuration for id_, seen in zip(ids, prints, strict=True) if new(id_, seen)}
            if missing:
                requests.append(AdHocRequest(missing))
        mine = set(self.questions)
        for found in self.steps.values():
            missing_of: dict[str, list[Configuration]] = {}
            for piece in found.pieces:
                if piece.question in mine and new(piece.question, piece.fingerprint):
                    configuration = Configuration.from_method(found.configuration_at(piece.inside))
                    missing_of.setdefault(piece.question, []).append(configuration)
            requests += [
                AdHocRequest({method: plans[k] for method, plans in missing_of.items() if k < len(plans)})
                for k in range(max(map(len, missing_of.values()), default=0))
            ]
        return requests

    def found(self, answers: _Answers, analyse: Analyse, progress: Progress) -> Sensitivity:
        """What the answers come to."""
        split = answers.compared(self.questions, self.method)
        margin = MaxDrop.parse(self.max_drop).absolute(float(split.unpruned.mean()))
        tracks = {
            knob: exact_track(found, float(getattr(self.method, knob)), self.budget, split, answers.judged)
            for knob, found in self.steps.items()
        } | {
            knob: grid_track(
                knob,
                float(getattr(self.method, knob)),
                self.budget,
                found,
                self.planner,
                split,
                answers.judged,
            )
            for knob, found in self.grids.items()
        }
        progress.started("intervals", len(tracks) * (1 + len(self._tags)))
        curves = tuple(_told(progress, curve(track, split, margin, MOST_POINTS)) for track in tracks.values())
        by_tag = tuple(
            _told(progress, curve(track.only(mask), split.only(mask), margin, MOST_POINTS_BY_TAG, tag))
            for tag, mask in self._tags.items()
            for track in tracks.values()
        )
        outputs, maps = self._analysed(answers, analyse)
        tune = answers.compared(self.tune, self.method)
        right = {name: answers.correct(variant, self.tune) for name, variant in self.variants.items()}
        binds = self.method.binds if self.planner.boosts(self.method) else "none"
        setting = setting_from(self.record.setting)
        over = self.space.compute
        result = Sensitivity(
            study=self.study.name,
            study_hash=self.record.hash,
            budget=self.budget,
            split=self.split,
            reference=Configuration.from_method(self.method),
            trial=self.trial,
            binds=binds,
            accuracy=paired.share(split.reference, split.videos),
            labelled=self.study.labelled if setting is None else setting.labelled,
            max_drop=self.max_drop,
            margin=margin,
            detectable=_detectable(curves, tracks, split),
            curves=curves,
            by_tag=by_tag,
            design_runs=len(self.design),
            inputs=self.space.inputs,
            design_compute=None if over is None else Interval(over.low, over.high),
            outputs=outputs,
            maps=maps,
            failures=(
                failures.middle_frames(
                    [tracks[knob] for knob in THRESHOLDS if knob in tracks], split, self._question_tags
                ),
                failures.small_things(
                    right | {self.method.deduplicate: tune.reference},
                    tune,
                    [question.tags for question in self.study.questions_of("tune")],
                    self.method.deduplicate,
                ),
            ),
            sentences=(),
            alternatives=alternatives(self.planner, self.study.search, self.variants, right, tune),
            tune_questions=len(self.tune),
        )
        return replace(result, sentences=sentences(result))

    @cached_property
    def _question_tags(self) -> list[Mapping[str, str]]:
        return [question.tags for question in self.study.questions_of(self.split)]

    @cached_property
    def _tags(self) -> dict[tuple[str, str], np.ndarray]:
        """Which questions of the part carry each tag; not one that all of them carry."""
        tags = sorted({item for tag in self._question_tags for item in tag.items()})
        masks = {
            (key, value): np.array([tag.get(key) == value for tag in self._question_tags])
            for key, value in tags
        }
        return {tag: mask for tag, mask in masks.items() if not mask.all()}

    def _analysed(
        self, answers: _Answers, analyse: Analyse
    ) -> tuple[tuple[Output, ...], tuple[PairMap, ...]]:
        if not self.design or not self.tune:
            return (), ()
        results = [answers.results(method, self.tune) for method in self.design]
        before = [answers.baseline[question] for question in self.tune]
        outputs: dict[OutputName, list[float]] = {
            "accuracy": [],
            "logprob": [],
            "regressions": [],
        }
        for after in results:
            pairs = list(zip(after, before, strict=True))
            changes = [
                now.logprob_right - was.logprob_right
                for now, was in pairs
                if now.logprob_right is not None and was.logprob_right is not None
            ]
            outputs["accuracy"].append(sum(now.correct for now in after) / len(after))
            outputs["logprob"].append(math.fsum(changes) / len(changes) if changes else math.nan)
            outputs["regressions"].append(
                sum(was.correct and not now.correct for now, was in pairs) / len(after)
            )
        arrays = {name: np.array(values) for name, values in outputs.items()}
        return analyse(
            Design(
                inputs=self.space.inputs,
                unit=self.unit,
                # Free answers without a reference text have no log-probability.
                outputs={name: array for name, array in arrays.items() if np.isfinite(array).all()},
                plane=lambda first, second: plane(
                    self.planner, self.space, self.method, self.ranges, (first, second)
                ),
            )
        )


@dataclass(frozen=True, eq=False)
class _Answers:
    """The judged answers that a plan needs."""

    planner: Planner
    study: Study
    judged: Mapping[Pair, QuestionResult]
    baseline: Mapping[str, QuestionResult]

    @classmethod
    def of(cls, plan: _Plan, store: Store) -> _Answers:
        ids = [question.id for question in plan.study.questions]
        unpruned = dict(zip(ids, plan.planner.fingerprints(None, ids), strict=True))
        before = {question: answer for (question, _), answer in store.answers(unpruned.items()).items()}
        parts = {question.id: plan.study.split_of(question) for question in plan.study.questions}
        found = store.answers(set(plan.needed()))
        judged = {
            pair: judge(plan.study.question(pair[0]), parts[pair[0]], answer, before[pair[0]])
            for pair, answer in found.items()
        }
        baseline = {
            question: judge(plan.study.question(question), parts[question], answer)
            for question, answer in before.items()
        }
        return cls(plan.planner, plan.study, judged, baseline)

    def results(self, method: AdaTP, questions: Sequence[str]) -> list[QuestionResult]:
        prints = self.planner.fingerprints(method, questions)
        return [self.judged[pair] for pair in zip(questions, prints, strict=True)]

    def correct(self, method: AdaTP, questions: Sequence[str]) -> np.ndarray:
        return np.array([result.correct for result in self.results(method, questions)])

    def compared(self, questions: tuple[str, ...], method: AdaTP) -> Compared:
        videos = tuple(self.study.question(question).video for question in questions)
        baseline = tuple(self.baseline[question] for question in questions)
        return Compared(questions, videos, baseline, self.correct(method, questions))


def _told(progress: Progress, curve_: Curve) -> Curve:
    progress.advanced()
    return curve_


def _detectable(curves: Sequence[Curve], tracks: Mapping[str, Track], split: Compared) -> float | None:
    """Half the width of a typical 95 % interval of a paired difference from the reference: the median over
    neighbours, points of the curves at which a few of the answers differ from the reference's.

    Where there are no such points, what the part can show of a configuration that loses nothing.
    """
    low, high = _NEIGHBOURS
    widths = []
    for known in curves:
        track = tracks[known.knob]
        if len(track.values) != len(known.points):
            continue
        flips = (track.correct != split.reference).mean(axis=1)
        widths += [
            (point.difference.interval.high - point.difference.interval.low) / 2
            for point, share in zip(known.points, flips, strict=True)
            if low <= share <= high and point.difference.interval is not None
        ]
    if widths:
        return float(np.median(widths))
    drop = paired.provable_drop(split.videos)
    return drop if math.isfinite(drop) else None
