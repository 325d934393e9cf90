"""The table behind the Pareto front: every configuration that was tried, and what it cost and answered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.methods import KNOBS, AdaTP, AdaTPOneShot
from tuner.reporting.values import Comparison, RunSummary
from tuner.statistics.values import Measured
from tuner.study import CHOICES
from tuner.study.values import Configuration, Outcome, Split

# AdaTP, whole or with parts changed.
_ADATP = (AdaTP.name, AdaTPOneShot.name)

Kind = Literal["trial", "pruned", "defaults", "best", "peer", "baseline", "infeasible"]


@dataclass(frozen=True)
class ParetoPoint:
    """One row of the table: a configuration (or the unpruned model) measured on one split of the study."""

    kind: Kind
    split: Split
    # None for the baseline, for peers, for proposals that were never run, and for held-out rows of no trial.
    trial: int | None
    # None for a pruned trial, and for an infeasible proposal.
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    # Of a pruned trial and of an infeasible proposal the larger one of the two splits.
    flops_ratio: float
    flops_ratio_end_to_end: float | None
    regressions: int | None
    within_budget: bool
    # Among the tune split's trials none is both cheaper (in prefill FLOPs) and better.
    on_front: bool
    tau_s: float | None = None
    tau_t: float | None = None
    alpha_boost: float | None = None
    gamma_cap: float | None = None
    p: float | None = None
    # AdaTP's; None for other methods.
    deduplicate: str | None = None
    score_query: str | None = None
    # A peer's, as in `tuner.reporting.values.Compared`, and its method.
    name: str | None = None
    method: str | None = None
    # The first of the trials that beat it, and the tune videos judged until then.
    pruned_by: int | None = None
    pruned_after: int | None = None


def pareto_points(summary: RunSummary, comparison: Comparison | None = None) -> tuple[ParetoPoint, ...]:
    """The table: baselines, trials by number, held-out rows, peers, the closest infeasible proposal."""
    completed = (*summary.trials, *summary.above)
    front = front_numbers(
        (trial.number, trial.outcome.accuracy, trial.outcome.flops_ratio) for trial in completed
    )
    best = None if summary.best is None else summary.best.number
    defaults = None if summary.defaults is None else summary.defaults.number
    rows = [_baseline(split, measured) for split, measured in sorted(summary.baseline.items(), reverse=True)]
    trials = []
    for trial in completed:
        kind: Kind = "best" if trial.number == best else "defaults" if trial.number == defaults else "trial"
        point = _point(kind, trial.configuration, trial.outcome, None)
        trials.append(
            replace(
                point,
                trial=trial.number,
                within_budget=trial.within_budget,
                on_front=trial.number in front,
            )
        )
    for pruned in summary.pruned:
        point = _unmeasured("pruned", pruned.configuration, pruned.binding_ratio, summary.budget)
        trials.append(replace(point, trial=pruned.number, pruned_by=pruned.by, pruned_after=pruned.videos))
    rows += sorted(trials, key=lambda trial: trial.trial or 0)
    own: list[Configuration] = []
    chosen: tuple[tuple[Kind, int | None, Any], ...] = (
        ("defaults", defaults, summary.defaults_held_out),
        ("best", best, summary.best_held_out),
    )
    for kind, number, held_out in chosen:
        if held_out is not None:
            own.append(held_out.configuration)
            point = _point(kind, held_out.configuration, held_out.outcome, held_out.accuracy)
            fits = point.flops_ratio <= summary.budget
            rows.append(replace(point, trial=number, within_budget=fits))
    for peer in () if comparison is None else comparison.rows:
        # AdaTP with parts changed lies on top of AdaTP; the comparison's own figure tells them apart.
        if peer.held_out.configuration not in own and peer.held_out.configuration.method not in _ADATP:
            held_out = peer.held_out
            point = _point("peer", held_out.configuration, held_out.outcome, held_out.accuracy)
            fits = point.flops_ratio <= summary.budget
            rows.append(
                replace(point, name=peer.name, method=held_out.configuration.method, within_budget=fits)
            )
    if summary.closest is not None:
        closest = summary.closest
        rows.append(
            replace(
                _unmeasured("infeasible", closest.configuration, closest.flops_ratio, summary.budget),
                within_budget=False,
            )
        )
    return tuple(rows)


def front_numbers(points: Iterable[tuple[int, float, float]]) -> frozenset[int]:
    """Numbers of those (number, accuracy, cost) that none beats: nothing is cheaper and at least as accurate.

    Of equal points all are on the front.
    """
    front: set[int] = set()
    best = float("-inf")
    cost_of_best = float("nan")
    for number, accuracy, cost in sorted(points, key=lambda point: (point[2], -point[1])):
        if accuracy > best or (accuracy == best and cost == cost_of_best):
            front.add(number)
            best, cost_of_best = accuracy, cost
    return frozenset(front)


def _point(
    kind: Kind,
    configuration: Configuration,
    outcome: Outcome,
    accuracy: Measured | None,
) -> ParetoPoint:
    interval = None if accuracy is None else accuracy.interval
    return ParetoPoint(
        kind=kind,
        split=outcome.split,
        trial=None,
        accuracy=outcome.accuracy,
        accuracy_low=None if interval is None else interval.low,
        accuracy_high=None if interval is None else interval.high,
        flops_ratio=outcome.flops_ratio,
        flops_ratio_end_to_end=outcome.flops_ratio_end_to_end,
        regressions=outcome.regressions,
        within_budget=False,
        on_front=False,
        **_knobs(configuration),
    )


def _unmeasured(kind: Kind, configuration: Configuration, ratio: float, budget: float) -> ParetoPoint:
    return ParetoPoint(
        kind=kind,
        split="tune",
        trial=None,
        accuracy=None,
        accuracy_low=None,
        accuracy_high=None,
        flops_ratio=ratio,
        flops_ratio_end_to_end=None,
        regressions=None,
        within_budget=ratio <= budget,
        on_front=False,
        **_knobs(configuration),
    )


def _baseline(split: Split, accuracy: Measured) -> ParetoPoint:
    return ParetoPoint(
        kind="baseline",
        split=split,
        trial=None,
        accuracy=accuracy.value,
        accuracy_low=None if accuracy.interval is None else accuracy.interval.low,
        accuracy_high=None if accuracy.interval is None else accuracy.interval.high,
        flops_ratio=1.0,
        flops_ratio_end_to_end=1.0,
        regressions=0,
        within_budget=False,
        on_front=False,
    )


def _knobs(configuration: Configuration) -> dict[str, Any]:
    parameters = dict(configuration.parameters)
    own = {name: parameters[name] for name in CHOICES} if configuration.method in _ADATP else {}
    return {name: float(parameters[name]) for name in KNOBS if name in parameters} | own
