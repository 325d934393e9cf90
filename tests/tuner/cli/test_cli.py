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
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipeline.errors import NotFiniteError
from pipeline.methods import AdaTP
from tests.summaries import make_outcome, make_summary
from tests.tuner import fakes
from tuner.cli.progress import RichProgress
from tuner.errors import DiskFullError
from tuner.executors.in_process import InProcessExecutor
from tuner.records.definition import definition
from tuner.records.lock import held
from tuner.records.store import Store
from tuner.records.values import Pruned
from tuner.reporting.from_records import summarise
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
        [sys.executable, "-W", "error::DeprecationWarning:tuner", "-m", "tuner.cli.main", *arguments],
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
        "import sys, runpy\n"
        "sys.argv = ['tuner', 'run', '--help']\n"
        "try: runpy.run_module('tuner.cli.main', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'ray', 'mlflow', 'optuna', 'numpy', 'sqlalchemy')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert finished.stdout.splitlines()[-1] == "[]"
    # Of computing, not of waiting: other work on the machine plays no part.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


@pytest.mark.quick
@pytest.mark.parametrize(
    "command", [(), ("run",), ("compare",), ("status",), ("trials",), ("export",), ("sync",)]
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
        MlflowMirror, "record_files", lambda _, *given: told.append(given) or recorded, raising=False
    )
    finished = call("compare", "--study", "demo", "--budget", "0.3", "--workers", "3", "--batch", "1")
    assert (finished.code, finished.err) == (0, "")
    assert (asked[0].budget, asked[0].workers, asked[0].batch) == (0.3, 3, 1)
    assert "89.0 [86.0, 91.5]" in finished.out
    assert recorded.page in finished.out
    assert told == [("demo", "hash", (Path("demo.json"),))]


@pytest.mark.quick
def test_an_interrupted_run_ends_with_the_code_of_ctrl_c(call, monkeypatch):
    import tuner.runs.run
    import tuner.study

    def interrupted(*_):
        raise tuner.runs.run.InterruptedRunError("Interrupted with 3 trials complete.")

    monkeypatch.setattr(tuner.study, "load_study", lambda *_, **__: SimpleNamespace(model="example/model"))
    monkeypatch.setattr(tuner.runs.run, "run", interrupted)
    finished = call("run", "--study", "demo", "--budget", "0.3")
    assert (finished.code, finished.err) == (130, "Interrupted with 3 trials complete.\n")


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
        raise PermissionError(errno.EACCES, "Permission denied", "somewhere")

    monkeypatch.setattr(tuner.reporting.recorded, "opened", broken)
    with pytest.raises(PermissionError):
        call("status", "--study", "demo")


@pytest.mark.quick
def test_a_second_driver_is_told_who_holds_the_study_and_readers_are_not_refused(
    call, tiny, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    study, url = str(tiny / "studies" / "tiny"), f"sqlite:///{tmp_path}/x.db"
    with held(url, "tiny"):
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
    for name in ("tau_s", "gamma_", "accuracy", "FLOPs", "end to", "front", "state"):
        assert name in shown.out
    assert sum(line.rstrip().endswith("complete") for line in lines) == 6
    assert "pruned by 2 after 3 videos" in shown.out
    assert sum("unfinished" in line for line in lines) == 1
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
    assert shown.out.count("budget 0.35, seed 0") == 1
    assert sorted(front) == sorted(front, key=lambda one: one[1])


@pytest.mark.quick
def test_trials_marks_what_the_study_does_not_allow_any_more(call, fake_study):
    with Store.open(fake_study) as store:
        store.find("fake")
        low, *_, high = sorted(float(one.configuration.get("tau_t")) for one in store.trials()[:6])
    redefine(fake_study, Search(bounds=(("tau_t", (low + 1e-6, high)),)))
    shown = call("trials", "--study", "fake", "--database", fake_study)
    (line,) = [one for one in shown.out.splitlines() if "not allowed by study.yaml" in one]
    rows = json.loads(call("trials", "--study", "fake", "--database", fake_study, "--json").out)
    (outside,) = [row for row in rows if not row["allowed"]]
    assert outside["parameters"]["tau_t"] == low
    assert int(line.split()[0]) == outside["number"]
    assert (outside["on_front"], outside["best_of"]) == (False, [])


@pytest.mark.quick
def test_trials_shows_a_choice_that_is_listed_or_was_made(call, fake_study):
    redefine(fake_study, Search(choices=(("deduplicate", ("demote", "drop")),)))
    shown = call("trials", "--study", "fake", "--database", fake_study)
    assert sum(" demote " in line for line in shown.out.splitlines()) == 8

    redefine(fake_study, Search())
    method = AdaTP(p=0.4, score_query="mean")
    with Store.open(fake_study) as store:
        store.find("fake")
        store.propose(store.searches()[0], 8, Configuration.from_method(method), 0.3)
    shown = call("trials", "--study", "fake", "--database", fake_study)
    assert sum(" last " in line for line in shown.out.splitlines()) == 8
    assert sum(" mean " in line for line in shown.out.splitlines()) == 1
    assert "demote" not in shown.out


@pytest.mark.quick
def test_status_tells_of_stopped_trials_quarantined_questions_and_who_runs_it(call, fake_study):
    with held(fake_study, "fake"):
        shown = call("status", "--study", "fake", "--database", fake_study).out
        as_json = json.loads(call("status", "--study", "fake", "--database", fake_study, "--json").out)
    text = " ".join(shown.split())
    assert "baseline 23 of 23 questions, 6 trials complete, 1 begun, 1 pruned early" in text
    assert "Left out: question v03.mp4-q0 (asked alone for the baseline: MemoryError: no room" in text
    assert f"Run by process {os.getpid()} of " in text
    assert as_json["running"]["pid"] == os.getpid()
    assert (as_json["trials_pruned"], list(as_json["quarantined"])) == (1, ["v03.mp4-q0"])
    assert "Nobody is running it" in call("status", "--study", "fake", "--database", fake_study).out


@pytest.mark.quick
def test_every_option_reaches_the_driver(call, monkeypatch):
    import tuner.cli.run
    import tuner.runs.run
    import tuner.study

    seen = []

    def load(name, skip_bad_videos):
        return SimpleNamespace(name=name, skip=skip_bad_videos, model="example/model")

    def run(study, options, progress):
        seen.append((study, options))
        return make_summary()

    monkeypatch.setattr(tuner.study, "load_study", load)
    monkeypatch.setattr(tuner.runs.run, "run", run)
    monkeypatch.setattr(tuner.cli.run, "_record", lambda *_: None)
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
    assert "held-out accuracy" in finished.out


@pytest.mark.quick
def test_status_shows_each_search(call, monkeypatch):
    import tuner.reporting.from_records
    import tuner.reporting.recorded
    from tuner.reporting.from_records import SearchStatus, Status

    summary = make_summary()
    searches = (
        SearchStatus(0.3, 0, "budget", 40, 24, 3, summary.best, make_outcome("held_out", 0.891)),
        SearchStatus(1.0, 0, "budget", 40, 0, 9, None, None, goal="max_drop", max_drop="1%"),
    )
    status = Status("demo", "5f2c9d7be1a0", "sqlite:///x.db", 1200, 1200, 24, 1, 9000, searches)
    monkeypatch.setattr(tuner.reporting.recorded, "opened", lambda *_: nullcontext(()))
    monkeypatch.setattr(tuner.reporting.from_records, "status_of", lambda *_: status)
    shown = call("status", "--study", "demo").out
    for text in (
        "1200 of 1200",
        "24 of 40",
        "89.1 %",
        f"trial {summary.best.number}",
        "budget 0.3",
        "cheapest",
    ):
        assert text in shown
    as_json = json.loads(call("status", "--study", "demo", "--json").out)
    assert as_json["searches"][0]["best"]["number"] == summary.best.number


def mirror(folder: Path) -> list[str]:
    """All that MLflow holds."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        return [
            repr(row)
            for table in ("runs", "params", "metrics", "tags")
            for row in database.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3")
        ]


@pytest.mark.timeout(900)
def test_run_status_and_export_on_a_real_study(tiny, call, monkeypatch):
    """The whole way, as a newcomer types it: each command once in a process of its own, again in this one."""
    monkeypatch.chdir(tiny)
    # Random weights do no better than guessing.
    run = ("run", "--study", "tiny", "--budget", "0.5", "--trials", "3", "--accept-weak-baseline")
    begun = tuner(*run, folder=tiny)
    assert begun.code == 0, begun.err
    for text in ("held-out accuracy", "tau_s", "alpha_boost", "FLOPs ratio", "regressions", "mlflow ui"):
        assert text in begun.out
    for file in (
        ".tuner/tiny/figures/budget-0.5-seed-0/pareto.html",
        ".tuner/tiny/figures/budget-0.5-seed-0/pareto.png",
        "mlflow.db",
        "mlartifacts",
    ):
        assert (tiny / file).exists(), file
    assert "Traceback" not in begun.err

    shown = tuner("status", "--study", "tiny", "--json", folder=tiny)
    assert json.loads(shown.out)["trials_completed"] == 3

    export = ("export", "--study", "tiny", "--output", "best.json")
    refused = call(*export)
    assert (refused.code, (tiny / "best.json").exists()) == (2, False)
    assert "no configuration is shown to stay within 3 points" in refused.err
    # Two held-out videos prove nothing.
    export = (*export, "--accept-regressions", "--accept-weak-baseline")
    written = tuner(*export, folder=tiny)
    assert written.code == 0, written.err
    assert "Exported to best.json" in written.out
    best = json.loads((tiny / "best.json").read_text())
    assert best["measured"]["flops_ratio"] <= 0.5
    assert best["model"]["id"] == "studies/tiny/model"
    assert best["provenance"]["mlflow_run"]
    assert (best["verdict"], best["accepted_regressions"]) == ("not_shown", True)

    listed = tuner("trials", "--study", "tiny", "--json", folder=tiny)
    assert [row["state"] for row in json.loads(listed.out) if row["purpose"] == "search"] == ["complete"] * 3

    mirrored = mirror(tiny)
    synced = tuner("sync", "--study", "tiny", folder=tiny)
    assert synced.code == 0, synced.err
    assert "3 trials, 1 search; nothing was missing: " in synced.out
    assert mirror(tiny) == mirrored

    before = (tiny / "best.json").read_bytes()
    again = call(*run)
    assert again.code == 0, again.err
    assert call(*export).code == 0
    assert (tiny / "best.json").read_bytes() == before

    from pipeline import load

    answer = load(tiny / "best.json").answer(
        tiny / "studies/tiny/videos/v0.mp4", "what color is the top of the ring?", COLORS
    )
    assert answer.text in COLORS


@pytest.mark.quick
def test_progress_shows_counts_and_messages_and_survives_a_phase_without_an_end():
    console = Console(file=io.StringIO(), width=90, force_terminal=False)
    with RichProgress(console) as progress:
        progress.advanced()
        progress.started("encoding", 4)
        progress.advanced(4)
        progress.started("trials", 10)
        progress.advanced(3)
        progress.message("a [note]")
    shown = console.file.getvalue()
    assert "a [note]" in shown
    assert "4/4" in shown
    assert "3/10" in shown


def test_the_command_offers_every_sampler_there_is():
    from tuner.cli.run import SamplerChoice
    from tuner.search.sampler import SAMPLERS

    assert [one.value for one in SamplerChoice] == list(SAMPLERS)


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
def test_a_fresh_start_is_refused_with_the_way_on(call):
    refused = call("run", "--study", "demo", "--budget", "0.3", "--fresh")
    assert refused.code == 2
    assert "`tuner archive --study demo`" in refused.err
