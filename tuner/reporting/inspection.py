"""What pruning does to videos, recorded once with the model at hand: regressions and gains, frame by frame,
and where attention and the kept tokens lie. Figures are drawn from the records, without a model.

Answers are those of the records. Which tokens stayed is found by asking again, and held against the counts
that were recorded with the answers.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from pipeline.errors import PipelineError
from pipeline.keep_ratio import Unreachable
from pipeline.layout import FloatArray, IntArray
from pipeline.methods import FastV, to_dict
from pipeline.trace import Segment
from tuner.evaluation.call_loop import CallLoop
from tuner.evaluation.looking import Film, Seen
from tuner.evaluation.progress import NoProgress, Progress
from tuner.evaluation.tasks import Call, Work
from tuner.planning.planner import Planner
from tuner.records.database import default_database
from tuner.records.store import Store
from tuner.reporting.from_records import Results, flips
from tuner.reporting.values import RegressionRow
from tuner.study import Study, StudyQuestion
from tuner.study.values import Configuration, QuestionResult

# Cards of each kind; those of the most certain baseline come first.
MOST = 24
# Questions, each of another video, that the maps are averaged over.
BIAS_QUESTIONS = 40
# The paper's figure: the top tenth of the tokens, and the last 4 of 32 frames.
TOP_SHARE = 0.1
LAST_SHARE = 1 / 8

# Raise it when the content changes: what an older version recorded then counts as missing.
_VERSION = 3

Kind = Literal["regression", "gain"]


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
    run: Callable[[Work[Any]], None],
    study: Study,
    study_hash: str,
    store: Store,
    planner: Planner,
    configuration: Configuration,
    *,
    most: int = MOST,
    progress: Progress | None = None,
) -> Inspection:
    """Has workers look at up to 2 `most` held-out questions that flipped and at `BIAS_QUESTIONS` others.

    run: runs work on workers. A video that cannot be read any more is left out with a message.
    `configuration` was measured on the held-out part. Errors: PipelineError when other tokens stay than were
    recorded, or memory does not suffice.
    """
    progress = progress or NoProgress()
    results = Results(study, store, planner)
    study = results.study
    method = configuration.build()
    lost, gained = flips(results, configuration)
    before = {answer.question: answer for answer in results.of(None, "held_out")}
    after = {answer.question: answer for answer in results.of(configuration, "held_out")}
    rows: list[tuple[Kind, RegressionRow]] = []
    rows += [("regression", row) for row in sorted(lost, key=_certainty)[:most]]
    rows += [("gain", row) for row in sorted(gained, key=_certainty)[:most]]
    averaged = _spread([question for question in study.questions_of("held_out") if question.id in after])
    one_shot = planner.solve(FastV(), planner.binding_ratio(method))
    pruned = to_dict(method)
    compared = (pruned,) if isinstance(one_shot, Unreachable) else (pruned, to_dict(one_shot))
    filmed = {row.video: row.question for _, row in reversed(rows)}
    of_cards = [_look(row.question, (pruned,), film=filmed[row.video] == row.question) for _, row in rows]
    of_bias = [_look(question.id, compared, film=False) for question in averaged]
    looks = _Looks(study, [*of_cards, *of_bias], _kept(store, planner, configuration), progress)
    looks.make(run)
    layout = planner.questions[0].layout
    cards = tuple(
        _card(kind, row, before, after, looks.seen[id(call)][0])
        for (kind, row), call in zip(rows, of_cards, strict=True)
        if row.video not in looks.unreadable
    )
    bias = _bias(
        [
            looks.seen[id(call)]
            for question, call in zip(averaged, of_bias, strict=True)
            if question.video not in looks.unreadable
        ],
        (layout.frames, layout.cells),
        None if isinstance(one_shot, Unreachable) else one_shot.ratio,
    )
    return Inspection(
        study=study.name,
        study_hash=study_hash,
        configuration=configuration,
        flops_ratio=planner.binding_ratio(method),
        frames=layout.frames,
        cells=layout.cells,
        questions=len(after),
        regressions=len(lost),
        gains=len(gained),
        labelled=study.labelled,
        cards=cards,
        films={name: film for name, film in looks.films.items() if name not in looks.unreadable},
        bias=bias,
        unreadable=looks.unreadable,
    )


def _look(question: str, configurations: tuple[dict[str, Any], ...], *, film: bool) -> Call:
    return Call("look", {"question": question, "configurations": configurations, "film": film})


def _kept(store: Store, planner: Planner, configuration: Configuration) -> dict[str, tuple[int, ...]]:
    """By held-out question: the visual tokens left after each pruning when it was answered."""
    ids = [question.id for question in planner.questions if question.split == "held_out"]
    fingerprints = planner.fingerprints(configuration.build(), ids)
    found = store.answers(zip(ids, fingerprints, strict=True))
    return {question: answer.kept for (question, _), answer in found.items()}


class _Looks:
    """Gathers what workers see."""

    def __init__(
        self, study: Study, calls: Sequence[Call], kept: dict[str, tuple[int, ...]], progress: Progress
    ) -> None:
        # By the call's identity: under each of its configurations.
        self.seen: dict[int, list[Seen]] = {}
        self.films: dict[str, Film] = {}
        # Reasons by video.
        self.unreadable: dict[str, str] = {}
        self._study = study
        self._calls = calls
        self._kept = kept
        self._progress = progress
        self._problem = ""

    def make(self, run: Callable[[Work[Any]], None]) -> None:
        """Makes the calls. Errors: PipelineError, see `inspect`."""
        self._loop = CallLoop(
            "Looking at what pruning does",
            "pictures",
            [[call] for call in self._calls],
            self._take,
            give_up=self._give_up,
            progress=self._progress,
        )
        run(self._loop)
        if self._problem:
            raise PipelineError(self._problem)

    def _take(self, call: Call, results: list[dict[str, Any]]) -> None:
        (result,) = results
        question = call.arguments["question"]
        video = self._study.question(question).video
        if "error" in result:
            self._give_up(call, result["error"])
        elif "unreadable" in result:
            if video not in self.unreadable:
                self.unreadable[video] = result["unreadable"]
                self._progress.message(f"Left out of the pictures: {result['unreadable']}")
        elif (now := result["seen"][0].kept) != self._kept[question]:
            self._give_up(
                call,
                f"question {question} kept {self._kept[question]} tokens when it was answered, "
                f"but {now} now.",
            )
        else:
            self.seen[id(call)] = result["seen"]
            if result["film"] is not None:
                self.films[video] = result["film"]

    def _give_up(self, _: Call, reason: str) -> None:
        self._problem = self._problem or reason
        self._loop.leave_the_rest()


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
    before: dict[str, QuestionResult],
    after: dict[str, QuestionResult],
    seen: Seen,
) -> Card:
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
        segments=seen.segments,
        layers=seen.layers,
        tokens=seen.tokens,
    )


def _probabilities(logprobs: Sequence[float] | None) -> tuple[float, ...]:
    if logprobs is None:
        return ()
    values = np.exp(np.asarray(logprobs) - max(logprobs))
    return tuple((values / values.sum()).tolist())


def _bias(
    looks: Sequence[Sequence[Seen]], shape: tuple[int, int], one_shot_ratio: float | None
) -> BiasMaps | None:
    """looks: each under the inspected configuration and, where one is as cheap, under one pruning by
    attention alone. shape: (frames, cells).
    """
    if not looks:
        return None
    attention, kept, tops, to_video = [], [], [], []
    other: list[FloatArray] = []
    for seen, *one_shot in looks:
        scores = seen.attention
        attention.append(scores / scores.sum())
        to_video.append(scores.sum())
        tops.append(np.argsort(-scores, kind="stable")[: max(1, round(TOP_SHARE * scores.size))])
        kept.append(_left(seen))
        other += map(_left, one_shot)
    frames, cells = shape
    first_of_last = (frames - last_frames(frames)) * cells
    return BiasMaps(
        questions=len(attention),
        attention=np.mean(attention, axis=0).reshape(shape),
        top_in_last=float(np.mean([(top >= first_of_last).mean() for top in tops])),
        to_video=float(np.mean(to_video)),
        kept=np.mean(kept, axis=0).reshape(shape),
        one_shot=np.mean(other, axis=0).reshape(shape) if other else None,
        one_shot_ratio=one_shot_ratio,
    )


def _left(seen: Seen) -> FloatArray:
    """(visual,) 1 for each token that is left after the last pruning."""
    if not seen.tokens:
        return np.ones(seen.attention.size)
    left = np.zeros(seen.attention.size)
    left[seen.tokens[-1]] = 1
    return left


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
