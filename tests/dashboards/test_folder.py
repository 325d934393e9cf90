"""Figures are drawn once from the same results, and again when anything they show changed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from dashboards import folder as module
from dashboards.folder import Evidence, draw, draw_comparison
from tests.inspections import make_inspection
from tests.sensitivities import make_sensitivity
from tests.summaries import make_comparison, make_summary

STUDY = SimpleNamespace(name="demo")


@pytest.fixture
def drawings(monkeypatch, tmp_path):
    """An empty folder, results without a study; how often pictures were drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "gather", lambda *_, comparison=None, **__: Evidence(comparison=comparison))
    counted, pictures = [], module.pictures

    def counting(*given):
        counted.append(given)
        return pictures(*given)

    monkeypatch.setattr(module, "pictures", counting)
    return counted


def test_the_same_results_are_drawn_once(drawings):
    files = draw(STUDY, make_summary(5))
    before = {file: file.stat().st_mtime_ns for file in files}
    assert draw(STUDY, make_summary(5, seconds=77.0)) == files
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert len(drawings) == 1


@pytest.mark.parametrize(
    "what", ["another summary", "more evidence", "a file is gone", "an unreadable stamp"]
)
def test_whatever_changed_is_drawn_again(drawings, tmp_path, what):
    summary = make_summary(5)
    files = draw(STUDY, summary)
    comparison = None
    if what == "another summary":
        summary = replace(summary, max_drop="0.05")
    elif what == "more evidence":
        comparison = make_comparison(1, own=summary)
    elif what == "a file is gone":
        files[-1].unlink()
    else:
        (tmp_path / ".tuner/demo/figures/.drawn.json").write_text("[]")
    again = draw(STUDY, summary, comparison=comparison)
    assert len(drawings) == 2
    assert set(again) >= set(files)
    assert all(file.is_file() for file in again)


def test_a_figure_without_data_any_more_is_gone(drawings, tmp_path):
    summary = make_summary(5)
    draw(STUDY, summary, comparison=make_comparison(1, own=summary))
    folder = tmp_path / ".tuner/demo/figures"
    (folder / "mine.png").write_bytes(b"of somebody else")
    assert len(list(folder.glob("comparison.*"))) == 3
    draw(STUDY, summary)
    assert list(folder.glob("comparison.*")) == []
    assert {one.name for one in folder.glob("pareto.*")} == {"pareto.html", "pareto.png", "pareto.csv"}
    assert (folder / "mine.png").exists()


def test_ended_half_way_it_draws_again_and_still_removes_what_is_no_longer_so(
    drawings, monkeypatch, tmp_path
):
    summary = make_summary(5)
    draw(STUDY, summary, comparison=make_comparison(1, own=summary))
    folder = tmp_path / ".tuner/demo/figures"
    write = module._write

    def ended(drawn, folder):
        write(drawn[:1], folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", ended)
        with pytest.raises(KeyboardInterrupt):
            draw(STUDY, replace(summary, max_drop="0.05"), comparison=make_comparison(1, own=summary))
    (folder / "comparison.png").write_bytes(b"of the drawing that was ended")
    files = draw(STUDY, summary)
    assert all(file.is_file() for file in files)
    assert list(folder.glob("comparison.*")) == []
    assert (folder / "plotly.min.js").is_file()


def test_equal_results_have_the_same_stamp_whatever_made_them():
    summary = make_summary(3)
    name = "".join(["de", "mo"])
    other = replace(summary, study=name, trials=tuple(replace(one) for one in summary.trials))
    assert other == summary
    assert other.study is not summary.study
    assert module._stamp(other, Evidence()) == module._stamp(summary, Evidence())


def test_arrays_and_pictures_in_the_evidence_are_told_apart(tmp_path):
    summary, inspection = make_summary(2), make_inspection()
    stamp = module._stamp(summary, Evidence(inspection=inspection))
    assert module._stamp(summary, Evidence(inspection=make_inspection())) == stamp
    other = replace(inspection.cards[0], tokens=tuple(one[:-1] for one in inspection.cards[0].tokens))
    changed = replace(inspection, cards=(other, *inspection.cards[1:]))
    assert module._stamp(summary, Evidence(inspection=changed)) != stamp


def test_a_sensitivity_study_of_something_else_is_not_shown():
    summary = make_summary(5)
    found = make_sensitivity(reference=summary.best.configuration)
    assert module._holds(found, summary)
    # More trials chose another one; nothing that is allowed is left; a question was left out since.
    assert not module._holds(make_sensitivity(), summary)
    assert not module._holds(found, replace(summary, best=None, best_held_out=None))
    fewer = replace(summary.best_held_out, outcome=replace(summary.best_held_out.outcome, questions=599))
    assert not module._holds(found, replace(summary, best_held_out=fewer))


def test_a_comparison_without_a_search_is_drawn_alone(drawings, monkeypatch, tmp_path):
    monkeypatch.setattr("tuner.reporting.from_records.find_summary", lambda *_, **__: None)
    files = draw_comparison(STUDY, make_comparison(2))
    assert [file.name for file in files] == ["comparison.png", "comparison.csv", "comparison.json"]
    assert all(file.is_file() for file in files)
    assert (tmp_path / ".tuner/demo/figures/comparison.html").is_file()
    assert drawings == []


def test_a_comparison_beside_a_search_is_not_computed_again(drawings, monkeypatch):
    summary = make_summary(5)
    comparison = make_comparison(2, own=summary)
    monkeypatch.setattr("tuner.reporting.from_records.find_summary", lambda *_, **__: summary)
    names = [file.name for file in draw_comparison(STUDY, comparison)]
    assert names[0] == "report.html"
    assert len(names) == len(set(names))
    assert {"comparison.png", "comparison.csv", "comparison.json", "pareto.html"} <= set(names)
    ((_, evidence),) = drawings
    assert evidence.comparison is comparison
