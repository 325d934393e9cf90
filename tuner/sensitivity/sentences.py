"""The findings of a sensitivity study in plain sentences, the most useful first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.methods import AdaTP, choices
from tuner.search.space import TOLERANCE
from tuner.sensitivity.results import Curve, CurvePoint, Output, Sensitivity
from tuner.statistics.values import Interval, Measured
from tuner.statistics.wording import NOTHING_CHOSEN

# Knobs for which the kinds of questions that lose most are named.
_MOST_KNOBS = 3


def sentences(found: Sensitivity) -> tuple[str, ...]:
    """The sentences of a study whose other fields are complete."""
    return tuple(_sentences(found))


def value(number: float) -> str:
    """A knob's value as text; a step may begin just above 0."""
    return "just above 0" if 0 < number < 1e-12 else f"{number:.4g}"


def points(share: float) -> str:
    """A change of accuracy in points, with its sign."""
    return f"{100 * share:+.1f} points"


def flat(curve: Curve) -> Interval | None:
    """The values around the chosen one over which neither answers nor compute change."""
    chosen = _at_chosen(curve)
    same = [
        point.difference == chosen.difference
        and point.regressions == chosen.regressions
        and point.gained == chosen.gained
        and point.logprob_change == chosen.logprob_change
        and point.flops_ratio == chosen.flops_ratio
        for point in curve.points
    ]
    return _around(curve, same)


def indifferent(curve: Curve, detectable: float) -> Interval | None:
    """The values around the chosen one over which accuracy changes by less than can be detected."""
    return _around(curve, [abs(point.difference.value) < detectable for point in curve.points])


def _sentences(found: Sensitivity) -> Iterator[str]:
    what = "accuracy" if found.labelled else "agreement"
    moving = [curve for curve in found.curves if len(curve.points) > 1]
    constant = [curve for curve in moving if _spread(curve) == (0.0, 0.0)]
    by_size = sorted(
        (curve for curve in moving if curve not in constant),
        key=lambda curve: _size(_spread(curve)),
        reverse=True,
    )
    detectable = found.detectable
    matter = [curve for curve in by_size if detectable is None or _size(_spread(curve)) >= detectable]
    yield from _better(found, what)
    if matter:
        effects = _list([_effect(curve, found) for curve in matter])
        yield f"Knobs that matter, each moved alone over its range (change of {what}): {effects}."
    yield from _global(found)
    yield _safe(moving, found, what)
    yield from _watch(by_size, found, what)
    yield from _hurts(matter, found)
    yield from _no_difference(
        [curve for curve in by_size if curve not in matter] + constant, matter, found, what
    )
    yield _binding(found)
    yield from (failure.evidence for failure in found.failures)
    if detectable is not None:
        yield (
            f"With these {_questions(found)}, changes of {what} below about {100 * detectable:.1f} points "
            "cannot be detected (half of a typical 95 % interval of a paired difference)."
        )
    if found.split == "held_out":
        yield NOTHING_CHOSEN
    else:
        yield (
            "There are no held-out videos, so the curves use the questions that chose the reference and are "
            "too optimistic near it."
        )


def _effect(curve: Curve, found: Sensitivity) -> str:
    low, high = _spread(curve)
    whole = _whole(curve)
    text = f"{curve.knob} ({100 * low:+.1f} to {points(high)} from {value(whole.low)} to {value(whole.high)}"
    inside = [point for point in curve.points if point.flops_ratio <= found.budget + TOLERANCE]
    if inside and len(inside) < len(curve.points):
        best = max(point.difference.value for point in inside)
        worst = min(point.difference.value for point in inside)
        text += f"; within the budget {100 * worst:+.1f} to {100 * best:+.1f}"
    return text + ")"


def _better(found: Sensitivity, what: str) -> Iterator[str]:
    """Whether another `deduplicate` is shown to be better, and how to search it."""
    better = [
        alternative
        for alternative in found.alternatives
        if alternative.difference.interval is not None and alternative.difference.interval.low > 0
    ]
    if not better:
        return
    chosen = str(found.reference.get("deduplicate"))
    told = [
        f"{alternative.deduplicate} (with p = {value(alternative.p)}) {_interval(alternative.difference)}"
        for alternative in better
    ]
    level = f"{100 * better[0].level:.3g} % intervals"
    if len(found.alternatives) > 1:
        level += f", corrected for {len(found.alternatives)} comparisons"
    text = (
        f"Another value of deduplicate is better than the reference's {chosen} at the same FLOPs or fewer "
        f"(points of {what} over {found.tune_questions} tune questions): {_list(told)}; {level}. To decide, "
        "search again with another --seed"
    )
    if all(alternative.searched for alternative in better):
        yield f"{text}; the search may already choose these values."
        return
    wanted = {
        chosen,
        *(
            alternative.deduplicate
            for alternative in found.alternatives
            if alternative.searched or alternative in better
        ),
    }
    listed = ", ".join(
        choice for choice in map(str, choices(AdaTP)["deduplicate"].values) if choice in wanted
    )
    yield f"{text} and `search: choices: {{deduplicate: [{listed}]}}` in study.yaml."


def _questions(found: Sensitivity) -> str:
    """The number of questions and their split."""
    count = next((curve.questions for curve in found.curves), 0)
    return f"{count} {'held-out' if found.split == 'held_out' else 'tune'} questions"


def _no_difference(
    rest: Sequence[Curve], matter: Sequence[Curve], found: Sensitivity, what: str
) -> Iterator[str]:
    """Knobs without a detectable effect, then the ranges over which the others have none."""
    detectable = found.detectable
    for curve in rest:
        first, last = value(curve.points[0].value), value(curve.points[-1].until)
        if _spread(curve) == (0.0, 0.0) and flat(curve) == _whole(curve):
            why = _why_flat(curve, found)
            yield f"{curve.knob} has no effect from {first} to {last}{why}: all plans stay the same."
        else:
            yield (
                f"{curve.knob} makes little difference from {first} to {last}: at most "
                f"{100 * _size(_spread(curve)):.1f} points of {what}"
                + ("." if detectable is None else f", below the detectable {100 * detectable:.1f}.")
            )
    if detectable is None:
        return
    told = []
    for curve in matter:
        over = indifferent(curve, detectable)
        if over is not None and over.high > over.low:
            most = max(
                abs(point.difference.value) for point in curve.points if over.low <= point.value <= over.high
            )
            told.append(
                f"{curve.knob} from {value(over.low)} to {value(over.high)} (at most {100 * most:.1f})"
            )
    if told:
        yield (
            f"Ranges without a detectable change of {what} ({100 * detectable:.1f} points): {_list(told)}."
        )


def _safe(curves: Sequence[Curve], found: Sensitivity, what: str) -> str:
    """How far each knob may drift without losing accuracy or exceeding the budget."""
    told, none = [], []
    for curve in curves:
        safe, fits = curve.safe, curve.within_budget
        if safe is None or fits is None:
            none.append(curve.knob)
            continue
        low, high = max(safe.low, fits.low), min(safe.high, fits.high)
        more = [
            f"{word} {value(end)}"
            for word, end, cut in (("down to", safe.low, low), ("up to", safe.high, high))
            if end != cut
        ]
        beyond = f" ({' and '.join(more)} without the budget)" if more else ""
        if low < high:
            told.append(f"{curve.knob} {value(low)} to {value(high)}{beyond}")
        else:
            none.append(curve.knob + beyond)
    meaning = (
        "one knob moved alone within the budget, where a one-sided 95 % bound excludes losing more than "
        f"{100 * found.margin:.1f} points of {what}"
    )
    if not told:
        return f"No knob has a safe range ({meaning})."
    text = f"Safe ranges ({meaning}): {_list(told)}."
    return text + (f" No other value is shown to be safe for {_list(none)}." if none else "")


def _watch(curves: Sequence[Curve], found: Sensitivity, what: str) -> Iterator[str]:
    """The edge of a safe range with the largest loss just beyond it."""
    edges = [edge for curve in curves for edge in _edges(curve)]
    losing = [
        (curve, change)
        for curve, change in edges
        if change.difference.interval is not None and change.difference.interval.high < 0
    ]
    for curve, beyond in sorted(losing, key=lambda edge: edge[1].difference.value)[:1]:
        side = "above" if beyond.value > curve.chosen else "below"
        edge = beyond.value if side == "above" else beyond.until
        yield (
            f"Watch {curve.knob}: just {side} its safe range, at {value(edge)}, {what} changes by "
            f"{_interval(beyond.difference)} points."
        )
    if edges and not losing:
        curve, beyond = min(edges, key=lambda edge: edge[1].difference.value)
        edge = beyond.value if beyond.value > curve.chosen else beyond.until
        yield (
            "The safe ranges end where a loss can no longer be excluded, not where a loss is measured: the "
            f"largest change just beyond them is {_interval(beyond.difference)} points, at {curve.knob} = "
            f"{value(edge)}."
        )


def _edges(curve: Curve) -> Iterator[tuple[Curve, CurvePoint]]:
    """The first point outside the safe range on either side."""
    if curve.safe is None:
        return
    below = [point for point in curve.points if point.until < curve.safe.low]
    above = [point for point in curve.points if point.value > curve.safe.high]
    if below:
        yield curve, below[-1]
    if above:
        yield curve, above[0]


def _binding(found: Sensitivity) -> str:
    if found.binds == "none":
        return "The reference boosts no segment, so neither alpha_boost nor gamma_cap binds."
    p, alpha = float(found.reference.get("p")), float(found.reference.get("alpha_boost"))
    if found.binds == "alpha_boost":
        return (
            "alpha_boost binds: gamma_cap has no effect while it is at least alpha_boost p = "
            f"{value(alpha * p)}."
        )
    gamma = float(found.reference.get("gamma_cap"))
    return (
        f"gamma_cap binds: alpha_boost has no effect while it is at least gamma_cap / p = {value(gamma / p)}."
    )


def _why_flat(curve: Curve, found: Sensitivity) -> str:
    if curve.knob in ("alpha_boost", "gamma_cap") and found.binds not in ("none", curve.knob):
        return f" ({found.binds} binds)"
    return " (no segment is boosted)" if found.binds == "none" and curve.knob != "p" else ""


def _hurts(matter: Sequence[Curve], found: Sensitivity) -> Iterator[str]:
    """Which kinds of questions lose most within the budget."""
    told = []
    for curve in matter[:_MOST_KNOBS]:
        inside = [point for point in curve.points if point.flops_ratio <= found.budget + TOLERANCE]
        worst = min(inside, key=lambda point: point.difference.value, default=None)
        if worst is None or worst.difference.value >= 0:
            continue
        kinds = [
            (item.tag, point)
            for item in found.by_tag
            if item.knob == curve.knob and item.tag is not None
            for point in item.points
            if point.value <= worst.value <= point.until
        ]
        lost = [kind for kind in kinds if kind[1].difference.interval is not None]
        if lost:
            (key, kind), point = min(lost, key=lambda item: item[1].difference.value)
            told.append(
                f"{curve.knob} at {value(worst.value)}: {key} {kind} {_interval(point.difference)}, all "
                f"questions {100 * worst.difference.value:+.1f}"
            )
    if told:
        yield (
            "Kinds of questions that lose most at a knob's worst value within the budget (points; only a "
            f"hint, because of many comparisons on the same answers): {'; '.join(told)}."
        )


def _global(found: Sensitivity) -> Iterator[str]:
    """What the surrogate says about the whole search space."""
    told = False
    for output in found.outputs:
        name = found.labelled or output.name != "accuracy"
        yield over_the_space(output, output.name if name else "agreement", found, again=told)
        told = told or output.good


def over_the_space(output: Output, name: str, found: Sensitivity, *, again: bool = False) -> str:
    """What a surrogate says about one output, or that it is too poor to say anything.

    again: the previous sentence has explained the indices.
    """
    known = f"R2 {output.r2:.2f}, {found.design_runs} runs"
    if not output.good:
        text = (
            f"Over the whole search space nothing can be said about {name}: the surrogate is too poor "
            f"({known})"
        )
        if output.more_runs is not None:
            wanted = found.design_runs + output.more_runs
            return f"{text}; about {output.more_runs} more runs (--runs {wanted}) would probably be enough."
        return f"{text}, and more runs are not expected to help."
    ranked = sorted(output.indices, key=lambda index: index.total.value, reverse=True)
    shares = [
        f"{index.input} {index.total.value:.2f}"
        + (
            ""
            if index.total.interval is None
            else f" [{index.total.interval.low:.2f}, {index.total.interval.high:.2f}]"
        )
        for index in ranked
    ]
    if again:
        return f"The same for {name} (R2 {output.r2:.2f}): {_list(shares)}."
    return (
        f"Over the whole search space, share of the variance of {name} due to each knob ({known}): "
        f"{_list(shares)}.{_compute(found)}"
    )


def _compute(found: Sensitivity) -> str:
    over = found.design_compute
    if over is None:
        return ""
    between = f"{100 * over.low:.3g} % and {100 * over.high:.3g} %"
    return (
        f" Compute ranged between {between} of the unpruned FLOPs and p was solved for it, so the other "
        "knobs' shares are at equal compute."
    )


def _at_chosen(curve: Curve) -> CurvePoint:
    return next(point for point in curve.points if point.value <= curve.chosen <= point.until)


def _around(curve: Curve, holds: Sequence[bool]) -> Interval | None:
    at = curve.points.index(_at_chosen(curve))
    if not holds[at]:
        return None
    low = high = at
    while low > 0 and holds[low - 1]:
        low -= 1
    while high + 1 < len(holds) and holds[high + 1]:
        high += 1
    return Interval(curve.points[low].value, curve.points[high].until)


def _whole(curve: Curve) -> Interval:
    return Interval(curve.points[0].value, curve.points[-1].until)


def _spread(curve: Curve) -> tuple[float, float]:
    changes = [point.difference.value for point in curve.points]
    return min(changes), max(changes)


def _size(spread: tuple[float, float]) -> float:
    return max(abs(end) for end in spread)


def _interval(measured: Measured) -> str:
    text = f"{100 * measured.value:+.1f}"
    if measured.interval is None:
        return text
    return f"{text} [{100 * measured.interval.low:+.1f}, {100 * measured.interval.high:+.1f}]"


def _list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
