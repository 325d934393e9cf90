"""What is written can be read on a light and on a dark ground, in the report and on figures' own pages."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dashboards.folder import Details, pictures
from dashboards.picture.picture import write, write_library
from dashboards.report.page import report_html
from tests.dashboards.search.test_history import make_history
from tests.inspections import make_inspection
from tests.sensitivities import make_sensitivity
from tests.summaries import make_comparison, make_summary

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

# Of each text in a drawing: what it says and its contrast with what lies under it. A label has a ground of
# its own, which lets the page's shine through. Texts on a heatmap's cells are left out: plotly chooses their
# ink.
CONTRASTS = """() => {
  const channels = (text) => {
    const [red, green, blue, alpha = 1] = text.match(/[\\d.]+/g).map(Number);
    return [red, green, blue, alpha];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((one, at) => a * one + (1 - a) * under[at]);
  const linear = (one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4;
  const light = (color) => {
    const [r, g, b] = color.map((one) => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = channels(getComputedStyle(document.body).backgroundColor).slice(0, 3);
  return [...document.querySelectorAll(".plot svg text")].filter((text) =>
    text.textContent.trim() && !text.closest(".heatmap, .hm, .contourlabels")
  ).map((text) => {
    const style = getComputedStyle(text), box = text.closest(".annotation")?.querySelector("rect.bg");
    let under = page;
    if (box) {
      const [r, g, b, a] = channels(getComputedStyle(box).fill);
      under = over([r, g, b, a * Number(getComputedStyle(box).fillOpacity)], page);
    }
    const [r, g, b, a] = channels(style.fill);
    const ink = over([r, g, b, a * Number(style.fillOpacity)], under);
    const [low, high] = [light(ink), light(under)].sort((one, other) => one - other);
    return [text.textContent, (high + 0.05) / (low + 0.05)];
  });
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """A folder with the report and a page for each figure there is."""
    folder = tmp_path_factory.mktemp("pages")
    summary, sensitivity = make_summary(24), make_sensitivity()
    # One kind of tags is as good as two, and half the drawing.
    by_tag = tuple(tag for tag in sensitivity.by_tag if tag.tag[0] == "type")
    details = Details(
        comparison=make_comparison(own=summary),
        inspection=make_inspection(cards=2),
        sensitivity=replace(sensitivity, by_tag=by_tag),
        history=make_history(),
    )
    drawn = pictures(summary, details)
    write_library(folder)
    for item in drawn:
        write(replace(item, still=None), folder, "shared")
    page = report_html(summary, drawn, sensitivity=details.sensitivity, comparison=details.comparison)
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


# The report has all figures in it; of their own pages a drawing, pictures, and tables.
@pytest.mark.parametrize("name", ["report", "pareto", "cards", "health"])
def test_everything_that_is_written_can_be_read(browser, pages, name):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab = browser.new_page(color_scheme="light", viewport={"width": 1280, "height": 800})
    tab.goto((pages / f"{name}.html").as_uri())
    # Folded figures look as those above them do, and drawing all of them takes minutes on a slow machine.
    tab.evaluate(
        "document.querySelectorAll('details:not(:has(.plot))').forEach((one) => { one.open = true; })"
    )
    for plot in tab.locator(".plot:visible").all():
        plot.scroll_into_view_if_needed()
        plot.locator("svg.main-svg").first.wait_for()
    for scheme, ground in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 28)")):
        tab.emulate_media(color_scheme=scheme)
        # Figures take their new colours one after another, some seconds long on a busy machine.
        for _ in range(60):
            texts = tab.evaluate(CONTRASTS)
            poor = [(text, round(contrast, 1)) for text, contrast in texts if contrast < 4.5]
            if not poor:
                break
            tab.wait_for_timeout(500)
        assert poor == []
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == ground
        assert len(texts) >= {"report": 250, "pareto": 25}.get(name, 0)
        options = {"runOnly": ["color-contrast"]}
        found = axe.run(tab, context={"exclude": [".plot"]}, options=options).response
        assert found["passes"]
        assert [node["html"] for violation in found["violations"] for node in violation["nodes"]] == []
    tab.close()
