"""The two biases of attention that AdaTP addresses, and what each pruning method makes of them.

As in the paper's first figure: how the attention of the last prompt token, and the tokens that pruning keeps,
are distributed over the frames of a video and the positions in a frame. Each series is in units of its own
mean, so that attention and kept tokens share one axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from dashboards.picture.picture import BLACK, BLUE, FONT, GREY, VERMILION, Picture
from pipeline.layout import FloatArray
from pipeline.trace import Grid
from tuner.reporting.inspection import BiasMaps, Inspection, last_frames, relative

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

Axis = Literal["frame", "position"]

# From the paper, with 32 frames: the share of the top tenth of the tokens in the last eighth of the frames,
# and the largest mean attention of a position in units of the mean.
PAPER_TOP_IN_LAST = 0.868
PAPER_PEAK = 5.77
# How many times the even share the text calls a bias (our choice).
BIASED = 2.0


@dataclass(frozen=True)
class BiasRow:
    """A frame or a position in the frame; values in units of the mean over all of them (1 is even)."""

    axis: Axis
    # Counted from 1, as are row and column.
    number: int
    # None for a frame; no column either for the newline token after a row of cells.
    row: int | None
    column: int | None
    attention: float
    one_shot: float | None
    adatp: float


def bias_rows(inspection: Inspection) -> tuple[BiasRow, ...]:
    """The table: frames in order, then positions row by row; empty where no question was averaged."""
    if inspection.bias is None:
        return ()
    grid = Grid.of(inspection.cells)
    width = grid.columns + grid.newlines
    rows = []
    axes: tuple[Axis, Axis] = ("frame", "position")
    for axis in axes:
        attention, one_shot, adatp = (
            None if values is None else relative(values, axis).tolist() for values in _maps(inspection.bias)
        )
        assert attention is not None
        assert adatp is not None
        for index, value in enumerate(attention):
            place = axis == "position"
            column = index % width
            rows.append(
                BiasRow(
                    axis=axis,
                    number=index + 1,
                    row=index // width + 1 if place else None,
                    column=column + 1 if place and column < grid.columns else None,
                    attention=value,
                    one_shot=None if one_shot is None else one_shot[index],
                    adatp=adatp[index],
                )
            )
    return tuple(rows)


def _maps(bias: BiasMaps) -> tuple[FloatArray, FloatArray | None, FloatArray]:
    return bias.attention, bias.one_shot, bias.kept


def bias_picture(inspection: Inspection) -> Picture | None:
    """The figure; None where no question could be averaged."""
    if inspection.bias is None:
        return None
    rows = bias_rows(inspection)
    return Picture(
        name="bias",
        title="Where attention looks, and what pruning keeps",
        description=_description(inspection, inspection.bias),
        table=rows,
        plotly=_plotly(inspection, rows),
    )


def _description(inspection: Inspection, bias: BiasMaps) -> str:
    last = last_frames(inspection.frames)
    even = last / inspection.frames
    peak = float(relative(bias.attention, "position").max())
    where = "the last frame" if last == 1 else f"the last {last} of {inspection.frames} frames"
    text = (
        f"Before pruning, {100 * bias.top_in_last:.1f} % of the tokens with the most attention (the top "
        f"tenth) lie in {where} ({100 * even:.1f} % would be even; {100 * PAPER_TOP_IN_LAST:.1f} % in the "
        f"paper). The position with the most attention gets {peak:.2f} times the mean ({PAPER_PEAK} in the "
        "paper). "
    )
    text += {
        (True, True): "This model has both biases that the paper describes. ",
        (True, False): "This model favours the end of the video, but hardly any single positions. ",
        (False, True): "This model favours single positions, but not the end of the video. ",
        (False, False): "This model has neither bias. ",
    }[bias.top_in_last >= BIASED * even, peak >= BIASED]
    one_shot = (
        "" if bias.one_shot is None else f"; one-shot pruning at the same cost: {_spread(bias.one_shot)}"
    )
    return text + (
        f"Kept tokens, in units of their mean (1 is even; mean of {bias.questions} held-out questions): "
        f"AdaTP {_spread(bias.kept)}{one_shot}."
    )


def _spread(kept: FloatArray) -> str:
    frame, position = relative(kept, "frame"), relative(kept, "position")
    return (
        f"{frame.min():.2f} to {frame.max():.2f} by frame and {position.min():.2f} to "
        f"{position.max():.2f} by position"
    )


# Drawing


class _Series(NamedTuple):
    field: str  # of BiasRow
    label: str
    title: str  # above a map; short, for phones
    colour: str
    dash: str


_SERIES = (
    _Series("attention", "attention in layer 1, unpruned", "attention", BLACK, "dot"),
    _Series("one_shot", "kept by one-shot attention pruning", "one-shot", VERMILION, "dash"),
    _Series("adatp", "kept by AdaTP", "AdaTP", BLUE, "solid"),
)
_FRAME = "frame of the video, first to last"
_UNIT = "times the mean (1 is even)"


def _frames(rows: Sequence[BiasRow]) -> list[BiasRow]:
    return [row for row in rows if row.axis == "frame"]


def _series(rows: Sequence[BiasRow]) -> list[_Series]:
    """The series that have values."""
    return [line for line in _SERIES if getattr(rows[0], line.field) is not None]


def _position_map(rows: Sequence[BiasRow], name: str, cells: int) -> FloatArray:
    """(rows, columns) of the frame, with newline tokens in a last column of their own."""
    grid = Grid.of(cells)
    values = np.array([getattr(row, name) for row in rows if row.axis == "position"], dtype=np.float64)
    return values.reshape(grid.rows, grid.columns + grid.newlines)


def _columns(cells: int) -> list[str]:
    grid = Grid.of(cells)
    return [str(column + 1) for column in range(grid.columns)] + (["↵"] if grid.newlines else [])


def _column_title(cells: int) -> str:
    return "column of the frame" + (" (↵: newline token)" if Grid.of(cells).newlines else "")


def _highest(rows: Sequence[BiasRow], axis: Axis) -> float:
    series = _series(rows)
    return max(float(getattr(row, line.field)) for row in rows if row.axis == axis for line in series)


def _plotly(inspection: Inspection, rows: Sequence[BiasRow]) -> PlotlyFigure:
    from plotly.subplots import make_subplots

    series = _series(rows)
    figure = make_subplots(
        rows=2,
        cols=len(series),
        specs=[[{"colspan": len(series)}, *[None] * (len(series) - 1)], [{}] * len(series)],
        row_heights=[0.5, 0.5],
        vertical_spacing=0.24,
        horizontal_spacing=0.06,
        subplot_titles=["by frame", *[line.title for line in series]],
    )
    frames = _frames(rows)
    for name, label, _, colour, dash in series:
        figure.add_scatter(
            x=[row.number for row in frames],
            y=[getattr(row, name) for row in frames],
            mode="lines+markers",
            line={"color": colour, "width": 2.2, "dash": dash},
            marker={"size": 6},
            name=label,
            hovertemplate="frame %{x}: %{y:.2f} times the mean<extra>" + label + "</extra>",
            row=1,
            col=1,
        )
    figure.add_hline(y=1, line={"color": GREY, "width": 1}, row=1, col=1)
    small = inspection.cells <= 40
    for index, (name, label, *_) in enumerate(series):
        values = _position_map(rows, name, inspection.cells)
        figure.add_heatmap(
            z=values,
            x=_columns(inspection.cells),
            y=[str(number + 1) for number in range(len(values))],
            coloraxis="coloraxis",
            texttemplate="%{z:.1f}" if small else None,
            hovertemplate="row %{y}, column %{x}: %{z:.2f} times the mean<extra>" + label + "</extra>",
            row=2,
            col=index + 1,
        )
        figure.update_yaxes(autorange="reversed", row=2, col=index + 1, type="category", showgrid=False)
        figure.update_xaxes(row=2, col=index + 1, type="category", showgrid=False, nticks=6, tickangle=0)
    figure.update_xaxes(title_text=_FRAME, row=1, col=1, zeroline=False)
    figure.update_yaxes(title_text=_UNIT, row=1, col=1, rangemode="tozero", zeroline=False)
    figure.update_yaxes(title_text="row of the frame", row=2, col=1)
    # Below the middle map only: a phone has no room for three titles.
    figure.update_xaxes(title_text=_column_title(inspection.cells), row=2, col=len(series) // 2 + 1)
    figure.update_annotations(font={"size": 14})
    figure.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 13, "color": BLACK},
        legend={"orientation": "h", "x": 0, "y": 1.06, "yanchor": "bottom"},
        coloraxis={
            "colorscale": "Blues",
            "cmin": 0,
            "cmax": _highest(rows, "position"),
            "colorbar": {"title": {"text": "times the<br>mean"}, "len": 0.45, "y": 0.19},
        },
        margin={"l": 70, "r": 20, "t": 90, "b": 60},
        height=680,
    )
    return figure
