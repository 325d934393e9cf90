"""A small finished study, and a command on a copy of it in a process of its own, under awkward conditions.

The processes are forked from one that has imported everything, so that each takes a second and not ten.
"""

from __future__ import annotations

import csv
import ctypes
import fcntl
import gc
import multiprocessing
import os
import resource
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from tests.tuner import fakes

# What the commands are asked, by name.
BUDGET = ("--budget", "0.35")
WORK = (*BUDGET, "--workers", "1", "--accept-weak-baseline")
MODEL = ("--model", "studies/fake/model", "--text-encoder", "studies/fake/siglip")
VIDEOS = ("--videos", "studies/fake/videos")
COMMANDS: dict[str, tuple[str, ...]] = {
    "init": ("größen", *VIDEOS, *MODEL),
    "import": ("csv", "studies/fake/questions.csv", "--to", "größen", *VIDEOS, *MODEL),
    "check": ("--max-drop", "0.99"),
    "run": (*WORK, "--trials", "6"),
    "compare": WORK,
    "sensitivity": (*WORK, "--runs", "4"),
    "status": (),
    "trials": (),
    "export": ("--accept-regressions", "--accept-weak-baseline"),
    "verify": ("best.json", "--markdown", "verified.md"),
    "report": (),
    "sync": (),
    "archive": (),
    "restore": (),
    "unquarantine": (),
    "show": (),
    "list": (),
    "doctor": ("--database", "sqlite:///.tuner/fake/tuner.db"),
}
# Draw, or write to MLflow, for seconds.
SLOW = frozenset({"run", "compare", "sensitivity", "report", "sync"})
# Are about no study that is there.
WITHOUT_STUDY = frozenset({"init", "import", "list", "doctor"})
# Have no records.
WITHOUT_RECORDS = frozenset({"init", "import", "check", "verify"})
# Need nothing but records.
READERS = frozenset({"status", "show", "trials", "export", "report", "sync"})
# Begin with the study's files, which are looked into.
WORKERS = frozenset({"check", "run", "compare", "sensitivity", "verify"})
# Make a study.
MAKERS = frozenset({"init", "import"})

_PRELOADED = [
    "tests.tuner.cli.edges",
    "tuner.cli.main",
    "tuner.runs.run",
    "tuner.runs.compare",
    "tuner.runs.sensitivity",
    "tuner.runs.check",
    "tuner.runs.doctor",
    "tuner.runs.verify",
    "tuner.importing.first_study",
    "tuner.importing.importing",
    "tuner.importing.table",
    "tuner.sensitivity.surrogate",
    "tuner.search.optuna_sampler",
    "dashboards.folder",
    "dashboards.report.page",
    "dashboards.sensitivity.figure",
    "dashboards.search.comparison",
    "dashboards.pareto.figure",
    "matplotlib.pyplot",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
]


def _nothing(_: Path) -> None:
    pass


@dataclass(frozen=True)
class Condition:
    """How a command is called, and how it may end.

    prepare: changes the copy of the study before; enter: changes the process before the command.
    """

    name: str
    prepare: Callable[[Path], None] = _nothing
    enter: Callable[[Path], None] = _nothing
    environment: Mapping[str, str | None] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    encoding: str = "utf-8"
    # Exit codes by command; those that are not named end with `otherwise`.
    codes: Mapping[str, int] = field(default_factory=dict)
    otherwise: int = 0
    # What has to be named where a command ends with another code than 0.
    named: str = ""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def context() -> ForkServerContext:
    """Where the processes come from."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(_PRELOADED)
    return made


def make_study(folder: Path, mlflow: Path) -> None:
    """A study that was searched, compared, and whose records were once archived."""
    from tests.tuner.cli.test_records_alone import write_study
    from tests.videos import moving_frames, write_video

    study = fakes.make_study()
    write_study(folder / "studies" / "fake", study)
    for index, video in enumerate(study.videos):
        write_video(folder / "studies" / "fake" / "videos" / video.name, moving_frames(16 + index))
    with (folder / "studies" / "fake" / "questions.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("id", "video", "question"))
        # One about each video: every mistake of a row is told.
        rows.writerows(
            (item, item, "What color is it?")
            for item in sorted({question.video for question in study.questions})
        )
    shutil.copy(mlflow, folder / "mlflow.db")


def call(made: ForkServerContext, folder: Path, command: str, condition: Condition, *arguments: str) -> Ended:
    """The command's end, under this condition; arguments instead of the usual ones."""
    condition.prepare(folder)
    pipes = [_Pipe(folder.with_name(f"{folder.name}-{name}")) for name in ("out", "err")]
    options = (
        () if command in WITHOUT_RECORDS else (option.format(folder=folder) for option in condition.options)
    )
    study = () if command in WITHOUT_STUDY else ("--study", "fake")
    arguments = arguments or (*study, *COMMANDS[command], *options)
    process = made.Process(target=_command, args=(folder, condition.name, (command, *arguments)))
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
        return Ended(-1, "", "it hung for 120 seconds")
    return Ended(process.exitcode, *(pipe.read() for pipe in pipes))


class _Pipe:
    """What a process prints: into a pipe, because a file could not grow where no file may."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self._reader, fcntl.F_SETPIPE_SZ, 2**20)

    def read(self) -> str:
        """All of it, once the process has ended."""
        with os.fdopen(self._reader, encoding="utf-8", errors="replace") as reader:
            return reader.read()


def _command(folder: Path, name: str, arguments: tuple[str, ...]) -> None:
    """In the child."""
    # What was imported before the fork is looked through by no collection, which would copy all of it.
    gc.freeze()
    from tuner.cli.main import main

    (condition,) = (condition for condition in (*CONDITIONS, BARELY) if condition.name == name)
    os.chdir(folder)
    for name, value in {"COLUMNS": "100", **condition.environment}.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder.with_name(f"{folder.name}-{name}"), os.O_WRONLY), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding=condition.encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=condition.encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    _use_fakes()
    condition.enter(folder)
    sys.argv = ["tuner", *arguments]
    main()


def _use_fakes() -> None:
    """No model: answers are made up, and nothing is timed or looked into. This machine is good enough."""
    import tuner.runs.compare
    import tuner.runs.doctor
    import tuner.runs.run
    import tuner.runs.study_record
    import tuner.runs.verify
    from tuner.executors.in_process import InProcessExecutor

    session: Any = tuner.runs.run.Session
    runs: Any = tuner.runs.run
    comparisons: Any = tuner.runs.compare
    records: Any = tuner.runs.study_record
    verification: Any = tuner.runs.verify
    machine: Any = tuner.runs.doctor
    records._identity = lambda _, checkpoint, __: Path(checkpoint).name
    session.measure_serving = session.inspect = lambda *_: None
    comparisons._time = lambda *_: None
    verification.executor_for = runs.executor_for = lambda *_: InProcessExecutor(
        fakes.FakeEvaluator(fakes.make_study())
    )
    # Whatever else this machine lacks.
    machine.LEAST_MEMORY = machine.LEAST_DISK = 0
    machine.versions = lambda: ()


# Conditions of folders


def remove(*names: str) -> Callable[[Path], None]:
    """Files or folders of the study, gone."""

    def prepare(folder: Path) -> None:
        for name in names:
            for path in folder.glob(name):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    return prepare


def read_only(folder: Path) -> None:
    """Nothing in it may be written, not even by root."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def without_privileges(_: Path) -> None:
    """Root of this process obeys permissions like everybody; so do its children."""
    if os.geteuid():
        return
    overrides = 0b1111  # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
    library = ctypes.CDLL(None, use_errno=True)
    for capability in range(4):
        library.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    library.capget(header, data)
    for place in range(3):
        data[place] &= ~overrides
    if library.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def no_file_may_grow(_: Path) -> None:
    """As on a full disk: what is to be written is refused (EFBIG)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


# Conditions of streams


def output_to(name: str) -> Callable[[Path], None]:
    def enter(_: Path) -> None:
        os.dup2(os.open(name, os.O_WRONLY), 1)

    return enter


def output_unread(_: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


def output_closed(_: Path) -> None:
    os.close(1)
    sys.stdout = None  # type: ignore[assignment]


def input_closed(_: Path) -> None:
    os.close(0)
    sys.stdin = None  # type: ignore[assignment]


def _draw_nothing(_: Path) -> None:
    """Records alone: figures and MLflow take most of a command's time."""
    import dashboards.folder
    import tuner.cli.record

    drawing: Any = dashboards.folder
    recording: Any = tuner.cli.record
    drawing.draw = drawing.draw_comparison = drawing.draw_sensitivity = lambda *_: ()
    recording.with_mlflow = lambda *_: None


def folder_gone(folder: Path) -> None:
    """The working folder was removed while a shell stood in it."""
    shutil.rmtree(folder)


def _file_in_the_way(folder: Path) -> None:
    shutil.rmtree(folder / ".tuner")
    (folder / ".tuner").write_text("")


def _records_elsewhere(folder: Path) -> None:
    """The records in a folder of their own, the working folder read-only."""
    elsewhere = folder.with_name(folder.name + "-records")
    shutil.move(folder / ".tuner" / "fake", elsewhere)
    read_only(folder)


def _empty_read_only(folder: Path) -> None:
    shutil.rmtree(folder / ".tuner")
    read_only(folder)


def unreadable(*names: str) -> Callable[[Path], None]:
    """Files that may not be read."""

    def prepare(folder: Path) -> None:
        for name in names:
            (folder / name).chmod(0)

    return prepare


def _in_utf_16(folder: Path) -> None:
    for name in ("study.yaml", "questions.jsonl", "questions.csv"):
        file = folder / "studies" / "fake" / name
        file.write_text(file.read_text(encoding="utf-8"), encoding="utf-16")


def _new_study_in_the_way(folder: Path) -> None:
    (folder / "studies" / "größen").write_text("")


def codes(commands: frozenset[str] | set[str], code: int) -> dict[str, int]:
    return dict.fromkeys(commands, code)


_WRITERS = {"run", "compare", "sensitivity", "archive", "restore", "unquarantine", *MAKERS}
_NO_RECORDS = codes(READERS | {"archive", "restore", "unquarantine"}, 2)
# `export`, `report` and `verify` refuse a file as any other mistake of the user's, `sync` needs MLflow.
_OUTPUTS = {"export": 2, "report": 2, "verify": 2, "sync": 1}
# `doctor` finds that something is to be done.
_TO_DO = {"doctor": 1}
# `list` says of each study whether its records can be read.
_NOT_READABLE = codes(set(COMMANDS) - WITHOUT_RECORDS - {"list"}, 2) | _TO_DO

# How the study that all begin with is made.
BARELY = Condition("barely", enter=_draw_nothing)

CONDITIONS = (
    Condition("undisturbed"),
    Condition("no study folder", remove("studies"), codes=codes(WORKERS | MAKERS, 2), named="fake"),
    Condition(
        "no videos", remove("studies/fake/videos/*"), codes=codes(WORKERS | MAKERS, 2), named="v00.mp4|videos"
    ),
    Condition("no model", remove("studies/fake/model"), codes=codes(WORKERS | MAKERS, 2), named="model"),
    Condition(
        "no questions",
        remove("studies/fake/questions.*"),
        codes=codes(WORKERS | {"import"}, 2),
        named="jsonl|csv",
    ),
    Condition(
        "unreadable questions",
        unreadable("studies/fake/questions.jsonl", "studies/fake/questions.csv"),
        without_privileges,
        codes=codes(WORKERS | {"import"}, 2),
        named="jsonl|csv",
    ),
    Condition(
        "files in UTF-16",
        _in_utf_16,
        codes=codes(WORKERS | {"import"}, 2),
        named=r"study\.yaml|questions\.csv",
    ),
    Condition(
        "a file where the new study belongs", _new_study_in_the_way, codes=codes(MAKERS, 2), named="größen"
    ),
    Condition("no records", remove(".tuner"), codes=_NO_RECORDS, named="tuner run"),
    Condition(
        "everything read-only",
        read_only,
        without_privileges,
        codes=codes(_WRITERS, 2) | _OUTPUTS | _TO_DO,
        named="{folder}|tuner.db|best.json|report.html|MLflow|größen|verified.md",
    ),
    Condition(
        "no records, read-only",
        _empty_read_only,
        without_privileges,
        codes=_NO_RECORDS | codes(_WRITERS | {"verify"}, 2) | _TO_DO,
        named="{folder}|tuner run|größen|verified.md",
    ),
    Condition(
        "records elsewhere, all else read-only",
        _records_elsewhere,
        without_privileges,
        options=("--database", "sqlite:///{folder}-records/tuner.db"),
        codes=codes(MAKERS, 2) | _OUTPUTS | _TO_DO,
        named="{folder}|best.json|report.html|MLflow|größen|verified.md",
    ),
    Condition(
        "unreadable records",
        unreadable(".tuner/fake/tuner.db"),
        without_privileges,
        codes=_NOT_READABLE,
        named="tuner.db",
    ),
    Condition(
        "a file where the records' folder belongs",
        _file_in_the_way,
        codes=_NOT_READABLE,
        named=".tuner",
    ),
    Condition("working folder gone", enter=folder_gone, otherwise=2, named="working folder"),
    Condition(
        "disk full",
        enter=no_file_may_grow,
        codes=codes(_WRITERS, 1) | _OUTPUTS,
        named="tuner.db|best.json|report.html|the figures in|größen|verified.md",
    ),
    Condition("output to a full disk", enter=output_to("/dev/full"), otherwise=1, named="output"),
    Condition("output nobody reads", enter=output_unread, otherwise=141),
    Condition("output closed", enter=output_closed),
    Condition("input closed", enter=input_closed),
    *(Condition(f"output in {encoding_}", encoding=encoding_) for encoding_ in ("ascii", "latin-1", "gbk")),
    *(Condition(f"{width} columns", environment={"COLUMNS": width}) for width in ("20", "40", "80")),
    Condition("dumb terminal", environment={"TERM": "dumb"}),
    Condition("no colour", environment={"NO_COLOR": "1"}),
    Condition("no home", environment={"HOME": None}),
    Condition("home that is not there", environment={"HOME": "/nonexistent/home"}),
    Condition("no folder for temporary files", environment={"TMPDIR": "/nonexistent/tmp"}),
)
