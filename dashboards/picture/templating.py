"""What the report and the page of a single picture share: templates, and plotly figures prepared for them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment
    from plotly.graph_objects import Figure as PlotlyFigure

# CSS pixels, for figures without a height of their own.
_HEIGHT = 620


@dataclass(frozen=True)
class Switch:
    """A plotly menu as HTML buttons, since plotly draws its own as shapes that a keyboard cannot reach."""

    menu: int
    labels: tuple[tuple[int, str], ...]
    active: int


@dataclass(frozen=True)
class Drawing:
    """A plotly figure as `plots.js` reads it."""

    # plotly's JSON, safe inside a script element.
    data: Markup
    height: int
    switches: tuple[Switch, ...]


def drawing_of(figure: PlotlyFigure) -> Drawing:
    """Prepares a figure; equal figures give equal text."""
    return Drawing(
        data=_script_safe(str(figure.to_json())),
        height=round(figure.layout.height or _HEIGHT),
        switches=tuple(
            Switch(
                menu=number,
                labels=tuple(
                    (index, re.sub(r"<[^>]*>", "", button.label or f"choice {index + 1}"))
                    for index, button in enumerate(menu.buttons)
                    if button.visible is not False
                ),
                active=0 if menu.active is None else menu.active,
            )
            for number, menu in enumerate(figure.layout.updatemenus)
        ),
    )


def plotly_code() -> Markup:
    """Plotly's library, safe inside a script element."""
    from plotly.offline import get_plotlyjs

    code = str(get_plotlyjs())
    assert "</script" not in code
    assert "<!--" not in code
    return Markup(code)


def css_safe(styles: str) -> Markup:
    """Styles, safe inside a style element."""
    return Markup(styles.replace("</", "<\\/"))


def with_minus(text: str) -> str:
    """Replaces the hyphen before a number by a minus sign; hyphens inside words and options stay."""
    return re.sub(r"(?<![\w.\-])-(?=\d)", "\N{MINUS SIGN}", text)


def make_environment() -> Environment:
    """The templates; inserted values are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dashboards", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = with_minus
    return environment


def _script_safe(text: str) -> Markup:
    """JSON, safe inside a script element: it can neither end it nor begin a comment."""
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e"))
