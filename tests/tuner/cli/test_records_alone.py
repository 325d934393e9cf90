"""`status`, `trials`, `report`, `export` and `sync` need the records alone, and change nothing of them."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.inspections import make_inspection
from tests.sensitivities import make_sensitivity
from tests.summaries import make_setting
from tests.tuner import fakes
from tuner.cli.main import main
from tuner.executors.in_process import InProcessExecutor
from tuner.records.store import Store
from tuner.reporting.from_records import load_summary
from tuner.reporting.inspection import pack
from tuner.study import Study

pytestmark = pytest.mark.quick

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """A command in this process: exit code, what it printed, its complaints."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tuner", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The host where a study was run: its folder and its records, with all that a report can hold."""
    folder = tmp_path / "here"
    study = replace(
        fakes.make_study(),
        questions=tuple(
            replace(question, tags={"kind": question.id[-1]}) for question in fakes.make_study().questions
        ),
    )
    write_study(folder / "studies" / "fake", study)
    database = folder / ".tuner" / "fake" / "tuner.db"
    database.parent.mkdir(parents=True)
    with fakes.open_store(database, study) as store:
        InProcessExecutor(fakes.FakeEvaluator(study)).run(fakes.make_loop(study, store))
        store.revise(replace(store.require("fake"), setting=asdict(make_setting())))
    url = f"sqlite:///{database}"
    summary = load_summary(study, database=url)
    assert summary.best is not None
    with Store.open(url) as store:
        store.require("fake")
        store.record_inspection(summary.best.configuration, pack(make_inspection()))
        found = make_sensitivity(
            study="fake",
            budget=summary.budget,
            reference=summary.best.configuration,
            split="tune",
        )
        store.record_sensitivity(summary.budget, json.dumps(asdict(found), default=bool))
    return folder


def write_study(folder: Path, study: Study) -> None:
    """Files that say what this study is; the videos and checkpoints in them are looked into by nobody."""
    for name, kind in (("model", "llava_onevision"), ("siglip", "siglip")):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "videos").mkdir()
    for video in study.videos:
        (folder / "videos" / video.name).write_bytes(b"video")
    lines = [
        {
            "id": question.id,
            "video": question.video,
            "question": question.text,
            "options": list(question.options or ()),
            "answer": question.answer,
            "tags": dict(question.tags),
        }
        for question in study.questions
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "study.yaml").write_text(
        f"model: model\ntext_encoder: siglip\nframes: {study.frames}\nscoring: {study.scoring}\n"
        f"max_new_tokens: {study.max_new_tokens}\n"
        f"split:\n  held_out_videos: [{', '.join(sorted(study.held_out))}]\n"
    )


@pytest.fixture
def copy(here: Path, tmp_path: Path) -> Iterator[Path]:
    """The database alone in a folder of another host, where nothing may be written."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    file = folder / "copy.db"
    with sqlite3.connect(here / ".tuner/fake/tuner.db") as database:
        database.execute("VACUUM INTO ?", (str(file),))
    file.chmod(0o444)
    folder.chmod(0o555)
    yield file
    folder.chmod(0o755)


def all_said(call: Call, out: Path, mlflow: Path, *records: str) -> dict[str, object]:
    """What the commands print and write about these records."""
    out.mkdir()
    shutil.copy(mlflow, out / "mlflow.db")
    said: dict[str, object] = {}
    for command in ("status", "trials"):
        for options in ((), ("--json",)):
            code, printed, complaints = call(command, *records, *options)
            assert (code, complaints) == (0, "")
            said[" ".join((command, *options))] = printed
    code, said["show"], complaints = call("show", *records, "--tracking-uri", f"sqlite:///{out}/mlflow.db")
    assert (code, complaints) == (0, "")
    for command, file, *options in (
        ("report", "report.html"),
        ("export", "best.json", "--accept-regressions", "--tracking-uri", f"sqlite:///{out}/mlflow.db"),
    ):
        code, _, complaints = call(command, *records, "--output", str(out / file), *options)
        assert (code, complaints) == (0, "")
        said[command] = (out / file).read_text()
    return said


def test_another_host_needs_the_database_alone_and_leaves_it_as_it_is(
    call: Call,
    here: Path,
    copy: Path,
    tmp_path: Path,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(here)
    expected = all_said(call, tmp_path / "one", empty_database, "--study", "fake")
    report = str(expected["report"])
    assert 'class="cards"' in report  # the inspection
    assert "tau_s" in report  # the sensitivity study
    before = copy.read_bytes()
    # Nothing of the folder in which it was run is left to be read: no files beside the records.
    shutil.rmtree(here)
    monkeypatch.chdir(copy.parent)
    url = f"sqlite:///{copy}"
    found = all_said(call, tmp_path / "other", empty_database, "--study", "fake", "--database", url)
    for name in ("status", "status --json", "show"):
        assert url in str(found[name])
        # The commands to type next name the database, too.
        found[name], expected[name] = (
            [line for line in str(item[name]).splitlines() if "sqlite:" not in line and "tuner " not in line]
            for item in (found, expected)
        )
    assert found == expected
    mlflow = f"sqlite:///{tmp_path}/other/mlflow.db"
    code, printed, complaints = call("list", "--database", url, "--json")
    assert (code, complaints) == (0, "")
    (listed,) = (load for load in json.loads(printed) if load["name"] == "fake")
    assert (listed["trials"], listed["folder"]) == (6, None)
    code, printed, complaints = call("sync", "--study", "fake", "--database", url, "--tracking-uri", mlflow)
    assert (code, complaints) == (0, "")
    assert "fake, 6 trials, 1 search" in printed
    assert [file.name for file in copy.parent.iterdir()] == ["copy.db"]
    assert copy.read_bytes() == before


def test_files_that_differ_are_told_in_one_line_and_the_records_are_shown(
    call: Call, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    before = call("status", "--study", "fake")
    assert (before[0], before[2]) == (0, "")
    file = here / "studies/fake/questions.jsonl"
    first, *rest = file.read_text().splitlines()
    values = json.loads(first)
    answer = next(value for value in values["options"] if value != values["answer"])
    file.write_text("\n".join([json.dumps(values | {"answer": answer, "tags": {}}), *rest]))
    text = "differs from the records; this is as of the last `tuner run`: "
    code, printed, complaints = call("status", "--study", "fake")
    assert (code, printed) == (0, before[1])
    assert complaints == (
        f"studies/fake/study.yaml {text}1 question changed (v00.mp4-q0): answer; other tags.\n"
    )
    # A video that is not here says nothing; a file that is broken says so.
    (here / "studies/fake/videos/v00.mp4").unlink()
    assert call("status", "--study", "fake") == (0, before[1], "")
    file.write_text("nonsense")
    code, printed, complaints = call("status", "--study", "fake")
    assert (code, printed) == (0, before[1])
    assert complaints.startswith(f"studies/fake/study.yaml {text}its files cannot be read (")


def test_a_study_that_is_not_in_the_database_is_one_message_with_those_that_are(
    call: Call, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy.parent)
    for command in ("status", "trials", "report", "export", "sync"):
        code, printed, complaints = call(command, "--study", "other", "--database", f"sqlite:///{copy}")
        assert (code, printed) == (2, "")
        assert "'other' has no records in sqlite:///" in complaints
        assert complaints.endswith("the studies there are fake\n")
        # Without a database it may be a slip of the pen.
        assert "there is no study 'other'" in call(command, "--study", "other")[2]
