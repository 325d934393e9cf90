"""Panels and axes that the figures of a sensitivity study share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dashboards.picture.picture import BLACK, FONT
from dashboards.sensitivity.wording import number
from tuner.sensitivity.maps import place_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure

COLUMNS = 2

_SIMILARITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)


def ticks_of(knob: str, low: float, high: float, most: int = 8) -> tuple[list[float], list[str]] | None:
    """Tick positions and labels from `low` to `high`; None: plotly's own ticks."""
    if knob != "tau_s":
        return None
    within = [similarity for similarity in _SIMILARITIES if low <= similarity <= high]
    within = within[:: -(-len(within) // most)] if within else [low]
    return [place_of(knob, value) for value in within], [number(value) for value in within]


def knob_label(knob: str) -> str:
    """A knob's axis title."""
    return "tau_s (logarithmic in 1 - tau_s)" if knob == "tau_s" else knob


def axis_number(place: int) -> str:
    """Plotly's suffix for the axis of this panel: the first axis has none."""
    return "" if place == 0 else str(place + 1)


def cell(place: int, cells: int, gap: float) -> list[float]:
    """Start and end on [0, 1] of one of `cells` equal cells; `gap` is a share of a cell."""
    size = 1 / (cells + gap * (cells - 1))
    return [place * size * (1 + gap), min(1.0, place * size * (1 + gap) + size)]


def panel_axis(anchor: str, domain: Sequence[float], title: str | None = None, **more: Any) -> dict[str, Any]:
    """An axis of one panel, crossing the axis `anchor`."""
    return {
        "anchor": anchor,
        "domain": list(domain),
        "title": {"text": title, "font": {"size": 12}, "standoff": 6} if title else None,
        "zeroline": False,
        "gridcolor": "#e4e6ea",
        "tickfont": {"size": 11},
        **more,
    }


def panel_heading(text: str, x: float, y: float) -> dict[str, Any]:
    """An annotation above a panel whose upper left corner is at (x, y) on the paper."""
    return {
        "text": text,
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 13},
    }


def finish(figure: PlotlyFigure, height: int, left: int) -> None:
    """Font, legend and margins that all figures share; pixels."""
    figure.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 13, "color": BLACK},
        height=height,
        legend={"orientation": "h", "x": 0, "y": -70 / (height - 110), "yanchor": "top"},
        hoverlabel={"align": "left", "font": {"family": FONT, "size": 13}},
        margin={"l": left, "r": 20, "t": 40, "b": 110},
    )
