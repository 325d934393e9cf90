"""What the report and each picture's own page share: the templates, and drawings as these want them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment
    from plotly.graph_objects import Figure as PlotlyFigure

# CSS pixels, where a figure does not say its own.
_HEIGHT = 620


@dataclass(frozen=True)
class Switch:
    """One of plotly's menus, as buttons that a keyboard reaches: plotly draws its own as shapes."""

    menu: int
    labels: tuple[tuple[int, str], ...]
    active: int


@dataclass(frozen=True)
class Drawing:
    """A plotly figure as `plots.js` wants it."""

    # plotly's JSON, safe inside a script element.
    data: Markup
    height: int
    switches: tuple[Switch, ...]


def drawing_of(figure: PlotlyFigure) -> Drawing:
    """The same figure gives the same text."""
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
    """Plotly's library, to stand inside a script element."""
    from plotly.offline import get_plotlyjs

    code = str(get_plotlyjs())
    assert "</script" not in code
    assert "<!--" not in code
    return Markup(code)


def css_safe(styles: str) -> Markup:
    """Styles that cannot end the element they stand in."""
    return Markup(styles.replace("</", "<\\/"))


def with_minus(text: str) -> str:
    """A real minus sign before numbers; hyphens inside words and options stay."""
    return re.sub(r"(?<![\w.\-])-(?=\d)", "\N{MINUS SIGN}", text)


def make_environment() -> Environment:
    """The templates; what is written into them is escaped."""
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
    """JSON that cannot end the script element it stands in, nor begin a comment there."""
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e"))
