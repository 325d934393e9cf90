"""A sensitivity study in at most three sentences; `sentences` has all findings with their numbers."""

from __future__ import annotations

from collections.abc import Iterator

from tuner.sensitivity.results import Curve, Sensitivity
from tuner.sensitivity.sentences import over_the_space, value
from tuner.statistics.values import Interval

MOST = 3


def in_short(found: Sensitivity) -> tuple[str, ...]:
    """The most useful findings first: what matters most, what may be better, what makes no difference."""
    return tuple(_sentences(found))[:MOST]


def _sentences(found: Sensitivity) -> Iterator[str]:
    what = "accuracy" if found.labelled else "agreement"
    curves = sorted(
        (curve for curve in found.curves if len(curve.points) > 1), key=_largest_change, reverse=True
    )
    detectable = found.detectable or 0.0
    if curves and _largest_change(curves[0]) > detectable:
        yield _matters_most(curves[0], what)
    elif curves:
        yield f"No knob changes {what} by more than can be detected ({100 * detectable:.1f} points)."
    yield from _better(found, what)
    yield from _compute(found, what)
    if curves and _largest_change(curves[0]) > detectable:
        yield from _no_difference(curves, detectable, what)


def _largest_change(curve: Curve) -> float:
    return max(abs(point.difference.value) for point in curve.points)


def _matters_most(curve: Curve, what: str) -> str:
    worst = max(curve.points, key=lambda point: abs(point.difference.value))
    text = (
        f"{curve.knob} matters most: moved alone, it changes {what} by up to "
        f"{100 * worst.difference.value:+.1f} points."
    )
    safe, fits = curve.safe, curve.within_budget
    if safe is None or fits is None:
        return f"{text} No range of it is shown to be safe."
    within = Interval(max(safe.low, fits.low), min(safe.high, fits.high))
    if within.low >= within.high:
        return f"{text} Keep it at {value(curve.chosen)}: no other value is shown to be safe."
    return (
        f"{text} Within the budget it is safe from {value(within.low)} to {value(within.high)} "
        f"(chosen: {value(curve.chosen)})."
    )


def _better(found: Sensitivity, what: str) -> Iterator[str]:
    """The best other `deduplicate`, where its interval lies above 0."""
    for alternative in found.alternatives[:1]:
        interval = alternative.difference.interval
        if interval is not None and interval.low > 0:
            yield (
                f"deduplicate {alternative.deduplicate} may be better than "
                f"{found.reference.get('deduplicate')}: {100 * alternative.difference.value:+.1f} points of "
                f"{what} on tune videos, at the same FLOPs or fewer."
            )


def _compute(found: Sensitivity, what: str) -> Iterator[str]:
    """How much of the variance compute explains, or that this cannot be said."""
    output = next((output for output in found.outputs if output.name == "accuracy"), None)
    if output is not None and not output.good:
        yield over_the_space(output, what, found)
    if output is None or not output.good or found.design_compute is None:
        return
    shares = {index.input: index.total.value for index in output.indices}
    others = {name: share for name, share in shares.items() if name != "compute"}
    if "compute" not in shares or not others:
        return
    following = max(others, key=lambda name: others[name])
    yield (
        f"Compute explains {_share(shares['compute'])} of the differences in {what} between configurations; "
        f"next is {following} with {_share(others[following])}."
    )


def _no_difference(curves: list[Curve], detectable: float, what: str) -> Iterator[str]:
    flat = [curve.knob for curve in curves if _largest_change(curve) <= detectable]
    if flat:
        names = flat[0] if len(flat) == 1 else f"{', '.join(flat[:-1])} and {flat[-1]}"
        yield (
            f"{names} {'makes' if len(flat) == 1 else 'make'} no detectable difference over "
            f"{'its' if len(flat) == 1 else 'their'} whole range (less than {100 * detectable:.1f} points of "
            f"{what})."
        )


def _share(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.0f} %"
