"""Loads a study: finds it, parses its files, checks its videos and splits them, and reports every mistake
together.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pipeline.errors import VideoError
from pipeline.families import FAMILIES, NAMES, POOLED
from pipeline.methods import KNOBS, AdaTP, choices, knobs
from pipeline.video import check_file
from tuner.errors import UserError
from tuner.study.definition import CHOICES, Search, SplitSettings, Study, StudyQuestion, Video
from tuner.study.parsing import Mistakes, ParsedQuestion, ParsedStudy, nearest, parse_questions, parse_study
from tuner.study.schema import SearchKeys, SplitKeys, StudyKeys
from tuner.study.split import hold_out
from tuner.study.videos import SKIP_HINT, leave_out

DEFINITION = "study.yaml"

# With more bad videos than this the names are not just misspelt, and comparing all of them takes long.
_MOST_SUGGESTED = 10

_LEAVE = "`allow_outside: true` in study.yaml"

_HUGGING_FACE_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_study(name_or_path: str | Path, *, skip_bad_videos: bool = False) -> Study:
    """The study of this name (`./studies/<name>/`, or one that ships with the package) or at this path.

    Errors: UserError with all mistakes of its files together. Videos that are missing, empty or not readable
    are mistakes too; with `skip_bad_videos` they are left out and listed in `Study.skipped`. Whether a video
    can be decoded is checked later (`check_videos`).
    """
    file = find_study(name_or_path)
    mistakes = Mistakes()
    parsed = parse_study(file, mistakes)
    material = _material(parsed, mistakes)
    study = None if parsed.keys is None else _study(parsed, parsed.keys, material, mistakes)
    skippable = material.bad if not skip_bad_videos else {}
    if study is None or mistakes.found or skippable:
        raise UserError([*mistakes.found, *skippable.values()], SKIP_HINT if skippable else "")
    return leave_out(study, material.bad, skip=True)


def find_study(name_or_path: str | Path) -> Path:
    """Path of the study.yaml; UserError with the known studies if there is none."""
    text = os.fspath(name_or_path)
    path = Path(text)
    bare = bool(text) and os.sep not in text and text not in (".", "..")
    places = (
        [Path("studies") / text, path, *(place / text for place in _packaged_studies())] if bare else [path]
    )
    for place in places:
        if _kind(place) == "file" and place.suffix in (".yaml", ".yml"):
            return place
        if _kind(place / DEFINITION) == "file":
            return place / DEFINITION
    for place in places:
        if _kind(place) == "folder":
            raise UserError(f"{place} has no {DEFINITION}; every study folder has one")
        if _kind(place) == "file":
            raise UserError(f"{place} is no study; allowed is a study's folder or its {DEFINITION}")
    known = known_studies()
    listed = f"known studies are {', '.join(known)}" if known else "there are no studies in ./studies/ either"
    raise UserError(
        f"there is no study {text!r}{nearest(text, known)}; {listed}, and a path to a study's folder will do"
    )


def is_hugging_face_id(text: str) -> bool:
    """Whether this is written like the id of a checkpoint: organisation/name."""
    return _HUGGING_FACE_ID.fullmatch(text) is not None


def study_name(file: Path) -> str:
    """The name of the study that this study.yaml defines, whatever else may be wrong with it."""
    written = parse_study(file, Mistakes()).written.get("name")
    return written if isinstance(written, str) and written else file.parent.absolute().resolve().name


def known_studies() -> tuple[str, ...]:
    """Names that `load_study` knows here: the folders of ./studies/ and those that ship with the package."""
    names = {
        file.parent.name
        for place in (Path("studies"), *_packaged_studies())
        for file in place.glob(f"*/{DEFINITION}")
    }
    return tuple(sorted(names))


def _kind(path: Path) -> Literal["folder", "file"] | None:
    """What is there; None also for a name that the file system does not accept."""
    try:
        return "folder" if path.is_dir() else "file" if path.is_file() else None
    except OSError:
        return None


def _packaged_studies() -> tuple[Path, ...]:
    spec = importlib.util.find_spec("studies")
    return tuple(Path(place) for place in (spec.submodule_search_locations or ())) if spec else ()


@dataclass(frozen=True)
class _Material:
    """Questions and videos, as far as they are right."""

    questions_file: Path
    lines: tuple[ParsedQuestion, ...]
    videos: dict[str, Video]
    bad: dict[str, str]
    """What is wrong with which of the videos, as far as that shows without decoding."""
    complete: bool
    """Whether nothing is wrong but the bad videos."""


def _material(parsed: ParsedStudy, mistakes: Mistakes) -> _Material:
    """Reads what study.yaml points to, and that even where other keys of it are wrong."""
    before = len(mistakes.found)
    questions_file = parsed.file.parent / _written_path(parsed, "questions")
    lines = parse_questions(questions_file, mistakes) if _stays(parsed, "questions", mistakes) else ()
    if not lines and len(mistakes.found) == before:
        mistakes.add(questions_file, None, "there is no question in it")
    _answers_all_or_none(lines, questions_file, mistakes)
    folder = parsed.file.parent / _written_path(parsed, "videos")
    if not _stays(parsed, "videos", mistakes):
        videos, bad = {}, {}
    elif _kind(folder) == "folder":
        videos = _videos(lines, questions_file, folder, mistakes)
        _refuse_links(parsed, videos, folder, mistakes)
        bad = _bad_videos(videos, lines, questions_file, folder)
    else:
        videos, bad = {}, {}
        mistakes.add(
            parsed.file,
            parsed.line("videos"),
            f"{folder} is no folder; allowed is the folder that holds the videos",
        )
    return _Material(questions_file, lines, videos, bad, len(mistakes.found) == before)


def _stays(parsed: ParsedStudy, key: str, mistakes: Mistakes) -> bool:
    """Whether a path of study.yaml stays in the study's folder, links followed, or may leave it.

    Whoever runs a study that others wrote would otherwise have files of theirs read, and quoted in messages.
    """
    path = parsed.file.parent / _written_path(parsed, key)
    if _may_leave(parsed) or _is_inside(path, parsed.file.parent):
        return True
    mistakes.add(
        parsed.file,
        parsed.line(key),
        f"{key} is {_written_path(parsed, key)!r}, which leads out of the study's folder; allowed is a path "
        f"inside it, or any with {_LEAVE}",
    )
    return False


def _refuse_links(parsed: ParsedStudy, videos: Mapping[str, Video], folder: Path, mistakes: Mistakes) -> None:
    """Links in the videos folder that lead out of the study's."""
    if _may_leave(parsed):
        return
    outside = [name for name in videos if not _is_inside(folder / name, parsed.file.parent)]
    if outside:
        some = f"{len(outside)} videos lead" if len(outside) > 1 else "a video leads"
        mistakes.add(
            parsed.file,
            parsed.line("videos"),
            f"{some} out of the study's folder, by a link, such as {outside[0]!r}, which is "
            f"{os.path.realpath(folder / outside[0])}; allowed are files inside it, or any with {_LEAVE}",
        )


def _may_leave(parsed: ParsedStudy) -> bool:
    return parsed.written.get("allow_outside") is True


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    except ValueError:  # a NUL in it, which is told elsewhere
        return True


def _written_path(parsed: ParsedStudy, key: str) -> str:
    written = parsed.written.get(key)
    return written if isinstance(written, str) else str(StudyKeys.model_fields[key].default)


def _study(parsed: ParsedStudy, keys: StudyKeys, material: _Material, mistakes: Mistakes) -> Study | None:
    """The study with all its videos, the bad ones included; None after a mistake."""
    file = parsed.file
    name = _name(parsed, keys, mistakes)
    model = _checkpoint(parsed, "model", keys.model, tuple(FAMILIES), NAMES, mistakes)
    text_encoder = _checkpoint(parsed, "text_encoder", keys.text_encoder, ("siglip",), "SigLIP", mistakes)
    if keys.revision is not None and Path(model).is_absolute():
        mistakes.add(
            file,
            parsed.line("revision"),
            "revision is given, but model is a folder; allowed is a revision of a Hugging Face id",
        )
    if keys.pooling is not None:
        _refuse_pooling(parsed, model, mistakes)
    search = _search(parsed, keys.search, mistakes)
    held_out = _held_out(parsed, keys.split, material.videos, mistakes) if material.complete else frozenset()
    if mistakes.found:
        return None
    named = keys.split.held_out_videos
    return Study(
        name=name,
        folder=file.parent.absolute(),
        questions_file=material.questions_file,
        model=model,
        revision=keys.revision,
        text_encoder=text_encoder,
        frames=keys.frames,
        scoring=keys.scoring,
        max_new_tokens=keys.max_new_tokens,
        videos=tuple(material.videos[name] for name in sorted(material.videos)),
        questions=tuple(_question(line) for line in material.lines),
        held_out=held_out,
        split=SplitSettings(keys.split.held_out, keys.split.seed, None if named is None else tuple(named)),
        search=search,
        description=keys.description,
        pooling=keys.pooling,
        allow_pickle=keys.allow_pickle,
        decode_timeout=keys.decode_timeout,
    )


def _question(line: ParsedQuestion) -> StudyQuestion:
    keys = line.keys
    return StudyQuestion(
        id=keys.id,
        text=keys.question,
        options=None if keys.options is None else tuple(keys.options),
        video=_video_name(line),
        answer=keys.answer,
        tags=dict(keys.tags),
        line=line.line,
        baseline=keys.baseline,
    )


def _name(parsed: ParsedStudy, keys: StudyKeys, mistakes: Mistakes) -> str:
    """The study's name, which is also the name of the folder of its records."""
    name = keys.name or parsed.file.parent.absolute().resolve().name
    if (
        not name
        or "/" in name
        or "\\" in name
        or name.startswith(".")
        or not name.isprintable()
        or len(name) > 100
    ):
        mistakes.add(
            parsed.file,
            parsed.line("name"),
            f"name is {name!r}; allowed is a name of up to 100 characters, without slashes or a dot in front",
        )
    return name


def _checkpoint(
    parsed: ParsedStudy, key: str, value: str, known: tuple[str, ...], family: str, mistakes: Mistakes
) -> str:
    """The absolute path of a checkpoint folder, or the Hugging Face id.

    Only a folder's config.json is read: whether the weights are there and fit is checked when the model is
    loaded.
    """
    line = parsed.line(key)
    written = Path(value).expanduser() if value.startswith("~/") else Path(value)
    folder = parsed.file.parent / written
    if _kind(folder) != "folder":
        if not is_hugging_face_id(value) or _kind(folder) == "file":
            mistakes.add(
                parsed.file,
                line,
                f"{key} is {value!r}, and there is no folder {folder}; allowed is the folder of a {family} "
                "checkpoint or a Hugging Face id like organisation/name",
            )
        return value
    config = folder / "config.json"
    try:
        found = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except FileNotFoundError:
        mistakes.add(
            parsed.file, line, f"{key} folder {folder} is no {family} checkpoint: it has no config.json"
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        mistakes.add(
            parsed.file,
            line,
            f"{key} folder {folder} is no {family} checkpoint: its config.json names no model_type",
        )
    else:
        if found not in known:
            mistakes.add(
                parsed.file,
                line,
                f"{key} folder {folder} is no {family} checkpoint: its model_type is {found!r}; "
                f"allowed is {', '.join(map(repr, known))}",
            )
    return str(_absolute(folder))


def _absolute(folder: Path) -> Path:
    """The same folder, without `..` that would make messages hard to read."""
    return folder.resolve() if ".." in folder.parts else folder.absolute()


def _refuse_pooling(parsed: ParsedStudy, model: str, mistakes: Mistakes) -> None:
    """Checked for a folder; a Hugging Face id is checked when the model is loaded."""
    try:
        found = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # a Hugging Face id, or reported already
    if isinstance(found, str) and found in FAMILIES and found not in POOLED:
        mistakes.add(
            parsed.file,
            parsed.line("pooling"),
            f"pooling is given, but the model is a {FAMILIES[found][0]} checkpoint, which pools in one way "
            f"only; allowed is pooling for a {FAMILIES[POOLED[0]][0]} checkpoint",
        )


def _search(parsed: ParsedStudy, keys: SearchKeys, mistakes: Mistakes) -> Search:
    ranges = knobs(AdaTP)

    def known(section: str, knob: str) -> bool:
        if knob not in KNOBS:
            mistakes.add(
                parsed.file,
                parsed.line("search", section, knob),
                f"search.{section} names {knob!r}{nearest(knob, KNOBS)}; allowed are {', '.join(KNOBS)}",
            )
        return knob in KNOBS

    for knob, value in keys.fixed.items():
        if not known("fixed", knob):
            continue
        line = parsed.line("search", "fixed", knob)
        if knob in keys.bounds:
            mistakes.add(
                parsed.file,
                line,
                f"{knob} is under both search.fixed and search.bounds; allowed is one of them",
            )
        values: dict[str, Any] = {knob: value}
        try:
            AdaTP(**values)
        except ValueError as error:
            mistakes.add(parsed.file, line, f"search.fixed.{knob} is {value:g}; allowed is: {error}")
    for knob, (low, high) in keys.bounds.items():
        if not known("bounds", knob):
            continue
        lowest, highest = ranges[knob].low, ranges[knob].high
        if not lowest <= low < high <= highest:
            mistakes.add(
                parsed.file,
                parsed.line("search", "bounds", knob),
                f"search.bounds.{knob} is [{low:g}, {high:g}]; allowed is [lowest, highest], the first "
                f"below the second, within [{lowest:g}, {highest:g}]",
            )
    return Search(
        fixed=tuple(sorted(keys.fixed.items())),
        bounds=tuple(sorted((knob, (low, high)) for knob, (low, high) in keys.bounds.items())),
        choices=_choices(parsed, keys, mistakes),
    )


def _choices(
    parsed: ParsedStudy, keys: SearchKeys, mistakes: Mistakes
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    known = choices(AdaTP)
    for name, values in keys.choices.items():
        line = parsed.line("search", "choices", name)
        if name not in CHOICES:
            why = nearest(name, CHOICES)
            if name in known:
                why = ", which the range of tau_t depends on"
            elif name in KNOBS:
                why = ", a knob, which search.fixed and search.bounds are for"
            mistakes.add(
                parsed.file, line, f"search.choices names {name!r}{why}; allowed are {', '.join(CHOICES)}"
            )
            continue
        allowed = ", ".join(map(str, known[name].values))
        if not values:
            mistakes.add(
                parsed.file, line, f"search.choices.{name} is []; allowed are one or more of {allowed}"
            )
        for place, value in enumerate(values):
            line = parsed.line("search", "choices", name, place)
            if value not in known[name].values:
                near = nearest(value, map(str, known[name].values))
                mistakes.add(
                    parsed.file, line, f"search.choices.{name} has {value!r}{near}; allowed are {allowed}"
                )
            elif value in values[:place]:
                mistakes.add(
                    parsed.file,
                    line,
                    f"search.choices.{name} has {value!r} more than once; allowed is each value once",
                )
    return tuple(sorted((name, tuple(values)) for name, values in keys.choices.items()))


def _answers_all_or_none(lines: Sequence[ParsedQuestion], file: Path, mistakes: Mistakes) -> None:
    """Accuracy and agreement with the baseline are different measures, which a study must not mix."""
    without = [line.line for line in lines if line.keys.answer is None]
    if without and len(without) < len(lines):
        some = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
        mistakes.add(
            file,
            without[0],
            f"this question{some} has no answer, while {len(lines) - len(without)} have one; "
            "allowed are answers to all questions or to none",
        )


def _video_name(line: ParsedQuestion) -> str:
    """The path in a single spelling: it identifies the video, also in the split."""
    return str(PurePosixPath(line.keys.video))


def _videos(
    lines: Sequence[ParsedQuestion], file: Path, folder: Path, mistakes: Mistakes
) -> dict[str, Video]:
    videos: dict[str, Video] = {}
    for line in lines:
        name = PurePosixPath(_video_name(line))
        if name.is_absolute() or ".." in name.parts or "\0" in str(name):
            mistakes.add(
                file, line.line, f"video is {line.keys.video!r}; allowed is a path that stays inside {folder}"
            )
            continue
        videos[str(name)] = Video(str(name), _absolute(folder) / name)
    return videos


def _bad_videos(
    videos: dict[str, Video], lines: Sequence[ParsedQuestion], file: Path, folder: Path
) -> dict[str, str]:
    """What is wrong with each bad file, as far as that shows without decoding."""
    first = {_video_name(line): line.line for line in reversed(lines)}
    errors = {}
    for name in videos:
        try:
            check_file(folder / name)
        except VideoError as error:
            errors[name] = str(error)
    present: list[str] = []
    if 0 < len(errors) <= _MOST_SUGGESTED:
        present = [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")]
    return {
        name: f"{file}:{first[name]}: {error}{'' if name in present else nearest(name, present)}"
        for name, error in errors.items()
    }


def _held_out(
    parsed: ParsedStudy, split: SplitKeys, videos: dict[str, Video], mistakes: Mistakes
) -> frozenset[str]:
    if len(videos) < 2:
        mistakes.add(
            parsed.file,
            parsed.line("questions"),
            f"the questions are about {len(videos)} video; allowed are 2 or more: to tune on, and held out",
        )
        return frozenset()
    if split.held_out_videos is None:
        return hold_out(videos, split.held_out, split.seed)
    if split.model_fields_set & {"held_out", "seed"}:
        mistakes.add(
            parsed.file,
            parsed.line("split"),
            "split has held_out_videos beside held_out or seed; allowed is one way to split",
        )
    names = set()
    for index, written in enumerate(split.held_out_videos):
        name = str(PurePosixPath(written))
        names.add(name)
        if name not in videos:
            mistakes.add(
                parsed.file,
                parsed.line("split", "held_out_videos", index),
                f"held-out video {written!r} has no question{nearest(name, videos)}; allowed is one that has",
            )
    if names >= set(videos):
        mistakes.add(
            parsed.file,
            parsed.line("split", "held_out_videos"),
            "all videos are held out; allowed is to leave at least one to tune on",
        )
    return frozenset(names)
