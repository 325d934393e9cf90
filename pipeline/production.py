"""An exported configuration at work: `pipeline.load("best.json").answer(video, question)`."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline import strict_json
from pipeline.answering import Answer
from pipeline.checkpoint import find_checkpoint
from pipeline.clip import Clip
from pipeline.errors import ModelError, PipelineError, UnsupportedError
from pipeline.export_format import why_unreadable
from pipeline.generation import Prefill
from pipeline.methods import from_dict
from pipeline.methods.base import Method
from pipeline.question import Question, Scoring
from pipeline.runtime import USUAL_ATTENTION, Runtime

ALWAYS_THERE = ("eager", "sdpa")  # attention backends that come with torch
MEAN_OVER_ALL = "adatp-tuner/best/1"  # the format in which score_query "mean" meant something else
CLIPS = 4  # encoded videos kept for further questions

_Count = Annotated[int, Field(ge=1, le=100_000)]
_Name = Annotated[str, Field(pattern=r"^[^\x00]+$")]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Checkpoint(BaseModel):
    """A model of an exported file."""

    model_config = ConfigDict(strict=True)

    id: _Name
    revision: _Name | None = None
    identity: str | None = None


class _Exported(BaseModel):
    """What is read of an exported file; everything else in it is for people."""

    model_config = ConfigDict(strict=True)

    parameters: dict[str, int | _Number]
    model: _Checkpoint
    text_encoder: _Checkpoint
    frames: _Count
    method: str = "adatp"
    selection: dict[str, str | int | _Number] = Field(default={})
    scoring: Scoring = "words"
    max_new_tokens: _Count = 16
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    attention: _Name | None = None
    pooling: Literal["average", "bilinear", "max"] | None = None
    encoding: str | None = None


class Deployed:
    """A model with the configuration a study found: the same code on the same classes as in the study."""

    def __init__(self, runtime: Runtime, method: Method, exported: dict[str, Any]) -> None:
        self.runtime = runtime
        self.method = method
        self.exported = exported  # the whole file
        self._clips: OrderedDict[tuple[str, int, int], Clip] = OrderedDict()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str | None = None,
        attention: str | None = None,
        allow_pickle: bool = False,
        base: Path | None = None,
    ) -> Self:
        """Reads an exported file and loads what it names, as it was measured.

        dtype, attention: instead of those measured with; where they differ, a warning says so. allow_pickle:
        whether weights stored as pickles may be read. Relative model paths are looked up from the file's
        folder (or `base`), then the working directory. Errors: PipelineError when the file is not an export,
        the model found is not the one it was measured with, or it cannot be loaded as it was measured.
        """
        file = Path(path)
        exported = _read(file)
        method = method_of(file, exported)  # before anything large is loaded
        model, encoder = exported["model"], exported["text_encoder"]
        here = base or file.resolve().parent
        try:
            runtime = Runtime.load(
                locate(model["id"], here),
                revision=model.get("revision"),
                text_encoder=locate(encoder["id"], here),
                text_encoder_revision=encoder.get("revision"),
                frames=exported["frames"],
                scoring=exported.get("scoring", "words"),
                max_new_tokens=exported.get("max_new_tokens", 16),
                device=device,
                dtype=dtype or exported.get("dtype") or "auto",
                attention=attention or exported.get("attention") or USUAL_ATTENTION,
                pooling=exported.get("pooling"),
                allow_pickle=allow_pickle,
            )
        except ModelError as error:
            if attention is not None or exported.get("attention") in (None, *ALWAYS_THERE):
                raise
            raise PipelineError(
                f"{file} was measured with the attention backend {exported['attention']}, and loading it so "
                f"failed: {error} If the backend is not available here, name another one: "
                f"load(..., attention={USUAL_ATTENTION!r})."
            ) from error
        for part, found in ((model, runtime.identity), (encoder, runtime.encoder_identity)):
            measured_with = part.get("identity")
            if measured_with not in (None, found) and not _formerly(part, measured_with, here, allow_pickle):
                raise PipelineError(f"{file} was measured with {measured_with}, but {part['id']} is {found}.")
        differences = _differences(exported, runtime)
        if differences:
            # At the line that called `pipeline.load`.
            warnings.warn(f"{file} {differences}: answers may differ from those measured.", stacklevel=3)
        not_shown = _not_shown(exported)
        if not_shown:
            warnings.warn(f"{file} {not_shown}", stacklevel=3)
        return cls(runtime, method, exported)

    def answer(self, video: str | Path, question: str, options: Sequence[str] | None = None) -> Answer:
        """Answers one question about a video file; further questions about it do not encode it again.

        options: 2 to 26 answers to choose from; without them the answer is free text.
        Errors: VideoError when the video cannot be read. ValueError for options that are none.
        """
        if isinstance(options, str):  # its letters would be taken for options
            raise ValueError(f"options is a list of texts, but got the text {options!r}.")
        asked = Question(question, question, tuple(options) if options is not None else None)
        return self.runtime.answer(self._clip(video), asked, self.method)

    def prefill(self, video: str | Path, question: str) -> Prefill:
        """Reads a question about a video file, for `runtime.model.generate` to go on from: see `Prefill`.

        Errors: VideoError when the video cannot be read.
        """
        return self.runtime.prefill(self._clip(video), Question(question, question), self.method)

    def _clip(self, video: str | Path) -> Clip:
        if not isinstance(video, str | Path):
            raise UnsupportedError(f"A prompt holds one video, but got {video!r}: ask about each by itself.")
        video = Path(video)
        status = video.stat() if video.is_file() else None
        key = (str(video), status.st_size if status else 0, status.st_mtime_ns if status else 0)
        if key not in self._clips:
            self._clips[key] = self.runtime.encode(video)
            while len(self._clips) > CLIPS:
                self._clips.popitem(last=False)
        self._clips.move_to_end(key)
        return self._clips[key]


def load(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str | None = None,
    attention: str | None = None,
    allow_pickle: bool = False,
) -> Deployed:
    """The configuration in an exported file (best.json), ready to answer as it was measured.

    dtype, attention: instead of those measured with, with a warning where they differ; another one where the
    file's verdict is not "shown". allow_pickle: whether weights stored as pickles may be read. Errors:
    PipelineError and its kinds; each message says what is wrong with the file or the model it names.
    """
    return Deployed.load(path, device=device, dtype=dtype, attention=attention, allow_pickle=allow_pickle)


def method_of(file: Path, exported: Mapping[str, Any]) -> Method:
    """The configuration in the content of an exported file.

    Errors: PipelineError when there is none, or it meant something else when it was measured.
    """
    fields = {
        "method": exported.get("method", "adatp"),
        **exported["parameters"],
        **exported.get("selection", {}),
    }
    if exported["schema"] == MEAN_OVER_ALL and fields.get("score_query") == "mean":
        raise PipelineError(
            f"{file} was measured with scores that are the mean over all tokens after the video, which "
            "this version takes over the question alone: run `tuner run` and `tuner export` again."
        )
    try:
        return from_dict(fields)
    except ValueError as error:
        raise PipelineError(f"{file}: {error}") from error


def _differences(exported: dict[str, Any], runtime: Runtime) -> str:
    """What is not as it was measured, after the file's name; empty where nothing is known to differ."""
    here = {"dtype": runtime.dtype, "attention": runtime.family.attention}
    if any(exported.get(name) is None for name in here):
        return "does not say in which number format and with which attention backend it was measured"
    differ = [
        f"{name} {exported[name]} ({found} here)" for name, found in here.items() if exported[name] != found
    ]
    if differ:
        return f"was measured with {', '.join(differ)}"
    # It covers the identities: where an earlier version wrote these otherwise, it says nothing else.
    comparable = all(
        exported[part].get("identity") in (None, found)
        for part, found in (("model", runtime.identity), ("text_encoder", runtime.encoder_identity))
    )
    if comparable and exported.get("encoding") not in (None, runtime.encoding):
        return "was measured by a version of this program that encodes videos otherwise"
    return ""


def _not_shown(exported: dict[str, Any]) -> str:
    """What was not shown of the configuration, after the file's name; empty where it was shown to hold."""
    verdict = exported.get("verdict", "untested")
    if verdict == "shown":
        return ""
    if verdict == "untested":
        return "was never tested against the unpruned model on held-out videos: what it loses is not known."
    found, trial = "", exported.get("provenance", {}).get("trial")
    for test in exported.get("tested", ()):
        if test.get("trial") == trial:
            found = (
                f": the difference is {100 * test['difference']:+.1f} points there, and it may be "
                f"{100 * test['bound']:+.1f}"
            )
    margin = exported.get("margin")
    allowed = "its margin" if margin is None else f"{100 * margin:.3g} points of accuracy"
    return f"is not shown to lose no more than {allowed} on held-out videos{found}."


def _read(file: Path) -> dict[str, Any]:
    try:
        exported = strict_json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PipelineError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise PipelineError(f"{file} is not valid JSON: it is no UTF-8 text.") from error
    except ValueError as error:
        raise PipelineError(f"{file} is not valid JSON: {error}.") from error
    # First: a newer file may have other keys.
    if isinstance(exported, dict) and "schema" in exported:
        unreadable = why_unreadable(exported["schema"])
        if unreadable is not None:
            raise PipelineError(f"{file} {unreadable}")
    needed = ("schema", "parameters", "model", "text_encoder", "frames")
    missing = [name for name in needed if not isinstance(exported, dict) or name not in exported]
    if missing:
        raise PipelineError(f"{file} is no exported configuration: it lacks {', '.join(missing)}.")
    for name in ("model", "text_encoder"):
        if not isinstance(exported[name], dict) or "id" not in exported[name]:
            raise PipelineError(f"{file}: {name} is an object with an id.")
    try:
        _Exported.model_validate(exported)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, mistake['loc']))} is {mistake['input']!r:.80} ({mistake['msg']})"
            for mistake in error.errors(include_url=False, include_context=False)
        ]
        text = f"{file}: {'; '.join(problems)}."
        raise PipelineError(text.encode("utf-8", "backslashreplace").decode()) from error
    result: dict[str, Any] = exported
    return result


def _formerly(part: dict[str, Any], identity: str, here: Path, allow_pickle: bool) -> bool:
    """Whether an earlier version gave this identity to the checkpoint that is found now."""
    checkpoint = find_checkpoint(locate(part["id"], here), part.get("revision"), allow_pickle=allow_pickle)
    return checkpoint.is_identified_by(identity)


def locate(name: str, base: Path) -> str:
    """A checkpoint that an exported file names: the folder beside the file, or else `name` itself."""
    beside = base / name
    return str(beside) if beside.is_dir() else name
