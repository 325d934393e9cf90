"""Writes a new study: study.yaml with a comment on each key, and the questions. Nothing is overwritten."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tuner.errors import UserError, disk_may_be_full
from tuner.study import Study, is_hugging_face_id, known_studies, load_study

MODEL = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
TEXT_ENCODER = "google/siglip-so400m-patch14-384"
"""The SigLIP of all published LLaVA-OneVision and LLaVA-Video checkpoints."""
FRAMES = 32
SHIPPED = "demo"
"""The study that ships: as a model, its small one."""

QUESTIONS = "questions.jsonl"

_TEMPLATE = """\
# A study: what each key means stands in docs/study-format.md. A key behind a # shows its default.

# A LLaVA-OneVision or LLaVA-Video checkpoint: Hugging Face id, or a folder relative to this file.
model: {model}
# Branch, tag or commit of a Hugging Face id; pin a commit, for a moving branch makes another study.
# revision: main
# The SigLIP that the model's vision tower was taken from: id or folder.
text_encoder: {text_encoder}
# Frames sampled evenly from each video.
frames: {frames}
# Folder of the videos, relative to this file.
videos: {videos}
# File of the questions, relative to this file.
questions: {questions}
# Whether videos and questions may lie outside this folder, links followed.
{outside}
# Under which name records are kept; the folder's where none is given.
# name: {name}
# Free text.
{description}
# How options are scored: by the log-probability of their letter, or of their words.
# scoring: letter
# Length of free answers, in tokens.
# max_new_tokens: 16
# Seconds without progress after which decoding a video is given up.
# decode_timeout: 60
# Of a LLaVA-Video checkpoint: how patches are pooled (average, bilinear, max), instead of its own way.
# pooling: average
# Whether weights stored as pickles may be read: they may run code.
# allow_pickle: false
# Which videos measure and never choose: a fraction of them, drawn by a seed, or held_out_videos by name.
# split:
#   held_out: 0.8
#   seed: 0
# Knobs that keep one value (fixed), have a narrower range (bounds), and AdaTP's choices to be searched.
# search:
#   fixed: {{}}
#   bounds: {{}}
#   choices: {{}}
"""


@dataclass(frozen=True)
class Settings:
    """What the new study.yaml says, as the user gave it."""

    videos: Path
    model: str = MODEL
    text_encoder: str | None = None
    frames: int = FRAMES


def study_folder(name: str) -> Path:
    """Where a new study of this name, or at this path, will be.

    Errors: UserError where there is one already.
    """
    if not name.strip() or name in (".", ".."):
        raise UserError(f"the new study's name is {name!r}; allowed is a name, or a path to a new folder")
    folder = Path(name) if os.sep in name else Path("studies") / name
    for file in (folder / "study.yaml", folder / QUESTIONS):
        if os.path.lexists(file):
            raise UserError(
                f"{file} is there already: nothing is overwritten. Choose another name, or move it."
            )
    if os.sep not in name and name in known_studies():
        raise UserError(f"a study {name!r} ships with this program: choose another name")
    return folder


def write_study(
    folder: Path,
    settings: Settings,
    lines: Sequence[Mapping[str, Any]],
    places: Sequence[str],
    description: str,
) -> Study:
    """Writes a study and reads it with the reader that all commands use.

    places: where each of the questions comes from, for the messages. Errors: UserError with every mistake,
    DiskFullError where there is no room; nothing is left behind then.
    """
    made: list[Path] = []
    try:
        try:
            for parent in (*reversed(folder.parents), folder):
                if not parent.is_dir():
                    parent.mkdir()
                    made.append(parent)
            texts = {
                folder / QUESTIONS: "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines),
                folder / "study.yaml": _definition(folder, settings, description),
            }
            for file, text in texts.items():
                with disk_may_be_full(str(file)), file.open("x", encoding="utf-8") as opened:
                    made.append(file)
                    opened.write(text)
        except OSError as error:
            raise UserError(f"{error.filename or folder} cannot be written: {error.strerror}") from error
        except ValueError as error:  # a name that no file can have
            raise UserError(f"{folder} cannot be written: {error}") from error
        try:
            return load_study(folder / "study.yaml")
        except UserError as error:
            raise UserError(_at_their_places(error.problems, folder, places)) from None
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise


def _at_their_places(problems: Iterable[str], folder: Path, places: Sequence[str]) -> list[str]:
    """Mistakes in the files of a folder that will be gone, with the places that the questions came from."""
    question = re.compile(re.escape(str(folder / QUESTIONS)) + r":(\d+)(?=: )")
    definition = re.compile(re.escape(str(folder / "study.yaml")) + r":\d+: ")
    return [
        question.sub(lambda found: places[int(found[1]) - 1], definition.sub("", problem))
        for problem in problems
    ]


def _definition(folder: Path, settings: Settings, description: str) -> str:
    if settings.model == SHIPPED and not Path(SHIPPED).is_dir():
        shipped = load_study(SHIPPED)
        encoder = settings.text_encoder or shipped.text_encoder
        settings = replace(settings, model=shipped.model, text_encoder=encoder)
    return _TEMPLATE.format(
        model=_written(_checkpoint(folder, settings.model, "--model")),
        text_encoder=_written(
            _checkpoint(folder, settings.text_encoder or _text_encoder(settings.model), "--text-encoder")
        ),
        frames=settings.frames,
        videos=_written(_relative(settings.videos, folder)),
        questions=QUESTIONS,
        outside=_outside(settings.videos, folder),
        name=folder.absolute().name,
        description=f"description: {_written(description)}",
    )


def _outside(videos: Path, folder: Path) -> str:
    """The key that lets a study read the videos its maker named: the folder, or links in it, lead there."""
    places = (videos, *(path for path in videos.rglob("*") if path.is_symlink()))
    inside = all(Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder)) for place in places)
    return "# allow_outside: false" if inside else "allow_outside: true"


def _checkpoint(folder: Path, value: str, option: str) -> str:
    """A folder relative to study.yaml, or an id."""
    path = Path(value).expanduser()
    if path.is_dir():
        return _relative(path, folder)
    if not is_hugging_face_id(value):
        raise UserError(
            f"{option} is {value!r}; allowed is a folder that exists, or an id like organisation/name"
        )
    return value


def _text_encoder(model: str) -> str:
    """The published SigLIP, where nothing speaks against it. Errors: UserError where something does."""
    path = Path(model).expanduser()
    if not path.is_dir():
        return TEXT_ENCODER
    config: Mapping[str, Any] = {}
    with suppress(OSError, ValueError):
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    tower = config.get("vision_config")
    shape = (1152, 14, 384)
    if config.get("mm_vision_tower") == TEXT_ENCODER or (
        isinstance(tower, dict)
        and tuple(tower.get(key) for key in ("hidden_size", "patch_size", "image_size")) == shape
    ):
        return TEXT_ENCODER
    raise UserError(
        f"{path} does not tell which SigLIP its vision tower was taken from: name it with --text-encoder"
    )


def _relative(path: Path, folder: Path) -> str:
    """Relative to study.yaml, so that the whole can be moved; absolute where only the root is shared."""
    target = path.expanduser().absolute()
    target = target.resolve() if ".." in target.parts else target
    # Resolved, for `..` leads to where a folder really lies.
    start = folder.absolute().resolve()
    if len(Path(os.path.commonpath([target, start])).parts) <= 1:
        return str(target)
    return Path(os.path.relpath(target, start)).as_posix()


def _written(text: str) -> str:
    """A text as YAML, in quotes where it would be read as something else."""
    with suppress(YAMLError):
        if YAML(typ="safe", pure=True).load(f"key: {text}") == {"key": text}:
            return text
    return json.dumps(text, ensure_ascii=False)
