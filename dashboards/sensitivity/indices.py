"""What matters over the whole search space: the share of each output's variance that each input explains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from dashboards.picture.picture import BLUE, GREY, VERMILION, Picture
from dashboards.sensitivity.axes import COLUMNS, axis_number, cell, finish, panel_axis, panel_heading
from dashboards.sensitivity.wording import compute_label, ends_of, input_label, output_label, with_interval
from tuner.sensitivity.results import Output, OutputName, Sensitivity

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure


@dataclass(frozen=True)
class IndexRow:
    """Sobol indices of one input for one output; no input: the output's surrogate is too poor for indices."""

    output: OutputName
    runs: int
    r2: float
    good: bool
    more_runs: int | None
    input: str | None = None
    first: float | None = None
    first_low: float | None = None
    first_high: float | None = None
    total: float | None = None
    total_low: float | None = None
    total_high: float | None = None
    ped_anova: float | None = None


def index_rows(found: Sensitivity) -> tuple[IndexRow, ...]:
    """Every output's inputs, most important first; one row for an output without indices."""
    rows: list[IndexRow] = []
    for output in found.outputs:
        common = (output.name, found.design_runs, output.r2, output.good, output.more_runs)
        rows += [
            IndexRow(
                *common, item.input, *ends_of(item.first), *ends_of(item.total), ped_anova=item.ped_anova
            )
            for item in sorted(output.indices, key=lambda index: -index.total.value)
        ] or [IndexRow(*common)]
    return tuple(rows)


def indices_picture(found: Sensitivity) -> Picture:
    """First-order and total Sobol indices with their intervals; where no output has any, why."""
    rows = index_rows(found)
    good = [output for output in found.outputs if output.indices]
    return Picture(
        name="sensitivity-indices",
        title="What matters: share of the variance explained by each input",
        description=_indices_text(found),
        table=rows,
        plotly=_plotly(found, rows) if good else None,
        body=None if good else _indices_body(found),
    )


def _indices_text(found: Sensitivity) -> str:
    sentences: list[str] = []
    for output in found.outputs:
        ranked = sorted(output.indices, key=lambda index: -index.total.value)
        if ranked and not sentences:
            values = ", ".join(f"{index.input} {with_interval(index.total, 1, '.2f')}" for index in ranked)
            sentences.append(
                f"Total indices for {output_label(output.name, found)}, with 95 % intervals, over "
                f"{found.design_runs} runs on the tune videos{_compute(found)}: {values}."
            )
        elif ranked:
            sentences.append(
                f"For {output_label(output.name, found)}, {ranked[0].input} matters most "
                f"({ranked[0].total.value:.2f})."
            )
    if sentences:
        sentences.append(
            "Total indices can add up to more than 1, because an interaction counts for each of its inputs. "
            "R² is the share of the variance of left-out runs that the surrogate predicts."
        )
    poor = [output for output in found.outputs if not output.indices]
    if poor:
        sentences.append(
            "There are no indices where the surrogate predicts left-out runs poorly, or from too few runs: "
            + "; ".join(f"{output_label(output.name, found)} ({_poor(output)})" for output in poor)
            + "."
        )
    return " ".join(sentences)


def _compute(found: Sensitivity) -> str:
    over = compute_label(found)
    return "" if over is None else f", with compute from {over}"


def _poor(output: Output) -> str:
    if output.more_runs is None:
        return f"R² {output.r2:.2f}; more runs are not expected to help"
    return f"R² {output.r2:.2f}; about {output.more_runs} more runs would probably be enough"


def _indices_body(found: Sensitivity) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(output_label(output.name, found))}</th>"
        f"<td>{escape(_poor(output))}</td></tr>"
        for output in found.outputs
    )
    return f"<table><tbody>{rows}</tbody></table>"


_KINDS = (
    # attribute, label, color, marker, shift along the input's row
    ("total", "total: with its interactions (95 % interval)", VERMILION, "diamond", 0.22),
    ("first", "first order: alone (95 % interval)", BLUE, "circle", 0.0),
    ("ped_anova", "PED-ANOVA: importance for reaching the best quarter", GREY, "square-open", -0.22),
)


def _plotly(found: Sensitivity, rows: Sequence[IndexRow]) -> PlotlyFigure:
    """A panel per output that has indices: first-order, total and PED-ANOVA side by side for each input."""
    import plotly.graph_objects as go

    panels = _panels_of(rows)
    deep = -(-len(panels) // COLUMNS)
    figure = go.Figure()
    for place, panel in enumerate(panels):
        x, y = (
            cell(place % COLUMNS, min(COLUMNS, len(panels)), 0.04),
            cell(deep - 1 - place // 2, deep, 0.2),
        )
        axis = axis_number(place)
        heights = list(range(len(panel) - 1, -1, -1))
        for name, label, color, symbol, shift in _KINDS:
            at, low, high = _values(panel, name)
            figure.add_trace(
                go.Scatter(
                    x=at,
                    y=[height + shift for height in heights],
                    xaxis=f"x{axis}",
                    yaxis=f"y{axis}",
                    mode="markers",
                    marker={
                        "color": color,
                        "symbol": symbol,
                        "size": 10,
                        "line": {"color": color, "width": 1.6},
                    },
                    error_x={"symmetric": False, "array": high, "arrayminus": low, "color": color, "width": 4}
                    if name != "ped_anova"
                    else None,
                    name=label,
                    legendgroup=name,
                    showlegend=place == 0,
                    text=[_index_hover(row) for row in panel],
                    hovertemplate="%{text}<extra></extra>",
                )
            )
        figure.update_layout(
            {
                f"xaxis{axis}": panel_axis(
                    f"y{axis}",
                    x,
                    title="share of the variance explained",
                    range=list(_range(rows)),
                    tickformat=".0%",
                ),
                f"yaxis{axis}": panel_axis(
                    f"x{axis}",
                    y,
                    tickvals=heights,
                    # The order is the first panel's, so its names serve the whole row.
                    ticktext=[input_label(row.input or "") if place % COLUMNS == 0 else "" for row in panel],
                    range=[-0.6, len(panel) - 0.4],
                ),
            }
        )
        figure.add_annotation(**panel_heading(_panel_title(panel[0], found), x[0], y[1]))
    finish(figure, height=120 + deep * (90 + 52 * max(len(panel) for panel in panels)), left=190)
    return figure


def _index_hover(row: IndexRow) -> str:
    text = f"<b>{row.input}</b>"
    for name, words in (("total", "total"), ("first", "first order")):
        at, low, high = (getattr(row, name + end) for end in ("", "_low", "_high"))
        text += f"<br>{words} {at:.2f}" + ("" if low is None else f" ({low:.2f} to {high:.2f})")
    return text + ("" if row.ped_anova is None else f"<br>PED-ANOVA {row.ped_anova:.2f}")


def _panels_of(rows: Sequence[IndexRow]) -> list[list[IndexRow]]:
    """The rows of each output that has indices; inputs in the order of the first output."""
    shown = [list(group) for _, group in groupby((row for row in rows if row.input), lambda one: one.output)]
    order = [frame.input for frame in shown[0]]
    for group in shown:
        group.sort(key=lambda index: order.index(index.input) if index.input in order else len(order))
    return shown


def _panel_title(row: IndexRow, found: Sensitivity) -> str:
    """The heading above an output's panel."""
    return f"{output_label(row.output, found)}: R² {row.r2:.2f}, {row.runs} runs"


def _values(rows: Sequence[IndexRow], name: str) -> tuple[list[float | None], list[float], list[float]]:
    """The values, and the lengths of their intervals below and above them."""
    at = [getattr(row, name) for row in rows]
    if name == "ped_anova":
        return at, [], []
    ends = [(getattr(row, f"{name}_low"), getattr(row, f"{name}_high")) for row in rows]
    low = [0.0 if end[0] is None else value - end[0] for value, end in zip(at, ends, strict=True)]
    high = [0.0 if end[1] is None else end[1] - value for value, end in zip(at, ends, strict=True)]
    return at, low, high


def _range(rows: Iterable[IndexRow]) -> tuple[float, float]:
    """Axis limits: 0 to 1, widened by intervals that reach beyond, with a margin."""
    ends = [
        value
        for row in rows
        for value in (row.first_low, row.first_high, row.total_low, row.total_high)
        if value is not None
    ]
    return min([0.0, *ends]) - 0.03, max([1.0, *ends]) + 0.03
