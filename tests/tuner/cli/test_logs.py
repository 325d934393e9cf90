"""`--log-format json`: each line of stderr is an object, with study, trial and questions if any."""

from __future__ import annotations

import json
import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import studies.demo
from tests.tuner import fakes
from tests.tuner.cli.test_interrupts import interrupted
from tuner.cli.log_format import json_asked
from tuner.cli.logs import LoggedProgress, write_objects
from tuner.cli.options import LogFormat
from tuner.cli.progress import command_progress
from tuner.errors import UserError
from tuner.evaluation.events import EVENTS, LOGGER
from tuner.executors.in_process import InProcessExecutor


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On stderr, in the block."""
    root, ours = logging.getLogger(), logging.getLogger("tuner")
    before, level = list(root.handlers), ours.level
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", sys.stderr)
        patched.setattr(logging, "raiseExceptions", True)
        write_objects()
        yield
    (added,) = (handler for handler in root.handlers if handler not in before)
    root.removeHandler(added)
    ours.setLevel(level)
    logging.captureWarnings(False)


@pytest.mark.quick
def test_a_run_as_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = fakes.make_study()
    with (
        objects(monkeypatch),
        fakes.open_store(tmp_path / "records.db", study) as store,
        LoggedProgress("fake") as progress,
    ):
        InProcessExecutor(fakes.FakeEvaluator(study), progress).run(
            fakes.make_loop(study, store, trials=2, progress=progress)
        )
    printed = capsys.readouterr()
    assert printed.out == ""
    found = lines(printed.err)
    assert {"time", "level", "logger", "message", "event", "study"} <= set(found[0])
    assert {entry["study"] for entry in found} == {"fake"}
    answered = [entry for entry in found if entry["event"] == "answered"]
    assert set(EVENTS["answered"]) <= set(answered[0])
    assert {entry["kind"] for entry in answered} >= {"baseline", "trial", "held_out"}
    assert {entry["trial"] for entry in answered if entry["kind"] == "trial"} == {0, 1}
    ended = [entry["trial"] for entry in found if entry["event"] == "trial_ended"]
    assert sorted(ended) == [0, 1]


@pytest.mark.quick
def test_what_others_say_is_an_object_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with objects(monkeypatch), warnings.catch_warnings(), LoggedProgress("fake") as progress:
        progress.message("one line")
        progress.console.print("of another", style="yellow")
        logging.getLogger("elsewhere").warning("at http://me:secret@host/")
        warnings.simplefilter("always")
        warnings.warn("old", UserWarning, stacklevel=1)
        sys.stderr.write("first\n\nsec\u00f6nd\nbegun")
        sys.stderr.flush()
    text = capsys.readouterr().err
    found = lines(text)
    assert [entry["message"] for entry in found[:3]] == ["one line", "of another", "at http://me:***@host/"]
    assert found[2]["level"] == "warning"
    assert "old" in str(found[3]["message"])
    printed = [entry["message"] for entry in found if entry["logger"] == "stderr"]
    assert printed == ["first", "sec\u00f6nd", "begun"]
    # Whatever the stream's encoding is.
    assert text.isascii()


@pytest.mark.quick
def test_records_have_the_name_of_the_study_whatever_way_it_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = str(Path(studies.demo.__file__).parent)
    with objects(monkeypatch), command_progress(log_format=LogFormat.JSON, study=demo) as progress:
        progress.started("reading the study", None)
    (found,) = lines(capsys.readouterr().err)
    assert (found["study"], found["phase"], found["total"]) == ("demo", "reading the study", None)
    with pytest.raises(UserError, match="there is no study 'none'"):
        command_progress(log_format=LogFormat.JSON, study="none")


@pytest.mark.quick
def test_in_text_nothing_of_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = fakes.make_study()
    with fakes.open_store(tmp_path / "records.db", study) as store:
        InProcessExecutor(fakes.FakeEvaluator(study)).run(fakes.make_loop(study, store, trials=1))
    assert capsys.readouterr().err == ""
    assert not LOGGER.isEnabledFor(logging.INFO)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ("run --log-format json", True),
        ("run --log-format=json --budget 1", True),
        ("--log-format json --log-format text", False),
        ("run --log-format", False),
        ("run json", False),
        ("", False),
    ],
)
def test_what_is_asked_is_known_before_anything_is_parsed(arguments: str, asked: bool) -> None:
    assert json_asked(arguments.split()) is asked


@pytest.mark.parametrize("after", [0.0, 1.0])
def test_an_interrupt_is_an_object(after: float, tmp_path: Path) -> None:
    ended = interrupted(
        tmp_path, after, signal.SIGTERM, "run", "--study", "demo", "--budget", "0.3", "--log-format", "json"
    )
    found = lines(ended.output)
    assert (ended.code, found[-1]["event"], found[-1]["exit_code"]) == (143, "ended", 143)


@pytest.mark.quick
def test_the_events_are_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "cluster.md").read_text()
    for event, values in (EVENTS | {"ended": ("exit_code",)}).items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{event}` |")]
        assert [name for name in values if f"`{name}`" not in row] == []
