"""The table is right; the drawings show it, need no network, and come out the same twice."""

from __future__ import annotations

import csv
import io
import re
import shutil
from dataclasses import replace

import pytest

from dashboards.pareto import front_numbers, pareto_html, pareto_points, to_csv, write_pareto
from pipeline.methods import AdaTP
from tests.summaries import make_held_out, make_setting, make_summary
from tuner.results import Configuration, Refusal


@pytest.mark.quick
@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], set()),
        ([(0, 0.9, 0.3)], {0}),
        ([(0, 0.9, 0.3), (1, 0.8, 0.2)], {0, 1}),
        ([(0, 0.9, 0.3), (1, 0.9, 0.2)], {1}),
        ([(0, 0.9, 0.3), (1, 0.95, 0.3)], {1}),
        ([(0, 0.9, 0.3), (1, 0.8, 0.35)], {0}),
        ([(0, 0.9, 0.3), (1, 0.9, 0.3), (2, 0.7, 0.3)], {0, 1}),
        ([(0, 0.5, 0.1), (1, 0.4, 0.2), (2, 0.6, 0.3), (3, 0.6, 0.4)], {0, 2}),
    ],
)
def test_the_front_holds_what_nothing_beats(points, front):
    assert front_numbers(points) == front


@pytest.mark.quick
def test_the_table_has_baselines_all_trials_and_the_held_out_rows():
    summary = make_summary(24)
    points = pareto_points(summary)
    assert [(one.kind, one.part) for one in points[:2]] == [("baseline", "tune"), ("baseline", "held_out")]
    trials = [one for one in points if one.part == "tune" and one.trial is not None]
    assert [one.trial for one in trials] == list(range(24))
    assert [one.trial for one in trials if one.kind == "best"] == [summary.best.number]
    assert [one.trial for one in trials if one.kind == "defaults"] == [0]
    assert {one.kind for one in points if one.part == "held_out"} == {"baseline", "best", "defaults"}
    best = next(one for one in points if one.kind == "best" and one.part == "held_out")
    assert (best.accuracy_low, best.accuracy, best.accuracy_high) == pytest.approx((0.86, 0.89, 0.915))
    assert best.tau_s == dict(summary.best.configuration.parameters)["tau_s"]


@pytest.mark.quick
def test_held_out_numbers_never_enter_the_front():
    assert not any(one.on_front for one in pareto_points(make_summary()) if one.part == "held_out")


@pytest.mark.quick
def test_a_study_in_which_nothing_fits_shows_the_closest_proposal():
    closest = Refusal(Configuration.from_method(AdaTP(p=0.5)), 0.12)
    summary = make_summary(
        0, budget=0.05, best=None, best_held_out=None, defaults=None, defaults_held_out=None, closest=closest
    )
    refused = pareto_points(summary)[-1]
    assert (refused.kind, refused.flops_ratio, refused.p, refused.accuracy) == ("refused", 0.12, 0.5, None)


@pytest.mark.quick
def test_the_csv_reads_back_as_the_table():
    points = pareto_points(make_summary())
    rows = list(csv.DictReader(io.StringIO(to_csv(points))))
    assert len(rows) == len(points)
    assert [float(row["flops_ratio"]) for row in rows] == [one.flops_ratio for one in points]
    assert rows[0]["p"] == ""


@pytest.mark.parametrize("trials", [0, 1, 40])
def test_drawing_any_number_of_trials_leaves_no_warning_and_the_same_files_twice(tmp_path, trials):
    summary = make_summary(trials)
    written = [tuple(file.read_bytes() for file in write_pareto(summary, tmp_path / name)) for name in "ab"]
    assert written[0] == written[1]
    assert written[0][1].startswith(b"\x89PNG")


def test_the_page_is_self_contained_and_says_what_is_better():
    page = pareto_html(pareto_points(make_summary()), make_summary())
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert "lower is better" in page
    assert "higher is better" in page
    assert "budget 30 %" in page
    assert "alpha_boost" in page


def test_without_labels_the_axis_says_agreement():
    summary = make_summary(setting=make_setting(labelled=False))
    assert "agreement with the unpruned model" in pareto_html(pareto_points(summary), summary)


def test_a_studys_name_cannot_break_the_page():
    summary = make_summary(study="<script>alert(1)</script>")
    page = pareto_html(pareto_points(summary), summary)
    assert "<title>&lt;script&gt;" in page
    assert "<script>alert(1)" not in page


def test_held_out_points_at_the_same_cost_are_drawn_side_by_side():
    from dashboards.pareto import _side_by_side

    summary = make_summary()
    same = make_held_out(summary.defaults.configuration, 0.85, summary.best_held_out.outcome.flops_ratio)
    placed = _side_by_side(pareto_points(replace(summary, defaults_held_out=same)), summary.budget)
    assert [(one.kind, shift < 0) for one, shift in placed] == [("best", False), ("defaults", True)]


@pytest.mark.browser
def test_the_page_draws_in_a_browser_without_network_or_complaint(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    files = write_pareto(make_summary(40), tmp_path)
    complaints, requests = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(files.html.as_uri())
        page.wait_for_selector(".scatterlayer .trace")
        assert page.locator(".scatterlayer .trace").count() == 7
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
