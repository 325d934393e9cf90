"""Every command, under every condition that a shell, a disk or a terminal brings: right, or one sentence.

`make test` takes a sample in which every command and every condition occurs; the soak takes all.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from typer.main import get_command

from tests.tuner.cli.edges import (
    BARELY,
    BUDGET,
    COMMANDS,
    CONDITIONS,
    SLOW,
    WORK,
    Condition,
    call,
    context,
    make_study,
)
from tuner.cli.main import app

# Chosen for a sample of little cost that meets much: of the slow commands, `run` with its records elsewhere
# and `report` come to their ends, and the others are refused early; `init` meets a full disk.
SEED = 3495


def sample(seed: int) -> set[tuple[str, str]]:
    """Pairs with every condition once, and every command: slow ones once, others twice."""
    quick = [command for command in COMMANDS if command not in SLOW]
    conditions = [condition.name for condition in CONDITIONS]
    random.Random(seed).shuffle(conditions)
    return set(zip(itertools.chain(COMMANDS, itertools.cycle(quick)), conditions, strict=False))


SAMPLE = sample(SEED)
PAIRS = [
    pytest.param(
        command,
        condition,
        id=f"{command}-{condition.name.replace(' ', '_')}",
        marks=() if (command, condition.name) in SAMPLE else pytest.mark.soak,
    )
    for command in COMMANDS
    for condition in CONDITIONS
]


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    return context()


@pytest.fixture(scope="module")
def template(
    server: ForkServerContext, tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Path:
    """A study with everything that the commands can find."""
    folder = tmp_path_factory.mktemp("edges") / "study"
    make_study(folder, empty_database)
    for command in ("run", "archive", "run", "compare", "sensitivity", "export"):
        ended = call(server, folder, command, BARELY)
        assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy that the test may spoil."""
    copy = tmp_path / "study"
    shutil.copytree(template, copy)
    yield copy
    for path in tmp_path.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    # Failures keep the folders of the last tests; copies of a study are too many.
    shutil.rmtree(copy, ignore_errors=True)


@pytest.mark.quick
def test_every_command_is_among_those_that_are_tried() -> None:
    assert set(COMMANDS) == set(get_command(app).commands)  # type: ignore[attr-defined]
    assert {command for command, _ in SAMPLE} == set(COMMANDS)
    assert {condition for _, condition in SAMPLE} == {condition.name for condition in CONDITIONS}


@pytest.mark.parametrize(("command", "condition"), PAIRS)
def test_it_ends_rightly_or_with_a_sentence_that_names_what_is_wrong(
    server: ForkServerContext, folder: Path, command: str, condition: Condition
) -> None:
    ended = call(server, folder, command, condition)
    assert "Traceback" not in ended.err, ended.err
    assert "[Errno" not in ended.err, ended.err
    assert ended.code == condition.codes.get(command, condition.otherwise), ended.err + ended.out
    if ended.code in (1, 2):
        named = condition.named.format(folder=re.escape(str(folder)))
        # What `doctor` finds is what it was asked for.
        told = ended.out if command == "doctor" and ended.code == 1 and not ended.err else ended.err
        assert re.search(named, told), told
        # One sentence each, not a list of what a library thinks.
        assert told is ended.out or 1 <= len(told.splitlines()) <= 10, told
    elif condition.name.startswith("output in") and command != "sync":
        assert ended.out


ENDS = {
    "success": (0, ("run", "--study", "fake", *WORK, "--trials", "7")),
    "user's mistake": (2, ("compare", "--study", "größen", *BUDGET)),
    "option's mistake": (2, ("run", "--study", "fake", "--budget", "x")),
    "unknown option": (2, ("sensitivity", "--study", "fake", "--nope")),
    "nothing asked": (2, ("run",)),
    "not its option": (2, ("status", "--study", "fake")),
    "unknown command": (2, ("nope",)),
}


@pytest.mark.parametrize("name", ENDS)
def test_every_line_in_json_is_an_object_however_a_command_ends(
    name: str, server: ForkServerContext, folder: Path
) -> None:
    code, arguments = ENDS[name]
    ended = call(server, folder, arguments[0], BARELY, *arguments[1:], "--log-format", "json")
    assert ended.code == code, ended.err
    found = [json.loads(line) for line in ended.err.splitlines()]
    if code:
        assert (found[-1]["event"], found[-1]["level"], found[-1]["exit_code"]) == ("ended", "error", code)
    else:
        assert {entry["event"] for entry in found} >= {"phase", "answered", "trial_ended"}
        assert "ended" not in {entry["event"] for entry in found}
