"""`tuner compare`: pruning methods at the same FLOPs, LLM prefill and end to end, on held-out videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from dashboards.picture.picture import BLACK, FONT, GREEN, ORANGE, PURPLE, VERMILION, Picture
from pipeline.methods import AdaTP, AdaTPOneShot
from tuner.reporting.comparison_table import end_to_end_unreachable
from tuner.reporting.values import Compared, Comparison

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure


@dataclass(frozen=True)
class ComparisonRow:
    """One pruning method on the held-out split, compared with the unpruned model; 95 % intervals."""

    name: str
    method: str
    about: str
    accuracy: float
    accuracy_low: float | None
    accuracy_high: float | None
    # Accuracy minus the unpruned model's, paired on the same questions.
    difference: float
    difference_low: float | None
    difference_high: float | None
    # Two-sided, from a sign-flip permutation test over videos.
    p_value: float | None
    regressions: int
    gained: int
    questions: int
    videos: int
    flops_ratio: float
    flops_ratio_end_to_end: float
    # Prefill and answer, timed with all methods in turn; None where not timed.
    seconds: float | None
    # Relative to the unpruned model's.
    seconds_ratio: float | None


def comparison_rows(compared: Sequence[Compared]) -> tuple[ComparisonRow, ...]:
    """The table, most accurate first; ties stay in their order."""
    rows = [_row(item) for item in compared]
    return tuple(sorted(rows, key=lambda row: -row.accuracy))


def _row(one: Compared) -> ComparisonRow:
    held_out, outcome = one.held_out, one.held_out.outcome
    accuracy, difference = held_out.accuracy, held_out.difference
    return ComparisonRow(
        name=one.name,
        method=held_out.configuration.method,
        about=one.about,
        accuracy=accuracy.value,
        accuracy_low=None if accuracy.interval is None else accuracy.interval.low,
        accuracy_high=None if accuracy.interval is None else accuracy.interval.high,
        difference=difference.value,
        difference_low=None if difference.interval is None else difference.interval.low,
        difference_high=None if difference.interval is None else difference.interval.high,
        p_value=held_out.p_value,
        regressions=outcome.regressions,
        gained=outcome.gained,
        questions=outcome.questions,
        videos=outcome.videos,
        flops_ratio=outcome.flops_ratio,
        flops_ratio_end_to_end=outcome.flops_ratio_end_to_end,
        # Timed side by side; the seconds of stored answers come from different runs.
        seconds=None if one.timed is None else one.timed.seconds,
        seconds_ratio=None if one.timed is None else one.timed.ratio,
    )


def comparison_picture(comparison: Comparison) -> Picture:
    """Pruning methods at equal LLM prefill FLOPs: a mark with its interval for each, and the numbers beside
    it.
    """
    rows = comparison_rows(comparison.rows)
    text = (
        f"{_description(rows, comparison)} Time covers prefill and answer, measured with all methods in turn."
    )
    for name, smallest in comparison.unreachable.items():
        text += f" {name} cannot reach this budget: its minimum is {100 * smallest:.1f} %."
    return Picture(
        name="comparison",
        title=f"Pruning methods at {100 * comparison.budget:g} % of the prefill FLOPs",
        description=text if rows else "Nothing was compared.",
        table=rows,
        plotly=_plotly(rows, comparison),
    )


def end_to_end_picture(comparison: Comparison) -> Picture | None:
    """AdaTP and its peers at equal end-to-end FLOPs; None where that was not measured."""
    found = comparison.end_to_end
    if found is None:
        return None
    rows = comparison_rows(found.rows)
    text = (
        f"The end-to-end FLOPs (vision tower, projector and aligned encoder included) are those of "
        f"{found.rows[0].name} or less. {_description(rows, comparison)}"
    )
    return Picture(
        name="comparison-end-to-end",
        title=f"Pruning methods at {100 * found.flops_ratio:.0f} % of the end-to-end FLOPs",
        description=" ".join([text, *end_to_end_unreachable(comparison)]),
        table=rows,
        plotly=_plotly(rows, comparison),
    )


# Numbers and names in the drawing

_COLUMNS = ("change, points", "lost / gained", "FLOPs", "end to end", "time")
# Share of the width for the marks, and where the columns begin.
_MARKS = 0.42
_AT = (0.435, 0.63, 0.76, 0.835, 0.935)


def _cells(row: ComparisonRow) -> tuple[str, ...]:
    change = f"{100 * row.difference:+.1f}"
    if row.difference_low is not None and row.difference_high is not None:
        change += f" [{100 * row.difference_low:+.1f}, {100 * row.difference_high:+.1f}]"
    seconds = "-" if row.seconds_ratio is None else f"{100 * row.seconds_ratio:.0f} %"
    return (
        change,
        f"{row.regressions} / {row.gained}",
        f"{100 * row.flops_ratio:.1f} %",
        f"{100 * row.flops_ratio_end_to_end:.1f} %",
        seconds,
    )


def _what(comparison: Comparison) -> str:
    return "accuracy" if comparison.labelled else "agreement with the unpruned model"


def _x_title(comparison: Comparison) -> str:
    return f"held-out {_what(comparison)}, % of questions (higher is better)"


def _range(rows: Sequence[ComparisonRow], comparison: Comparison) -> list[float]:
    """Range of the x axis: all intervals and the unpruned line, with a margin."""
    values = [100 * comparison.baseline.value]
    for row in rows:
        values += [
            100 * share for share in (row.accuracy, row.accuracy_low, row.accuracy_high) if share is not None
        ]
    room = max(1.0, 0.05 * (max(values) - min(values)))
    return [min(values) - room, max(values) + room]


def _marker(row: ComparisonRow) -> tuple[str, str]:
    """Colour and shape as in the Pareto front: the tuned and the default AdaTP, its variants, the others."""
    if row.method not in (AdaTP.name, AdaTPOneShot.name):
        return PURPLE, "triangle-up"
    if "tuned" in row.name.lower():
        return VERMILION, "diamond"
    if "default" in row.name.lower():
        return GREEN, "square"
    return ORANGE, "triangle-down"


def _unpruned(comparison: Comparison) -> str:
    return f"unpruned: {100 * comparison.baseline.value:.1f} %"


def _description(rows: Sequence[ComparisonRow], comparison: Comparison) -> str:
    if not rows:
        return ""
    first, last = rows[0], rows[-1]
    what = _what(comparison)
    text = (
        f"On {first.questions} held-out questions about {first.videos} videos, {first.name} has the best "
        f"{what}, {100 * first.accuracy:.1f} % against {100 * comparison.baseline.value:.1f} % unpruned"
    )
    if len(rows) > 1:
        text += f", and {last.name} the lowest, {100 * last.accuracy:.1f} %"
    return (
        f"{text}. Lines are 95 % intervals. Methods with overlapping intervals may still differ, because all "
        "answered the same questions: the change from the unpruned model is paired. FLOPs and time are in "
        "per cent of the unpruned model's."
    )


# The page


def _plotly(rows: Sequence[ComparisonRow], comparison: Comparison) -> PlotlyFigure:
    import plotly.graph_objects as go

    figure = go.Figure()
    # Without times their column is left out.
    shown = _AT if any(row.seconds_ratio is not None for row in rows) else _AT[:-1]
    for place, row in enumerate(rows):
        color, symbol = _marker(row)
        interval = row.accuracy_low is not None and row.accuracy_high is not None
        value = 100 * row.accuracy
        figure.add_trace(
            go.Scatter(
                x=[value],
                y=[place],
                mode="markers",
                marker={"color": color, "size": 12, "symbol": symbol},
                error_x={
                    "visible": interval,
                    "symmetric": False,
                    "array": [100 * (row.accuracy_high or 0.0) - value],
                    "arrayminus": [value - 100 * (row.accuracy_low or 0.0)],
                    "color": color,
                    "thickness": 1.6,
                    "width": 4,
                },
                name=row.name,
                text=[_hover(row)],
                hovertemplate="%{text}<extra></extra>",
            )
        )
        for at, cell in zip(shown, _cells(row), strict=False):
            figure.add_annotation(**_cell(at, cell), y=place)
    for at, name in zip(shown, _COLUMNS, strict=False):
        figure.add_annotation(**_cell(at, f"<b>{name}</b>"), y=1.0, yref="paper", yanchor="bottom")
    unpruned = 100 * comparison.baseline.value
    figure.add_vline(x=unpruned, line={"color": BLACK, "width": 1.2, "dash": "dot"})
    unpruned_label = {
        "x": unpruned,
        "y": 1.0,
        "yref": "paper",
        "text": _unpruned(comparison),
        "showarrow": False,
        "xanchor": "right",
        "yanchor": "bottom",
        "font": {"size": 12.5, "color": BLACK},
    }
    figure.add_annotation(unpruned_label)
    figure.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 14, "color": BLACK},
        xaxis={
            "title": {"text": _x_title(comparison)},
            "ticksuffix": " %",
            "zeroline": False,
            "domain": [0, _MARKS],
            "range": _range(rows, comparison),
        },
        yaxis={
            "tickmode": "array",
            "tickvals": list(range(len(rows))),
            "ticktext": [escape(row.name) for row in rows],
            "range": [len(rows) - 0.4, -0.6],
            "automargin": True,
            "zeroline": False,
        },
        showlegend=False,
        hoverlabel={"align": "left", "font": {"family": FONT, "size": 13}},
        margin={"l": 60, "r": 20, "t": 50, "b": 60},
        height=130 + 38 * max(3, len(rows)),
        # On a phone the marks alone: the numbers are in the table.
        meta={
            "narrow": {
                "annotations": [unpruned_label],
                "xaxis": {
                    "domain": [0, 1],
                    "title": {"text": f"{_what(comparison)}, %", "font": {"size": 13}},
                    "nticks": 5,
                },
                "margin": {"l": 10, "r": 10},
            }
        },
    )
    return figure


def _cell(at: float, text: str) -> dict[str, Any]:
    return {
        "x": at,
        "xref": "paper",
        "text": text,
        "showarrow": False,
        "xanchor": "left",
        "font": {"size": 12.5, "color": BLACK},
    }


def _hover(row: ComparisonRow) -> str:
    change, flips, flops, end_to_end, seconds = _cells(row)
    accuracy = f"accuracy {100 * row.accuracy:.1f} %"
    if row.accuracy_low is not None and row.accuracy_high is not None:
        accuracy += f" ({100 * row.accuracy_low:.1f} to {100 * row.accuracy_high:.1f})"
    lines = [
        f"<b>{escape(row.name)}</b>",
        *([escape(row.about)] if row.about else []),
        accuracy,
        f"change {change} points" + ("" if row.p_value is None else f", p {row.p_value:.2g}"),
        f"lost / gained {flips}",
        f"prefill FLOPs {flops}, end to end {end_to_end}",
        "not timed"
        if row.seconds is None
        else f"prefill and answer {row.seconds:.3g} s ({seconds} of unpruned)",
    ]
    return "<br>".join(lines)
