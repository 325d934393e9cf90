"""The commands parse, call one library function, print; a user's mistake is one message and exit code 2."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from rich.console import Console

from pipeline.errors import NotFiniteError
from pipeline.methods import AdaTP
from tests.summaries import make_summary
from tests.tuner import fakes
from tuner.cli.progress import BarProgress, LineProgress
from tuner.cli.show import _searches
from tuner.errors import DiskFullError
from tuner.executors.in_process import InProcessExecutor
from tuner.records.definition import definition
from tuner.records.store import Store
from tuner.records.values import Pruned
from tuner.reporting.from_records import SearchStatus, summarise
from tuner.reporting.values import Recorded
from tuner.study import Search
from tuner.study.values import Configuration

COLORS = ["red", "green", "blue", "yellow"]


@dataclass
class Finished:
    code: int
    out: str
    err: str


def tuner(*arguments: str, folder: Path | None = None, **environment: str) -> Finished:
    """The console script, in a process of its own."""
    finished = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:tuner", "-m", "tuner.cli.entry", *arguments],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(Path(__file__).parents[3]), "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
        | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Finished(finished.returncode, finished.stdout, finished.stderr)


@pytest.fixture
def call(monkeypatch, capsys):
    """The console script, in this process."""
    from tuner.cli.main import main

    def run(*arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["tuner", *arguments])
        # Set so that what the command sets is gone afterwards.
        for name, value in (("COLUMNS", "100"), ("TRANSFORMERS_VERBOSITY", "error")):
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return Finished(exit_.value.code or 0, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A study with real video files and a tiny random model, in ./studies/tiny."""
    from tests.checkpoints import scenes, write_checkpoints
    from tests.videos import write_video

    folder = tmp_path_factory.mktemp("tiny")
    study = folder / "studies" / "tiny"
    (study / "videos").mkdir(parents=True)
    write_checkpoints(study)
    lines = []
    for index in range(4):
        write_video(study / "videos" / f"v{index}.mp4", scenes(16, scene_length=4, seed=index))
        for place in ("top", "left", "bottom"):
            question = {
                "id": f"v{index}-{place}",
                "video": f"v{index}.mp4",
                "question": f"what color is the {place} of the ring?",
                "options": COLORS,
                "answer": COLORS[(index + len(place)) % 4],
                "tags": {"place": place},
            }
            lines.append(json.dumps(question))
    (study / "questions.jsonl").write_text("\n".join(lines) + "\n")
    (study / "study.yaml").write_text(
        "model: model\ntext_encoder: siglip\nframes: 8\nscoring: words\nsplit:\n  held_out: 0.5\n"
    )
    return folder


def test_help_comes_at_once_and_loads_nothing_heavy():
    program = (
        "import sys, tuner.cli.entry\n"
        "from typer.main import get_command\n"
        "from typer.testing import CliRunner\n"
        "from tuner.cli.main import app\n"
        "asked = ['--help'], *([name, '--help'] for name in get_command(app).commands)\n"
        "codes = {CliRunner().invoke(app, one).exit_code for one in asked}\n"
        "heavy = ('torch', 'ray', 'mlflow', 'optuna', 'transformers', 'numpy', 'sqlalchemy')\n"
        "print([name for name in heavy if name in sys.modules], codes)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert finished.stdout.splitlines()[-1] == "[] {0}"
    # Of computing, not of waiting: other work on the machine plays no part.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


@pytest.mark.quick
@pytest.mark.parametrize(
    "command",
    [
        *((), ("init",), ("import",), ("list",), ("run",), ("compare",), ("verify",), ("doctor",)),
        *(("status",), ("trials",), ("export",), ("sync",)),
    ],
)
def test_every_command_has_help(call, command):
    finished = call(*command, "--help")
    assert finished.code == 0
    assert "Usage" in finished.out


@pytest.mark.quick
def test_the_version_is_printed(call):
    assert call("--version").out.startswith("tuner ")


@pytest.mark.quick
@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.parametrize("budget", ["0", "-0.1", "1.5", "nan"])
def test_a_budget_out_of_range_is_one_message(call, command, budget):
    finished = call(command, "--study", "demo", "--budget", budget)
    assert finished.code == 2
    assert "(0, 1]" in finished.err
    assert "Traceback" not in finished.err


@pytest.mark.quick
@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--study", "demo"),
        ("run", "--study", "demo", "--budget", "much"),
        ("run", "--study", "demo", "--budget", "3%%"),
        ("run", "--study", "demo", "--budget", "0.3", "--max-drop="),
        ("run", "--study", "demo", "--max-drop", ""),
        ("run", "--study", "demo", "--budget", "0.3", "--trials", "-1"),
        ("run", "--study", "demo", "--budget", "0.3", "--workers", "0"),
        ("run", "--study", "demo", "--budget", "0.3", "--sampler", "nsga2"),
        ("run", "--study", "no-such-study", "--budget", "0.3"),
        ("compare", "--study", "demo"),
        ("compare", "--budget", "0.3"),
        ("compare", "--study", "demo", "--budget", "0.3", "--batch", "0"),
        ("compare", "--study", "no-such-study", "--budget", "0.3"),
        ("status", "--study", "no-such-study"),
        ("export", "--study", "no-such-study"),
        ("trials", "--study", "no-such-study"),
        ("sync", "--study", "no-such-study"),
        ("nonsense",),
    ],
)
def test_a_mistake_ends_with_exit_code_two_and_no_traceback(call, arguments):
    finished = call(*arguments)
    assert finished.code == 2
    assert finished.err.strip()
    assert "Traceback" not in finished.err


@pytest.mark.quick
@pytest.mark.parametrize("command", ["status", "trials", "export", "sync"])
def test_a_study_that_was_never_run_says_what_makes_its_records(call, tiny, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    finished = call(command, "--study", str(tiny / "studies" / "tiny"))
    assert finished.code == 2
    assert "tuner run" in finished.err


@pytest.mark.quick
def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    import tuner.reporting.recorded
    from tuner.cli.main import main

    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(tuner.reporting.recorded, "opened", broken)
    monkeypatch.setattr(sys, "argv", ["tuner", "status", "--study", "demo"])
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.quick
def test_compare_prints_its_table_and_where_it_is_recorded(call, monkeypatch, tmp_path):
    import tuner.runs.compare
    import tuner.study
    from dashboards import folder
    from tests.summaries import make_held_out
    from tuner.export.mlflow_mirror import MlflowMirror
    from tuner.reporting.values import Compared, Comparison
    from tuner.statistics.values import Measured

    monkeypatch.chdir(tmp_path)
    held_out = make_held_out(Configuration.from_method(AdaTP()))
    found = Comparison("demo", "hash", 0.3, Measured(0.94), None, (Compared("AdaTP, defaults", held_out),))
    asked, told = [], []
    monkeypatch.setattr(tuner.study, "load_study", lambda *_, **__: SimpleNamespace(model="example/model"))
    monkeypatch.setattr(
        tuner.runs.compare, "compare", lambda study, options, _: asked.append(options) or found
    )
    monkeypatch.setattr(folder, "draw_comparison", lambda _, one, __: (Path(f"{one.study}.json"),))
    recorded = Recorded("run", "http://127.0.0.1:5000/#/somewhere")
    monkeypatch.setattr(
        MlflowMirror, "record_files", lambda _, *given, owner: told.append((*given, owner)) or recorded
    )
    finished = call("compare", "--study", "demo", "--budget", "0.3", "--workers", "3", "--batch", "1")
    assert (finished.code, finished.err) == (0, "")
    assert (asked[0].budget, asked[0].workers, asked[0].batch) == (0.3, 3, 1)
    assert "-5.0 [-7.0, -3.0]" in finished.out
    # The width of these tests' terminal.
    assert max(map(len, finished.out.splitlines())) <= 100
    assert "type `mlflow ui` in this folder; the experiment is adatp/demo" in finished.out
    assert told == [("demo", "hash", 0.3, (Path("demo.json"),), "")]
    monkeypatch.setenv("TUNER_OWNER", "anna")
    call("compare", "--study", "demo", "--budget", "0.3", "--database", "postgresql://anna@db/tuner")
    assert told[1] == ("demo", "hash", 0.3, (Path("demo.json"),), "anna")
    as_json = call("compare", "--study", "demo", "--budget", "0.3", "--json")
    assert (as_json.code, as_json.err) == (0, "")
    assert json.loads(as_json.out)["rows"][0]["name"] == "AdaTP, defaults"


@pytest.mark.quick
def test_an_interrupted_run_ends_with_the_code_of_ctrl_c_and_the_command_that_goes_on(call, monkeypatch):
    import tuner.runs.run
    import tuner.study

    def interrupted(*_):
        raise tuner.runs.run.InterruptedRunError("Interrupted with 3 trials complete.")

    monkeypatch.setattr(tuner.study, "load_study", lambda *_, **__: SimpleNamespace(model="example/model"))
    monkeypatch.setattr(tuner.runs.run, "run", interrupted)
    finished = call("run", "--study", "my study", "--budget", "0.3")
    assert finished.code == 130
    assert finished.err.splitlines() == [
        "Interrupted with 3 trials complete.",
        "NEXT  tuner run --study 'my study' --budget 0.3",
    ]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("command", "driver"), [("run", "runs.run.run"), ("compare", "runs.compare.compare")]
)
def test_an_answer_that_is_not_a_number_is_one_sentence_and_exit_code_two(call, monkeypatch, command, driver):
    import tuner.runs.compare
    import tuner.runs.run
    import tuner.study

    def overflowing(*_):
        raise NotFiniteError.of("The model's answer to question 'q7'")

    monkeypatch.setattr(tuner.study, "load_study", lambda *_, **__: SimpleNamespace(model="example/model"))
    monkeypatch.setattr(f"tuner.{driver}", overflowing)
    finished = call(command, "--study", "demo", "--budget", "0.3")
    assert finished.code == 2
    assert finished.err == (
        "Error: The model's answer to question 'q7' is not a finite number. The usual causes are float16 "
        "where the model needs the range of bfloat16 or float32, and damaged weights.\n"
    )


@pytest.mark.quick
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "figures/pareto.png"),
        DiskFullError.of("figures/pareto.png", "No space left on device"),
    ],
)
def test_a_full_disk_is_one_message_and_exit_code_one(call, monkeypatch, error):
    import tuner.runs.run
    import tuner.study

    def full(*_):
        raise error

    monkeypatch.setattr(tuner.study, "load_study", lambda *_, **__: SimpleNamespace(model="example/model"))
    monkeypatch.setattr(tuner.runs.run, "run", full)
    finished = call("run", "--study", "demo", "--budget", "0.3")
    assert finished.code == 1
    assert finished.err == (
        "There is no room to write figures/pareto.png: No space left on device. Everything recorded is kept: "
        "make room, and the same command continues from there.\n"
    )


@pytest.mark.quick
def test_other_errors_of_the_system_are_our_mistakes(call, monkeypatch):
    import tuner.reporting.recorded

    def broken(*_, **__):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "somewhere")

    monkeypatch.setattr(tuner.reporting.recorded, "opened", broken)
    with pytest.raises(FileNotFoundError):
        call("status", "--study", "demo")


@pytest.mark.quick
def test_a_second_driver_is_told_who_holds_the_study_and_readers_are_not_refused(
    call, tiny, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    study, url = str(tiny / "studies" / "tiny"), f"sqlite:///{tmp_path}/x.db"
    with Store.open(url) as store, store.held("tiny"):
        finished = call("run", "--study", study, "--budget", "0.5", "--workers", "1", "--database", url)
        assert finished.code == 2
        assert f"'tiny' is being run by process {os.getpid()} of " in finished.err
        assert "Traceback" not in finished.err
        # There are tables by now, but no study.
        assert "has no records" in call("status", "--study", study, "--database", url).err


@pytest.fixture
def fake_study(tmp_path):
    """A run of a study without a model, with a pruned trial and one that was killed."""
    study = fakes.make_study()
    with fakes.open_store(tmp_path / "fake.db", study) as store:
        InProcessExecutor(fakes.FakeEvaluator(study, hungry="v03.mp4-q0")).run(fakes.make_loop(study, store))
        search = store.searches()[0]
        for number in (6, 7):
            method = AdaTP(p=0.8 + number / 100)
            store.propose(
                search,
                number,
                Configuration.from_method(method),
                0.4,
                "above",
            )
        store.record({}, pruned=(6, Pruned(by=2, videos=3)))
    return f"sqlite:///{tmp_path}/fake.db"


def redefine(url: str, search: Search) -> None:
    """As if study.yaml had got another search section, and the study was run since."""
    with Store.open(url) as store:
        record = store.require("fake")
        store.revise(replace(record, definition=definition(replace(fakes.make_study(), search=search))))


@pytest.mark.quick
def test_trials_lists_every_trial(call, fake_study):
    shown = call("trials", "--study", "fake", "--database", fake_study)
    assert shown.code == 0
    lines = shown.out.splitlines()
    for name in ("tau_s", "gamma_", "accuracy", "FLOPs", "end to", "budget"):
        assert name in shown.out
    assert [line.split()[0].rstrip("*") for line in lines[3:11]] == list("01234567")
    assert sum(line.endswith("pruned by 2") for line in lines) == 1
    assert sum(line.endswith("unfinished") for line in lines) == 1
    assert sum("> 0.35" in line for line in lines) == 2

    assert "deduplicate" not in shown.out

    rows = json.loads(call("trials", "--study", "fake", "--database", fake_study, "--json").out)
    with Store.open(fake_study) as store:
        store.find("fake")
        found = store.trials()
    assert [row["number"] for row in rows] == list(range(8))
    assert [row["state"] for row in rows] == ["complete"] * 6 + ["pruned", "unfinished"]
    for row, trial in zip(rows[:6], found[:6], strict=True):
        assert row["parameters"] == dict(trial.configuration.parameters)
        assert row["accuracy"] == trial.outcome.accuracy
        assert row["logprob_change"] == trial.outcome.logprob_change
        assert row["flops_ratio_end_to_end"] == trial.outcome.flops_ratio_end_to_end
        assert (row["regressions"], row["gained"]) == (trial.outcome.regressions, trial.outcome.gained)
        assert row["within_budget"]
    assert (rows[6]["pruned_by"], rows[6]["pruned_after"], rows[6]["accuracy"]) == (2, 3, None)
    assert (rows[7]["purpose"], rows[7]["within_budget"]) == ("above", False)
    front = [(row["flops_ratio"], row["accuracy"]) for row in rows if row["on_front"]]
    assert front
    assert all(row["allowed"] for row in rows)
    with Store.open(fake_study) as store:
        best = summarise(fakes.make_study(), store, store.require("fake"), store.searches()[0]).best
    assert {row["number"]: row["best_of"] for row in rows if row["best_of"]} == {
        best.number: ["budget 0.35, seed 0"]
    }
    assert f"* trial {best.number}: the best of budget 0.35, seed 0" in lines
    assert [line.split()[0] for line in lines if line.lstrip()[:2].endswith("*")] == [f"{best.number}*"]
    assert sorted(front) == sorted(front, key=lambda point: point[1])


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--trial", "6"), "trial 6 was stopped after 3 videos, because trial 2 did better"),
        (("--trial", "7"), "trial 7 is not complete"),
        (("--trial", "99"), "has no trial 99; its trials are 0 to 7"),
        (("--trial", "0", "--top", "2"), "give one of them"),
        (("--measure",), "--measure is for --trial and --top"),
        (("--seed", "5", "--top", "3"), "has no such search"),
    ],
)
def test_a_trial_that_cannot_be_exported_is_one_message(
    call, fake_study, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    finished = call("export", "--study", "fake", "--database", fake_study, *arguments)
    assert (finished.code, list(tmp_path.glob("*.json"))) == (2, [])
    assert message in finished.err


@pytest.mark.quick
def test_the_schema_is_printed(call):
    assert json.loads(call("export", "--schema").out)["$defs"]["adatp"]


def test_doctor_says_what_is_to_be_done(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished = call("doctor", "--json", "--database", f"sqlite:///{tmp_path}/none.db")
    checks = {load["name"]: load for load in json.loads(finished.out)["checks"]}
    assert {"python", "torch", "GPU", "memory", "disk", "PyAV", "decord", "Hugging Face Hub"} < set(checks)
    assert "is not there yet" in checks["database"]["found"]
    (tmp_path / "none.db").write_text("no database")
    finished = call("doctor", "--database", f"sqlite:///{tmp_path}/none.db")
    assert finished.code == 1
    assert "TO DO database" in finished.out
    finished = call("doctor", "--database", f"sqlite:///{tmp_path}/none.db/fake/tuner.db")
    assert finished.code == 1
    assert f"{tmp_path}/none.db is no folder that can be written" in finished.out


def test_doctor_tries_a_storage(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tuner.runs.doctor.versions", lambda: ())
    (tmp_path / "file").touch()
    for storage, passed, found in (
        (str(tmp_path), True, f"{tmp_path} can be written"),
        (f"{tmp_path}/new/er", True, f"{tmp_path}/new/er is not there yet: `tuner run` makes it"),
        ("memory://there/clips", True, "memory://there/clips can be written and read"),
        (str(tmp_path / "file"), False, f"--storage is a folder or a URL, but {tmp_path}/file is a file"),
        ("nothing://bucket", False, "--storage nothing://bucket is no folder and no URL that fsspec knows"),
    ):
        finished = call("doctor", "--json", "--storage", storage)
        (check,) = [item for item in json.loads(finished.out)["checks"] if item["name"] == "storage"]
        assert (check["passed"], check["found"].startswith(found)) == (passed, True), check
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert fsspec.filesystem("memory").find("memory://there") == []


@pytest.mark.quick
def test_trials_marks_what_the_study_does_not_allow_any_more(call, fake_study):
    with Store.open(fake_study) as store:
        store.find("fake")
        low, *_, high = sorted(float(trial.configuration.get("tau_t")) for trial in store.trials()[:6])
    redefine(fake_study, Search(bounds=(("tau_t", (low + 1e-6, high)),)))
    shown = call("trials", "--study", "fake", "--database", fake_study)
    (line,) = [line for line in shown.out.splitlines() if line.endswith("not allowed")]
    rows = json.loads(call("trials", "--study", "fake", "--database", fake_study, "--json").out)
    (outside,) = [row for row in rows if not row["allowed"]]
    assert outside["parameters"]["tau_t"] == low
    assert int(line.split()[0].rstrip("*")) == outside["number"]
    assert (outside["on_front"], outside["best_of"]) == (False, [])


@pytest.mark.quick
def test_trials_shows_a_choice_that_is_listed_or_was_made(call, fake_study):
    redefine(fake_study, Search(choices=(("deduplicate", ("demote", "drop")),)))
    shown = call("trials", "--study", "fake", "--database", fake_study)
    assert shown.out.count(" demote") == 8

    redefine(fake_study, Search())
    method = AdaTP(p=0.4, score_query="mean")
    with Store.open(fake_study) as store:
        store.find("fake")
        store.propose(store.searches()[0], 8, Configuration.from_method(method), 0.3)
    shown = call("trials", "--study", "fake", "--database", fake_study)
    assert shown.out.count(" last") == 8
    assert shown.out.count(" mean") == 1
    assert "demote" not in shown.out


@pytest.mark.quick
def test_show_cuts_no_word_on_80_columns():
    search = SearchStatus(
        *(1.0, 0, "max_drop", 40, 40, 12, make_summary().best, None, 4, "max_drop", "0.03", "not_shown")
    )
    console = Console(file=io.StringIO(), width=80)
    console.print(_searches(SimpleNamespace(searches=[search])))
    (head,) = [line for line in console.file.getvalue().splitlines() if "seed" in line]
    assert head.split() == "search seed trials infeasible best tune held-out (tune) drop".split()


@pytest.mark.quick
def test_status_tells_of_stopped_trials_quarantined_questions_and_who_runs_it(call, fake_study):
    with Store.open(fake_study) as store, store.held("fake"):
        shown = call("show", "--study", "fake", "--database", fake_study).out
        running = call("status", "--study", "fake", "--database", fake_study).out
        as_json = json.loads(call("status", "--study", "fake", "--database", fake_study, "--json").out)
    text = " ".join(shown.split())
    assert "baseline 23 of 23 questions, 6 trials complete, 1 begun, 1 pruned early" in text
    assert "Left out: question v03.mp4-q0 (asked alone for the baseline: MemoryError: no room" in text
    assert "A run goes on: 7 of 6 trials are done." in running
    assert as_json["running"]["pid"] == os.getpid()
    assert (as_json["trials_pruned"], list(as_json["quarantined"])) == (1, ["v03.mp4-q0"])
    assert "A run goes on" not in call("status", "--study", "fake", "--database", fake_study).out


@pytest.mark.quick
def test_every_option_reaches_the_driver(call, monkeypatch):
    import tuner.runs.run
    import tuner.study
    from dashboards import folder
    from tuner.export.mlflow_mirror import MlflowMirror

    seen = []

    def load(name, skip_bad_videos):
        return SimpleNamespace(name=name, skip=skip_bad_videos, model="example/model")

    def run(study, options, progress):
        seen.append((study, options))
        return make_summary()

    monkeypatch.setattr(tuner.study, "load_study", load)
    monkeypatch.setattr(tuner.runs.run, "run", run)
    monkeypatch.setattr(folder, "draw", lambda *_: (Path(".tuner/demo/figures/report.html"),))
    monkeypatch.setattr(MlflowMirror, "record", lambda *_: Recorded("run", "http://127.0.0.1:5000/#/x"))
    finished = call(
        *"run --study here --budget 25% --max-drop 3% --accept-weak-baseline".split(),
        *"--trials 60 --seed 3 --timeout 90 --workers 2".split(),
        *"--gpus-per-worker 0.5".split(),
        *"--address auto --database sqlite:///x.db --skip-bad-videos --sampler random".split(),
    )
    assert finished.code == 0
    (study, options), *more = seen
    assert more == []
    assert (study.name, study.skip) == ("here", True)
    assert options == tuner.runs.run.RunOptions(
        budget=0.25,
        max_drop="3%",
        accept_weak_baseline=True,
        trials=60,
        seed=3,
        timeout=90.0,
        workers=2,
        gpus_per_worker=0.5,
        address="auto",
        database="sqlite:///x.db",
        sampler="random",
        skip_bad_videos=True,
    )
    assert "MAY I SHIP IT?  YES" in finished.out
    assert "tuner export --study here --output best.json --database sqlite:///x.db" in finished.out
    assert "report          .tuner/demo/figures/report.html" in finished.out
    assert "mlflow ui" in finished.out


@pytest.mark.quick
def test_status_names_the_winner_of_the_search_that_was_run_last(call, fake_study):
    """As run and export do; another search where it is named, and the others in a line."""
    study = fakes.make_study()
    with Store.open(fake_study) as store:
        store.find("fake")
        loop = fakes.make_loop(study, store, budget=1.0, goal="max_drop", max_drop="0.5")
        InProcessExecutor(fakes.FakeEvaluator(study)).run(loop)
        records = store.require("fake")
        earlier, latest = (summarise(study, store, records, search) for search in store.searches())
    asked = ("--study", "fake", "--database", fake_study)
    shown = call("status", *asked).out
    assert shown.startswith("fake, cheapest within 0.5: ")
    assert f"tuned (trial {latest.best.number})" in shown
    assert f"other searches  budget 0.35 (trial {earlier.best.number}, " in shown
    assert f"trial {latest.best.number}" in call("show", *asked).out
    named = call("status", *asked, "--budget", "0.35").out
    assert named.startswith("fake, budget 0.35: ")
    assert f"tuned (trial {earlier.best.number})" in named
    assert "--budget 0.35 --seed 0" in named
    unknown = call("status", *asked, "--seed", "9")
    assert (unknown.code, "cheapest within 0.5 (--budget 1 --seed 0)" in unknown.err) == (2, True)


@pytest.mark.quick
def test_status_of_a_study_that_was_never_searched_says_what_begins_it(call, tmp_path):
    url = f"sqlite:///{tmp_path}/fake.db"
    fakes.open_store(tmp_path / "fake.db", fakes.make_study()).close()
    shown = call("status", "--study", "fake", "--database", url)
    assert shown.code == 0
    assert "nothing was searched yet, 24 unpruned answers are missing, nobody is running it." in shown.out
    assert f"NEXT  tuner run --study fake --budget 0.3 --database {url}" in shown.out
    refused = call("show", "--study", "fake", "--database", url)
    assert (refused.code, "nothing was searched in the study 'fake' yet" in refused.err) == (2, True)


def mirror(folder: Path) -> list[str]:
    """All that MLflow holds."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        return [
            repr(row)
            for table in ("runs", "params", "metrics", "tags")
            for row in database.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3")
        ]


def test_run_status_and_export_on_a_real_study(tiny, call, monkeypatch):
    """The whole way, as a newcomer types it: what computes in a process of its own, all else in this one."""
    monkeypatch.chdir(tiny)
    # Random weights do no better than guessing.
    run = ("run", "--study", "tiny", "--budget", "0.5", "--trials", "3", "--accept-weak-baseline")
    # With more workers, Ray's, it takes several times as long; tests of the library have them.
    run = (*run, "--workers", "1")
    begun = tuner(*run, folder=tiny)
    assert begun.code == 0, begun.err
    for text in ("accuracy, held-out", "tau_s", "alpha_boost", "FLOPs, LLM prefill", "lost", "mlflow ui"):
        assert text in begun.out
    assert len(begun.out.splitlines()) <= 25
    assert "figures/budget-0.5-seed-0/report.html" in begun.out
    for phase in ("encoding: ", "baseline: ", "search: ", "held-out", "serving: "):
        assert phase in begun.err
    assert "held-out accuracy" in call("show", "--study", "tiny").out
    for file in (
        ".tuner/tiny/figures/budget-0.5-seed-0/pareto.html",
        ".tuner/tiny/figures/budget-0.5-seed-0/pareto.png",
        "mlflow.db",
        "mlartifacts",
    ):
        assert (tiny / file).exists(), file
    assert "Traceback" not in begun.err

    shown = call("status", "--study", "tiny", "--json")
    assert json.loads(shown.out)["trials_completed"] == 3

    export = ("export", "--study", "tiny", "--output", "best.json")
    refused = call(*export)
    assert (refused.code, (tiny / "best.json").exists()) == (2, False)
    assert "no configuration is shown to stay within 3 points" in refused.err
    # Two held-out videos prove nothing.
    export = (*export, "--accept-regressions", "--accept-weak-baseline")
    written = tuner(*export, folder=tiny)
    assert written.code == 0, written.err
    assert "wrote           best.json: trial " in written.out
    best = json.loads((tiny / "best.json").read_text())
    assert best["measured"]["flops_ratio"] <= 0.5
    assert best["model"]["id"] == "studies/tiny/model"
    assert best["provenance"]["mlflow_run"]
    assert (best["verdict"], best["accepted_regressions"]) == ("not_shown", True)

    number = next(number for number in range(3) if number != best["provenance"]["trial"])
    hand = (*export, "--output", "hand.json", "--trial", str(number))
    refused = call(*(text for text in hand if not text.startswith("--accept")))
    assert (refused.code, (tiny / "hand.json").exists()) == (2, False)
    # A trial that the search tested on held-out videos keeps that look; another takes one of its own.
    known = number in best["looks"][0]["candidates"]
    assert known or "--measure` asks what is missing and tests it, which is look 2" in refused.err
    by_hand = call(*hand, "--measure")
    assert by_hand.code == 0, by_hand.err
    content = json.loads((tiny / "hand.json").read_text())
    assert (content["provenance"]["trial"], content["provenance"]["chosen_by_hand"]) == (number, True)
    assert (content["look"], [candidate["trial"] for candidate in content["tested"]]) == (
        1 if known else 2,
        [number],
    )
    own_looks = [(look["goal"], look["candidates"]) for look in content["looks"][1:]]
    assert own_looks == ([] if known else [("trial", [number])])
    # Once more it is the same look.
    assert call(*hand, "--measure").code == 0
    assert json.loads((tiny / "hand.json").read_text()) == content
    assert call(*export).code == 0

    listed = call("trials", "--study", "tiny", "--json")
    assert [row["state"] for row in json.loads(listed.out) if row["purpose"] == "search"] == ["complete"] * 3

    mirrored = mirror(tiny)
    synced = call("sync", "--study", "tiny")
    assert synced.code == 0, synced.err
    assert "3 trials, 1 search; nothing was missing: " in synced.out
    assert mirror(tiny) == mirrored

    before = (tiny / "best.json").read_bytes()
    again = call(*run, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["best"]["trial"] == best["provenance"]["trial"]
    assert call(*export).code == 0
    assert (tiny / "best.json").read_bytes() == before

    from pipeline import load

    with pytest.warns(UserWarning, match="is not shown to lose no more than 3 points"):
        deployed = load(tiny / "best.json")
    answer = deployed.answer(
        tiny / "studies/tiny/videos/v0.mp4", "what color is the top of the ring?", COLORS
    )
    assert answer.text in COLORS


@pytest.mark.quick
def test_bars_show_counts_and_messages_and_survive_a_phase_without_an_end():
    console = Console(file=io.StringIO(), width=90, force_terminal=True, color_system=None)
    with BarProgress(console) as progress:
        progress.advanced()
        progress.now("nothing yet")
        progress.started("encoding", 4)
        progress.advanced(4)
        progress.started("starting workers", None)
        progress.started("search", 10)
        progress.now("best so far: trial 2")
        progress.advanced(3)
        progress.message("a [note]")
        progress._bars.refresh()
    shown = console.file.getvalue()
    for text in ("a [note]", "4/4", "3/10", "starting workers", "best so far: trial 2"):
        assert text in shown


@pytest.mark.quick
def test_lines_say_each_phase_each_tenth_and_what_it_is_at():
    clock = SimpleNamespace(now=0.0)
    console = Console(file=io.StringIO(), width=80)
    with LineProgress(console, clock=lambda: clock.now) as progress:
        progress.started("starting workers", None)
        progress.started("search", 40)
        for _ in range(40):
            clock.now += 4
            progress.now("best so far: trial 7, 93.2 % on tune videos at 0.296")
            progress.advanced()
        progress.message("a [note]")
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "search: 40 to do"
    assert (
        lines[1]
        == "search: 4 of 40, 0:16, about 2:24 left; best so far: trial 7, 93.2 % on tune videos at 0.296"
    )
    assert len(lines) == 1 + 9 + 2
    assert lines[-2:] == ["a [note]", "search: 40 of 40 in 2:40"]


@pytest.mark.quick
def test_lines_are_written_where_nothing_happens_for_long():
    console = Console(file=io.StringIO(), width=80)
    with LineProgress(console, quiet=0.02) as progress:
        progress.started("baseline", 1278)
        progress.now("starting workers: 0 of 2 ready")
        deadline = time.monotonic() + 5
        while "0 of 1,278" not in console.file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "baseline: 0 of 1,278, 0:00; starting workers: 0 of 2 ready\n" in console.file.getvalue()
    console = Console(file=io.StringIO(), width=80)
    with LineProgress(console, quiet=0.02) as progress:
        progress.started("report", None)
        deadline = time.monotonic() + 5
        while not console.file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert console.file.getvalue().startswith("report\n")


@pytest.mark.quick
def test_a_phase_that_begins_after_a_silence_is_named_before_its_time_is_told():
    console, now = Console(file=io.StringIO(), width=80), [0.0]
    with LineProgress(console, clock=lambda: now[0], quiet=0.04) as progress:
        progress.message("ready")
        now[0] = 100.0
        progress.started("report", None)
        time.sleep(0.1)  # it looks ten times
        assert console.file.getvalue() == "ready\n"
        now[0] = 101.0
        deadline = time.monotonic() + 5
        while not console.file.getvalue().endswith("report\n") and time.monotonic() < deadline:
            time.sleep(0.01)
    assert console.file.getvalue() == "ready\nreport\n"


def test_the_command_offers_every_sampler_there_is():
    from tuner.cli.run import SamplerChoice
    from tuner.search.sampler import SAMPLERS

    assert [point.value for point in SamplerChoice] == list(SAMPLERS)


@pytest.mark.quick
def test_archived_records_come_back_and_nothing_is_lost(call, fake_study):
    asked = ("--study", "fake", "--database", fake_study)
    nothing = call("restore", *asked)
    assert (nothing.code, "nothing of the study 'fake' is archived" in nothing.err) == (2, True)
    archived = call("archive", *asked)
    assert (archived.code, archived.out.strip().endswith("--id 1, with the same --database")) == (0, True)
    assert "`tuner restore` brings the archived ones back" in call("archive", *asked).err
    unknown = call("restore", *asked, "--id", "9")
    assert (unknown.code, "no archived records 9; it has: 1 (8 trials, begun 20" in unknown.err) == (2, True)
    assert call("restore", *asked).out.startswith("Restored 1 with 8 trials.")
    with Store.open(fake_study, create=False) as store:
        store.require("fake")
        assert len(store.trials()) == 8


@pytest.mark.quick
def test_a_question_is_taken_back_in_and_asked_again(call, fake_study):
    asked = ("--study", "fake", "--database", fake_study)
    unknown = call("unquarantine", *asked, "v00.mp4-q0")
    assert unknown.code == 2
    assert "'v00.mp4-q0' of the study 'fake' is not quarantined" in unknown.err
    assert "those that are: v03.mp4-q0" in unknown.err
    assert call("unquarantine", *asked, "v03.mp4-q0").out.startswith("Taken back in: v03.mp4-q0. The next")
    assert call("unquarantine", *asked).out == "No question of the study 'fake' is quarantined.\n"
    study = fakes.make_study()
    with Store.open(fake_study) as store:
        store.find("fake")
        assert store.quarantined() == {}
        assert store.measured() == {}
        evaluator = fakes.FakeEvaluator(study)
        InProcessExecutor(evaluator).run(fakes.make_loop(study, store))
        # Of what was complete that question alone.
        complete = {
            question for method, questions in evaluator.calls if method is None for question in questions
        }
        assert complete == {"v03.mp4-q0"}
        assert {outcome.questions for outcome in store.measured().values()} == {12}
        assert all(trial.outcome.questions == 12 for trial in store.trials() if trial.outcome)


@pytest.mark.quick
def test_a_fresh_start_is_refused_with_the_way_on(call):
    refused = call("run", "--study", "demo", "--budget", "0.3", "--fresh")
    assert refused.code == 2
    assert "`tuner archive --study demo`" in refused.err
