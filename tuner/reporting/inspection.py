"""What pruning does to videos, recorded once with the model at hand: regressions and gains, frame by frame,
and where attention and the kept tokens lie. Figures are drawn from the records, without a model.

Answers are those of the records. Which tokens stayed is found by asking again, and held against the counts
that were recorded with the answers.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError, VideoError
from pipeline.keep_ratio import Unreachable
from pipeline.layout import FloatArray, IntArray
from pipeline.methods import AdaTP, FastV, Method
from pipeline.trace import Segment, Trace, segments, trace
from pipeline.video import read_frames
from tuner.evaluation.evaluator import is_out_of_memory
from tuner.evaluation.progress import NoProgress, Progress
from tuner.planning.planner import Planner
from tuner.records.database import default_database
from tuner.records.store import Store
from tuner.records.values import RecordedAnswer
from tuner.reporting.from_records import Results, flips
from tuner.reporting.values import RegressionRow
from tuner.study import Study, StudyQuestion
from tuner.study.values import Configuration, QuestionResult

if TYPE_CHECKING:
    from tuner.evaluation.evaluator import PipelineEvaluator

# Cards of each kind; those of the most certain baseline come first.
MOST = 24
# Questions, each of another video, that the maps are averaged over.
BIAS_QUESTIONS = 40
# Frames in one strip, which is as many as a laptop's screen shows side by side.
FRAMES_PER_STRIP = 16
# Of a frame in a strip, pixels. A multiple of 16, JPEG's blocks: frames do not run into each other.
FRAME_WIDTH = 96
JPEG_QUALITY = 60
# The paper's figure: the top tenth of the tokens, and the last 4 of 32 frames.
TOP_SHARE = 0.1
LAST_SHARE = 1 / 8

# Raise it when the content changes: what an older version recorded then counts as missing.
_VERSION = 3

Kind = Literal["regression", "gain"]


@dataclass(frozen=True, eq=False)
class Film:
    """A video's sampled frames, side by side in strips of up to `FRAMES_PER_STRIP`."""

    # Of one frame, pixels.
    width: int
    height: int
    # JPEG.
    strips: tuple[bytes, ...]
    # (frames,) seconds after the video's first frame.
    times: FloatArray


@dataclass(frozen=True, eq=False)
class Card:
    """One question that pruning decides: right before and wrong after, or the reverse."""

    kind: Kind
    question: str
    video: str
    text: str
    options: tuple[str, ...]
    # The right answer; the baseline's in a study without labels.
    answer: str
    baseline_text: str
    pruned_text: str
    # Log-probability of the right answer minus that of the best other option; None for free answers.
    baseline_margin: float | None
    pruned_margin: float | None
    # Per option, normalised over them; empty for free answers.
    baseline_probabilities: tuple[float, ...]
    pruned_probabilities: tuple[float, ...]
    tags: dict[str, str]
    # Empty for a method without segments.
    segments: tuple[Segment, ...]
    # Decoder layers before which tokens were dropped, of these the first, the middle and the last: and the
    # visual tokens left after each, as ascending indices into the video's sequence.
    layers: tuple[int, ...]
    tokens: tuple[IntArray, ...]


@dataclass(frozen=True, eq=False)
class BiasMaps:
    """Where attention and the kept tokens lie, mean over questions of different videos.

    All maps are (frames, cells), cells in the order of `pipeline.trace.Grid`.
    """

    questions: int
    # Share of the attention that visual tokens get together, the last prompt token's in layer 1 (counted from
    # 0), mean over heads, before anything is pruned. Sums to 1.
    attention: FloatArray
    # Mean share of `TOP_SHARE` best-attended tokens that lie in the last `LAST_SHARE` of the frames.
    top_in_last: float
    # Of all attention in that layer, text and newlines included, the share that visual tokens get.
    to_video: float
    # Share of the questions in which the token is left after the last pruning.
    kept: FloatArray
    # The same for one pruning by attention alone at the same FLOPs; None where none is as cheap.
    one_shot: FloatArray | None
    # Share of the visual tokens that it keeps.
    one_shot_ratio: float | None


def relative(values: FloatArray, axis: Literal["frame", "position"]) -> FloatArray:
    """A map's mean by frame (frames,) or by position (cells,), in units of its mean over everything."""
    profile: FloatArray = values.mean(axis=1 if axis == "frame" else 0) / values.mean()
    return profile


def last_frames(frames: int) -> int:
    """How many frames the last eighth is; at least one."""
    return max(1, round(LAST_SHARE * frames))


@dataclass(frozen=True, eq=False)
class Inspection:
    """Everything the cards and the bias maps are drawn from."""

    study: str
    study_hash: str
    configuration: Configuration
    # LLM prefill FLOPs over the unpruned model's, the larger of the study's splits.
    flops_ratio: float
    frames: int
    cells: int
    # Held-out questions, and how many of them pruning loses and gains; `cards` may show fewer.
    questions: int
    regressions: int
    gains: int
    labelled: bool
    cards: tuple[Card, ...]
    # By video.
    films: dict[str, Film]
    bias: BiasMaps | None
    # Reasons by video that could not be read any more; none of its questions is here.
    unreadable: dict[str, str] = field(default_factory=dict)

    def shown(self, kind: Kind) -> tuple[Card, ...]:
        """The cards of one kind, the most certain baseline first."""
        return tuple(card for card in self.cards if card.kind == kind)

    def left_out(self, kind: Kind) -> int:
        """Questions of this kind without a card."""
        return (self.regressions if kind == "regression" else self.gains) - len(self.shown(kind))


def inspect(
    evaluator: PipelineEvaluator,
    study: Study,
    study_hash: str,
    store: Store,
    planner: Planner,
    configuration: Configuration,
    *,
    most: int = MOST,
    progress: Progress | None = None,
) -> Inspection:
    """Asks the model about up to 2 `most` held-out questions that flipped and `BIAS_QUESTIONS` others.

    A video that cannot be read any more is left out with a message. `configuration` was measured on the
    held-out split. Errors: PipelineError when other tokens stay than were recorded, or memory does not
    suffice.
    """
    progress = progress or NoProgress()
    results = Results(study, store, planner)
    study = results.study
    asker = _Asker(evaluator, store, planner, configuration, progress)
    lost, gained = flips(results, configuration)
    before = {one.question: one for one in results.of(None, "held_out")}
    after = {one.question: one for one in results.of(configuration, "held_out")}
    rows: list[tuple[Kind, RegressionRow]] = []
    rows += [("regression", row) for row in sorted(lost, key=_certainty)[:most]]
    rows += [("gain", row) for row in sorted(gained, key=_certainty)[:most]]
    averaged = _spread([question for question in study.questions_of("held_out") if question.id in after])
    progress.started("inspection", len(rows) + len(averaged))
    cards = []
    for kind, row in rows:
        card = _card(kind, row, study.question(row.question), before, after, asker)
        if card is not None:
            cards.append(card)
        progress.advanced()
    one_shot = planner.solve(FastV(), planner.binding_ratio(asker.method))
    bias = _bias(averaged, None if isinstance(one_shot, Unreachable) else one_shot, asker, progress)
    return Inspection(
        study=study.name,
        study_hash=study_hash,
        configuration=configuration,
        flops_ratio=planner.binding_ratio(asker.method),
        frames=asker.layout.frames,
        cells=asker.layout.cells,
        questions=len(after),
        regressions=len(lost),
        gains=len(gained),
        labelled=study.labelled,
        cards=tuple(cards),
        films=asker.films,
        bias=bias,
        unreadable=asker.unreadable,
    )


class _Asked(NamedTuple):
    """A question's prefill under the inspected configuration."""

    trace: Trace
    segments: tuple[Segment, ...]


class _Asker:
    """The model with what it is asked: leaves out videos that cannot be read, and decodes each once."""

    def __init__(
        self,
        evaluator: PipelineEvaluator,
        store: Store,
        planner: Planner,
        configuration: Configuration,
        progress: Progress,
    ) -> None:
        self.method = configuration.build()
        self.films: dict[str, Film] = {}
        self.unreadable: dict[str, str] = {}
        self.layout = planner.questions[0].layout
        self._evaluator = evaluator
        self._progress = progress
        ids = [question.id for question in planner.questions if question.split == "held_out"]
        found = store.answers(zip(ids, planner.fingerprints(self.method, ids), strict=True))
        self._recorded: dict[str, RecordedAnswer] = {name: answer for (name, _), answer in found.items()}

    def ask(self, question: StudyQuestion, *, film: bool) -> _Asked | None:
        """None where the video cannot be read; with `film` its frames are among `films` afterwards."""
        if question.video in self.unreadable:
            return None
        try:
            clip, asked = self._evaluator.asked(question.id)
            if film and question.video not in self.films:
                self.films[question.video] = _film(clip.path, clip.frame_times)
        except VideoError as error:
            self.unreadable[question.video] = str(error)
            self._progress.message(f"Left out of the pictures: {error}")
            return None
        seen = self.trace(question, self.method)
        recorded = self._recorded[question.id].kept
        if seen.kept != recorded:
            raise PipelineError(
                f"question {question.id} kept {recorded} tokens when it was answered, but {seen.kept} now."
            )
        if not isinstance(self.method, AdaTP):
            return _Asked(seen, ())
        return _Asked(seen, segments(self.method, self._evaluator.runtime.layout(clip, asked)))

    def trace(self, question: StudyQuestion, method: Method) -> Trace:
        """The question's prefill under this method; its video can be read."""
        try:
            return trace(self._evaluator.runtime, *self._evaluator.asked(question.id), method)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise PipelineError("memory does not suffice.") from error


def _certainty(row: RegressionRow) -> float:
    """Sorts the baseline's surest answers first, right or wrong; free answers last."""
    return float("inf") if row.baseline_margin is None else -abs(row.baseline_margin)


def _spread(questions: Sequence[StudyQuestion]) -> list[StudyQuestion]:
    """Up to `BIAS_QUESTIONS`, one per video, over all videos and over the places that questions have among
    those of their video: questions of one kind often stand at the same place.
    """
    by_video: dict[str, list[StudyQuestion]] = {}
    for question in questions:
        by_video.setdefault(question.video, []).append(question)
    videos = list(by_video.values())
    count = min(BIAS_QUESTIONS, len(videos))
    chosen = [videos[index * len(videos) // count] for index in range(count)]
    return [asked[index % len(asked)] for index, asked in enumerate(chosen)]


def _card(
    kind: Kind,
    row: RegressionRow,
    question: StudyQuestion,
    before: dict[str, QuestionResult],
    after: dict[str, QuestionResult],
    asker: _Asker,
) -> Card | None:
    asked = asker.ask(question, film=True)
    if asked is None:
        return None
    last = len(asked.trace.layers) - 1
    shown = sorted({0, last // 2, last}) if last >= 0 else []
    return Card(
        kind=kind,
        question=row.question,
        video=row.video,
        text=row.text,
        options=row.options,
        answer=row.answer,
        baseline_text=row.baseline_text,
        pruned_text=row.pruned_text,
        baseline_margin=row.baseline_margin,
        pruned_margin=row.pruned_margin,
        baseline_probabilities=_probabilities(before[row.question].option_logprobs),
        pruned_probabilities=_probabilities(after[row.question].option_logprobs),
        tags=dict(row.tags),
        segments=asked.segments,
        layers=tuple(asked.trace.layers[index] for index in shown),
        tokens=tuple(asked.trace.tokens[index] for index in shown),
    )


def _probabilities(logprobs: Sequence[float] | None) -> tuple[float, ...]:
    if logprobs is None:
        return ()
    values = np.exp(np.asarray(logprobs) - max(logprobs))
    return tuple((values / values.sum()).tolist())


def _bias(
    questions: Sequence[StudyQuestion], one_shot: Method | None, asker: _Asker, progress: Progress
) -> BiasMaps | None:
    attention, kept, other, tops, to_video = [], [], [], [], []
    for question in questions:
        asked = asker.ask(question, film=False)
        progress.advanced()
        if asked is None:
            continue
        scores = asked.trace.attention
        attention.append(scores / scores.sum())
        to_video.append(scores.sum())
        tops.append(np.argsort(-scores, kind="stable")[: max(1, round(TOP_SHARE * scores.size))])
        kept.append(_left(asked.trace, scores.size))
        if one_shot is not None:
            other.append(_left(asker.trace(question, one_shot), scores.size))
    if not attention:
        return None
    layout = asker.layout
    shape = (layout.frames, layout.cells)
    first_of_last = (layout.frames - last_frames(layout.frames)) * layout.cells
    return BiasMaps(
        questions=len(attention),
        attention=np.mean(attention, axis=0).reshape(shape),
        top_in_last=float(np.mean([(top >= first_of_last).mean() for top in tops])),
        to_video=float(np.mean(to_video)),
        kept=np.mean(kept, axis=0).reshape(shape),
        one_shot=np.mean(other, axis=0).reshape(shape) if other else None,
        one_shot_ratio=None if one_shot is None else one_shot.ratio,
    )


def _left(seen: Trace, visual: int) -> FloatArray:
    """(visual,) 1 for each token that is left after the last pruning."""
    if not seen.tokens:
        return np.ones(visual)
    left = np.zeros(visual)
    left[seen.tokens[-1]] = 1
    return left


def _film(path: str, times: FloatArray) -> Film:
    """Errors: VideoError."""
    frames = read_frames(path, len(times)).frames
    small = [_small(frame) for frame in frames]
    height, width, _ = small[0].shape
    starts = range(0, len(small), FRAMES_PER_STRIP)
    strips = (np.concatenate(small[start : start + FRAMES_PER_STRIP], axis=1) for start in starts)
    return Film(width, height, tuple(_jpeg(strip) for strip in strips), np.asarray(times, dtype=np.float64))


def _small(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width, _ = frame.shape
    # Upright videos are no higher than wide ones are broad, or one card would fill a screen.
    size = (FRAME_WIDTH, min(FRAME_WIDTH, max(1, round(FRAME_WIDTH * height / width))))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.getvalue()


# As bytes: numbers as arrays, everything else as JSON that names them.

_ARRAY = "__array__"


def pack(inspection: Inspection) -> bytes:
    """An inspection as the records keep it."""
    arrays: dict[str, Any] = {}

    def named(value: Any) -> dict[str, str]:
        name = f"array{len(arrays)}"
        arrays[name] = np.frombuffer(value, dtype=np.uint8) if isinstance(value, bytes) else value
        return {_ARRAY: name}

    text = json.dumps({"version": _VERSION, **asdict(inspection)}, default=named)
    file = io.BytesIO()
    np.savez_compressed(file, inspection=np.frombuffer(text.encode(), dtype=np.uint8), **arrays)
    return file.getvalue()


def load_inspection(
    study: str, configuration: Configuration, database: str | None = None
) -> Inspection | None:
    """The inspection of this configuration of the study as it is now defined; None where there is none, or
    another version made it.
    """
    with Store.open(database or default_database(study), create=False) as store:
        store.require(study)
        content = store.inspection(configuration)
    return None if content is None else unpack(content)


def unpack(content: bytes) -> Inspection | None:
    """The reverse of `pack`; None for what another version packed."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:

        def array(values: dict[str, Any]) -> Any:
            return file[values[_ARRAY]] if set(values) == {_ARRAY} else values

        values = json.loads(file["inspection"].tobytes(), object_hook=array)
    if values.pop("version", None) != _VERSION:
        return None
    return Inspection(
        **values
        | {
            "configuration": Configuration(
                values["configuration"]["method"],
                tuple((name, value) for name, value in values["configuration"]["parameters"]),
            ),
            "cards": tuple(_card_from(card) for card in values["cards"]),
            "films": {
                name: Film(**film | {"strips": tuple(strip.tobytes() for strip in film["strips"])})
                for name, film in values["films"].items()
            },
            "bias": None if values["bias"] is None else BiasMaps(**values["bias"]),
        }
    )


def _card_from(values: dict[str, Any]) -> Card:
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Card(**values | lists | {"segments": tuple(Segment(**segment) for segment in values["segments"])})
