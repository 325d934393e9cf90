"""The table is right; the drawings show it, need no network, and come out the same twice."""

from __future__ import annotations

import csv
import io
import re
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest

from dashboards.pareto.figure import pareto_picture
from dashboards.pareto.marks import AXES, PREFILL, cost_of, labels_of, limits_of, series_of
from dashboards.picture.picture import to_csv, to_html, write
from pipeline.methods import AdaTP
from tests.summaries import (
    make_comparison,
    make_held_out,
    make_outcome,
    make_serving,
    make_setting,
    make_summary,
)
from tuner.reporting.trial_table import front_numbers, pareto_points
from tuner.reporting.values import InfeasibleProposal, PrunedTrial
from tuner.study.values import Configuration


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
    assert [(point.kind, point.split) for point in points[:2]] == [
        ("baseline", "tune"),
        ("baseline", "held_out"),
    ]
    trials = [point for point in points if point.split == "tune" and point.trial is not None]
    assert [trial.trial for trial in trials] == list(range(24))
    assert [trial.trial for trial in trials if trial.kind == "best"] == [summary.best.number]
    assert [trial.trial for trial in trials if trial.kind == "defaults"] == [0]
    assert {point.kind for point in points if point.split == "held_out"} == {"baseline", "best", "defaults"}
    best = next(point for point in points if point.kind == "best" and point.split == "held_out")
    assert (best.accuracy_low, best.accuracy, best.accuracy_high) == pytest.approx((0.86, 0.89, 0.915))
    assert best.tau_s == dict(summary.best.configuration.parameters)["tau_s"]


@pytest.mark.quick
def test_held_out_numbers_never_enter_the_front():
    assert not any(point.on_front for point in pareto_points(make_summary()) if point.split == "held_out")


@pytest.mark.quick
def test_a_study_in_which_nothing_fits_shows_the_closest_proposal():
    closest = InfeasibleProposal(Configuration.from_method(AdaTP(p=0.5)), 0.12)
    summary = make_summary(
        0, budget=0.05, best=None, best_held_out=None, defaults=None, defaults_held_out=None, closest=closest
    )
    infeasible = pareto_points(summary)[-1]
    assert (infeasible.kind, infeasible.accuracy) == ("infeasible", None)
    assert (infeasible.flops_ratio, infeasible.p) == (0.12, 0.5)


@pytest.mark.quick
def test_the_csv_reads_back_as_the_table():
    points = pareto_points(make_summary())
    rows = list(csv.DictReader(io.StringIO(to_csv(points))))
    assert len(rows) == len(points)
    assert [float(row["flops_ratio"]) for row in rows] == [point.flops_ratio for point in points]
    assert rows[0]["p"] == ""


@pytest.mark.parametrize("trials", [0, 1, 40])
def test_drawing_any_number_of_trials_leaves_no_warning_and_the_same_files_twice(tmp_path, trials):
    summary = make_summary(trials)
    written = [
        tuple(file.read_bytes() for file in write(pareto_picture(summary), tmp_path / name)) for name in "ab"
    ]
    assert written[0] == written[1]
    assert written[0][1].startswith(b"\x89PNG")


def test_the_page_is_self_contained_and_says_what_is_better():
    page = to_html(pareto_picture(make_summary()))
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert "lower is better" in page
    assert "higher is better" in page
    assert "budget 30 %" in page
    assert "alpha_boost" in page


def test_without_labels_the_axis_says_agreement():
    summary = make_summary(setting=make_setting(labelled=False))
    assert "agreement with the unpruned model" in to_html(pareto_picture(summary))


def with_stopped(**changes):
    pruned = PrunedTrial(24, Configuration.from_method(AdaTP(p=0.5)), 0.21, by=4, videos=15)
    return make_summary(24, pruned=(pruned,), **changes)


@pytest.mark.quick
def test_a_pruned_trial_has_its_cost_and_the_trial_that_pruned_it_and_no_accuracy():
    points = pareto_points(with_stopped())
    (row,) = (point for point in points if point.kind == "pruned")
    assert (row.trial, row.flops_ratio, row.accuracy, row.p) == (24, 0.21, None, 0.5)
    assert (row.pruned_by, row.pruned_after, row.on_front) == (4, 15, False)
    summary = with_stopped()
    drawn = next(item for item in series_of(points, summary, PREFILL) if row in item.points)
    low = limits_of(points, summary, PREFILL).low_y
    assert drawn.x == [21.0]
    assert low < drawn.y[0] < min(100 * point.accuracy for point in points if point.accuracy)
    page = to_html(pareto_picture(summary))
    assert "pruned after 15 videos: trial 4 and others are better" in page


@pytest.mark.quick
def test_peers_stand_in_the_table_and_adatp_only_once():
    summary = make_summary()
    points = pareto_points(summary, make_comparison(9, own=summary))
    peers = [point for point in points if point.kind == "peer"]
    assert len(peers) == 6
    assert {peer.split for peer in peers} == {"held_out"}
    assert all(peer.accuracy_low < peer.accuracy < peer.accuracy_high for peer in peers)
    assert [point.kind for point in points if point.kind in ("best", "defaults")].count("best") == 2
    assert not any(peer.on_front for peer in peers)


@pytest.mark.quick
def test_seconds_of_answers_from_different_moments_are_set_against_each_other_nowhere():
    slow = make_held_out(make_summary().best.configuration)
    slow = replace(slow, outcome=make_outcome("held_out", 0.89, 0.297, seconds=1200.0))
    picture = pareto_picture(make_summary(best_held_out=slow))
    assert "seconds" not in to_csv(picture.table)
    assert "seconds per answer" not in to_html(picture)


@pytest.mark.quick
@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.field)
def test_the_front_of_each_measure_is_its_own(axis):
    summary = make_summary(24)
    points = pareto_points(summary)
    known = [point for point in points if point.split == "tune" and point.trial is not None]
    front = front_numbers((trial.trial, trial.accuracy, getattr(trial, axis.field)) for trial in known)
    series = {series.marker.label: series for series in series_of(points, summary, axis)}
    full = {point.trial for point in series["trial on the front, tune videos"].points}
    faint = {point.trial for point in series["other trials, tune videos"].points}
    assert full <= front
    assert not faint & front
    assert len({series.marker for series in series_of(points, summary, axis)}) == len(series)


@pytest.mark.quick
@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.field)
def test_points_that_meet_are_drawn_where_they_are_and_are_both_seen(axis):
    summary = make_summary()
    same = make_held_out(summary.defaults.configuration, 0.89, summary.best_held_out.outcome.flops_ratio)
    summary = replace(summary, defaults_held_out=same)
    points = pareto_points(summary, make_comparison(9, own=summary))
    drawn = series_of(points, summary, axis)
    for series in drawn:
        assert series.x == [cost_of(point, axis) for point in series.points]
    # Both in the drawing of the page, which is made from them: the later ones lie on top and are smaller.
    held_out = [series.marker for series in drawn if series.intervals]
    assert [series_.label.split(",")[0] for series_ in held_out] == [
        "AdaTP's defaults", "other methods", "best within the budget",
    ]  # fmt: skip
    for under, over in pairwise(held_out):
        assert under.size > over.size
        assert under.bar > over.bar


@pytest.mark.quick
def test_the_page_draws_the_defaults_at_their_own_cost_beside_the_best():
    summary = make_summary()
    best = replace(summary.best_held_out, outcome=make_outcome("held_out", 0.89, 0.3))
    defaults = make_held_out(summary.defaults.configuration, 0.89, 0.3)
    figure = pareto_picture(replace(summary, best_held_out=best, defaults_held_out=defaults)).plotly
    drawn = {trace.name: list(trace.x) for trace in figure.data}
    # Once 29.8, to the left of the best.
    assert drawn["AdaTP's defaults, held-out videos (95 %)"] == [30.0]
    assert drawn["best within the budget, held-out videos (95 %)"] == [30.0]


@pytest.mark.quick
@pytest.mark.parametrize("seed", range(3))
def test_peers_keep_their_place_and_no_two_of_their_names_overlap(seed):
    summary = make_summary()
    points = pareto_points(summary, make_comparison(9, seed=seed, own=summary))
    limits = limits_of(points, summary, PREFILL)
    costs = {point.name: 100 * point.flops_ratio for point in points if point.kind == "peer"}
    assert {label.text: label.x for label in labels_of(points, summary, PREFILL)} == costs
    heights = [label.text_y for label in labels_of(points, summary, PREFILL)]
    gaps = [above - below for above, below in pairwise(heights)]
    assert len(heights) == 6
    assert min(gaps) > 0.04 * (limits.high_y - limits.low_y)
    assert limits.low_y < min(heights)
    assert max(heights) < limits.high_y


@pytest.mark.quick
def test_the_description_says_up_to_how_many_questions_pruning_pays():
    assert "pays for up to 12.5 questions per video by FLOPs" in pareto_picture(make_summary()).description
    serving = make_serving(measured=None)
    serving = replace(serving, best=replace(serving.best, text_embedding=0.0, question=0.5))
    text = pareto_picture(make_summary(serving=serving)).description
    assert "pays for any number of questions per video by FLOPs." in text
    assert "Break-even" not in pareto_picture(make_summary(serving=None)).description


@pytest.mark.quick
def test_where_a_drop_was_asked_for_there_is_no_budget_line_but_the_least_accuracy():
    summary = make_summary(goal="max_drop", budget=1.0)
    page = to_html(pareto_picture(summary))
    assert "budget 100 %" not in page
    assert "8 points below unpruned, held-out videos" in page
    assert "chosen trial, held-out videos" in page


@pytest.mark.browser
def test_the_page_draws_in_a_browser_without_network_or_complaint(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    summary = make_summary(40)
    files = write(pareto_picture(summary, make_comparison(own=summary)), tmp_path)
    complaints, requests = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(files[0].as_uri())
        page.wait_for_selector(".scatterlayer .trace")
        assert page.locator(".scatterlayer .trace").count() == 9
        titles = []
        for button in page.locator(".switch button").all():
            button.click()
            page.wait_for_timeout(200)
            titles.append(page.locator(".xtitle").text_content())
            assert page.locator(".scatterlayer .point").count() > 40
        assert [title.split(",")[0] for title in titles] == [
            "LLM prefill FLOPs",
            "end-to-end FLOPs including the vision tower",
        ]
        # Nothing in it offers to send the figure somewhere.
        assert page.locator(".modebar-btn").count() > 0
        assert page.locator("[data-title*=Share]").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.quick
def test_a_choice_is_in_the_table_and_named_on_hovering_where_it_says_something():
    summary = make_summary()
    points = pareto_points(summary, make_comparison(9, own=summary))
    assert {(point.deduplicate, point.score_query) for point in points if point.p is not None} == {
        ("demote", "last")
    }
    assert all(point.deduplicate is None for point in points if point.kind in ("peer", "baseline"))
    assert "deduplicate" not in to_html(pareto_picture(summary))
    page = to_html(pareto_picture(replace(summary, choices=("deduplicate",))))
    assert "deduplicate demote" in page
    assert "score_query" not in page
    dropping = Configuration.from_method(AdaTP(p=0.7, deduplicate="drop"))
    trials = (replace(summary.trials[0], configuration=dropping), *summary.trials[1:])
    page = to_html(pareto_picture(replace(summary, trials=trials)))
    assert page.count("deduplicate drop") >= 1
    assert "deduplicate demote" not in page
