"""A command leaves the figures of what is recorded now, and no others."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from dashboards import folder as module
from dashboards.folder import Details, draw, draw_comparison, draw_sensitivity, folder_of
from tests.dashboards.search.test_history import make_history
from tests.inspections import make_inspection
from tests.sensitivities import make_sensitivity
from tests.summaries import make_comparison, make_end_to_end, make_summary

STUDY = SimpleNamespace(name="demo")


@pytest.fixture
def drawings(monkeypatch, tmp_path):
    """An empty folder and results without a study; returns the details of each drawing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "gather", lambda *_, comparison=None, **__: Details(comparison=comparison))
    drawn, pictures = [], module.pictures

    def remembering(summary, details):
        drawn.append(details)
        return pictures(summary, details)

    monkeypatch.setattr(module, "pictures", remembering)
    return drawn


def test_equal_results_give_equal_files(drawings):
    files = draw(STUDY, make_summary(5))
    before = [file.read_bytes() for file in files]
    assert draw(STUDY, make_summary(5, seconds=77.0)) == files
    assert [file.read_bytes() for file in files] == before


def test_figures_without_data_any_more_are_removed_and_other_files_stay(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    summary, folder = make_summary(5), tmp_path / ".tuner/demo/figures/budget-0.3-seed-0"
    details = Details(make_history(), make_inspection(), make_comparison(1, own=summary), make_sensitivity())
    monkeypatch.setattr(module, "gather", lambda *_, **__: details)
    files = draw(STUDY, summary)
    assert len(list(folder.glob("*.html"))) == 12
    assert all(file.is_file() for file in files)
    (folder / "comparison.png").write_bytes(b"of an earlier version")
    (folder / "mine.png").write_bytes(b"of the user")
    monkeypatch.setattr(module, "gather", lambda *_, **__: Details())
    files = draw(STUDY, summary)
    written = {"report.html", "pareto.html", "pareto.png", "pareto.csv", "health.html", "health.csv"}
    assert {file.name for file in files} == written
    assert {file.name for file in folder.iterdir()} == written | {"plotly.min.js", "mine.png"}


@pytest.mark.quick
def test_each_search_has_figures_of_its_own():
    found = make_summary(5)
    searches = (
        found,
        replace(found, seed=1),
        replace(found, goal="max_drop", max_drop="0.02"),
        replace(found, goal="max_drop", max_drop="2 %"),
    )
    assert [folder_of(search).as_posix() for search in searches] == [
        f".tuner/demo/figures/{name}"
        for name in (
            "budget-0.3-seed-0",
            "budget-0.3-seed-1",
            "cheapest-0.02-seed-0",
            "cheapest-2-percent-seed-0",
        )
    ]


def test_a_sensitivity_study_of_something_else_is_not_shown():
    summary = make_summary(5)
    found = make_sensitivity(reference=summary.best.configuration)
    assert module._is_current(found, summary)
    # More trials chose another one; nothing that is allowed is left; a question was left out since.
    assert not module._is_current(make_sensitivity(), summary)
    assert not module._is_current(found, replace(summary, best=None, best_held_out=None))
    fewer = replace(summary.best_held_out, outcome=replace(summary.best_held_out.outcome, questions=599))
    assert not module._is_current(found, replace(summary, best_held_out=fewer))


def test_a_comparison_without_a_search_is_a_page_that_stands_alone(drawings, monkeypatch):
    monkeypatch.setattr("tuner.reporting.from_records.find_summary", lambda *_, **__: None)
    files = draw_comparison(STUDY, make_comparison(2))
    assert [file.name for file in files] == ["comparison.html", "comparison.csv", "comparison.json"]
    assert all(file.is_file() for file in files)
    both = draw_comparison(STUDY, make_comparison(2, end_to_end=make_end_to_end(make_summary(5))))
    assert [file.name for file in both if file not in files] == [
        f"comparison-end-to-end.{kind}" for kind in ("html", "csv")
    ]
    assert "<script src" not in files[0].read_text()
    assert drawings == []


def test_a_sensitivity_study_without_a_search_is_pages_that_stand_alone(drawings, monkeypatch):
    monkeypatch.setattr("tuner.reporting.from_records.find_summary", lambda *_, **__: None)
    files = draw_sensitivity(STUDY, make_sensitivity(maps=(), by_tag=()))
    assert [file.name for file in files] == [
        f"sensitivity-{name}" for name in ("indices.html", "indices.csv", "curves.html", "curves.csv")
    ]
    assert "<script src" not in files[0].read_text()
    assert drawings == []


def test_a_comparison_beside_a_search_is_not_computed_again(drawings, monkeypatch):
    summary = make_summary(5)
    comparison = make_comparison(2, own=summary)
    monkeypatch.setattr("tuner.reporting.from_records.find_summary", lambda *_, **__: summary)
    names = [file.name for file in draw_comparison(STUDY, comparison)]
    assert names[0] == "report.html"
    assert len(names) == len(set(names))
    assert {"comparison.csv", "comparison.json", "pareto.html"} <= set(names)
    (details,) = drawings
    assert details.comparison is comparison
