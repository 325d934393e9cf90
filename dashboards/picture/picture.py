"""A figure: a typed table, a drawing of it, and a description for readers who cannot see the drawing.

`write` leaves <name>.html (opens from disk, without a network), <name>.csv (the table) and, for the Pareto
front, <name>.png. `tuner report` puts the same pictures into one page.

plotly's code is 5 MB: a page either holds it, or shares one copy in its folder.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from dashboards.picture.templating import css_safe, drawing_of, make_environment, plotly_code

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure as MatplotlibFigure
    from plotly.graph_objects import Figure as PlotlyFigure

# Where a page has plotly's code: in itself, or in a file that pages share.
Library = Literal["held", "shared"]
SHARED_LIBRARY = "plotly.min.js"

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"

# The palette of Okabe and Ito, which is distinguishable with any kind of colour vision.
BLACK, GREY, SKY, BLUE, VERMILION, GREEN, ORANGE, PURPLE = (
    "#222222",
    "#8a8f98",
    "#56b4e9",
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#e69f00",
    "#cc79a7",
)

# Behind a label, so that lines do not cross its letters; plots.js replaces it in dark mode.
LABEL_GROUND = "rgba(255, 255, 255, 0.8)"


@dataclass(frozen=True, eq=False)
class Picture:
    """One figure, ready to be written to files or put into the report."""

    # Stem of its files and its id in a page: lower case, words joined by "-".
    name: str
    title: str
    # What it shows, with the numbers, in a few sentences: the caption and the text alternative.
    description: str
    # The table behind it: instances of one frozen dataclass of plain values.
    table: tuple[Any, ...]
    # An interactive drawing without a title: `title` stands above it.
    plotly: PlotlyFigure | None = None
    # Or an HTML fragment (tables, cards, inline SVG, images as data: URIs) without scripts;
    # its ids begin with `name`.
    body: str | None = None
    # Styles of `body`; every selector begins with `.<name>`.
    css: str = ""
    # An image of it, for the Pareto front alone.
    still: MatplotlibFigure | None = None


def to_csv(rows: Sequence[Any]) -> str:
    """Instances of one dataclass as CSV with a header; None is an empty field."""
    text = io.StringIO()
    if rows:
        names = [field.name for field in fields(rows[0])]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in rows)
    return text.getvalue()


@cache
def _environment() -> Environment:
    return make_environment()


def to_html(picture: Picture, library: Library = "held") -> str:
    """A page with this picture alone, for light and dark mode; equal pictures give equal text."""
    drawing = None if picture.plotly is None else drawing_of(picture.plotly)
    return (
        _environment()
        .get_template("picture.html.j2")
        .render(
            picture=picture,
            drawing=drawing,
            body=None if picture.body is None else Markup(picture.body),
            css=css_safe(picture.css),
            font=FONT,
            plotly=plotly_code() if drawing is not None and library == "held" else None,
            library=SHARED_LIBRARY,
        )
    )


def write(picture: Picture, folder: Path, library: Library = "held") -> tuple[Path, ...]:
    """Writes the files and returns those that need no other file, the page first.

    With a shared library the page of a drawing is not among them: it needs `write_library` for its folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{picture.name}.html"
    page.write_text(to_html(picture, library), encoding="utf-8")
    files = [page] if picture.plotly is None or library == "held" else []
    if picture.still is not None:
        files.append(folder / f"{picture.name}.png")
        picture.still.savefig(files[-1], metadata={"Software": None})
    files.append(folder / f"{picture.name}.csv")
    files[-1].write_text(to_csv(picture.table), encoding="utf-8")
    return tuple(files)


def write_library(folder: Path) -> None:
    """Writes plotly's code for the pages of this folder that share it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SHARED_LIBRARY).write_text(plotly_code(), encoding="utf-8")
