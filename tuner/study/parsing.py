"""From the text of study.yaml and questions.jsonl to checked keys, with the line of every mistake.

Nothing is raised here: mistakes are collected as sentences `file:line: what is wrong; allowed is ...`, so
that the user sees all of them at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tuner.study.schema import QuestionKeys, StudyKeys

Keys = TypeVar("Keys", bound=BaseModel)

Location = tuple[int | str, ...]


@dataclass
class Mistakes:
    """What is wrong with the files of one study."""

    found: list[str] = field(default_factory=list)

    def add(self, file: Path, line: int | None, sentence: str) -> None:
        """Adds a mistake; `line` counts from 1, None if the mistake is about the whole file."""
        self.found.append(f"{file}:{line}: {sentence}" if line else f"{file}: {sentence}")


@dataclass(frozen=True)
class ParsedStudy:
    """study.yaml with the line of each of its keys."""

    keys: StudyKeys | None
    """None after a mistake."""
    written: Mapping[str, Any]
    """The keys as they are written, right or wrong."""
    file: Path
    lines: Mapping[Location, int]

    def line(self, *location: int | str) -> int:
        """Line of a key or, if it is not written, of the innermost key around it."""
        return _line(self.lines, location)


@dataclass(frozen=True)
class ParsedQuestion:
    """One line of questions.jsonl."""

    keys: QuestionKeys
    line: int


def parse_study(file: Path, mistakes: Mistakes) -> ParsedStudy:
    """The keys of study.yaml."""
    nothing = ParsedStudy(None, {}, file, {(): 1})
    text = _text(file, mistakes)
    if text is None:
        return nothing
    try:
        tree = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        mistakes.add(file, mark.line + 1 if mark else None, f"this is not YAML: {problem}")
        return nothing
    except YAMLError as error:
        mistakes.add(file, None, f"this is not YAML: {' '.join(str(error).split())}")
        return nothing
    if not isinstance(tree, dict):
        mistakes.add(
            file, 1, f"{_shown(_plain(tree))} is no study; allowed is a mapping with {_names(StudyKeys)}"
        )
        return nothing
    lines: dict[Location, int] = {(): 1}
    _collect_lines(tree, (), lines)
    written = _plain(tree)
    return ParsedStudy(_validated(StudyKeys, written, file, lines, mistakes), written, file, lines)


def parse_questions(file: Path, mistakes: Mistakes) -> tuple[ParsedQuestion, ...]:
    """The questions of the correct lines of questions.jsonl; blank lines are skipped."""
    text = _text(file, mistakes)
    if text is None:
        return ()
    questions = []
    used: dict[str, int] = {}  # id -> line
    # Not splitlines: it also splits at separators that may occur inside a JSON text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_object, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            problem = (
                f"{error.msg}, column {error.colno}"
                if isinstance(error, json.JSONDecodeError)
                else str(error)
            )
            mistakes.add(file, number, f"this is not JSON: {problem}")
            continue
        if not isinstance(value, dict):
            mistakes.add(
                file,
                number,
                f"{_shown(value)} is no question; allowed is an object with {_names(QuestionKeys)}",
            )
            continue
        identifier = value.get("id")
        if isinstance(identifier, str) and identifier.strip():
            identifier = identifier.strip()
            if identifier in used:
                mistakes.add(
                    file,
                    number,
                    f"id {identifier!r} is taken by line {used[identifier]}; each id occurs once",
                )
            used.setdefault(identifier, number)
        keys = _validated(QuestionKeys, value, file, {(): number}, mistakes)
        if keys is not None and _options_fit(keys, file, number, mistakes):
            questions.append(ParsedQuestion(keys, number))
    return tuple(questions)


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)` for a name close to a known name, else an empty text."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _options_fit(keys: QuestionKeys, file: Path, line: int, mistakes: Mistakes) -> bool:
    if keys.options is None:
        return True
    repeated = sorted({option for option in keys.options if keys.options.count(option) > 1})
    if repeated:
        mistakes.add(
            file, line, f"option {repeated[0]!r} occurs more than once; options differ from each other"
        )
    outside = [
        (key, value)
        for key, value in (("answer", keys.answer), ("baseline", keys.baseline))
        if value is not None and value not in keys.options
    ]
    for key, value in outside:
        allowed = ", ".join(map(repr, keys.options))
        mistakes.add(file, line, f"{key} {value!r} is not among the options; allowed is one of {allowed}")
    return not repeated and not outside


def _text(file: Path, mistakes: Mistakes) -> str | None:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        mistakes.add(file, None, "there is no such file")
    except OSError as error:
        mistakes.add(file, None, f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        mistakes.add(file, error.object.count(b"\n", 0, error.start) + 1, "this is not UTF-8 text")
    return None


def _validated(
    model: type[Keys], value: Any, file: Path, lines: Mapping[Location, int], mistakes: Mistakes
) -> Keys | None:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        for one in error.errors(include_url=False, include_context=False):
            location = one["loc"]
            mistakes.add(file, _line(lines, location), _sentence(model, location, one["type"], one["input"]))
        return None


def _sentence(model: type[BaseModel], location: Location, kind: str, value: Any) -> str:
    name = _dotted(location)
    if kind == "extra_forbidden":
        owner, _ = _owner(model, location)
        key = str(location[-1])
        return f"unknown key {name!r}{nearest(key, owner.model_fields)}; allowed are {_names(owner)}"
    _, allowed = _owner(model, location)
    if kind == "missing":
        return f"{name} is missing; allowed is {allowed}"
    return f"{name} is {_shown(value)}; allowed is {allowed}"


def _owner(model: type[BaseModel], location: Location) -> tuple[type[BaseModel], str]:
    """The innermost model on the way to a location, and the description of its field."""
    allowed = ""
    for step in location:
        known = model.model_fields.get(step) if isinstance(step, str) else None
        if known is None:
            break
        allowed = known.description or ""
        inner = next(
            (kind for kind in (known.annotation, *get_args(known.annotation)) if _is_model(kind)), None
        )
        if inner is None:
            break
        model = inner
    return model, allowed


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _names(model: type[BaseModel]) -> str:
    return ", ".join(model.model_fields)


def _dotted(location: Location) -> str:
    text = ""
    for step in location:
        if step == "[key]":  # pydantic's mark for a mistake in a mapping's key
            continue
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _line(lines: Mapping[Location, int], location: Location) -> int:
    while location not in lines:
        location = location[:-1]
    return lines[location]


def _collect_lines(node: Any, location: Location, lines: dict[Location, int]) -> None:
    if isinstance(node, CommentedMap):
        for key, value in node.items():
            inner = (*location, str(key))
            lines[inner] = node.lc.key(key)[0] + 1 if key in (node.lc.data or {}) else _line(lines, location)
            _collect_lines(value, inner, lines)
    elif isinstance(node, CommentedSeq):
        for index, value in enumerate(node):
            inner = (*location, index)
            lines[inner] = node.lc.item(index)[0] + 1
            _collect_lines(value, inner, lines)


def _plain(node: Any) -> Any:
    """The same data without ruamel's own types, which hold comments and lines."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} occurs twice")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON value")
