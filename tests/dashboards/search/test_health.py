"""Study health: the numbers stand in the table, and what is not known is said to be."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dashboards.picture.picture import to_html, write
from dashboards.search.health import health_picture, health_rows
from tests.summaries import make_summary
from tuner.planning.study_cost import StudyCost
from tuner.records.measurements import CacheUse
from tuner.reporting.history import History, ModelTime
from tuner.reporting.values import PrunedTrial

pytestmark = pytest.mark.quick

COST = StudyCost(
    pass_flops=100,
    pass_language=90,
    spent=610,
    spent_language=585,
    naive=6700,
    naive_language=1800,
    seconds=674.0,
    answers=44448,
    wanted=1000,
    shared=130,
    spared=340,
    trials=46,
    pruned=67,
)


def by_name(summary, history=None):
    return {row.name: row for row in health_rows(summary, history)}


def test_margin_provable_drop_and_noise_floor_share_one_scale():
    rows = by_name(make_summary())
    assert rows["margin"].value == pytest.approx(8.0)
    assert rows["margin"].bar == 1.0
    assert rows["smallest loss that can be ruled out"].bar == pytest.approx(2.85 / 8)
    assert rows["noise floor"].value == pytest.approx(100 * 2 / 600)


def test_costs_are_told_in_passes_and_shares():
    rows = by_name(make_summary(cost=COST))
    assert rows["this study so far"].value == 6.1
    assert rows["this study so far"].bar == pytest.approx(6.1 / 67)
    assert (rows["answers shared"].value, rows["answers shared"].bar) == (13.0, 0.13)
    assert rows["answers spared by pruned trials"].value == 34.0
    assert rows["all answers"].value == 674.0


def test_cache_hits_are_shares_of_what_was_asked_for():
    rows = by_name(
        make_summary(cache_use=CacheUse(800, 240, 160, 950, 50), videos=160, evaluated_answers=900)
    )
    assert rows["vision features"].section == rows["prefixes"].section == "Cache hits"
    assert rows["vision features"].value == pytest.approx(100 * 1040 / 1200)
    assert rows["vision features"].note == (
        "of 1,200 uses 800 were in memory and 240 on disk; 160 were computed"
    )
    assert (rows["prefixes"].value, rows["prefixes"].bar) == (pytest.approx(95), pytest.approx(0.95))
    assert rows["prefixes"].note.endswith("950 of 1,000 answers reused a prefix; 50 were computed")
    assert "older answers" not in rows


def test_caches_that_do_not_work_say_what_to_do():
    rows = by_name(make_summary(cache_use=CacheUse(0, 39, 161, 40, 60), videos=160, evaluated_answers=130))
    assert (
        "161 were computed, more than the 160 videos: the cache folder is full"
        in rows["vision features"].note
    )
    assert rows["prefixes"].note.endswith(
        "60 were computed. With fewer --workers more answers share each prefix"
    )
    assert rows["older answers"].value == 30


def test_caches_of_an_older_study_are_not_recorded():
    row = by_name(make_summary(cache_use=None))["vision features and prefixes"]
    assert (row.value, row.note) == (None, "not recorded")
    assert "prefixes" not in by_name(make_summary(cache_use=CacheUse()))


def test_model_time_is_told_by_purpose_where_the_history_is_known():
    history = History("demo", 0.3, 40, (), ModelTime(17.0, 510.0, 138.0, 0.0))
    rows = by_name(make_summary(cost=COST), history)
    assert (rows["baseline"].value, rows["trials"].value, rows["held-out split"].value) == (
        17.0,
        510.0,
        138.0,
    )
    assert rows["baseline"].bar == pytest.approx(17 / 510)
    assert "all answers" not in rows
    assert "other" not in rows


def test_what_was_left_out_stands_there_with_its_reason_and_cannot_break_the_page():
    summary = make_summary(quarantined={"v1-q2": "killed <script>"}, skipped_videos=("broken.mp4",))
    picture = health_picture(summary)
    assert by_name(summary)["question v1-q2"].note == "killed <script>"
    assert "killed &lt;script&gt;" in picture.body
    assert "<script" not in picture.body
    assert "Left out: 1 question and 1 video." in picture.description


def test_pruned_trials_say_how_early_they_were_stopped():
    configuration = make_summary().best.configuration
    pruned = tuple(PrunedTrial(30 + item, configuration, 0.2, 4, 10 + 10 * item) for item in range(3))
    row = by_name(make_summary(pruned=pruned))["pruned"]
    assert row.value == 3
    assert "after 20 tune videos" in row.note


def test_a_margin_that_cannot_be_shown_is_the_first_thing_said():
    summary = make_summary(margin=0.01)
    assert health_picture(summary).description.startswith(
        "With 80 held-out videos, losses below 2.9 points cannot be ruled out. You allow 1: about 231 are"
    )
    noisy = replace(summary, noise=replace(summary.noise, flips=12))
    assert (
        "The noise floor is not below the margin, so nothing can be shown."
        in health_picture(noisy).description
    )


def test_a_study_with_nothing_measured_says_so():
    summary = make_summary(
        0,
        margin=None,
        noise=None,
        provable_drop=None,
        serving=None,
        best=None,
        best_held_out=None,
        defaults=None,
        defaults_held_out=None,
        cache_use=CacheUse(),
    )
    rows = by_name(summary)
    assert rows["noise floor"].value is None
    assert rows["noise floor"].note == "not measured"
    assert health_picture(summary).body.count("not known") == 4


def test_the_page_is_tables_with_row_headers_and_silent_bars(tmp_path):
    picture = health_picture(make_summary(cost=COST))
    page = to_html(picture)
    sections = {row.section for row in picture.table}
    assert page.count("<caption>") == len(sections)
    assert page.count('<th scope="row">') == len(picture.table)
    assert page.count('class="bar" aria-hidden="true"') == sum(row.bar is not None for row in picture.table)
    assert not re.search(r"<script|\bid=", picture.body)
    assert all(
        text.startswith((".health", "@media"))
        for text in re.findall(r"^\S.*?(?={)", picture.css, re.MULTILINE)
    )
    assert [file.name for file in write(picture, tmp_path)] == ["health.html", "health.csv"]
