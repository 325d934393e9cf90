"""A configuration's plans, exact cost and fingerprints on a study, from stored layouts, without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from pipeline.break_even import serving_flops, stored_numbers
from pipeline.flops import (
    Compute,
    ModelShape,
    compute,
    end_to_end_ratio,
    flops_ratio,
    pruned_by_question,
    unpruned_by_question,
)
from pipeline.keep_ratio import Unreachable, solve_keep_ratio
from pipeline.layout import FloatArray, IntArray, Layout, Layouts
from pipeline.methods import AdaTP, Method, knobs
from pipeline.plan import Plan, StudyPlans
from pipeline.question import SCORING_VERSION
from tuner.records.measurements import MeasuredServing, ServingCost
from tuner.records.schema import FINGERPRINT_DIGITS
from tuner.records.values import StoredQuestion
from tuner.study.values import Split

SPLITS: tuple[Split, Split] = ("tune", "held_out")


@dataclass(frozen=True)
class Cost:
    """A configuration's FLOPs on each split of the study."""

    compute: dict[Split, Compute]

    @property
    def binding(self) -> float:
        """The larger FLOPs ratio of the splits: the budget must hold on tune and on held-out questions."""
        return max(split.flops_ratio for split in self.compute.values())


@dataclass(frozen=True, eq=False)
class Variants:
    """What N questions ask of the model, each with thresholds of its own."""

    fingerprints: tuple[str, ...]  # (N,)
    flops: IntArray  # (N,) of the pruned prefill


def fingerprint(base: str, method: Method | None, plan: Plan | None) -> str:
    """Identifies what is asked of the model for a question, in 32 hexadecimal digits; None: unpruned.

    base: covers model, encoding and scoring (`fingerprint_base`). This is `Runtime.fingerprint`, shortened,
    for processes that load no model; a test compares the two.
    """
    key = None if plan is None or plan.keeps_everything else plan.key()
    return _fingerprints(base, method, [key])[0]


def _fingerprints(base: str, method: Method | None, keys: Sequence[str | None]) -> tuple[str, ...]:
    """A fingerprint for each plan's key; None: nothing is dropped."""
    options = {} if method is None else method.selection_options()
    written = ",".join(f"{name}={value}" for name, value in sorted(options.items()))

    def digest(key: str | None) -> str:
        asked = [base, "unpruned"] if method is None or key is None else [base, method.name, key, written]
        return hashlib.sha256("\0".join(asked).encode()).hexdigest()[:FINGERPRINT_DIGITS]

    known = {key: digest(key) for key in set(keys)}
    return tuple(known[key] for key in keys)


def fingerprint_base(encoding: str, scoring: str, max_new_tokens: int) -> str:
    """What all fingerprints of a study have in common: everything but the method and its plan."""
    return f"{encoding}|{scoring}/{SCORING_VERSION}|{max_new_tokens}"


class Planner:
    """Plans, costs and fingerprints for the questions of a study; a thousand questions take milliseconds."""

    def __init__(self, questions: Sequence[StoredQuestion], shape: ModelShape, fingerprint_base: str) -> None:
        self.questions = tuple(questions)
        self.shape = shape
        self._base = fingerprint_base
        by_split: dict[Split, list[Layout]] = {split: [] for split in SPLITS}
        for question in self.questions:
            by_split[question.split].append(question.layout)
        # A split without questions (nothing held out) constrains nothing.
        self._layouts = {split: Layouts.of(layouts) for split, layouts in by_split.items() if layouts}
        self._all = Layouts.of([question.layout for question in self.questions])

    def cost(self, method: Method) -> Cost:
        """Exact ratios for each split."""
        return Cost(
            {
                split: compute(method.plans(layouts, self.shape.layers), self.shape)
                for split, layouts in self._layouts.items()
            }
        )

    def binding_ratio(self, method: Method) -> float:
        """`cost(method).binding`, which the budget is compared with, without the other ratios."""
        return max(self._ratio(method, layouts) for layouts in self._layouts.values())

    def _ratio(self, method: Method, layouts: Layouts) -> float:
        return flops_ratio(method.plans(layouts, self.shape.layers), self.shape)

    def solve(self, method: Method, target: float) -> Method | Unreachable:
        """The method with the largest keep ratio whose FLOPs ratio is at most `target` on every split."""
        solved: Method | None = None
        for layouts in self._layouts.values():
            # A ratio that fits on this split, too, is the smaller of the two.
            if solved is not None and self._ratio(solved, layouts) <= target:
                continue
            solution = solve_keep_ratio(method, layouts, self.shape, target)
            if isinstance(solution, Unreachable):
                return Unreachable(
                    self.binding_ratio(method.with_ratio(knobs(method)[method.ratio_field].low))
                )
            solved = solution
        assert solved is not None  # a study has questions
        return solved

    def end_to_end_ratio(self, method: Method) -> float:
        """The FLOPs ratio with vision tower, projector and aligned encoder, on the held-out questions (on the
        tune questions if nothing is held out).
        """
        return end_to_end_ratio(self._plans(method), self.shape)

    def solve_end_to_end(self, method: Method, target: float) -> Method | Unreachable:
        """The method with the largest keep ratio whose `end_to_end_ratio` is at most `target`."""
        layouts = self._layouts[self._measured_split]
        return solve_keep_ratio(method, layouts, self.shape, target, end_to_end_ratio)

    def boosts(self, method: AdaTP) -> bool:
        """Whether any segment of the study keeps more because of its relevance."""
        return bool(method.boosted_ratio > method.p and method.partition(self._all).boosted.any())

    def serving(self, method: Method, measured: MeasuredServing | None = None) -> ServingCost:
        """What a server pays with this method and without, on the held-out questions (on the tune questions
        if nothing is held out), together with what was `measured`.
        """
        plans = self._plans(method)
        (baseline, best), stored = serving_flops(plans, self.shape), stored_numbers(plans, self.shape)
        return ServingCost(baseline, best, *stored, measured)

    def spread(
        self, method: Method, size: int, leave_out: Collection[str] = ()
    ) -> tuple[StoredQuestion, ...]:
        """Up to `size` held-out questions, spread evenly over their planned FLOPs, without the ids in
        `leave_out`. If `size` is odd, the question with the median (the upper of two) comes first.
        """
        split = self._measured_split
        questions = [question for question in self.questions if question.split == split]
        order = np.argsort(pruned_by_question(self._plans(method), self.shape), kind="stable")
        ranked = [questions[index] for index in order if questions[index].id not in leave_out]
        middles = {(2 * bin_ + 1) * len(ranked) // (2 * size) for bin_ in range(size)}
        places = sorted(middles, key=lambda place: (abs(place - len(ranked) // 2), place))
        return tuple(ranked[place] for place in places)

    @property
    def _measured_split(self) -> Split:
        return "held_out" if "held_out" in self._layouts else "tune"

    def _plans(self, method: Method) -> StudyPlans:
        return method.plans(self._layouts[self._measured_split], self.shape.layers)

    def fingerprints(self, method: Method | None, questions: Sequence[str] | None = None) -> tuple[str, ...]:
        """A fingerprint for each question of the study, in its order, or for each of these question ids."""
        if method is None:
            count = len(self.questions) if questions is None else len(questions)
            return (fingerprint(self._base, None, None),) * count
        layouts = self._all
        if questions is not None:
            layouts = Layouts.of([self._by_id[question].layout for question in questions])
        return _fingerprints(self._base, method, method.plans(layouts, self.shape.layers).keys())

    def variants(
        self, method: AdaTP, questions: Sequence[str], tau_s: FloatArray, tau_t: FloatArray
    ) -> Variants:
        """Plans of these question ids (N, repeats allowed) by `method` with thresholds (N,) of their own.

        Each plan is the one that the method with this tau_s and tau_t makes; all are made at once.
        """
        layouts = Layouts.of([self._by_id[question].layout for question in questions])
        partition = method.segments(layouts, tau_s).boosted_from(tau_t)
        plans = method.plans(layouts, self.shape.layers, partition)
        return Variants(
            _fingerprints(self._base, method, plans.keys()), pruned_by_question(plans, self.shape)
        )

    def thresholds(self, method: AdaTP, knob: Literal["tau_s", "tau_t"]) -> dict[str, FloatArray]:
        """By question id, ascending: the values above which this knob changes the segments or the boosts.

        Between two neighbours, the upper included, a question's plan stays the same if the other knobs do.
        """
        if knob == "tau_s":
            return {question.id: np.unique(question.layout.frame_similarity) for question in self.questions}
        segments = method.segments(self._all)
        relevance = np.split(segments.relevance, segments.first_group[1:])
        return {
            question.id: np.unique(own[np.isfinite(own)])
            for question, own in zip(self.questions, relevance, strict=True)
        }

    @cached_property
    def unpruned_flops(self) -> dict[Split, int]:
        """FLOPs of the unpruned prefill of all questions, for each split that has questions."""
        return {
            split: int(unpruned_by_question(layouts, self.shape).sum())
            for split, layouts in self._layouts.items()
        }

    @cached_property
    def _by_id(self) -> dict[str, StoredQuestion]:
        return {question.id: question for question in self.questions}

    @cached_property
    def similarities(self) -> FloatArray:
        """Sorted cosines of neighbouring frames over the tune videos: where tau_s can change a plan.

        Without held-out videos, which must not influence the search.
        """
        by_video = {
            question.video: question.layout.frame_similarity
            for question in self.questions
            if question.split == "tune"
        }
        return np.sort(np.concatenate(list(by_video.values()))) if by_video else np.zeros(0)
