"""An exported configuration at work: `pipeline.load("best.json").answer(video, question)`."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pipeline.answering import Answer
from pipeline.clip import Clip
from pipeline.errors import PipelineError
from pipeline.methods import from_dict
from pipeline.methods.base import Method
from pipeline.question import Question
from pipeline.runtime import Runtime

SCHEMA = "adatp-tuner/best/1"
CLIPS = 4  # encoded videos kept for further questions


class Deployed:
    """A model with the configuration a study found: the same code on the same classes as in the study."""

    def __init__(self, runtime: Runtime, method: Method, exported: dict[str, Any]) -> None:
        self.runtime = runtime
        self.method = method
        self.exported = exported  # the whole file
        self._clips: OrderedDict[tuple[str, int, int], Clip] = OrderedDict()

    @classmethod
    def load(
        cls, path: str | Path, *, device: str = "auto", dtype: str = "auto", base: Path | None = None
    ) -> Self:
        """Reads an exported file and loads what it names.

        Relative model paths are looked up from the file's folder (or `base`), then the working directory.
        Errors: PipelineError when the file is not an export or the model found is not the one it was
        measured with.
        """
        file = Path(path)
        exported = _read(file)
        model, encoder = exported["model"], exported["text_encoder"]
        here = base or file.resolve().parent
        runtime = Runtime.load(
            _locate(model["id"], here),
            revision=model.get("revision"),
            text_encoder=_locate(encoder["id"], here),
            text_encoder_revision=encoder.get("revision"),
            frames=int(exported["frames"]),
            scoring=exported.get("scoring", "words"),
            max_new_tokens=int(exported.get("max_new_tokens", 16)),
            device=device,
            dtype=dtype,
        )
        for part, found in ((model, runtime.identity), (encoder, runtime.encoder_identity)):
            measured_with = part.get("identity")
            if measured_with is not None and measured_with != found:
                raise PipelineError(f"{file} was measured with {measured_with}, but {part['id']} is {found}.")
        fields = {
            "method": exported.get("method", "adatp"),
            **exported["parameters"],
            **exported.get("selection", {}),
        }
        try:
            method = from_dict(fields)
        except ValueError as error:
            raise PipelineError(f"{file}: {error}") from error
        return cls(runtime, method, exported)

    def answer(self, video: str | Path, question: str, options: Sequence[str] | None = None) -> Answer:
        """Answers one question about a video file; further questions about it do not encode it again.

        options: 2 to 26 answers to choose from; without them the answer is free text.
        Errors: VideoError when the video cannot be read. ValueError for options that are none.
        """
        if isinstance(options, str):  # its letters would be taken for options
            raise ValueError(f"options is a list of texts, but got the text {options!r}.")
        asked = Question(question, question, tuple(options) if options is not None else None)
        return self.runtime.answer(self._clip(Path(video)), asked, self.method)

    def _clip(self, video: Path) -> Clip:
        status = video.stat() if video.is_file() else None
        key = (str(video), status.st_size if status else 0, status.st_mtime_ns if status else 0)
        if key not in self._clips:
            self._clips[key] = self.runtime.encode(video)
            while len(self._clips) > CLIPS:
                self._clips.popitem(last=False)
        self._clips.move_to_end(key)
        return self._clips[key]


def load(path: str | Path, *, device: str = "auto", dtype: str = "auto") -> Deployed:
    """The configuration in an exported file (best.json), ready to answer.

    Errors: PipelineError and its kinds; each message says what is wrong with the file or the model it names.
    """
    return Deployed.load(path, device=device, dtype=dtype)


def _read(file: Path) -> dict[str, Any]:
    try:
        exported = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PipelineError(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise PipelineError(f"{file} is not valid JSON: {error}.") from error
    needed = ("schema", "parameters", "model", "text_encoder", "frames")
    missing = [name for name in needed if not isinstance(exported, dict) or name not in exported]
    if missing:
        raise PipelineError(f"{file} is no exported configuration: it lacks {', '.join(missing)}.")
    if exported["schema"] != SCHEMA:
        raise PipelineError(
            f"{file} has the schema {exported['schema']!r}, but this version reads {SCHEMA!r}."
        )
    for name in ("model", "text_encoder"):
        if not isinstance(exported[name], dict) or "id" not in exported[name]:
            raise PipelineError(f"{file}: {name} is an object with an id.")
    result: dict[str, Any] = exported
    return result


def _locate(name: str, base: Path) -> str:
    """The folder of that name beside the exported file, or else `name` itself."""
    beside = base / name
    return str(beside) if beside.is_dir() else name
