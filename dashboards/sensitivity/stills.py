"""A sensitivity study drawn by matplotlib, for previews: the same panels as on the pages."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from dashboards.picture.picture import BLACK, BLUE, GREEN, GREY, SKY, VERMILION
from dashboards.sensitivity.maps import BUDGET_LINE, MAP_COLORS, color_scale, drawn_map
from dashboards.sensitivity.tables import (
    COLUMNS,
    INDEX_KINDS,
    CurveRow,
    IndexRow,
    accuracy_label,
    curve_rows,
    curve_title,
    index_range,
    index_values,
    input_label,
    knob_label,
    panel_title,
    panels_of,
    ticks_of,
    vertices,
)
from tuner.sensitivity.maps import place_of
from tuner.sensitivity.results import Curve, Sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as MatplotlibFigure


# A stroke like "/".
_STROKE: tuple[int, Literal[2], int] = (2, 2, -45)


def indices_still(found: Sensitivity, rows: Sequence[IndexRow]) -> MatplotlibFigure:
    """As `indices_page`."""
    panels = panels_of(rows)
    wide, deep = min(COLUMNS, len(panels)), -(-len(panels) // COLUMNS)
    figure = _figure(10, 1.2 + deep * (0.9 + 0.5 * max(len(one) for one in panels)))
    grid = figure.subplots(deep, wide, squeeze=False).ravel()
    for place, axes in enumerate(grid):
        if place >= len(panels):
            axes.set_axis_off()
            continue
        panel = panels[place]
        heights = list(range(len(panel) - 1, -1, -1))
        for name, label, color, _, marker, shift in INDEX_KINDS:
            at, low, high = index_values(panel, name)
            axes.errorbar(
                at,
                [one + shift for one in heights],
                xerr=None if name == "ped_anova" else [low, high],
                fmt=marker,
                color=color,
                markerfacecolor="white" if name == "ped_anova" else color,
                capsize=3,
                label=label if place == 0 else None,
            )
        names = [input_label(one.input or "") if place % wide == 0 else "" for one in panel]
        axes.set_yticks(heights, labels=names)
        axes.set_xlim(*index_range(rows))
        axes.set_xlabel("share of the variance explained")
        axes.xaxis.set_major_formatter(_percent())
        _clean(axes, panel_title(panel[0], found))
    figure.legend(loc="outside lower center", ncols=1, frameon=False)
    return figure


def curves_still(found: Sensitivity) -> MatplotlibFigure:
    """As `curves_page`."""
    wide, deep = min(COLUMNS, len(found.curves)), -(-len(found.curves) // COLUMNS)
    figure = _figure(6 * wide, 0.9 + 3.4 * deep)
    grid = figure.subplots(
        2 * deep, wide, squeeze=False, gridspec_kw={"height_ratios": [3, 1] * deep, "hspace": 0.06}
    )
    for place in range(wide * deep):
        row, column = divmod(place, wide)
        main, thin = grid[2 * row][column], grid[2 * row + 1][column]
        if place >= len(found.curves):
            main.set_axis_off()
            thin.set_axis_off()
            continue
        curve, first = found.curves[place], place == 0
        rows = curve_rows([curve])
        _still_curve(main, rows, f"change of {accuracy_label(found)} (higher is better)" if first else None)
        unsafe = [one for one in rows if not one.safe]
        main.plot(
            [place_of(one.knob, one.value) for one in unsafe],
            [100 * one.difference for one in unsafe],
            "x",
            color=VERMILION,
            markersize=4,
            label="not shown to be safe" if first else None,
        )
        main.axhline(
            -100 * found.margin,
            color=VERMILION,
            linestyle="--",
            linewidth=1.2,
            label=f"margin: {100 * found.margin:.1f} points lost" if first else None,
        )
        main.plot(
            [place_of(curve.knob, curve.chosen)],
            [0],
            "D",
            color="white",
            markeredgecolor=BLACK,
            label="chosen" if first else None,
        )
        if curve.safe is not None:
            main.axvspan(
                place_of(curve.knob, curve.safe.low),
                place_of(curve.knob, curve.safe.high),
                color=GREEN,
                alpha=0.13,
                linewidth=0,
                label="safe range" if first else None,
            )
        line = vertices(rows, "flops_ratio")
        thin.plot(line["x"], line["y"], color=BLACK, linewidth=1.4)
        thin.axhline(
            100 * found.budget,
            color=VERMILION,
            linestyle=":",
            linewidth=1.4,
            label=f"budget: {100 * found.budget:g} % of FLOPs" if first else None,
        )
        thin.sharex(main)
        main.tick_params(labelbottom=False)
        main.set_ylabel("points")
        thin.set_ylabel("FLOPs")
        thin.yaxis.set_major_formatter(_percent(100))
        _knob_axis(thin, curve.knob, rows)
        _clean(main, re.sub("<[^>]*>", "", curve_title(curve)))
        _clean(thin, "")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _still_curve(axes: Axes, rows: Sequence[CurveRow], name: str | None) -> None:
    low, high, line = (vertices(rows, one) for one in ("difference_low", "difference_high", "difference"))
    axes.fill_between(line["x"], low["y"], high["y"], color=SKY, alpha=0.3, linewidth=0)
    axes.plot(
        line["x"],
        line["y"],
        color=BLUE,
        linewidth=1.8,
        marker=None if rows[0].exact else "o",
        markersize=4,
        label=name,
    )


def maps_still(found: Sensitivity) -> MatplotlibFigure:
    """As `maps_page`."""
    from matplotlib.lines import Line2D

    figure = _figure(max(5.0, 4.6 * len(found.maps)), 4.9)
    scale = color_scale(found)
    mesh, legend = None, {}
    for axes, one in zip(figure.subplots(1, len(found.maps), squeeze=False)[0], found.maps, strict=True):
        drawn = drawn_map(one, found.budget, scale)
        if scale is not None:
            mesh = axes.pcolormesh(
                drawn.x,
                drawn.y,
                [[math.nan if value is None else value for value in row] for row in drawn.accuracy],
                shading="nearest",
                cmap=MAP_COLORS[1],
                vmin=scale.low,
                vmax=scale.high,
                rasterized=True,
            )
        place = (drawn.x, drawn.y, drawn.flops)
        for level, color in drawn.lines:
            line = axes.contour(*place, levels=[level], colors=color, linewidths=0.9, linestyles=":")
            axes.clabel(line, fmt="%.0f", fontsize=8)
            legend["other FLOPs, %"] = Line2D([], [], color=GREY, linewidth=1.2, linestyle=":")
        if drawn.over:
            at = [mark.x for mark in drawn.over], [mark.y for mark in drawn.over]
            axes.scatter(*at, marker=_STROKE, s=30, linewidths=0.9, color=[mark.color for mark in drawn.over])
            legend["over the budget"] = Line2D([], [], color=BLACK, marker=_STROKE, linestyle="none")
        if drawn.budget_at is not None:
            for color, width in BUDGET_LINE:
                axes.contour(*place, levels=[100 * found.budget], colors=color, linewidths=width)
            axes.annotate(
                f"budget {100 * found.budget:g} %",
                drawn.budget_at,
                ha="center",
                va="center",
                fontsize=8,
                fontweight="bold",
                color=BLACK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
            )
            legend[f"budget: {100 * found.budget:g} % of FLOPs"] = Line2D([], [], color=BLACK, linewidth=2.5)
        (legend["the reference"],) = axes.plot(
            *([value] for value in drawn.reference),
            "D",
            color=VERMILION,
            markeredgecolor="white",
            markersize=9,
            clip_on=False,
            zorder=5,
        )
        axes.set_xlim(*_map_axis(axes.xaxis, one.first, one.first_values))
        axes.set_ylim(*_map_axis(axes.yaxis, one.second, one.second_values))
    if mesh is not None:
        figure.colorbar(
            mesh,
            ax=figure.axes,
            label=f"predicted {accuracy_label(found)} (higher is better)",
            format=_percent(100),
        )
    figure.legend(
        list(legend.values())[::-1], list(legend)[::-1], loc="outside lower center", ncols=4, frameon=False
    )
    return figure


def _map_axis(axis: Axis, knob: str, values: Sequence[float]) -> tuple[float, float]:
    """Label and ticks; returns its ends, which are the cells' middles."""
    axis.set_label_text(knob_label(knob))
    ticks = ticks_of(knob, values[0], values[-1], most=5)
    if ticks is not None:
        axis.set_ticks(ticks[0], labels=ticks[1])
    return place_of(knob, values[0]), place_of(knob, values[-1])


def tags_still(
    found: Sensitivity, curves: Sequence[Curve], kinds: Sequence[tuple[str, int]]
) -> MatplotlibFigure:
    """As `tags_page`."""
    knobs = list(dict.fromkeys(one.knob for one in curves))
    overall = {one.knob: one for one in found.curves}
    figure = _figure(2.4 * len(knobs), 0.8 + 1.5 * len(kinds))
    grid = figure.subplots(len(kinds), len(knobs), squeeze=False, sharex="col", sharey="col")
    for down, (kind, questions) in enumerate(kinds):
        for along, knob in enumerate(knobs):
            axes = grid[down][along]
            _clean(axes, f"{kind}, {questions} questions" if along == 0 else "")
            curve = next((one for one in curves if one.knob == knob and one.tag and one.tag[1] == kind), None)
            if curve is None:
                continue
            legend = down == along == 0
            if knob in overall:
                line = vertices(curve_rows([overall[knob]]), "difference")
                axes.plot(
                    line["x"], line["y"], color=GREY, linewidth=1, label="all questions" if legend else None
                )
            _still_curve(axes, curve_rows([curve]), "questions of this kind (95 % band)" if legend else None)
            axes.axvline(
                place_of(knob, curve.chosen),
                color=BLACK,
                linewidth=0.8,
                linestyle=":",
                label="chosen" if legend else None,
            )
            if down == len(kinds) - 1:
                _knob_axis(axes, knob, curve_rows([curve]), most=4)
            if along == 0:
                axes.set_ylabel("points")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _figure(width: float, height: float) -> MatplotlibFigure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _percent(of: float = 1.0) -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value * 100 / of:g} %")


def _knob_axis(axes: Axes, knob: str, rows: Sequence[CurveRow], most: int = 8) -> None:
    axes.set_xlabel(knob_label(knob) if most > 4 else knob)
    ticks = ticks_of(knob, min(one.value for one in rows), max(one.until for one in rows), most)
    if ticks is not None:
        axes.set_xticks(ticks[0], labels=ticks[1])


def _clean(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
