"""Tests for the two failures of AdaTP that digests of the paper name, where a study's tags allow it.

"Found" is a claim with a probability of error of at most 5 % over all its comparisons: over every value of
both thresholds for the first failure, over two comparisons for the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from tuner.sensitivity.curves import Compared, Flags, Track
from tuner.sensitivity.results import FailureMode
from tuner.statistics import paired
from tuner.statistics.paired import Floats

SEED = 0
_RESAMPLES = 2000
# Most rows of a track that the first failure is tested on; evenly spaced where there are more.
_MOST_ROWS = 250
_ERROR = 0.05


def middle_frames(tracks: Sequence[Track], split: Compared, tags: Sequence[Mapping[str, str]]) -> FailureMode:
    """Whether questions about the middle lose more than those about the ends if a threshold is set wrongly.

    tags: of each question; `when` is start, middle or end. The contrast at a value is the change of accuracy
    from the reference on middle questions minus that on the others. Its interval is simultaneous over all
    rows of all tracks, from a bootstrap over videos: testing all values finds no more by chance than one.
    """
    name: Final = "middle frames over-pruned"
    middle = np.array([tag.get("when") == "middle" for tag in tags])
    ends = np.array([tag.get("when") in ("start", "end") for tag in tags])
    if not middle.any() or not ends.any() or len(set(split.videos)) < 2:
        return FailureMode(
            name,
            None,
            "Whether middle frames are over-pruned cannot be tested: the questions need the tag `when` "
            "(start, middle or end).",
        )
    here = _contrast(split.reference, split.unpruned, middle, ends)
    at_reference = (
        f"At the reference, questions about the middle change by {_points(here[0])} from the unpruned model, "
        f"those about start and end by {_points(here[1])}."
    )
    places: list[tuple[Track, int]] = []
    for track in tracks:
        rows = np.unique(np.linspace(0, len(track.values) - 1, _MOST_ROWS).round().astype(int))
        places += [(track, int(row)) for row in rows]
    if not places:
        return FailureMode(
            name, None, f"Both thresholds are fixed, so neither can be set wrongly. {at_reference}"
        )
    correct = np.array([track.correct[row] for track, row in places])
    value, low, high = _simultaneous(correct, split, middle, ends)
    worst = int(np.argmin(high if high.min() < 0 else value))
    track, row = places[worst]
    losing = _contrast(correct[worst], split.reference, middle, ends)
    where = f"{track.knob} = {track.values[row]:.4g}" if not track.exact else _around(track, row)
    numbers = (
        f"with {where}, questions about the middle change by {_points(losing[0])} from the reference and "
        f"those about start and end by {_points(losing[1])}, a difference of {100 * value[worst]:+.1f} "
        f"points [{100 * low[worst]:+.1f}, {100 * high[worst]:+.1f}] (simultaneous over all values of "
        f"{' and '.join(track.knob for track in tracks)})"
    )
    if high[worst] < 0:
        return FailureMode(name, True, f"Middle frames are over-pruned: {numbers}. {at_reference}")
    return FailureMode(
        name, False, f"No sign that middle frames are over-pruned; at worst, {numbers}. {at_reference}"
    )


def small_things(
    answers: Mapping[str, Flags], split: Compared, tags: Sequence[Mapping[str, str]], chosen: str
) -> FailureMode:
    """Whether questions about small things are answered worse with local deduplication than without.

    answers: (Q,) right or not under each `deduplicate`, at the same FLOPs; chosen: the reference's. `split`
    is the tune split, since the result may lead to another `deduplicate`, which held-out videos then judge.
    """
    name: Final = "small things lost to deduplication"
    small = np.array([tag.get("size") == "small" for tag in tags])
    if not small.any():
        return FailureMode(
            name,
            None,
            "Whether deduplication loses small things cannot be tested: the questions need the tag `size` "
            "(small or another value).",
        )
    if "off" not in answers or len(answers) < 2:
        return FailureMode(
            name,
            None,
            "The reference's FLOPs cannot be reached without deduplication: nothing to compare with.",
        )
    kinds = [way for way in ("demote", "drop") if way in answers]
    found, told = [], []
    for kind in kinds:
        level = 1 - _ERROR / len(kinds)
        changed = paired.difference(
            answers[kind][small],
            answers["off"][small],
            [video for video, kept in zip(split.videos, small, strict=True) if kept],
            level=level,
        )
        rest = answers[kind][~small].mean() - answers["off"][~small].mean() if (~small).any() else None
        if changed.interval is not None and changed.interval.high < 0:
            found.append(kind)
        bounds = (
            ""
            if changed.interval is None
            else (f" [{100 * changed.interval.low:+.1f}, {100 * changed.interval.high:+.1f}]")
        )
        told.append(
            f"{kind}{' (the reference)' if kind == chosen else ''} instead of none changes small things by "
            f"{100 * changed.value:+.1f} points{bounds}"
            + ("" if rest is None else f" and all others by {100 * rest:+.1f}")
        )
    numbers = f"at the reference's FLOPs on tune videos, {'; '.join(told)}."
    if found:
        return FailureMode(
            name,
            True,
            f"Deduplication ({' and '.join(found)}) loses small things: {numbers}",
        )
    return FailureMode(name, False, f"No sign that deduplication loses small things: {numbers}")


def _contrast(after: Flags, before: Flags, middle: Flags, ends: Flags) -> tuple[float, float]:
    change = after.astype(np.float64) - before
    return float(change[middle].mean()), float(change[ends].mean())


def _simultaneous(
    correct: Flags, split: Compared, middle: Flags, ends: Flags
) -> tuple[Floats, Floats, Floats]:
    """(T,) contrasts of rows (T, Q) and both ends of their simultaneous 95 % intervals.

    Two-sided and symmetric in units of each row's standard error: the 95 % quantile, over bootstrap draws of
    videos, of the largest deviation of any row.
    """
    names, index = np.unique(np.asarray(split.videos, dtype=object).astype(str), return_inverse=True)
    member = np.zeros((index.size, names.size))
    member[np.arange(index.size), index] = 1.0
    change = correct.astype(np.float64) - split.reference
    sums = [(change * mask) @ member for mask in (middle, ends)]  # (T, V)
    sizes = [mask.astype(np.float64) @ member for mask in (middle, ends)]  # (V,)
    value = sums[0].sum(axis=1) / sizes[0].sum() - sums[1].sum(axis=1) / sizes[1].sum()
    rng = np.random.default_rng(SEED)
    drawn = rng.multinomial(names.size, np.full(names.size, 1 / names.size), _RESAMPLES).T.astype(np.float64)
    counts = [size @ drawn for size in sizes]
    whole = (counts[0] > 0) & (counts[1] > 0)  # a draw needs questions of both kinds
    resampled = sums[0] @ drawn[:, whole] / counts[0][whole] - sums[1] @ drawn[:, whole] / counts[1][whole]
    error = resampled.std(axis=1)
    scale = np.where(error > 0, error, np.inf)[:, None]
    largest = (np.abs(resampled - value[:, None]) / scale).max(axis=0)
    reach = float(np.quantile(largest, 1 - _ERROR)) * error
    return value, value - reach, value + reach


def _around(track: Track, row: int) -> str:
    low, high = track.values[row], track.until[row]
    first, second = f"{low:.4g}", f"{high:.4g}"
    return f"{track.knob} = {first}" if first == second else f"{track.knob} from {first} to {second}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"
