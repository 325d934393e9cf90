"""From the text of study.yaml and questions.jsonl to checked keys, with the line of every mistake.

Nothing is raised here: mistakes are collected as sentences `file:line: what is wrong; allowed is ...`, so
that the user sees all of them at once.
"""

from __future__ import annotations

import difflib
import json
import stat
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
from ruamel.yaml.reader import ReaderError

from pipeline import strict_json
from pipeline.question import without_letters
from tuner.study.schema import QuestionKeys, StudyKeys

Keys = TypeVar("Keys", bound=BaseModel)

Location = tuple[int | str, ...]

# What a definition may hold. Every reader is slow with YAML of many megabytes, and a few lines of aliases of
# aliases make billions of values.
_MOST_BYTES = 2**20
_MOST_VALUES = 20_000

# Of more mistakes in one place than this, nearest names are not looked for: there is another reason.
_MOST_SUGGESTED = 20


@dataclass
class Mistakes:
    """What is wrong with the files of one study."""

    found: list[str] = field(default_factory=list)

    def add(self, file: Path, line: int | None, sentence: str) -> None:
        """Adds a mistake; `line` counts from 1, None if the mistake is about the whole file."""
        text = f"{file}:{line}: {sentence}" if line else f"{file}: {sentence}"
        # Names of files may hold bytes that are no text, which no terminal takes.
        self.found.append(text.encode("utf-8", "backslashreplace").decode())


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
    """The keys of study.yaml.

    A scalar in the place of a text is that text, as it is written: `revision: 12e45678` is no number.
    """
    nothing = ParsedStudy(None, {}, file, {(): 1})
    text = _text(file, mistakes, _MOST_BYTES)
    if text is None:
        return nothing
    tree = _Tree()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of directives; what they make of the values is checked
            written = tree.read(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        mistakes.add(file, mark.line + 1 if mark else None, f"this is not YAML: {problem}")
        return nothing
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        mistakes.add(file, line, f"this is not YAML: it holds the character {chr(error.character)!r}")
        return nothing
    except (YAMLError, ValueError) as error:
        mistakes.add(file, None, f"this is not YAML: {' '.join(str(error).split())}")
        return nothing
    except RecursionError:
        mistakes.add(file, None, "this is not YAML: it is nested too deeply")
        return nothing
    if not isinstance(written, dict):
        mistakes.add(file, 1, f"{_shown(written)} is no study; allowed is a mapping with {_names(StudyKeys)}")
        return nothing
    try:
        StudyKeys.model_validate(written)
    except ValidationError as error:
        for mistake in error.errors(include_url=False, include_context=False):
            if mistake["type"] == "string_type" and mistake["loc"] in tree.sources:
                tree.set(mistake["loc"], tree.sources[mistake["loc"]])
    keys = _validated(StudyKeys, written, file, tree.lines, mistakes, tree.sources)
    return ParsedStudy(keys, written, file, tree.lines)


class _Tree:
    """YAML as plain values, with the line of each, and the text of those scalars that are no texts."""

    def __init__(self) -> None:
        self.lines: dict[Location, int] = {(): 1}
        self.sources: dict[Location, str] = {}
        self._yaml = YAML(typ="safe", pure=True)
        self._values = 0
        self._root: Any = None

    def read(self, text: str) -> Any:
        """Errors: YAMLError, ValueError and RecursionError where this is no YAML, or too much of it."""
        node = self._yaml.compose(text)
        self._root = None if node is None else self._value(node, (), ())
        return self._root

    def set(self, location: Location, value: Any) -> None:
        """Another value in the place of the one there."""
        inner = self._root
        for step in location[:-1]:
            inner = inner[step]
        inner[location[-1]] = value

    def _value(self, node: Node, location: Location, around: tuple[Node, ...]) -> Any:
        self._values += 1
        if self._values > _MOST_VALUES:
            raise ValueError(f"it has more than {_MOST_VALUES} values, aliases among them counted in full")
        if any(node is other for other in around):
            raise MarkedYAMLError(problem="an alias that holds itself", problem_mark=node.start_mark)
        if isinstance(node, ScalarNode):
            return self._scalar(node, location)
        if not str(node.tag).endswith((":map", ":seq")):
            raise MarkedYAMLError(problem=f"the tag {node.tag}", problem_mark=node.start_mark)
        inside = (*around, node)
        if isinstance(node, MappingNode):
            values = {}
            for key, value in node.value:
                if not isinstance(key, ScalarNode):
                    raise MarkedYAMLError(problem="a key that is no text", problem_mark=key.start_mark)
                name = str(key.value)
                if name in values:
                    raise MarkedYAMLError(
                        problem=f"found duplicate key {name!r}", problem_mark=key.start_mark
                    )
                self.lines[(*location, name)] = key.start_mark.line + 1
                values[name] = self._value(value, (*location, name), inside)
            return values
        items = []
        for index, item in enumerate(node.value):
            self.lines[(*location, index)] = item.start_mark.line + 1
            items.append(self._value(item, (*location, index), inside))
        return items

    def _scalar(self, node: ScalarNode, location: Location) -> Any:
        source = str(node.value)
        try:
            value = self._yaml.constructor.construct_object(node, deep=True)
        except MarkedYAMLError:
            raise
        except Exception:  # noqa: BLE001 - a date in month 13 and the like, by whatever the constructor raises
            return source
        if value is None or isinstance(value, str):
            return value
        self.sources[location] = source
        # Dates, bytes and integers of thousands of digits are what is written.
        plain = isinstance(value, bool | float) or (isinstance(value, int) and value.bit_length() < 64)
        return value if plain else source


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
            value = strict_json.loads(line)
        except ValueError as error:
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
    bare = without_letters(keys.options)
    repeated = sorted({option for option in bare if bare.count(option) > 1})
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


def _text(file: Path, mistakes: Mistakes, most_bytes: int | None = None) -> str | None:
    try:
        state = file.stat()
        if not stat.S_ISREG(state.st_mode) and not stat.S_ISDIR(state.st_mode):
            mistakes.add(file, None, "cannot be read: it is no file")  # a pipe has no end
            return None
        if most_bytes is not None and state.st_size > most_bytes:
            mistakes.add(
                file,
                None,
                f"has {state.st_size} bytes; allowed is a definition of up to {most_bytes}",
            )
            return None
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        mistakes.add(file, None, "there is no such file")
    except OSError as error:
        mistakes.add(file, None, f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        mistakes.add(file, error.object.count(b"\n", 0, error.start) + 1, "this is not UTF-8 text")
    except ValueError:
        mistakes.add(file, None, "there is no such file")  # a name that no file system takes
    return None


def _validated(
    model: type[Keys],
    value: Any,
    file: Path,
    lines: Mapping[Location, int],
    mistakes: Mistakes,
    sources: Mapping[Location, str] | None = None,
) -> Keys | None:
    """`sources`: the texts of values that are none, to show them as they are written."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        for number, mistake in enumerate(error.errors(include_url=False, include_context=False)):
            location = mistake["loc"]
            shown = _short((sources or {}).get(location) or _shown(mistake["input"]))
            sentence = _sentence(model, location, mistake["type"], shown, suggest=number < _MOST_SUGGESTED)
            mistakes.add(file, _line(lines, location), sentence)
        return None


def _sentence(
    model: type[BaseModel], location: Location, kind: str, shown: str, *, suggest: bool = True
) -> str:
    name = _dotted(location)
    owner, allowed = _owner(model, location)
    if kind == "extra_forbidden":
        near = nearest(str(location[-1]), owner.model_fields) if suggest else ""
        return f"unknown key {_shown(name)}{near}; allowed are {_names(owner)}"
    if kind == "missing":
        return f"{name} is missing; allowed is {allowed}"
    if kind in ("string_unicode", "string_pattern_mismatch"):
        return f"{name} holds a character that is none: {shown}; allowed is {allowed}"
    return f"{name} is {shown}; allowed is {allowed}"


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
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} of many levels"
    return _short(text)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _line(lines: Mapping[Location, int], location: Location) -> int:
    while location not in lines:
        location = location[:-1]
    return lines[location]
