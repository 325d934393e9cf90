"""The cards say what the inspection says, and draw what was dropped where it was."""

from __future__ import annotations

import csv
import io
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from dashboards.inspection.cards import OPEN, _runs, card_rows, cards_picture
from dashboards.picture.picture import to_csv, to_html, write
from tests.inspections import make_card, make_inspection


def painted(path: str, rows: int, width: int) -> np.ndarray:
    """The cells that a path of horizontal lines covers."""
    cells = np.zeros((rows, width), dtype=bool)
    for x, y, length in re.findall(r"M(\d+) (\d+)\.5h(\d+)", path):
        cells[int(y), int(x) : int(x) + int(length)] = True
    return cells


def with_cards(*cards, **changes):
    return replace(make_inspection(cards=0, **changes), cards=cards, regressions=len(cards))


@pytest.mark.quick
def test_runs_cover_the_cells_and_nothing_else():
    cells = np.random.default_rng(0).random((5, 23)) < 0.5
    assert (painted(_runs(cells), 5, 23) == cells).all()


@pytest.mark.quick
def test_what_was_dropped_is_drawn_in_its_frame_row_and_column():
    tokens = np.array([0, 6, 16 + 15])  # frame 0: row 0 column 0, row 1 column 2; frame 1: the last cell
    card = make_card(tokens=(tokens,), layers=(2,))
    body = cards_picture(with_cards(card)).body
    (path,) = re.findall(r'class="dropped" d="([^"]*)"', body)
    left = np.zeros((4, 64), dtype=bool)
    left[0, 0] = left[1, 2] = left[3, 7] = True
    assert (painted(path, 4, 64) == ~left).all()


@pytest.mark.quick
def test_newline_tokens_are_no_cells_of_the_picture():
    # 3 x 3 cells and a newline after each row: token 12 + 4 is the second frame's row 1 column 0.
    card = make_card(frames=16, cells=12, tokens=(np.array([3, 12 + 4]),), layers=(2,))
    picture = cards_picture(with_cards(card, cells=12))
    (path,) = re.findall(r'class="dropped" d="([^"]*)"', picture.body)
    left = np.zeros((3, 48), dtype=bool)
    left[1, 3] = True
    assert (painted(path, 3, 48) == ~left).all()
    assert "3 x 3 cells, and a newline token" in picture.body


@pytest.mark.quick
def test_the_table_says_what_is_left_of_boosted_segments_and_of_others():
    tokens = np.concatenate([np.arange(4 * 16), [255]])  # all of frames 1 to 4, one of the boosted rest
    row = card_rows(with_cards(make_card(tokens=(tokens,), layers=(2,))))[0]
    assert (row.segments, row.boosted_segments, row.boosted_frames) == (2, 1, 12)
    assert row.kept_share == pytest.approx(65 / 256)
    assert row.kept_share_boosted == pytest.approx(1 / 192)
    assert row.kept_share_other == 1
    assert row.tags == "type: color, when: middle"


@pytest.mark.quick
def test_the_table_reads_back_from_its_csv():
    rows = card_rows(make_inspection(cards=2))
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [entry["question"] for entry in read] == ["q0", "q1"]
    assert float(read[0]["kept_share"]) == rows[0].kept_share == 0.125


@pytest.mark.quick
def test_a_card_marks_the_right_answer_and_both_models_by_signs():
    body = cards_picture(make_inspection(cards=1)).body
    assert re.search(r"red <span class=\"right\">✓.*?<b>90 % ◀.*?<td>30 %</td>", body, re.DOTALL)
    assert re.search(r"blue</th><td>5 %</td><td><b>50 % ◀", body)
    assert "unpruned +2.50, pruned −0.50" in body
    assert "▲" in body


@pytest.mark.quick
def test_the_alternative_text_counts_the_kept_tokens_by_segment():
    body = cards_picture(make_inspection(cards=1)).body
    assert (
        'aria-label="frames 1 to 16, 32 tokens kept before layer 7; frames 1 to 4: 8 of 64; '
        'frames 5 to 16: 24 of 192"' in body
    )


@pytest.mark.quick
def test_each_strip_is_in_the_page_once_and_long_videos_have_several():
    body = cards_picture(make_inspection(frames=40, cards=1)).body
    assert body.count("data:image/jpeg") == 3
    assert "frames 33 to 40" in body
    assert "--frames: 8" in body
    # The boosted segment goes through all three.
    assert body.count('class="boosted"') == 3


@pytest.mark.quick
def test_many_cards_fold_and_those_left_out_are_told():
    picture = cards_picture(make_inspection(cards=OPEN + 4, regressions=30, gains=2))
    assert "<summary>4 more regressions</summary>" in picture.body
    assert f"{30 - OPEN - 4} more regressions are not shown" in picture.body
    assert "2 more gains are not shown" in picture.body
    assert f"Shown are {OPEN + 4} of the losses and 0 of the gains" in picture.description


@pytest.mark.quick
def test_texts_cannot_break_the_page_and_free_answers_have_no_options():
    card = make_card(
        text="<script>alert(1)</script>",
        options=(),
        answer='"><b>',
        baseline_margin=None,
        pruned_margin=None,
        baseline_probabilities=(),
        pruned_probabilities=(),
        tags={"<i>": "&"},
    )
    body = cards_picture(with_cards(card)).body
    assert "<script" not in body
    assert "<i>" not in body
    assert "&quot;&gt;&lt;b&gt;" in body
    assert "margin of the right answer: unpruned" not in body


@pytest.mark.quick
def test_other_methods_have_no_segments_and_plans_that_keep_everything_no_layers():
    card = make_card(segments=(), layers=(), tokens=())
    picture = cards_picture(with_cards(card))
    assert "relevance" not in picture.body
    assert picture.table[0].kept_share == 1


@pytest.mark.quick
def test_nothing_decided_is_a_picture_too():
    picture = cards_picture(make_inspection(cards=0))
    assert picture.table == ()
    assert picture.body.count("None to show") == 2


@pytest.mark.quick
def test_styles_stay_within_the_picture():
    css = re.sub(r"@media print", "", cards_picture(make_inspection()).css)
    selectors = [
        split for rule in re.findall(r"([^{}]+)\{", css) for split in rule.split(",") if split.strip()
    ]
    assert all(split.strip().startswith(".cards") for split in selectors), selectors
    body = cards_picture(make_inspection()).body
    assert body.count(" id=") == body.count(' id="cards-') == len(make_inspection().cards)


@pytest.mark.browser
def test_the_page_fits_a_phone_and_asks_for_nothing(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    page_file = write(cards_picture(make_inspection(frames=20)), tmp_path)[0]
    requests, complaints = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(page_file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        drawn = page.locator(".cards svg").first
        assert "url(" in drawn.evaluate("one => getComputedStyle(one).backgroundImage")
        box = drawn.bounding_box()
        assert box["width"] / box["height"] == pytest.approx(16 * 16 / 12, rel=0.02)
        browser.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.quick
def test_the_same_inspection_gives_the_same_page():
    assert to_html(cards_picture(make_inspection())) == to_html(cards_picture(make_inspection()))
