"""Pages stand alone or share plotly's code, and nothing that a user names can break them."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

import pytest
from plotly.graph_objects import Figure

from dashboards.picture.picture import SHARED_LIBRARY, Picture, to_csv, to_html, write, write_library

pytestmark = pytest.mark.quick

NASTY = '<script>alert("1")</script> & co'


@dataclass(frozen=True)
class Row:
    """One line."""

    name: str
    value: float | None


def make_picture(**changes) -> Picture:
    values = {"name": "some-picture", "title": "Title", "description": "What is to be seen.", "table": ()}
    return Picture(**values | changes)


@pytest.mark.parametrize("place", ["title", "description"])
def test_what_a_user_named_cannot_break_the_page(place):
    page = to_html(make_picture(**{place: NASTY}))
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &amp; co") == (
        2 if place == "title" else 1
    )


def test_a_page_holds_plotlys_code_or_shares_it(tmp_path):
    drawn = make_picture(plotly=Figure())
    assert not re.search(r"<script[^>]+src=", to_html(drawn))
    assert len(to_html(drawn)) > 1_000_000
    shared = to_html(drawn, "shared")
    assert re.findall(r'<script[^>]+src="([^"]+)"', shared) == [SHARED_LIBRARY]
    assert len(shared) < 20_000


def test_what_stands_alone_is_returned(tmp_path):
    drawn, body = make_picture(plotly=Figure()), make_picture(name="words", body="<p>Words</p>")
    assert [file.name for file in write(drawn, tmp_path / "a")] == ["some-picture.html", "some-picture.csv"]
    assert not (tmp_path / "a" / SHARED_LIBRARY).exists()
    assert [file.name for file in write(drawn, tmp_path / "b", "shared")] == ["some-picture.csv"]
    assert (tmp_path / "b" / "some-picture.html").exists()
    write_library(tmp_path / "b")
    assert (tmp_path / "b" / SHARED_LIBRARY).stat().st_size > 1_000_000
    assert [file.name for file in write(body, tmp_path / "c", "shared")] == ["words.html", "words.csv"]
    assert not (tmp_path / "c" / SHARED_LIBRARY).exists()


def test_the_table_reads_back():
    rows = (Row('a "name", with a comma', 0.1 + 0.2), Row("nothing", None))
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [entry["name"] for entry in read] == [row.name for row in rows]
    assert (float(read[0]["value"]), read[1]["value"]) == (0.1 + 0.2, "")
    assert to_csv(()) == ""
