"""The commands parse, call one library function, print; a user's mistake is one message and exit code 2."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.summaries import make_outcome, make_summary
from tuner.cli.progress import RichProgress

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
        | {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
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
@pytest.mark.parametrize("command", [(), ("run",), ("status",), ("export",)])
def test_every_command_has_help(call, command):
    finished = call(*command, "--help")
    assert finished.code == 0
    assert "Usage" in finished.out


@pytest.mark.quick
def test_the_version_is_printed(call):
    assert call("--version").out.startswith("tuner ")


@pytest.mark.quick
@pytest.mark.parametrize("budget", ["0", "-0.1", "1.5", "nan"])
def test_a_budget_out_of_range_is_one_message(call, budget):
    finished = call("run", "--study", "demo", "--budget", budget)
    assert finished.code == 2
    assert "(0, 1]" in finished.err
    assert "Traceback" not in finished.err


@pytest.mark.quick
@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--study", "demo"),
        ("run", "--study", "demo", "--budget", "much"),
        ("run", "--study", "demo", "--budget", "0.3", "--trials", "-1"),
        ("run", "--study", "demo", "--budget", "0.3", "--workers", "0"),
        ("run", "--study", "demo", "--budget", "0.3", "--coordinates", "polar"),
        ("run", "--study", "no-such-study", "--budget", "0.3"),
        ("status", "--study", "no-such-study"),
        ("export", "--study", "no-such-study"),
        ("nonsense",),
    ],
)
def test_a_mistake_ends_with_exit_code_two_and_no_traceback(call, arguments):
    finished = call(*arguments)
    assert finished.code == 2
    assert finished.err.strip()
    assert "Traceback" not in finished.err


@pytest.mark.quick
def test_a_study_that_was_never_run_says_what_makes_its_records(call, tiny, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    finished = call("status", "--study", str(tiny / "studies" / "tiny"))
    assert finished.code == 2
    assert "tuner run" in finished.err


@pytest.mark.quick
def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    import tuner.study
    from tuner.cli.main import main

    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(tuner.study, "load_study", broken)
    monkeypatch.setattr(sys, "argv", ["tuner", "status", "--study", "demo"])
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.quick
def test_an_interrupted_run_ends_with_the_code_of_ctrl_c(call, monkeypatch):
    import tuner.driver
    import tuner.study

    def interrupted(*_):
        raise tuner.driver.InterruptedRunError("Interrupted with 3 trials complete.")

    monkeypatch.setattr(tuner.study, "load_study", lambda *_, **__: SimpleNamespace(model="example/model"))
    monkeypatch.setattr(tuner.driver, "run", interrupted)
    finished = call("run", "--study", "demo", "--budget", "0.3")
    assert (finished.code, finished.err) == (130, "Interrupted with 3 trials complete.\n")


@pytest.mark.quick
def test_every_option_reaches_the_driver(call, monkeypatch):
    import tuner.cli.run
    import tuner.driver
    import tuner.study

    seen = []

    def load(name, skip_bad_videos):
        return SimpleNamespace(name=name, skip=skip_bad_videos, model="example/model")

    def run(study, options, progress):
        seen.append((study, options))
        return make_summary()

    monkeypatch.setattr(tuner.study, "load_study", load)
    monkeypatch.setattr(tuner.driver, "run", run)
    monkeypatch.setattr(tuner.cli.run, "_record", lambda *_: None)
    finished = call(
        *"run --study here --budget 0.25 --trials 60 --seed 3 --timeout 90 --workers 2".split(),
        *"--gpus-per-worker 0.5".split(),
        *"--address auto --database sqlite:///x.db --skip-bad-videos --fresh --coordinates knobs".split(),
    )
    assert finished.code == 0
    (study, options), *more = seen
    assert more == []
    assert (study.name, study.skip) == ("here", True)
    assert options == tuner.driver.RunOptions(
        budget=0.25,
        trials=60,
        seed=3,
        timeout=90.0,
        workers=2,
        gpus_per_worker=0.5,
        address="auto",
        database="sqlite:///x.db",
        coordinates="knobs",
        skip_bad_videos=True,
        fresh=True,
    )
    assert "held-out accuracy" in finished.out


@pytest.mark.quick
def test_status_shows_each_search(call, monkeypatch):
    import tuner.reporting
    import tuner.study
    from tuner.reporting import SearchStatus, Status

    summary = make_summary()
    searches = (
        SearchStatus(0.3, 0, "budget", 40, 24, 3, summary.best, make_outcome("held_out", 0.891)),
        SearchStatus(0.2, 0, "budget", 40, 0, 9, None, None),
    )
    status = Status("demo", "5f2c9d7be1a0", "sqlite:///x.db", 1200, 1200, 24, 1, 9000, searches)
    monkeypatch.setattr(tuner.study, "load_study", lambda *_, **__: type("Study", (), {"name": "demo"}))
    monkeypatch.setattr(tuner.reporting, "load_status", lambda *_: status)
    shown = call("status", "--study", "demo").out
    for text in ("1200 of 1200", "24 of 40", "89.1 %", f"trial {summary.best.number}", "0.2"):
        assert text in shown
    as_json = json.loads(call("status", "--study", "demo", "--json").out)
    assert as_json["searches"][0]["best"]["number"] == summary.best.number


@pytest.mark.timeout(900)
def test_run_status_and_export_on_a_real_study(tiny):
    """The whole way, as a newcomer types it."""
    begun = tuner("run", "--study", "tiny", "--budget", "0.5", "--trials", "3", folder=tiny)
    assert begun.code == 0, begun.err
    for text in ("held-out accuracy", "tau_s", "alpha_boost", "FLOPs ratio", "regressions", "mlflow ui"):
        assert text in begun.out
    for file in (
        ".tuner/tiny/figures/pareto.html",
        ".tuner/tiny/figures/pareto.png",
        "mlflow.db",
        "mlartifacts",
    ):
        assert (tiny / file).exists(), file
    assert "Traceback" not in begun.err

    shown = tuner("status", "--study", "tiny", "--json", folder=tiny)
    assert json.loads(shown.out)["trials_completed"] == 3

    written = tuner("export", "--study", "tiny", "--output", "best.json", folder=tiny)
    assert written.code == 0, written.err
    assert "Exported to best.json" in written.out
    best = json.loads((tiny / "best.json").read_text())
    assert best["measured"]["flops_ratio"] <= 0.5
    assert best["model"]["id"] == "studies/tiny/model"
    assert best["provenance"]["mlflow_run"]

    before = (tiny / "best.json").read_bytes()
    again = tuner("run", "--study", "tiny", "--budget", "0.5", "--trials", "3", folder=tiny)
    assert again.code == 0, again.err
    assert tuner("export", "--study", "tiny", "--output", "best.json", folder=tiny).code == 0
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
