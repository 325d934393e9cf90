"""A sensitivity study as pictures: what matters, how far each knob may drift, two at a time, for whom.

Each picture's table is computed first (`sensitivity_tables`) and drawn from: a page by plotly, a still by
matplotlib. Accuracy changes are drawn in points from the reference, paired on the same questions: safe ranges
are judged by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from dashboards.picture.picture import Picture
from dashboards.sensitivity.pages import curves_page, indices_page, maps_page, tags_page
from dashboards.sensitivity.stills import curves_still, indices_still, maps_still, tags_still
from dashboards.sensitivity.tables import (
    MapRow,
    accuracy_label,
    compute_label,
    curve_rows,
    index_rows,
    inside,
    map_rows,
    number,
    output_label,
    range_text,
)
from tuner.sensitivity.results import Curve, Output, Sensitivity
from tuner.statistics.values import Measured

# Of a tag's values the ones with most questions are drawn; all are in the table.
TAG_VALUES = 6


def sensitivity_pictures(found: Sensitivity) -> tuple[Picture, ...]:
    """Indices, curves with safe ranges, pairwise maps, curves by tag; what was not studied is left out."""
    pictures = []
    if found.outputs:
        pictures.append(_indices(found))
    if found.curves:
        pictures.append(_curves(found))
    if found.maps:
        pictures.append(_maps(found))
    pictures += _tags(found)
    return tuple(pictures)


def _indices(found: Sensitivity) -> Picture:
    rows = index_rows(found)
    good = [one for one in found.outputs if one.indices]
    return Picture(
        name="sensitivity-indices",
        title="What matters: share of the variance that each input explains",
        description=_indices_text(found),
        table=rows,
        plotly=indices_page(found, rows) if good else None,
        body=None if good else _indices_body(found),
        still=indices_still(found, rows) if good else None,
    )


def _indices_text(found: Sensitivity) -> str:
    sentences: list[str] = []
    for output in found.outputs:
        ranked = sorted(output.indices, key=lambda one: -one.total.value)
        if ranked and not sentences:
            values = ", ".join(f"{one.input} {_with_interval(one.total, 1, '.2f')}" for one in ranked)
            sentences.append(
                f"Total indices for {output_label(output.name, found)}, with 95 % intervals, over "
                f"{found.design_runs} runs on the tune videos{_over(found)}: {values}."
            )
        elif ranked:
            sentences.append(
                f"For {output_label(output.name, found)} {ranked[0].input} matters most "
                f"({ranked[0].total.value:.2f})."
            )
    if sentences:
        sentences.append(
            "Total indices may add up to more than 1: an interaction counts for each input in it. R² is what "
            "the surrogate predicts of left-out runs."
        )
    poor = [one for one in found.outputs if not one.indices]
    if poor:
        sentences.append(
            "No indices, because the surrogate predicts left-out runs too badly or there are too few: "
            + "; ".join(f"{output_label(one.name, found)} ({_poor(one)})" for one in poor)
            + "."
        )
    return " ".join(sentences)


def _poor(output: Output) -> str:
    if output.more_runs is None:
        return f"R² {output.r2:.2f}; nothing suggests that more runs would help"
    return f"R² {output.r2:.2f}; about {output.more_runs} more runs would probably do"


def _indices_body(found: Sensitivity) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(output_label(one.name, found))}</th><td>{escape(_poor(one))}</td></tr>"
        for one in found.outputs
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _curves(found: Sensitivity) -> Picture:
    rows = curve_rows(found.curves)
    return Picture(
        name="sensitivity-curves",
        title="How far each knob may drift from the chosen configuration",
        description=_curves_text(found),
        table=rows,
        plotly=curves_page(found),
        still=curves_still(found),
    )


def _curves_text(found: Sensitivity) -> str:
    ranges = ", ".join(f"{one.knob} {range_text(one.safe)}" for one in found.curves)
    exact = [one.knob for one in found.curves if one.exact]
    return (
        f"Change of {accuracy_label(found)} when one knob moves and the others stay, on "
        f"{_part(found)} ({found.curves[0].questions} questions; the band is a 95 % interval). "
        f"Safe, shown by a one-sided 95 % bound to lose at most {100 * found.margin:.1f} points: {ranges}."
        + (f" {' and '.join(exact)}: every step there is, not samples." if exact else "")
    )


def _maps(found: Sensitivity) -> Picture:
    rows = map_rows(found)
    return Picture(
        name="sensitivity-maps",
        title=f"Two knobs at a time: {accuracy_label(found)} as the surrogate predicts it, and the budget",
        description=_maps_text(found, rows),
        table=rows,
        plotly=maps_page(found),
        still=maps_still(found),
    )


def _maps_text(found: Sensitivity, rows: Sequence[MapRow]) -> str:
    output = next((one for one in found.outputs if one.name == "accuracy"), None)
    budget = f"the budget of {100 * found.budget:g} %"
    text = (
        f"Predicted {accuracy_label(found)} on the tune videos when two knobs drift from the reference "
        "together"
        + ("" if output is None else f" (cross-validated R² {output.r2:.2f})")
        + f"; FLOPs are exact, and what is over {budget} is marked with strokes."
    )
    for one in found.maps:
        fits = {row.within_budget for row in rows if (row.first, row.second) == (one.first, one.second)}
        if len(fits) == 1:
            where = "within" if True in fits else "over"
            text += f" All of {one.first} with {one.second} is {where} the budget: no line."
    blank = sum(one.accuracy is None for one in rows)
    if blank:
        over = compute_label(found)
        text += (
            f" Nothing is predicted for the {blank} blank of {len(rows)} cells: the design's runs do not "
            "cover them" + ("." if over is None else f", having {over}.")
        )
    fitting = [(one.accuracy, one) for one in rows if one.within_budget and one.accuracy is not None]
    if fitting:
        value, best = max(fitting, key=lambda one: one[0])
        text += (
            f" The highest value within the budget is {100 * value:.1f} %, at {best.first} "
            f"{number(best.first_value)} and {best.second} {number(best.second_value)}."
        )
    return text


def _tags(found: Sensitivity) -> list[Picture]:
    pictures: list[Picture] = []
    names: set[str] = set()
    for key in dict.fromkeys(one.tag[0] for one in found.by_tag if one.tag is not None):
        curves = [one for one in found.by_tag if one.tag is not None and one.tag[0] == key and one.points]
        kinds = _kinds(curves)
        if not kinds:
            continue
        name = stem = "sensitivity-by-" + (re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-") or "tag")
        while name in names:  # keys that differ only in signs
            name = f"{stem}-{len(names) + 1}"
        names.add(name)
        shown = kinds[:TAG_VALUES]
        pictures.append(
            Picture(
                name=name,
                title=f"For whom: the same curves by {key}",
                description=_tags_text(found, curves, kinds),
                table=curve_rows(curves),
                plotly=tags_page(found, curves, shown),
                still=tags_still(found, curves, shown),
            )
        )
    return pictures


def _kinds(curves: Iterable[Curve]) -> list[tuple[str, int]]:
    """A tag's values and their questions, most first."""
    counts = {one.tag[1]: one.questions for one in curves if one.tag is not None}
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def _tags_text(found: Sensitivity, curves: Sequence[Curve], kinds: Sequence[tuple[str, int]]) -> str:
    text = (
        f"Change of {accuracy_label(found)} for each kind of question alone, from that kind's own value in "
        "the chosen configuration; all questions in grey, bands are 95 % intervals. These are many looks at "
        "the same answers: a hint where to look, not a finding."
    )
    safe = {one.knob: one.safe for one in found.curves}
    worst: tuple[float, str] | None = None
    for curve in curves:
        for point in curve.points:
            if curve.tag is not None and inside(point, safe.get(curve.knob)):
                change = point.difference.value
                if worst is None or change < worst[0]:
                    where = f"{curve.tag[1]} at {curve.knob} {number(point.value)}"
                    worst = (change, f"{where}: {_with_interval(point.difference, 100, '+.1f')} points")
    if worst is not None and worst[0] < 0:
        text += f" Worst inside the ranges that are safe for all questions together: {worst[1]}."
    if len(kinds) > TAG_VALUES:
        text += f" Drawn: the {TAG_VALUES} of {len(kinds)} kinds with most questions; the table has all."
    return text


def _with_interval(one: Measured, scale: float, form: str) -> str:
    text = f"{scale * one.value:{form}}"
    if one.interval is not None:
        text += f" ({scale * one.interval.low:{form}} to {scale * one.interval.high:{form}})"
    return text


def _over(found: Sensitivity) -> str:
    over = compute_label(found)
    return "" if over is None else f" with compute at {over}"


def _part(found: Sensitivity) -> str:
    return "held-out videos" if found.split == "held_out" else "tune videos"
