"""`tuner report` writes one file where it was told to, or says in one message why not."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from dashboards.folder import Details, draw
from tests.inspections import make_inspection
from tests.summaries import make_comparison, make_summary
from tuner.cli.main import main


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """The console script in this process and an empty folder: exit code, what it printed, its complaints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tuner", "report", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return exit_.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def finished(monkeypatch):
    """A finished study; returns what its summary was asked for."""
    asked = {}

    def load_summary(study, **arguments):
        asked.update(arguments, study=study.name)
        return make_summary()

    monkeypatch.setattr("tuner.reporting.recorded.open_study", lambda name, *_: SimpleNamespace(name=name))
    monkeypatch.setattr("tuner.reporting.from_records.load_summary", load_summary)
    monkeypatch.setattr("dashboards.folder.gather", lambda *_, **__: Details())
    return asked


def test_the_report_is_written_where_it_was_asked_for(call, finished, tmp_path):
    (tmp_path / "out").mkdir()
    code, out, err = call("--study", "demo", "--budget", "0.3", "--seed", "2", "--output", "out/page.html")
    assert (code, out, err) == (0, "Report: out/page.html\n", "")
    assert finished == {"study": "demo", "budget": 0.3, "seed": 2, "database": None}
    assert "Yes: shown to lose no more than 8 points" in (tmp_path / "out" / "page.html").read_text()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["page.html"]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            "missing/report.html",
            "Error: the folder missing does not exist; --output writes into one that does.",
        ),
        (".", "Error: . is a folder; --output names a file."),
    ],
)
def test_an_output_that_cannot_be_is_one_message_before_any_work(call, finished, output, message):
    assert call("--study", "demo", "--output", output) == (2, "", message + "\n")
    assert finished == {}


def test_an_output_that_cannot_be_written_is_one_message(call, finished, tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    # Root may write anywhere: folders' permissions stop nobody here.
    monkeypatch.setattr("tuner.export.best_file.tempfile.mkstemp", refuse)
    assert call("--study", "demo") == (2, "", "Error: report.html cannot be written: Permission denied.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_was_never_run_is_one_message(call, tmp_path):
    code, out, err = call("--study", "demo")
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert "Traceback" not in err
    assert not (tmp_path / "report.html").exists()


def test_the_figures_of_a_run_hold_the_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = make_summary()
    details = Details(comparison=make_comparison(own=summary), inspection=make_inspection())
    monkeypatch.setattr("dashboards.folder.gather", lambda *_, **__: details)
    files = draw(SimpleNamespace(name="demo"), summary)
    names = [file.name for file in files]
    assert names[:4] == ["report.html", "pareto.html", "pareto.png", "pareto.csv"]
    assert names[4:] == [
        "comparison.csv",
        "cards.html",
        "cards.csv",
        "bias.csv",
        "health.html",
        "health.csv",
    ]
    page = files[0].read_text()
    for name in ("pareto", "comparison", "bias"):
        assert f'id="{name}-plot"' in page
    assert 'class="cards"' in page
    assert all(file.exists() for file in files)
