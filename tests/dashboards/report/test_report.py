"""The report answers on its first screen, escapes what users wrote, loads nothing, and anyone can use it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import plotly.graph_objects as go
import pytest

from dashboards.inspection.cards import cards_picture
from dashboards.pareto.figure import pareto_picture
from dashboards.picture.picture import Picture
from dashboards.report import page as module
from dashboards.report.answer import answer
from dashboards.report.page import LARGEST_CSV, MOST_ROWS, report_html
from dashboards.search.comparison import comparison_picture
from pipeline.methods import AdaTP
from tests.inspections import make_inspection
from tests.summaries import make_comparison as make_methods
from tests.summaries import (
    make_end_to_end,
    make_held_out,
    make_regressions,
    make_setting,
    make_summary,
    make_tested,
)
from tuner.records.measurements import Timed
from tuner.reporting.values import Compared, Comparison, InfeasibleProposal
from tuner.sensitivity.results import FailureMode, Sensitivity
from tuner.statistics.values import Guessing, Interval, Measured, Noise
from tuner.study.values import Configuration

quick = pytest.mark.quick
GIF = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
EVIL = '<script>alert("x")</script>'


@dataclass(frozen=True)
class Row:
    name: str
    share: float
    kept: int | None
    safe: bool


def make_picture(name="front", rows=3, **changes) -> Picture:
    figure = go.Figure(
        go.Scatter(x=[0, 1, 2], y=[1, 3, 2], text=["red", "white", EVIL], marker={"color": "#222222"})
    )
    figure.update_layout(
        template="plotly_white",
        height=420,
        updatemenus=[
            {
                "type": "buttons",
                "buttons": [
                    {"label": "prefill", "method": "update", "args": [{"y": [[1, 3, 2]]}]},
                    {"label": "<b>end to end</b>", "method": "update", "args": [{"y": [[4, 5, 6]]}]},
                ],
            }
        ],
    )
    table = tuple(Row(f"row {item}", -0.1234567, None, True) for item in range(rows))
    values = {"title": f"The {name}", "description": f"What the {name} shows.", "table": table}
    return Picture(**({"name": name, "plotly": figure} | values | changes))


def make_cards() -> Picture:
    body = f'<p class="card-text">kept tokens</p><img alt="a frame" src="{GIF}">'
    return make_picture(
        "cards", plotly=None, body=body, css=".cards .card-text { color: var(--link); }", rows=0
    )


def make_comparison() -> Comparison:
    timed = Timed("Example CPU, 1 thread", 5, 0.2, 0.4)
    row = Compared(
        "FastV", make_held_out(Configuration.from_method(AdaTP())), "attention of one layer", timed
    )
    return Comparison(
        "demo", "5f2c", 0.3, Measured(0.94, Interval(0.92, 0.96)), None, (row,), {"PyramidDrop": 0.41}
    )


def make_sensitivity(**changes) -> Sensitivity:
    values = {
        "study": "demo",
        "study_hash": "5f2c",
        "budget": 0.3,
        "split": "held_out",
        "reference": Configuration.from_method(AdaTP()),
        "trial": 4,
        "binds": "alpha_boost",
        "accuracy": Measured(0.9),
        "labelled": True,
        "max_drop": "0.02",
        "margin": 0.02,
        "detectable": 0.019,
        "curves": (),
        "by_tag": (),
        "design_runs": 0,
        "tune_questions": 0,
        "design_compute": None,
        "inputs": (),
        "outputs": (),
        "maps": (),
        "failures": (FailureMode("middle frames over-pruned", None, "No question says where it looks."),),
        "sentences": ("tau_t makes little difference from 0.2 to 0.8.", "Watch p."),
    }
    return Sensitivity(**(values | changes))


# What is said


@quick
def test_the_first_screen_of_a_study_that_holds():
    said = answer(make_summary())
    assert said.state == "shown"
    assert said.title == "Yes: shown to lose no more than 8 points"
    assert said.changes == (
        "A margin below 6.8 points (96 % confidence), or videos that differ from the 80 held-out ones.",
    )
    assert (said.saves.value, said.saves.unit) == ("60 %", "fewer FLOPs end to end")
    assert said.saves.beside == (
        ("70 %", "fewer in the LLM's prefill alone"),
        ("45 %", "less time: 0.56 s instead of 1.01 s"),
    )
    assert (
        "up to 12.5 questions per video by FLOPs, up to 10 questions per video by time" in said.saves.notes[2]
    )
    assert said.costs.value == "-5.0"
    assert "-7.0 to -3.0 points" in said.costs.notes[0]
    assert "36 regressions (right before, wrong now) and 4 gained, of 600 questions" in said.costs.notes[2]
    assert said.costs.notes[3].startswith(
        "Tuned minus AdaTP's defaults at the same budget: +4.0 [+1.0, +7.0]"
    )
    assert json.loads(said.configuration) == make_summary().best.configuration.as_dict()
    assert said.command == "tuner export --study demo --budget 0.3 --seed 0"


@quick
@pytest.mark.parametrize(
    ("changes", "state", "title", "change"),
    [
        (
            {"verdict": "not_shown", "margin": 0.02, "tested": (make_tested(4, -0.05, -0.068, 0.02),)},
            "not_shown",
            "No: it loses more than 2 points",
            "A larger budget, or a larger --max-drop",
        ),
        (
            {"verdict": "not_shown", "margin": 0.04, "provable_drop": 0.06, "goal": "max_drop"},
            "not_shown",
            "Not yet: these videos cannot exclude a loss above 4 points",
            "losses below 6.0 points cannot be ruled out. The margin is smaller, so any configuration needs",
        ),
        (
            {"verdict": "not_shown", "margin": 0.04, "tested": (make_tested(4, -0.03, -0.05, 0.04),)},
            "not_shown",
            "Not yet: these videos cannot exclude a loss above 4 points",
            "With 80 held-out videos, losses below 2.9 points cannot be ruled out.",
        ),
        (
            {"verdict": "untested", "margin": None, "tested": ()},
            "untested",
            "Not known: it was not tested",
            "--max-drop",
        ),
        (
            {"verdict": "untested", "best_held_out": None, "tested": ()},
            "untested",
            "Not known: it was not tested",
            "again",
        ),
        (
            {
                "best": None,
                "best_held_out": None,
                "closest": InfeasibleProposal(Configuration.from_method(AdaTP()), 0.4),
            },
            "nothing_fits",
            "No: nothing fits the budget",
            "A larger budget",
        ),
        (
            {"setting": make_setting(labelled=False), "noise": Noise(100, 80, 9, 0.0, 0.0)},
            "untested",
            "Not known: the margin is within the noise floor",
            "nothing can be shown",
        ),
    ],
)
def test_a_verdict_is_never_more_than_the_tests_allow(changes, state, title, change):
    summary = make_summary(**changes)
    said = answer(summary)
    assert (said.state, said.title) == (state, title)
    assert change in " ".join(said.changes)
    page = report_html(summary, ())
    assert title in page
    assert "Yes:" not in page


@quick
def test_a_bound_above_zero_is_no_margin():
    tested = (make_tested(make_summary().best.number, 0.02, 0.01),)
    assert answer(make_summary(tested=tested)).changes == ("Videos that differ from the 80 held-out ones.",)


@quick
def test_more_flops_end_to_end_are_said_to_be_more():
    summary = make_summary()
    dear = replace(summary.best_held_out.outcome, flops_ratio_end_to_end=1.05)
    held_out = replace(summary.best_held_out, outcome=dear)
    # Once "-5 % fewer".
    saves = answer(replace(summary, best_held_out=held_out)).saves
    assert (saves.value, saves.unit) == ("5 %", "more FLOPs end to end")


@quick
def test_times_of_different_moments_are_not_compared():
    # Timed as answers came in: 0.03 s unpruned in an earlier run, 0.021 s pruned in this one.
    saves = answer(make_summary(serving=None)).saves
    assert "time" not in str(saves)
    page = report_html(make_summary(serving=None), ())
    assert not re.search(r"0\.03\b|0\.021|30 % less", page)


@quick
def test_equal_end_to_end_flops_are_a_table_of_their_own():
    summary = make_summary()
    found = make_end_to_end(summary)
    cheap = replace(found.rows[1].held_out.outcome, flops_ratio_end_to_end=0.31)
    rows = (*found.rows, replace(found.rows[1], held_out=replace(found.rows[1].held_out, outcome=cheap)))
    comparison = make_methods(0, rows=rows)
    page = report_html(summary, (), comparison=comparison)
    assert "Fewer frames needs 31 % of the unpruned FLOPs and AdaTP, tuned 40 %." in page
    assert "`tuner compare --budget 0.3` measures that" in page
    assert "At equal end-to-end FLOPs" not in page
    page = report_html(summary, (), comparison=replace(comparison, end_to_end=found))
    assert "The next table compares them at equal end-to-end cost." in page
    _, second = page.split('aria-label="Pruning methods at equal end-to-end FLOPs"')
    second = second[: second.index("</section>")]
    assert re.findall(r'<th scope="row">([^<]*)', second) == ["AdaTP, tuned", "Fewer frames", "Random tokens"]
    assert "time ratio" not in second
    assert "PyramidDrop cannot come down to the end-to-end FLOPs of AdaTP, tuned" in second


@quick
def test_a_model_that_guesses_gains_nothing():
    summary = make_summary(guessing=Guessing(24, 8, 4, 0.25, 0.05))
    said = answer(summary)
    assert said.state == "untested"
    assert said.title == "Not known: the unpruned model does no better than guessing"
    assert "answers 16.7 % of 24 questions right; guessing gives 25 %. No loss can be" in said.changes[0]
    # Once "-5.0 points of accuracy": there "+33.3 points" would stand as a gain.
    assert said.costs.value == "Not known"
    assert "-5.0 points of accuracy from a model that does no better than guessing" in said.costs.notes
    assert "Yes:" not in report_html(summary, ())


@quick
def test_a_model_that_few_videos_do_not_tell_from_guessing_is_told_beside_the_verdict():
    said = answer(make_summary(guessing=Guessing(24, 8, 8, 0.25, 0.2)))
    assert said.title.startswith("Yes:")
    assert "33.3 % of 24 questions right; guessing gives 25 %, and 8 videos do not tell" in said.said[0]
    assert said.said[1:] == answer(make_summary()).said
    assert answer(make_summary(guessing=Guessing(24, 8, 20, 0.25, 0.7))) == answer(make_summary())


@quick
def test_slower_is_said_to_be_slower():
    serving = make_summary().serving
    slow = replace(serving.measured, best=serving.measured.baseline, baseline=serving.measured.best)
    saves = answer(make_summary(serving=replace(serving, measured=slow))).saves
    assert ("80 %", "more time: 1.01 s instead of 0.56 s") in saves.beside
    assert "no question by time" in " ".join(saves.notes)


@quick
def test_an_export_that_needs_consent_is_written_so():
    summary = make_summary(verdict="not_shown", study="two words")
    assert answer(summary).command == (
        "tuner export --study 'two words' --budget 0.3 --seed 0 --accept-regressions"
    )


# What is in the page

# Two regressions about the middle and, with the larger change of margin, one gain about the start.
FLIPPED = make_summary(
    regressions=make_regressions(2),
    gains=tuple(
        replace(row, question="q7", baseline_margin=-3.0, pruned_margin=4.0, tags={"place": "start"})
        for row in make_regressions(1)
    ),
)


@pytest.fixture(scope="module")
def page() -> str:
    pictures = (make_picture(), make_picture("curves", rows=MOST_ROWS + 5), make_cards())
    return report_html(FLIPPED, pictures, sensitivity=make_sensitivity(), comparison=make_comparison())


def test_the_page_holds_the_evidence_in_its_order(page):
    order = [
        "May I ship it?",
        "Which configuration?",
        "What does it save?",
        "What does it cost?",
        "tau_t makes little difference from 0.2 to 0.8.",
        "Middle frames over-pruned: cannot be tested with these tags.",
        "prefill and<br>answer time ratio",
        "Time: prefill and answer of 5 questions, one at a time and all ways in turn",
        "PyramidDrop cannot reach this budget; its smallest FLOPs ratio is 0.4100.",
        "What the front shows.",
        "What the curves shows.",
        "kept tokens",
        "In the scene after brick, what color is ring 0?",
        "5f2c9d7be1a04c3388aa0b1f6f7d2e11",
        "Example CPU, 1 thread",
    ]
    places = [
        page.rindex(candidate) if candidate.startswith("Example") else page.index(candidate)
        for candidate in order
    ]
    assert places == sorted(places)
    assert "−7.0 to −3.0 points" in page


@quick
def test_findings_of_a_sensitivity_study_are_told_once_and_folded():
    failure = FailureMode("middle frames over-pruned", True, "Middle frames lose more.")
    lines = tuple(f"Finding {number}." for number in range(7))
    found = make_sensitivity(sentences=(*lines[:2], failure.evidence, *lines[2:]), failures=(failure,))
    page = report_html(make_summary(), (), sensitivity=found)
    assert page.count(failure.evidence) == 1
    assert page.index("All findings</summary>") < page.index("Finding 0.") < page.index(failure.evidence)


def test_the_page_loads_nothing_and_is_small(page):
    code = page.index('id="plotly-code"')
    markup = page[:code] + page[page.index("</script>", code) :]
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!#|data:)[^"'\s>]+|url\(|@import""", markup)
    assert "default-src 'none'" in markup
    assert page.count('id="plotly-code"') == 1
    assert len(page.encode()) < 6 * 2**20


def test_headings_do_not_skip_a_level_and_ids_are_unique(page):
    assert re.findall(r"<h(\d)", page)[0] == "1"
    assert set(re.findall(r"<h(\d)", page)) == {"1", "2"}
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_what_users_wrote_is_escaped_everywhere():
    evil = tuple(
        replace(row, question=EVIL, video=EVIL, text=EVIL, options=(EVIL,), answer=EVIL, tags={EVIL: EVIL})
        for row in make_regressions(2)
    )
    setting = make_setting(model=EVIL)
    summary = make_summary(
        study=EVIL, regressions=evil, setting=setting, quarantined={EVIL: EVIL}, max_drop=EVIL
    )
    picture = make_picture(title=EVIL, description=EVIL, table=(Row(EVIL, 0.5, 1, False),))
    text = report_html(
        summary,
        (picture,),
        sensitivity=make_sensitivity(sentences=(EVIL,)),
        comparison=replace(make_comparison(), unreachable={EVIL: 0.5}),
    )
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert") >= 20
    # The one inside the figure's data.
    assert r"\u003cscript\u003ealert" in text
    # ... and nothing else in there can end the element.
    data = re.search(r'id="front-data">(.*?)</script>', text, re.DOTALL).group(1)
    assert json.loads(data)["data"][0]["text"][2] == EVIL


def test_a_long_table_is_cut_in_the_page_and_whole_in_the_csv(page):
    import base64

    assert f"The first {MOST_ROWS} of {MOST_ROWS + 5} rows." in page
    link = re.search(r'href="data:text/csv;charset=utf-8;base64,([^"]+)" download="curves.csv"', page)
    assert len(base64.b64decode(link.group(1)).splitlines()) == MOST_ROWS + 6
    assert '<td class="n">−0.123457</td><td></td><td>yes</td>' in page
    large = report_html(make_summary(), (make_picture(table=(Row("x" * LARGEST_CSV, 0.0, 0, True),)),))
    assert "front.csv among the study" in large
    assert "data:text/csv" not in large


def test_the_same_values_give_the_same_page_and_a_page_without_figures_has_no_plotly(page):
    assert report_html(make_summary(), ()) == report_html(make_summary(), ())
    assert len(report_html(make_summary(), (make_cards(),))) < 100_000


@quick
def test_pictures_that_cannot_be_told_apart_or_drawn_are_refused():
    with pytest.raises(ValueError, match="names of their own"):
        report_html(make_summary(), (make_cards(), make_cards()))
    with pytest.raises(ValueError, match="has neither"):
        report_html(make_summary(), (make_picture(plotly=None),))


@pytest.mark.parametrize("trials", [0, 1])
def test_a_study_with_hardly_anything_has_a_report(trials):
    bare = {"serving": None, "setting": None, "noise": None, "regressions": (), "baseline": {}, "cost": None}
    assert "All regressions and gains" in report_html(make_summary(trials, **bare), ())


# In a browser


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        found = chromium or driver.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("no Chromium on this machine")
        launched = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, page, tmp_path):
    """The page from disk, without a network; afterwards nothing was asked for and nothing complained."""
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    requests, complaints = [], []

    def open_(**options):
        context = browser.new_context(viewport={"width": 1366, "height": 768}, offline=True, **options)
        tab = context.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(file.as_uri())
        return tab

    yield open_
    assert complaints == []
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [file.as_uri()] * len(
        [url for url in requests if url == file.as_uri()]
    )


def draw_all(tab) -> None:
    for plot in tab.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.locator("svg.main-svg").first.wait_for()


@pytest.mark.browser
def test_it_paints_before_it_draws_and_draws_what_comes_near(opened, record_property):
    tab = opened()
    tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    # Written down, not asserted: a busy machine is no mistake of the page.
    record_property("first_contentful_paint_ms", paint)
    assert tab.locator("#report-ship").is_visible()
    # All four answers are on the first screen.
    for name in ("report-ship", "report-which", "report-saves", "report-costs"):
        box = tab.locator(f"section[aria-labelledby={name}]").bounding_box()
        assert box["y"] + box["height"] <= 768
    draw_all(tab)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab = opened(color_scheme=scheme)
    draw_all(tab)
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = axe.run(tab).response
    assert len(found["passes"]) > 20
    assert [
        (violation["id"], [node["html"] for node in violation["nodes"]])
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    ] == []


@pytest.mark.browser
def test_the_keyboard_reaches_every_control_and_sees_where_it_is(opened):
    tab = opened()
    draw_all(tab)
    controls = tab.evaluate(
        """() => {
          const all = [...document.querySelectorAll("a[href], button, select, summary, [tabindex='0']")];
          const shown = all.filter((one) => one.checkVisibility());
          shown.forEach((one, index) => { one.dataset.control = index; });
          return shown.length;
        }"""
    )
    tab.evaluate("scrollTo(0, 0)")
    reached, seen = set(), 0
    for _ in range(controls + 2):
        tab.keyboard.press("Tab")
        at = tab.evaluate("document.activeElement.dataset.control")
        if at is not None and at not in reached:
            reached.add(at)
            seen += tab.evaluate("getComputedStyle(document.activeElement).outlineStyle !== 'none'")
    assert len(reached) == controls > 20
    assert seen == controls


@pytest.mark.browser
def test_the_pages_buttons_switch_what_a_figure_shows(opened):
    tab = opened(color_scheme="dark")
    button = tab.get_by_role("button", name="end to end").first
    button.focus()
    tab.keyboard.press("Enter")
    assert tab.evaluate("[...document.getElementById('front-plot').data[0].y]") == [4, 5, 6]
    assert button.get_attribute("aria-pressed") == "true"
    assert tab.locator(".updatemenu-container").count() == 0
    # On dark ground a colour changes, a text does not; the switch stays as it was.
    for scheme, color in (("light", "#222222"), ("dark", "#e8eaed")):
        tab.emulate_media(color_scheme=scheme)
        tab.wait_for_function(
            "(color) => document.getElementById('front-plot').data[0].marker.color === color", arg=color
        )
    shown = tab.evaluate(
        "(({ text, y }) => [text[1], [...y]])(document.getElementById('front-plot').data[0])"
    )
    assert shown == ["white", [4, 5, 6]]


@pytest.mark.browser
def test_a_screen_reader_hears_each_figures_text(opened):
    tab = opened()
    draw_all(tab)
    assert tab.get_by_role("img", name="What the front shows.").count() == 1
    assert (
        tab.get_by_role("img", name=re.compile("Held-out change −5.0 points, 95 % interval −7.0")).count()
        == 1
    )
    assert tab.locator("figure").count() == tab.get_by_role("figure").count() == 4


SHOWN = "[...document.querySelectorAll('#report-flips tbody tr')].filter((one) => !one.hidden)"
QUESTIONS = f"{SHOWN}.map((one) => one.dataset.question)"


@pytest.mark.browser
def test_regressions_and_gains_are_filtered_and_ordered(opened):
    tab = opened()
    assert tab.evaluate(QUESTIONS) == ["q7", "q0", "q1"]
    tab.locator("[data-sort]").select_option("question")
    assert tab.evaluate(QUESTIONS) == ["q0", "q1", "q7"]
    tab.get_by_label("place all").select_option("middle")
    assert tab.evaluate(QUESTIONS) == ["q0", "q1"]
    assert tab.locator(".controls output").text_content() == "2 of 3 shown"
    tab.locator("[data-filter=kind]").select_option("gain")
    assert tab.evaluate(QUESTIONS) == []
    tab.get_by_role("button", name="Reset", exact=True).click()
    assert tab.evaluate(QUESTIONS) == ["q7", "q0", "q1"]


@pytest.mark.browser
def test_without_scripts_the_table_is_whole_and_has_no_controls(opened):
    tab = opened(java_script_enabled=False)
    assert tab.locator("#report-flips tbody tr").count() == 3
    assert not tab.locator(".controls").is_visible()


@pytest.mark.browser
def test_the_contents_stay_in_reach_and_close_again(opened):
    tab = opened()
    tab.locator("#report-method").scroll_into_view_if_needed()
    tab.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    summary = tab.locator(".contents summary")
    summary.focus()
    tab.keyboard.press("Enter")
    link = tab.locator(".contents a[href='#front']")
    assert link.is_visible()
    tab.keyboard.press("Escape")
    assert not link.is_visible()
    tab.keyboard.press("Enter")
    link.click()
    assert not link.is_visible()
    assert tab.evaluate("location.hash") == "#front"


@quick
def test_a_row_links_to_its_card_where_there_is_one():
    picture = cards_picture(make_inspection())
    place, card = len(picture.table) - 1, picture.table[-1]
    (row,) = make_regressions(1)
    summary = make_summary(regressions=(replace(row, question=card.question),), gains=(row,))
    text = report_html(summary, (picture,))
    assert f'<a href="#cards-{place}">{card.question}</a>' in text
    assert f'<article id="cards-{place}"' in text
    assert f'<th scope="row">{row.question}</th>' in text


@pytest.mark.browser
def test_a_phone_shows_figures_whole_and_moves_them_sideways(opened):
    tab = opened()
    tab.set_viewport_size({"width": 390, "height": 800})
    draw_all(tab)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    widths = (
        "[...document.querySelectorAll('.plot svg.main-svg')].map((one) => one.getBoundingClientRect().width)"
    )
    # Once as wide as the screen: columns of numbers lay on top of each other.
    assert set(tab.evaluate(widths)) == {860}
    assert tab.locator(".wide[tabindex='0']").count() == 2
    # Whatever is wider than the screen lies in a frame that moves, and says so.
    assert (
        tab.evaluate(
            """[...document.querySelectorAll("main *")].filter((one) =>
          one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + 1
          && !one.closest("[data-moves], .hidden")).map((one) => one.outerHTML.slice(0, 80))"""
        )
        == []
    )
    assert tab.locator(".wide[data-moves], .scroll[data-moves]").count() > 2


@pytest.mark.browser
def test_the_main_figures_are_laid_out_for_a_phone(browser, tmp_path):
    file = tmp_path / "report.html"
    compared = make_methods(4, own=FLIPPED)
    pictures = (pareto_picture(FLIPPED, compared), comparison_picture(compared))
    file.write_text(report_html(FLIPPED, pictures), encoding="utf-8")
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    tab.goto(file.as_uri())
    draw_all(tab)
    assert tab.locator(".wide[data-moves]").count() == 0
    tab.get_by_role("button", name="end-to-end FLOPs").click()
    sides = """[...document.querySelectorAll(".plot text")].map((one) => one.getBoundingClientRect())
      .filter((box) => box.width && (box.left < 0 || box.right > innerWidth)).length"""
    assert tab.evaluate(sides) == 0
    tab.close()


@pytest.mark.browser
def test_paper_has_what_matters_unfolded_and_nothing_beyond_its_edge(opened):
    tab = opened()
    tab.set_viewport_size({"width": 680, "height": 1000})
    tab.emulate_media(media="print")
    assert tab.get_by_text("tau_t makes little difference from 0.2 to 0.8.").is_visible()
    for name in (".controls", ".contents", ".actions", ".switch"):
        assert not tab.locator(name).first.is_visible()
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert (
        tab.evaluate(
            """[...document.querySelectorAll("main *")].filter((one) => one.checkVisibility()
          && !one.closest("svg, .hidden") && one.getBoundingClientRect().right > innerWidth + 1)
          .map((one) => one.outerHTML.slice(0, 80))"""
        )
        == []
    )


@pytest.mark.browser
def test_it_prints_with_all_figures_drawn_for_paper(opened):
    tab = opened(color_scheme="dark")
    tab.evaluate(
        """addEventListener("beforeprint", () => {
          window.printed = [...document.querySelectorAll(".plot")].map((one) => [
            one.dataset.drawn,
            Math.round(one.querySelector("svg.main-svg").getBoundingClientRect().width),
            one.layout.template.layout.font.color,
          ]);
        })"""
    )
    assert tab.pdf(format="A4").startswith(b"%PDF")
    assert tab.evaluate("window.printed") == [["paper", 680, "#2a3f5f"]] * 2


@pytest.mark.browser
def test_what_is_copied_is_the_configuration(opened):
    tab = opened()
    tab.get_by_role("button", name="Copy as JSON").click()
    tab.get_by_text(re.compile("^(Copied|Selected)")).first.wait_for()
    assert tab.locator("#report-status").text_content() in ("Copied.", "Selected: press Ctrl+C to copy.")
    assert json.loads(tab.locator("#report-json").text_content())["method"] == "adatp"


@pytest.mark.quick
def test_no_class_of_the_page_is_a_name_that_a_picture_styles_itself_by():
    own = re.findall(
        r"\.([a-z][a-z-]*)", (Path(module.__file__).parents[1] / "templates" / "report.css").read_text()
    )
    names = {"pareto", "comparison", "cards", "bias", "history", "health", "sensitivity", "indices", "curves"}
    assert not names & set(own)


@quick
def test_a_choice_that_is_searched_stands_with_the_knobs_on_the_first_screen():
    entry = re.compile(r"<dt title=[^>]*>deduplicate</dt><dd>(\w+)</dd>")
    assert not entry.search(report_html(make_summary(), ()))
    assert entry.findall(report_html(make_summary(choices=("deduplicate",)), ())) == ["demote"]
