"""`--log-format json`: each line of stderr is an object, with study, trial and questions if any."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest

import studies.demo
from tests.tuner import fakes
from tuner.cli.logs import LoggedProgress
from tuner.cli.options import LogFormat
from tuner.cli.progress import command_progress
from tuner.errors import UserError
from tuner.evaluation.events import EVENTS, LOGGER
from tuner.executors.in_process import InProcessExecutor

pytestmark = pytest.mark.quick


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_as_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = fakes.make_study()
    with (
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


def test_what_others_say_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    with LoggedProgress("fake") as progress:
        progress.message("one line")
        progress.console.print("of another", style="yellow")
        logging.getLogger("elsewhere").warning("at http://me:secret@host/")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", UserWarning, stacklevel=1)
    logging.getLogger("elsewhere").warning("after the run")
    found = lines(capsys.readouterr().err.replace("after the run\n", ""))
    assert [entry["message"] for entry in found[:3]] == ["one line", "of another", "at http://me:***@host/"]
    assert found[2]["level"] == "warning"
    assert "old" in str(found[3]["message"])


def test_records_have_the_name_of_the_study_whatever_way_it_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with command_progress(
        log_format=LogFormat.JSON, study=str(Path(studies.demo.__file__).parent)
    ) as progress:
        progress.started("reading the study", None)
    (found,) = lines(capsys.readouterr().err)
    assert (found["study"], found["phase"], found["total"]) == ("demo", "reading the study", None)
    with pytest.raises(UserError, match="there is no study 'none'"):
        command_progress(log_format=LogFormat.JSON, study="none")


def test_in_text_nothing_of_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = fakes.make_study()
    with fakes.open_store(tmp_path / "records.db", study) as store:
        InProcessExecutor(fakes.FakeEvaluator(study)).run(fakes.make_loop(study, store, trials=1))
    assert capsys.readouterr().err == ""
    assert not LOGGER.isEnabledFor(logging.INFO)


def test_the_events_are_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "cluster.md").read_text()
    for event, values in EVENTS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{event}` |")]
        assert [name for name in values if f"`{name}`" not in row] == []
