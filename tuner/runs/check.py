"""Everything that can be wrong with a study, and with its model on this device, before it costs anything."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import ModelError, PipelineError, VideoError
from pipeline.finding import Finding
from pipeline.resizing import FrameSize
from pipeline.video import Decoder, content_hash
from tuner.errors import UserError
from tuner.evaluation.evaluator import EvaluatorSpec, worker_memory
from tuner.evaluation.progress import Progress
from tuner.planning.planner import Planner
from tuner.records.values import StoredQuestion
from tuner.runs.sensitivity import RUNS
from tuner.search.selection import level_of
from tuner.search.space import smallest_reachable
from tuner.statistics.paired import provable_drop
from tuner.statistics.wording import provable
from tuner.study import Study, Video

if TYPE_CHECKING:
    from pipeline.clip import Clip
    from pipeline.methods import AdaTP
    from pipeline.question import Question
    from pipeline.runtime import Runtime

T = TypeVar("T")

THUMBNAIL = FrameSize(64)  # frames that nobody looks at need not travel whole
QUESTIONS = 3  # asked in most checks of the model
ANSWERS = 8  # asked in two number formats
TRIALS = 40  # what the estimate of a study's time is for, as `tuner run` does by default
BUDGET = 0.3  # FLOPs ratio of the configuration that the model is checked with
# Answers that the curves of `tuner sensitivity` take for each held-out question: 22 in the demo (29,315 in
# all, less the design). It depends on how often a threshold changes a plan, which only all videos could tell.
CURVE_ANSWERS = 25
# A share of right answers at one place of the options above which the labels look sorted. Our choice.
LOPSIDED = 0.6


@dataclass(frozen=True)
class Estimate:
    """Seconds and memory of a study on one worker like this one, from what was measured here."""

    encode: float  # all videos
    baseline: float  # the unpruned model on all questions
    trials: float  # TRIALS at BUDGET on all tune questions, none pruned early: an upper bound
    held_out: float  # the chosen configuration on the held-out questions
    sensitivity: float  # `tuner sensitivity` after that
    smallest_budget: float  # FLOPs ratio that some configuration reaches, going by the first videos
    worker: str  # memory of a worker, in words
    workers: int  # that fit on this device

    @property
    def total(self) -> float:
        """All of `tuner run`."""
        return self.encode + self.baseline + self.trials + self.held_out


def check_study(
    study: Study, max_drop: float, progress: Progress, *, skip_bad_videos: bool = False
) -> Iterator[Finding]:
    """What can be checked without a model: files, videos, options, labels, split.

    skip_bad_videos: videos that cannot be read are named and fail nothing, as a run would leave them out.
    """
    yield Finding(
        "files",
        True,
        f"{len(study.questions)} questions about {len(study.videos)} videos",
        "study.yaml and questions.jsonl without mistakes",
    )
    bad, hashes = [], defaultdict(list)
    progress.started("videos", len(study.videos))
    with Decoder(study.decode_timeout) as decoder:
        for video in study.videos:
            try:
                decoder.read_frames(video.path, study.frames, size=THUMBNAIL)
                hashes[content_hash(video.path)].append(video.name)
            except VideoError as error:
                bad.append(str(error))
            progress.advanced()
    yield Finding(
        "videos",
        not bad or skip_bad_videos,
        "; ".join(bad) or f"{study.frames} frames read of each",
        "every video is read",
        "Mend or replace the files, or go on without them: --skip-bad-videos.",
    )
    same = [names for names in hashes.values() if len(names) > 1]
    across = [names for names in same if 0 < len(study.held_out.intersection(names)) < len(names)]
    yield Finding(
        "equal videos",
        not across,
        "; ".join(" = ".join(names) for names in across or same) or "no two files are the same",
        "none in both splits",
        "A video that tunes must not measure: list one of them under split.held_out_videos, or remove it.",
    )
    asked = Counter((question.video, question.text, question.options) for question in study.questions)
    twice = [f"{text!r} about {video}" for (video, text, _), count in asked.items() if count > 1]
    yield Finding(
        "equal questions",
        not twice,
        "; ".join(twice[:3]) or "none is asked twice about a video",
        "none",
        "A question that stands twice counts twice: remove one of them.",
    )
    yield from _labels(study)
    held_out = len(study.held_out)
    tuning = len(study.videos) - held_out
    videos = [question.video for question in study.questions if question.video in study.held_out]
    drop = provable_drop(videos, level=level_of("budget", 1))
    yield Finding(
        "split",
        drop <= max_drop,
        f"{tuning} {'video tunes' if tuning == 1 else 'videos tune'}, {held_out} measure. "
        + provable(drop, held_out, max_drop),
        f"losses above {100 * max_drop:.3g} points can be ruled out where nothing is lost",
        "Add videos, hold out a larger share (split.held_out), or allow more (--max-drop).",
    )


def _labels(study: Study) -> Iterator[Finding]:
    places = Counter(
        question.options.index(question.answer)
        for question in study.questions
        if question.options and question.answer is not None
    )
    if not places:
        return
    place, count = places.most_common(1)[0]
    share = count / places.total()
    chance = (
        sum(1 / len(question.options) for question in study.questions if question.options) / places.total()
    )
    yield Finding(
        "place of right answers",
        share <= max(LOPSIDED, 1.5 * chance) or places.total() < 20,
        f"most often option {place + 1}: {share:.0%} of {places.total()}; guessing is right in {chance:.0%}",
        f"no place in more than {max(LOPSIDED, 1.5 * chance):.0%}",
        "A model that always takes that place looks right: shuffle the options.",
    )


class ModelCheck:
    """The study's model, loaded on this machine, and what is found of it; `estimate` after the findings."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._spec = EvaluatorSpec.of(study, None)
        self.estimate: Estimate | None = None

    def findings(self, progress: Progress) -> Iterator[Finding]:
        """One by one, as they come. A check that fails does not end the others; without a video that can be
        read and encoded there are no others.

        Errors: UserError where the model cannot be loaded.
        """
        from pipeline import self_check
        from pipeline.checkpoint import find_checkpoint
        from pipeline.video import read_frames

        study = self._study
        try:
            runtime = self._spec.load()
            siglip = find_checkpoint(study.text_encoder, allow_pickle=study.allow_pickle)
        except ModelError as error:
            raise UserError(str(error)) from error
        family = runtime.family
        yield Finding(
            "loading",
            True,
            f"{runtime.dtype} on {family.device}, {family.attention}, {runtime.shape.layers} layers",
            "the model that study.yaml names",
        )
        yield self_check.check_weights(runtime)
        encoded = self._encoded(runtime)
        if isinstance(encoded, Finding):
            yield encoded
            return
        video, clip = encoded
        about = [question for question in study.questions if question.video == video.name]
        asked = [*about, *study.questions][:QUESTIONS]
        method = self._method(runtime, clip, asked)
        half = "bfloat16" if runtime.dtype == "float32" else runtime.dtype

        def frame_embeddings() -> Finding:
            frames = read_frames(video.path, study.frames, study.decode_timeout).frames
            return self_check.check_frame_embeddings(runtime, siglip, frames)

        checks: dict[str, Callable[[], Finding]] = {
            "frame embeddings against the whole SigLIP": frame_embeddings,
            "prompt": partial(self_check.check_prompt, runtime, clip, asked[0]),
            "untouched model against p = 1": partial(self_check.check_untouched, runtime, clip, asked),
            "split against single prefill": partial(self_check.check_split, runtime, clip, asked, method),
            "scores that rank tokens": partial(self_check.check_scores, runtime, clip, asked, method),
            "tokens kept": partial(self_check.check_counts, runtime, clip, asked, method),
            "generate() against answer()": partial(
                self_check.check_generate, runtime, clip, asked[0], method
            ),
            f"{half} against float32": partial(self._precision, runtime, clip, about[:ANSWERS]),
        }
        for name, check in checks.items():
            try:
                yield check()
            except PipelineError as error:
                yield Finding(name, False, str(error), "no error")
        with contextlib.suppress(PipelineError):  # a check before has said so
            self.estimate = self._measured(runtime, progress, method)

    def _encoded(self, runtime: Runtime) -> tuple[Video, Clip] | Finding:
        """The study's first video that can be read, encoded; or why there is none."""
        error: PipelineError | None = None
        for video in self._study.videos:
            try:
                return video, runtime.encode(video.path)
            except VideoError as reason:
                error = reason
            except PipelineError as reason:
                return Finding("encoding", False, str(reason), "finite numbers")
        return Finding("encoding", False, str(error), "a video that can be read")

    def _method(self, runtime: Runtime, clip: Clip, asked: Sequence[Question]) -> AdaTP:
        from pipeline.keep_ratio import Unreachable, solve_keep_ratio
        from pipeline.methods import AdaTP

        layouts = [runtime.layout(clip, question) for question in asked]
        solved = solve_keep_ratio(AdaTP(), layouts, runtime.shape, BUDGET)
        return AdaTP() if isinstance(solved, Unreachable) else solved  # type: ignore[return-value]

    def _precision(self, runtime: Runtime, clip: Clip, about: Sequence[Question]) -> Finding:
        from pipeline import self_check

        half = "bfloat16" if runtime.dtype == "float32" else runtime.dtype
        try:
            twin = self._spec.load(half if runtime.dtype == "float32" else "float32")
        except ModelError as error:
            allowed = "memory for a second model"
            return Finding(f"{half} against float32", True, f"not compared: {error}", allowed)
        return self_check.check_precision(runtime, twin, clip, about)

    def _measured(self, runtime: Runtime, progress: Progress, method: AdaTP) -> Estimate:
        from pipeline.memory import free_bytes

        study = self._study
        some = study.videos[:QUESTIONS]
        progress.started("time", len(some))
        encode = unpruned = pruned = 0.0
        encoded = 0
        questions: list[StoredQuestion] = []
        for video in some:
            progress.advanced()
            try:
                clip, seconds = _timed(partial(runtime.encode, video.path))
            except VideoError:
                continue
            encoded, encode = encoded + 1, encode + seconds
            for question in [question for question in study.questions if question.video == video.name][
                :QUESTIONS
            ]:
                layout = runtime.layout(clip, question)
                questions.append(StoredQuestion(question.id, video.name, "tune", layout))
                unpruned += _timed(partial(runtime.answer, clip, question, None))[1]
                pruned += _timed(partial(runtime.answer, clip, question, method))[1]
        if not questions:
            raise VideoError("none of the first videos can be read", some[0].path)
        tune = sum(question.video not in study.held_out for question in study.questions)
        held_out = len(study.questions) - tune
        each = pruned / len(questions)
        weights = sum(
            parameter.numel() * parameter.element_size() for parameter in runtime.model.parameters()
        )
        worker = worker_memory(runtime, weights, self._spec.batch)
        return Estimate(
            encode=encode / encoded * len(study.videos),
            baseline=unpruned / len(questions) * len(study.questions),
            trials=TRIALS * each * tune,
            held_out=each * held_out,
            sensitivity=each * (RUNS * tune + CURVE_ANSWERS * held_out),
            smallest_budget=smallest_reachable(Planner(questions, runtime.shape, ""), study.search),
            worker=str(worker),
            workers=worker.fitting(weights + (free_bytes(runtime.family.device) or 0)),
        )


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin
