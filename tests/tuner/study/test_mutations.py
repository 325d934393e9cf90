"""However study.yaml, questions.jsonl and best.json are damaged: read right, or told what is wrong where."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from ruamel.yaml import YAML

from pipeline.errors import PipelineError
from pipeline.production import _read, method_of
from tests.summaries import make_summary
from tests.tuner.study.conftest import YAML as RIGHT
from tests.tuner.study.conftest import StudyFiles
from tests.tuner.study.mutations import BOMB, as_json, as_yaml, mutated
from tuner.cli.main import main
from tuner.errors import UserError
from tuner.export.best_file import export, read
from tuner.study import load_study, study_identity

STUDY = {
    "name": "mine",
    "description": "what it is for",
    "model": "model",
    "text_encoder": "siglip",
    "frames": 8,
    "videos": "videos",
    "questions": "questions.jsonl",
    "decode_timeout": 30.5,
    "allow_pickle": False,
    "scoring": "words",
    "max_new_tokens": 4,
    "split": {"held_out_videos": ["v0.mp4", "v1.mp4"]},
    "search": {
        "fixed": {"tau_s": 0.9},
        "bounds": {"p": [0.5, 0.9]},
        "choices": {"deduplicate": ["drop", "off"]},
    },
}
LINES: list[Any] = StudyFiles(Path()).lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = StudyFiles(tmp_path_factory.mktemp("studies") / "mine")
    files.write()
    export(make_summary(), files.folder / "best.json")
    return files.folder


def loaded(folder: Path) -> Any:
    """The study, after all that is made of its texts without a model."""
    study = load_study(folder)
    study_identity(
        study, model="m", encoding="e", content_hashes={video.name: video.name for video in study.videos}
    )
    repr(study).encode()
    assert all(video.path.is_file() for video in study.videos)
    return study


def right_study(folder: Path, content: bytes) -> None:
    """Errors: UserError."""
    (folder / "study.yaml").write_bytes(content)
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    study = loaded(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = YAML(typ="rt", pure=True).load(content.decode("utf-8-sig"))
    assert study.frames == int(written["frames"])
    assert study.max_new_tokens == int(written.get("max_new_tokens", 16))
    assert study.scoring == written.get("scoring", "letter")
    assert study.description == written.get("description", "") or not isinstance(written["description"], str)


def right_questions(folder: Path, content: bytes) -> None:
    """Errors: UserError."""
    (folder / "study.yaml").write_text(RIGHT)
    (folder / "questions.jsonl").write_bytes(content)
    study = loaded(folder)
    written = [json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    assert [question.text for question in study.questions] == [entry["question"].strip() for entry in written]
    for item, line in zip(study.questions, written, strict=True):
        assert list(item.options or ()) == [option.strip() for option in line.get("options") or ()]


def right_best(folder: Path, content: bytes) -> None:
    """Errors: UserError."""
    file = folder / "best.json"
    file.write_bytes(content)
    try:
        exported = _read(file)
        method = method_of(file, exported)
    except PipelineError as error:
        with contextlib.suppress(UserError):  # the tuner's reader wants more of it than a runtime does
            read(file)
        raise UserError(str(error)) from error
    assert exported == json.loads(content.decode("utf-8-sig"))
    assert exported["parameters"].items() <= vars(method).items()
    repr(read(file)).encode()


def in_questions(lines: Any) -> str:
    return "".join(as_json(line) + "\n" for line in lines)


def check(folder: Path, examples: int, seed_value: Any, write: Any, right: Any) -> Counter[str]:
    """Counts of right readings and of mistakes; anything else is raised."""
    counts: Counter[str] = Counter()

    @settings(
        derandomize=True,
        deadline=None,
        database=None,
        max_examples=examples,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(seed_value, write))
    def one(content: bytes) -> None:
        begin = time.monotonic()
        mistake = None
        try:
            right(folder, content)
        except UserError as error:
            mistake = error
        counts["read right" if mistake is None else "mistake"] += 1
        if mistake is not None:
            assert all(problem.startswith(str(folder)) for problem in mistake.problems), mistake
            assert all("\n" not in problem for problem in mistake.problems), mistake
            str(mistake).encode()
        assert time.monotonic() - begin < 30

    one()
    return counts


@pytest.fixture(scope="module")
def best(folder: Path) -> Any:
    return json.loads((folder / "best.json").read_text())


def test_mutated_definitions_are_read_right_or_told(folder: Path) -> None:
    assert check(folder, 150, STUDY, as_yaml, right_study).total() >= 150


def test_mutated_questions_are_read_right_or_told(folder: Path) -> None:
    assert check(folder, 150, LINES, in_questions, right_questions).total() >= 150


def test_mutated_exports_are_read_right_or_told(folder: Path, best: Any) -> None:
    assert check(folder, 150, best, as_json, right_best).total() >= 150


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("study.yaml", b"\xff", "study.yaml:1: this is not UTF-8 text"),
        ("study.yaml", RIGHT.encode() + b"a: &a [*a]\n", "study.yaml:4: this is not YAML: "),
        ("study.yaml", BOMB.replace("*a", "x").encode(), "study.yaml: this is not YAML: it has more than"),
        ("study.yaml", RIGHT.encode() + b'name: "\\ud800"\n', "study.yaml:4: name holds a character that is"),
        ("questions.jsonl", b'{"id": 1e999}', "questions.jsonl:1: this is not JSON: 1e999 is too large"),
        ("questions.jsonl", b'\n{"id": "\\ud800"}', "questions.jsonl:2: id holds a character that is none"),
    ],
    ids=["bytes", "alias", "bomb", "surrogate", "number", "escape"],
)
def test_the_command_line_tells_the_mistake_and_ends_with_2(
    file: str,
    content: bytes,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = StudyFiles(tmp_path / "mine").write()
    (folder / file).write_bytes(content)
    for command in (["check"], ["run", "--budget", "0.5"]):
        monkeypatch.setattr(sys, "argv", ["tuner", *command, "--study", str(folder)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert told in capsys.readouterr().err


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["study.yaml", "questions.jsonl", "best.json"])
def test_a_thousand_mutations_of_each_file(folder: Path, best: Any, kind: str) -> None:
    made = {
        "study.yaml": (STUDY, as_yaml, right_study),
        "questions.jsonl": (LINES, in_questions, right_questions),
        "best.json": (best, as_json, right_best),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = check(folder, 1000, *made[kind])
    print(kind, dict(counts))  # noqa: T201 - the table of docs/experiments.md
    assert counts.total() >= 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 2**10
