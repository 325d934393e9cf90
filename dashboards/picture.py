"""What a figure is here: first a typed table, then drawings of it, and a text for those who see neither.

`write` leaves <name>.html (opens from disk, without a network), <name>.png (a still, where there is one)
and <name>.csv (the table). `tuner report` puts the same pictures into one page.

plotly's code is 5 MB: pages either hold it, or share one copy that lies beside them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure
    from plotly.graph_objects import Figure as PlotlyFigure

# Where a drawing's page has plotly's code from: in itself, or shared with others.
Library = Literal["held", "shared"]
SHARED_LIBRARY = "plotly.min.js"

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"

# Okabe and Ito's, which people with any kind of colour vision tell apart.
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


@dataclass(frozen=True, eq=False)
class Picture:
    """One figure, ready to be written or put into the report."""

    # Stem of its files, and its id in a page: lower case, words joined by "-".
    name: str
    title: str
    # One to three sentences: what is to be seen, with the numbers; the text alternative and the caption.
    description: str
    # Instances of one frozen dataclass of plain values: the table behind it.
    table: tuple[Any, ...]
    # Interactive drawing; its own title is left out, `title` stands above it.
    plotly: PlotlyFigure | None = None
    # Or an HTML fragment (tables, cards, inline SVG, images as data: URIs); no scripts, no ids of its own.
    body: str | None = None
    # Styles of `body`, every selector beginning with `.<name>`.
    css: str = ""
    # A still of it.
    still: MatplotlibFigure | None = None


def to_csv(rows: Sequence[Any]) -> str:
    """Instances of one dataclass as CSV: a header, then a row for each; nothing known is an empty field."""
    text = io.StringIO()
    if rows:
        names = [one.name for one in fields(rows[0])]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in rows)
    return text.getvalue()


def _plotly_div(picture: Picture, library: Library) -> str:
    """The interactive drawing as a fragment, the same each time."""
    assert picture.plotly is not None
    return str(
        picture.plotly.to_html(
            full_html=False,
            include_plotlyjs=True if library == "held" else "directory",
            div_id=f"{picture.name}-plot",  # random otherwise
            default_height="min(620px, 90vh)",
            config={
                "displaylogo": False,
                "responsive": True,
                "toImageButtonOptions": {"filename": picture.name},
            },
        )
    )


def to_html(picture: Picture, library: Library = "held") -> str:
    """A whole page with this picture alone."""
    drawn = picture.body or "" if picture.plotly is None else _plotly_div(picture, library)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(picture.title)}</title>\n"
        f"<style>body {{ margin: 1rem; font-family: {FONT}; color: {BLACK}; background: #fff; }} "
        f"p {{ max-width: 75ch; line-height: 1.45; }}\n{picture.css}</style>\n</head>\n<body>\n"
        f"<h1>{escape(picture.title)}</h1>\n{drawn}\n<p>{escape(picture.description)}</p>\n</body>\n</html>\n"
    )


def write(picture: Picture, folder: Path, library: Library = "held") -> tuple[Path, ...]:
    """Writes the files, the same each time, and returns those that stand alone, the page first.

    With a shared library the page of a drawing is none of these, and wants `write_library` once for the
    folder.
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
    """Plotly's code for the pages in this folder that share it."""
    from plotly.offline import get_plotlyjs

    folder.mkdir(parents=True, exist_ok=True)
    (folder / SHARED_LIBRARY).write_text(get_plotlyjs(), encoding="utf-8")
