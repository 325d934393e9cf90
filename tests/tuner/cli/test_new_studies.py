"""init, import and list: what they print, and that what the documentation shows works when pasted."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.methods import AdaTP
from tests.summaries import make_outcome
from tests.tuner import fakes
from tests.tuner.importing.samples import SAMPLES, lmms_eval_line, write_rows
from tuner.records.store import Store
from tuner.study.values import Configuration

ROOT = Path(__file__).parents[3]


class Finished(NamedTuple):
    code: int
    out: str
    err: str


BROUGHT = "bring the unpruned model's answer by another program: `tuner run` says how many are the same here."

Call = Callable[..., Finished]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The console script, in this process and an empty folder."""
    from tuner.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["tuner", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return Finished(int(exit_.value.code or 0), printed.out, printed.err)

    return run


def write_videos(folder: str, names: list[str]) -> None:
    for name in names:
        file = Path(folder) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())


@pytest.mark.quick
def test_an_import_says_what_it_wrote_and_what_comes_next(call: Call) -> None:
    sample = next(sample for sample in SAMPLES if sample.format == "lmms-eval")
    write_videos("my clips", list(sample.videos))
    source = sample.write(Path(), [*sample.rows, sample.broken])
    arguments = ("import", "lmms-eval", str(source), "--to", "my data", "--videos", "my clips")
    refused = call(*arguments)
    assert refused.code == 2
    assert refused.err.splitlines() == [
        f"Error: {source}:4: {sample.reason}",
        "--skip-bad-rows leaves them out",
    ]
    assert not Path("studies").exists()
    finished = call(*arguments, "--skip-bad-rows")
    assert finished.code == 0
    assert finished.err.splitlines() == [f"Left out: {source}:4: {sample.reason}"]
    assert finished.out.splitlines() == [
        f"Wrote {Path('studies/my data/study.yaml').absolute()} and questions.jsonl beside it.",
        "3 questions about 2 videos, with answers.",
        "The videos stay in my clips: study.yaml names the folder, nothing was copied or linked.",
        "1 of the questions: baseline answer left out, as it names no option with certainty.",
        f"2 {BROUGHT}",
        "Next: tuner check --study 'my data'",
    ]


@pytest.mark.quick
def test_hundreds_of_rows_that_were_left_out_are_counted(call: Call) -> None:
    write_videos("clips", ["a.mp4", "b.mp4"])
    rows = [{"video": name, "question": "What?"} for name in ("a.mp4", "b.mp4", *["gone.mp4"] * 60)]
    write_rows(Path("ours.csv"), rows)
    finished = call("import", "csv", "ours.csv", "--to", "mydata", "--videos", "clips", "--skip-bad-rows")
    assert len(finished.err.splitlines()) == 51
    assert finished.err.splitlines()[-1] == "Left out: 10 more like these"


@pytest.mark.quick
def test_init_takes_questions_and_settings(call: Call) -> None:
    write_videos("clips", ["a.mp4", "b.mp4"])
    lines = [{"id": name, "video": name, "question": "What?"} for name in ("a.mp4", "b.mp4")]
    write_rows(Path("q.jsonl"), lines)
    finished = call(
        *("init", "mydata", "--videos", "clips", "--questions", "q.jsonl"),
        *("--model", "organisation/model", "--text-encoder", "organisation/siglip", "--frames", "8"),
    )
    assert finished.code == 0
    assert finished.out.splitlines()[-1] == "Next: tuner check --study mydata"
    assert "2 questions about 2 videos, label-free." in finished.out
    text = Path("studies/mydata/study.yaml").read_text()
    for line in ("model: organisation/model", "text_encoder: organisation/siglip", "frames: 8"):
        assert f"\n{line}\n" in text


def test_neither_helps_nor_the_commands_load_what_is_heavy(tmp_path: Path) -> None:
    program = """
import runpy, sys
def tuner(*arguments):
    sys.argv = ["tuner", *arguments]
    try:
        runpy.run_module("tuner.cli.main", run_name="__main__")
    except SystemExit as exit_:
        assert not exit_.code, arguments
def heavy(*names):
    print("loaded:", [name for name in names if name in sys.modules])
for command in ("init", "import", "list"):
    tuner(command, "--help")
heavy("torch", "ray", "mlflow", "optuna", "numpy", "pyarrow", "sqlalchemy")
tuner("init", "mydata", "--videos", ".", "--questions", "q.jsonl")
tuner("import", "csv", "ours.csv", "--to", "other")
tuner("list")
heavy("torch", "ray", "mlflow", "optuna", "pyarrow", "pandas")
"""
    rows = [{"video": name, "question": "What?"} for name in ("a.mp4", "b.mp4")]
    write_rows(tmp_path / "ours.csv", rows)
    write_rows(tmp_path / "q.jsonl", [row | {"id": row["video"]} for row in rows])
    for row in rows:
        (tmp_path / row["video"]).write_bytes(b"video")
    finished = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert [line for line in finished.stdout.splitlines() if "loaded" in line] == ["loaded: []"] * 2


# list


@pytest.mark.quick
def test_list_shows_studies_and_the_state_of_their_records(call: Call) -> None:
    write_videos("clips", ["a.mp4", "b.mp4"])
    lines = [{"id": name, "video": name, "question": "What?", "answer": "x"} for name in ("a.mp4", "b.mp4")]
    write_rows(Path("q.jsonl"), lines)
    call("init", "mydata", "--videos", "clips", "--questions", "q.jsonl", "--model", "organisation/model")
    Path("studies/broken").mkdir()
    Path("studies/broken/study.yaml").write_text("model: [")
    study = fakes.make_study()  # whose definition is somewhere else
    Path(".tuner/fake").mkdir(parents=True)
    with fakes.open_store(Path(".tuner/fake/tuner.db"), study):
        pass
    Path(".tuner/old").mkdir()
    Path(".tuner/old/tuner.db").write_text("no database")
    shown = call("list")
    assert shown.code == 0
    rows = [line.split() for line in shown.out.splitlines() if line.strip()]
    assert rows[0] == ["study", "videos", "questions", "model", "records"]
    assert rows[2:] == [
        ["broken", "-", "-", "-", "none"],
        ["demo", "400", "880", "model", "none"],
        ["fake", "-", "-", "-", "0", "trials"],
        ["mydata", "2", "2", "organisation/model", "none"],
        ["old", "-", "-", "-", "of", "another", "version,", "or", "not", "readable"],
    ]
    found = {load["name"]: load for load in json.loads(call("list", "--json").out)}
    assert found["mydata"]["labelled"] is True
    assert found["fake"]["trials"] == 0
    with Store.open("sqlite:///.tuner/fake/tuner.db") as store:
        store.archive("fake")
    assert "archived" in call("list").out


@pytest.mark.quick
def test_list_counts_completed_trials_in_a_shared_database(call: Call) -> None:
    with fakes.open_store(Path("shared.db"), fakes.make_study()) as store:
        search = store.search(0.35, 0, "budget", 3)
        for number in range(3):  # the last one was killed
            configuration = Configuration.from_method(AdaTP(p=0.8 + number / 100))
            store.propose(search, number, configuration, 0.3)
            if number < 2:
                store.record({}, completed=(number, make_outcome()))
    assert re.search(r"fake .* 2 trials", call("list", "--database", "sqlite:///shared.db").out)
    assert call("list", "--database", "sqlite:///gone.db").code == 2


# What the documentation shows


def documented() -> list[list[str]]:
    text = (ROOT / "docs" / "study-format.md").read_text()
    commands = re.findall(r"^    (tuner (?:init|import|list).*)$", text, flags=re.MULTILINE)
    return [shlex.split(command)[1:] for command in commands]


def test_the_documented_commands_work(call: Call) -> None:
    """With the file names of the documentation, and sources in the published shapes."""
    sources = {
        "videomme": "videomme/test-00000-of-00001.parquet",
        "mlvu": "MLVU/json",
        "longvideobench": "LongVideoBench/lvb_val.json",
        "lmms-eval": "logs/20261128_101112_samples_videomme.jsonl",
        "llama-factory": "data/train.json",
        "csv": "questions.csv",
        "vlmevalkit": "Video-MME.tsv",
    }
    commands = documented()
    assert {command[1] for command in commands if command[0] == "import"} == set(sources)
    for name, file in sources.items():
        sample = next(sample for sample in SAMPLES if sample.format == name)
        target = Path(file)
        target = target if target.suffix else target / sample.file
        target.parent.mkdir(parents=True, exist_ok=True)
        write_rows(target, sample.rows)
    write_rows(Path("logs/baseline.jsonl"), [lmms_eval_line(number, None, "A", ["A"]) for number in (1, 2)])
    for folder in {word for command in commands for word in command if word.startswith("clips")}:
        for sample in SAMPLES:
            write_videos(folder, list(sample.videos))
    Path("subtitle").mkdir()
    asked = [{"id": name, "video": name, "question": "What?"} for name in ("a.mp4", "b.mp4")]
    write_rows(Path("questions.jsonl"), asked)
    for number, command in enumerate(commands):
        if "--to" in command:  # a study of its own for each
            command[command.index("--to") + 1] = f"study{number}"
        if command[0] == "init" and "--questions" not in command:
            continue  # needs videos that can be decoded: tests/tuner/importing/test_first_study.py
        finished = call(*command)
        assert finished.code == 0, (command, finished.err)
