"""The Pareto front: accuracy against compute for every trial, and what the chosen one does on unseen videos.

`pareto_points` computes the table, without drawing; the rest draws it. Colours are Okabe and Ito's, which
people with any kind of colour vision tell apart, and every series has a shape of its own.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.methods import KNOBS
from tuner.results import Configuration, HeldOut, Measured, Outcome, Part, RunSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure
    from plotly.graph_objects import Figure as PlotlyFigure

Kind = Literal["trial", "defaults", "best", "baseline", "refused"]

_BLACK, _GREY, _SKY, _BLUE, _VERMILION, _GREEN = (
    "#222222",
    "#8a8f98",
    "#56b4e9",
    "#0072b2",
    "#d55e00",
    "#009e73",
)
_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class ParetoPoint:
    """One row of the table: a configuration (or the unpruned model) measured on one part of the study."""

    kind: Kind
    part: Part
    # None for the baseline, for proposals that were never run, and for held-out rows of no trial.
    trial: int | None
    # None for a proposal that was refused before it cost any model time.
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    flops_ratio: float
    flops_ratio_end_to_end: float | None
    regressions: int | None
    within_budget: bool
    # Among the tune part's trials none is both cheaper and better.
    on_front: bool
    tau_s: float | None = None
    tau_t: float | None = None
    alpha_boost: float | None = None
    gamma_cap: float | None = None
    p: float | None = None


def pareto_points(summary: RunSummary) -> tuple[ParetoPoint, ...]:
    """The table: baselines, then trials by number, then held-out rows, then the closest refused proposal."""
    front = front_numbers(
        (one.number, one.outcome.accuracy, one.outcome.flops_ratio)
        for one in (*summary.trials, *summary.above)
    )
    best = None if summary.best is None else summary.best.number
    defaults = None if summary.defaults is None else summary.defaults.number
    rows = [_baseline(part, measured) for part, measured in sorted(summary.baseline.items(), reverse=True)]
    for trial in sorted((*summary.trials, *summary.above), key=lambda one: one.number):
        kind: Kind = "best" if trial.number == best else "defaults" if trial.number == defaults else "trial"
        on_front = trial.number in front
        rows.append(
            _point(
                kind, trial.number, trial.configuration, trial.outcome, None, trial.within_budget, on_front
            )
        )
    for kind, number, held_out in (
        ("defaults", defaults, summary.defaults_held_out),
        ("best", best, summary.best_held_out),
    ):
        if held_out is not None:
            rows.append(_held_out(kind, number, held_out, summary.budget))
    if summary.closest is not None:
        closest = summary.closest
        rows.append(
            ParetoPoint(
                kind="refused",
                part="tune",
                trial=None,
                accuracy=None,
                accuracy_low=None,
                accuracy_high=None,
                flops_ratio=closest.flops_ratio,
                flops_ratio_end_to_end=None,
                regressions=None,
                within_budget=False,
                on_front=False,
                **_knobs(closest.configuration),
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
    for number, accuracy, cost in sorted(points, key=lambda one: (one[2], -one[1])):
        if accuracy > best or (accuracy == best and cost == cost_of_best):
            front.add(number)
            best, cost_of_best = accuracy, cost
    return frozenset(front)


@dataclass(frozen=True)
class ParetoFiles:
    """Where the figure and its table were written."""

    html: Path
    png: Path
    csv: Path

    def __iter__(self) -> Any:
        return iter((self.html, self.png, self.csv))


def write_pareto(summary: RunSummary, folder: Path) -> ParetoFiles:
    """Writes pareto.html (self-contained), pareto.png and pareto.csv; the same each time it is called."""
    folder.mkdir(parents=True, exist_ok=True)
    points = pareto_points(summary)
    files = ParetoFiles(folder / "pareto.html", folder / "pareto.png", folder / "pareto.csv")
    files.html.write_text(pareto_html(points, summary), encoding="utf-8")
    draw_png(points, summary).savefig(files.png, metadata={"Software": None})
    files.csv.write_text(to_csv(points), encoding="utf-8")
    return files


def to_csv(points: Sequence[ParetoPoint]) -> str:
    """The table as CSV: a header, then a row per point; nothing known is an empty field."""
    text = io.StringIO()
    names = [one.name for one in fields(ParetoPoint)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(point, name) for name in names] for point in points)
    return text.getvalue()


# The page


def draw_html(points: Sequence[ParetoPoint], summary: RunSummary) -> PlotlyFigure:
    """The interactive figure; hovering shows a configuration's knobs."""
    import plotly.graph_objects as go

    trials = [one for one in points if one.part == "tune" and one.trial is not None]
    figure = go.Figure()
    front = _front(trials)
    figure.add_trace(
        go.Scatter(
            x=[100 * one.flops_ratio for one in front],
            y=[100 * (one.accuracy or 0) for one in front],
            mode="lines",
            line={"color": _BLUE, "width": 2, "shape": "hv"},
            name="Pareto front",
            hoverinfo="skip",
        )
    )
    for name, chosen, marker in _series(trials):
        figure.add_trace(
            go.Scatter(
                x=[100 * one.flops_ratio for one in chosen],
                y=[100 * (one.accuracy or 0) for one in chosen],
                mode="markers",
                marker={
                    "color": marker.fill,
                    "size": marker.size,
                    "symbol": marker.plotly,
                    "line": {"color": marker.edge, "width": 1.4},
                },
                name=name,
                text=[_hover(one) for one in chosen],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    for one, shift in _side_by_side(points, summary.budget):
        marker, value = _HELD_OUT[one.kind], 100 * (one.accuracy or 0)
        low, high = one.accuracy_low, one.accuracy_high
        interval = low is not None and high is not None
        figure.add_trace(
            go.Scatter(
                x=[100 * one.flops_ratio + shift],
                y=[value],
                mode="markers",
                marker={
                    "color": marker.fill,
                    "size": marker.size,
                    "symbol": marker.plotly,
                    "line": {"color": marker.edge, "width": 1.4},
                },
                error_y={
                    "visible": interval,
                    "symmetric": False,
                    "array": [100 * high - value if high is not None else 0],
                    "arrayminus": [value - 100 * low if low is not None else 0],
                    "color": marker.edge,
                    "thickness": 1.6,
                    "width": 5,
                },
                name=marker.label,
                text=[_hover(one)],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    for one in points:
        if one.kind == "baseline" and one.accuracy is not None:
            held_out = one.part == "held_out"
            figure.add_hline(
                y=100 * one.accuracy,
                line={"color": _BLACK, "width": 1.2, "dash": "dot" if held_out else "solid"},
                annotation_text=_baseline_label(one),
                annotation_position="top left" if one is _highest(points) else "bottom left",
                annotation_font={"size": 12, "color": _BLACK},
            )
    low_x, high_x, low_y, high_y = _limits(points, summary.budget)
    figure.add_vrect(x0=100 * summary.budget, x1=high_x, fillcolor=_GREY, opacity=0.10, line_width=0)
    figure.add_vline(
        x=100 * summary.budget,
        line={"color": _GREY, "width": 1.6, "dash": "dash"},
        annotation_text=f"budget {100 * summary.budget:g} %",
        annotation_position="bottom right",
        annotation_font={"size": 12, "color": "#5b6068"},
    )
    figure.update_layout(
        title={"text": _title(summary), "x": 0.01, "xanchor": "left", "font": {"size": 19}},
        template="plotly_white",
        font={"family": _FONT, "size": 14, "color": _BLACK},
        xaxis={"title": {"text": _X_LABEL}, "range": [low_x, high_x], "ticksuffix": " %", "zeroline": False},
        yaxis={
            "title": {"text": _y_label(summary)},
            "range": [low_y, high_y],
            "ticksuffix": " %",
            "zeroline": False,
        },
        legend={"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"},
        hoverlabel={"align": "left", "font": {"family": _FONT, "size": 13}},
        margin={"l": 80, "r": 30, "t": 64, "b": 120},
    )
    return figure


def pareto_html(points: Sequence[ParetoPoint], summary: RunSummary) -> str:
    """A whole page that needs no network; the same points give the same text."""
    body = draw_html(points, summary).to_html(
        full_html=False,
        include_plotlyjs=True,
        div_id="pareto",  # random otherwise
        default_height="min(720px, 92vh)",
        config={"displaylogo": False, "responsive": True, "toImageButtonOptions": {"filename": "pareto"}},
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(_title(summary))}</title>\n"
        f"<style>body {{ margin: 1rem; font-family: {_FONT}; color: {_BLACK}; background: #fff; }} "
        "p { max-width: 75ch; line-height: 1.45; }</style>\n</head>\n<body>\n"
        f"{body}\n<p>{_escape(_caption(points, summary))}</p>\n</body>\n</html>\n"
    )


# The picture


def draw_png(points: Sequence[ParetoPoint], summary: RunSummary) -> MatplotlibFigure:
    """The same figure as a still, 1600 x 1000 pixels when saved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(10, 6.25), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    trials = [one for one in points if one.part == "tune" and one.trial is not None]
    low_x, high_x, low_y, high_y = _limits(points, summary.budget)
    axes.set_xlim(low_x, high_x)
    axes.set_ylim(low_y, high_y)
    axes.axvspan(100 * summary.budget, high_x, color=_GREY, alpha=0.10, linewidth=0)
    axes.axvline(100 * summary.budget, color=_GREY, linewidth=1.4, linestyle="--")
    axes.annotate(
        f"budget {100 * summary.budget:g} %",
        (100 * summary.budget, low_y),
        xytext=(6, 8),
        textcoords="offset points",
        color="#5b6068",
    )
    for one in points:
        if one.kind == "baseline" and one.accuracy is not None:
            held_out = one.part == "held_out"
            axes.axhline(100 * one.accuracy, color=_BLACK, linewidth=1.1, linestyle=":" if held_out else "-")
            axes.annotate(
                _baseline_label(one),
                (low_x, 100 * one.accuracy),
                xytext=(8, 5 if one is _highest(points) else -14),
                textcoords="offset points",
                color=_BLACK,
                fontsize=9.5,
            )
    front = _front(trials)
    axes.step(
        [100 * one.flops_ratio for one in front],
        [100 * (one.accuracy or 0) for one in front],
        where="post",
        color=_BLUE,
        linewidth=1.8,
        label="Pareto front",
    )
    for name, chosen, marker in _series(trials):
        axes.scatter(
            [100 * one.flops_ratio for one in chosen],
            [100 * (one.accuracy or 0) for one in chosen],
            s=marker.size**2 * 0.55,
            marker=marker.matplotlib,
            color=marker.fill,
            edgecolors=marker.edge,
            linewidths=1.0,
            label=name,
            zorder=3,
        )
    for one, shift in _side_by_side(points, summary.budget):
        marker, value = _HELD_OUT[one.kind], 100 * (one.accuracy or 0)
        errors = None
        if one.accuracy_low is not None and one.accuracy_high is not None:
            errors = [[value - 100 * one.accuracy_low], [100 * one.accuracy_high - value]]
        axes.errorbar(
            [100 * one.flops_ratio + shift],
            [value],
            yerr=errors,
            marker=marker.matplotlib,
            markersize=marker.size * 0.8,
            color=marker.fill,
            markeredgecolor=marker.edge,
            ecolor=marker.edge,
            elinewidth=1.4,
            capsize=4,
            linestyle="none",
            label=marker.label,
            zorder=4,
        )
    axes.set_title(_title(summary), loc="left", fontsize=13)
    axes.set_xlabel(_X_LABEL)
    axes.set_ylabel(_y_label(summary))
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.grid(color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


# What both drawings share

_X_LABEL = "LLM prefill FLOPs, % of unpruned (lower is better)"


def _y_label(summary: RunSummary) -> str:
    if summary.setting is not None and not summary.setting.labelled:
        return "agreement with the unpruned model, % of questions (higher is better)"
    return "accuracy, % of questions right (higher is better)"


@dataclass(frozen=True)
class _Marker:
    label: str
    fill: str
    edge: str
    size: float
    plotly: str
    matplotlib: str


_TRIAL = _Marker("trial, tune videos", _SKY, _BLUE, 9, "circle", "o")
_OVER = _Marker("trial over the budget, tune videos", "#d7dade", _GREY, 8, "circle", "o")
_DEFAULTS = _Marker("AdaTP's defaults, tune videos", "#ffffff", _GREEN, 12, "square", "s")
_BEST = _Marker("best within the budget, tune videos", "#ffffff", _VERMILION, 13, "diamond", "D")
_HELD_OUT = {
    "defaults": _Marker(
        "AdaTP's defaults, held-out videos (95 % interval)", _GREEN, _GREEN, 11, "square", "s"
    ),
    "best": _Marker(
        "best within the budget, held-out videos (95 % interval)", _VERMILION, _VERMILION, 12, "diamond", "D"
    ),
}


def _series(trials: Sequence[ParetoPoint]) -> list[tuple[str, list[ParetoPoint], _Marker]]:
    series = [
        (_TRIAL, [one for one in trials if one.kind == "trial" and one.within_budget]),
        (_OVER, [one for one in trials if one.kind == "trial" and not one.within_budget]),
        (_DEFAULTS, [one for one in trials if one.kind == "defaults"]),
        (_BEST, [one for one in trials if one.kind == "best"]),
    ]
    return [(marker.label, chosen, marker) for marker, chosen in series if chosen]


def _front(trials: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    return sorted((one for one in trials if one.on_front), key=lambda one: one.flops_ratio)


def _held_out_points(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    return [one for one in points if one.part == "held_out" and one.kind in _HELD_OUT]


def _side_by_side(points: Sequence[ParetoPoint], budget: float) -> list[tuple[ParetoPoint, float]]:
    """Held-out points and how far to the left each is drawn, in axis units: no interval hides another.

    Configurations solved for the same budget differ by less than a line's width.
    """
    low, high, _, _ = _limits(points, budget)
    apart = 0.008 * (high - low)
    placed: list[tuple[ParetoPoint, float]] = []
    for one in sorted(_held_out_points(points), key=lambda one: one.kind):  # the best one stays in its place
        at = 100 * one.flops_ratio
        while any(abs(at - (100 * other.flops_ratio + shift)) < 0.99 * apart for other, shift in placed):
            at -= apart
        placed.append((one, at - 100 * one.flops_ratio))
    return placed


def _limits(points: Sequence[ParetoPoint], budget: float) -> tuple[float, float, float, float]:
    """Axis ranges in per cent: all configurations and baselines, and some room around them."""
    costs = [100 * one.flops_ratio for one in points if one.kind != "baseline"] + [100 * budget]
    heights = [
        100 * value
        for one in points
        for value in (one.accuracy, one.accuracy_low if one.kind != "baseline" else None)
        if value is not None
    ]
    heights += [100 * one.accuracy_high for one in _held_out_points(points) if one.accuracy_high is not None]
    heights = heights or [0.0, 100.0]
    room_x = max(1.0, 0.08 * (max(costs) - min(costs)))
    room_y = max(0.8, 0.08 * (max(heights) - min(heights)))
    return (
        max(0.0, min(costs) - room_x),
        max(costs) + room_x,
        max(0.0, min(heights) - room_y),
        min(101.5, max(heights) + 1.4 * room_y),
    )


def _highest(points: Sequence[ParetoPoint]) -> ParetoPoint | None:
    """The higher baseline: its label goes above its line, the other's below, so that they never meet."""
    lines = [one for one in points if one.kind == "baseline" and one.accuracy is not None]
    return max(lines, key=lambda one: one.accuracy or 0.0, default=None)


def _baseline_label(point: ParetoPoint) -> str:
    part = "held-out" if point.part == "held_out" else "tune"
    return f"unpruned, {part} videos: {100 * (point.accuracy or 0):.1f} %"


def _title(summary: RunSummary) -> str:
    return f"{summary.study}: accuracy against compute, {len(summary.trials)} trials"


def _caption(points: Sequence[ParetoPoint], summary: RunSummary) -> str:
    text = (
        "Each small point is a trial on the videos that the search uses. The filled large points with "
        "intervals are measured on held-out videos, which had no part in choosing; where they would hide one "
        "another they are drawn side by side. The unpruned model costs 100 %."
    )
    for one in _held_out_points(points):
        if one.kind == "best" and one.accuracy is not None:
            text += (
                f" Best within the budget of {100 * summary.budget:g} %: trial {one.trial}, "
                f"{100 * one.accuracy:.1f} % on held-out videos at {100 * one.flops_ratio:.1f} % of the "
                f"prefill FLOPs, {one.regressions} regressions."
            )
    return text


def _hover(point: ParetoPoint) -> str:
    part = "held-out videos" if point.part == "held_out" else "tune videos"
    name = {"best": "best within the budget", "defaults": "AdaTP's defaults at the budget"}.get(
        point.kind, ""
    )
    lines = [f"<b>trial {point.trial}</b>{', ' + name if name else ''}, {part}"]
    accuracy = f"accuracy {100 * (point.accuracy or 0):.1f} %"
    if point.accuracy_low is not None and point.accuracy_high is not None:
        accuracy += f" ({100 * point.accuracy_low:.1f} to {100 * point.accuracy_high:.1f})"
    lines.append(accuracy)
    lines.append(f"prefill FLOPs {100 * point.flops_ratio:.1f} %")
    if point.flops_ratio_end_to_end is not None:
        lines.append(f"end to end {100 * point.flops_ratio_end_to_end:.1f} %")
    if point.regressions is not None:
        lines.append(f"{point.regressions} regressions")
    for name in KNOBS:
        value = getattr(point, name)
        if value is not None:
            lines.append(f"{name} {value:.4g}")
    return "<br>".join(lines)


def _point(
    kind: Kind,
    number: int | None,
    configuration: Configuration,
    outcome: Outcome,
    accuracy: Measured | None,
    within_budget: bool,
    on_front: bool,
) -> ParetoPoint:
    interval = None if accuracy is None else accuracy.interval
    return ParetoPoint(
        kind=kind,
        part=outcome.part,
        trial=number,
        accuracy=outcome.accuracy,
        accuracy_low=None if interval is None else interval.low,
        accuracy_high=None if interval is None else interval.high,
        flops_ratio=outcome.flops_ratio,
        flops_ratio_end_to_end=outcome.flops_ratio_end_to_end,
        regressions=outcome.regressions,
        within_budget=within_budget,
        on_front=on_front,
        **_knobs(configuration),
    )


def _held_out(kind: Kind, number: int | None, held_out: HeldOut, budget: float) -> ParetoPoint:
    fits = held_out.outcome.flops_ratio <= budget
    return _point(kind, number, held_out.configuration, held_out.outcome, held_out.accuracy, fits, False)


def _baseline(part: Part, accuracy: Measured) -> ParetoPoint:
    return ParetoPoint(
        kind="baseline",
        part=part,
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
    return {name: float(parameters[name]) for name in KNOBS if name in parameters}


def _escape(text: str) -> str:
    from html import escape

    return escape(text)
