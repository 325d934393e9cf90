"""Everything that can be wrong with a study, and with its model on this device, before it costs anything."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import ModelError, PipelineError, VideoError
from pipeline.resizing import FrameSize
from pipeline.self_check import Finding
from pipeline.video import Decoder, content_hash
from tuner.errors import UserError
from tuner.evaluation.evaluator import EvaluatorSpec
from tuner.evaluation.progress import Progress
from tuner.search.selection import level_of
from tuner.statistics.paired import provable_drop
from tuner.statistics.wording import provable
from tuner.study import Study

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
# A share of right answers at one place of the options above which the labels look sorted. Our choice.
LOPSIDED = 0.6


@dataclass(frozen=True)
class Estimate:
    """Seconds and memory of a study on one worker like this one, from what was measured here."""

    encode: float  # all videos
    baseline: float  # the unpruned model on all questions
    trials: float  # TRIALS at BUDGET on all tune questions, none pruned early: an upper bound
    held_out: float  # the chosen configuration on the held-out questions
    worker: str  # memory of a worker, in words
    workers: int  # that fit on this device

    @property
    def total(self) -> float:
        """All of it."""
        return self.encode + self.baseline + self.trials + self.held_out


def check_study(study: Study, max_drop: float, progress: Progress) -> Iterator[Finding]:
    """What can be checked without a model: files, videos, options, labels, split."""
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
        not bad,
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
    asked = Counter((one.video, one.text, one.options) for one in study.questions)
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
    videos = [one.video for one in study.questions if one.video in study.held_out]
    drop = provable_drop(videos, level=level_of("budget", 1))
    yield Finding(
        "split",
        drop <= max_drop,
        f"{len(study.videos) - held_out} videos tune, {held_out} measure. "
        + provable(drop, held_out, max_drop),
        f"losses above {100 * max_drop:.3g} points can be ruled out where nothing is lost",
        "Add videos, hold out a larger share (split.held_out), or allow more (--max-drop).",
    )


def _labels(study: Study) -> Iterator[Finding]:
    places = Counter(
        one.options.index(one.answer) for one in study.questions if one.options and one.answer is not None
    )
    if not places:
        return
    place, count = places.most_common(1)[0]
    share = count / places.total()
    chance = sum(1 / len(one.options) for one in study.questions if one.options) / places.total()
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
        """One by one, as they come. A check that fails does not end the others; what the pipeline refuses on
        the way is the last.

        Errors: UserError where the model cannot be loaded.
        """
        try:
            yield from self._findings(progress)
        except PipelineError as error:
            yield Finding("asking the model", False, str(error), "no error")

    def _findings(self, progress: Progress) -> Iterator[Finding]:
        from pipeline import self_check
        from pipeline.checkpoint import find_checkpoint
        from pipeline.video import read_frames

        study = self._study
        try:
            runtime = self._spec.load()
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
        video = study.videos[0]
        frames = read_frames(video.path, study.frames, study.decode_timeout).frames
        siglip = find_checkpoint(study.text_encoder, allow_pickle=study.allow_pickle)
        yield self_check.check_frame_embeddings(runtime, siglip, frames)
        clip = runtime.encode(video.path)
        asked: list[Question] = [one for one in study.questions if one.video == video.name]
        asked = list(itertools.islice(itertools.chain(asked, study.questions), QUESTIONS))
        method = self._method(runtime, clip, asked)
        yield self_check.check_prompt(runtime, clip, asked[0])
        yield self_check.check_untouched(runtime, clip, asked)
        yield self_check.check_split(runtime, clip, asked, method)
        yield self_check.check_scores(runtime, clip, asked, method)
        yield self_check.check_counts(runtime, clip, asked, method)
        yield self_check.check_generate(runtime, clip, asked[0], method)
        yield self._precision(runtime, clip)
        self.estimate = self._measured(runtime, progress, method)

    def _method(self, runtime: Runtime, clip: Clip, asked: list[Question]) -> AdaTP:
        from pipeline.keep_ratio import Unreachable, solve_keep_ratio
        from pipeline.methods import AdaTP

        layouts = [runtime.layout(clip, question) for question in asked]
        solved = solve_keep_ratio(AdaTP(), layouts, runtime.shape, BUDGET)
        return AdaTP() if isinstance(solved, Unreachable) else solved  # type: ignore[return-value]

    def _precision(self, runtime: Runtime, clip: Clip) -> Finding:
        from pipeline import self_check
        from pipeline.runtime import Runtime

        other = "bfloat16" if runtime.dtype == "float32" else "float32"
        try:
            twin = Runtime.load(
                self._spec.model,
                revision=self._spec.revision,
                text_encoder=self._spec.text_encoder,
                frames=self._spec.frames,
                scoring=self._spec.scoring,
                max_new_tokens=self._spec.max_new_tokens,
                device=str(runtime.family.device),
                dtype=other,
                pooling=self._spec.pooling,
                allow_pickle=self._spec.allow_pickle,
            )
        except ModelError as error:
            return Finding(
                f"{runtime.dtype} against {other}",
                True,
                f"not compared: {error}",
                "memory for a second model",
            )
        about: list[Question] = [
            one for one in self._study.questions if one.video == self._study.videos[0].name
        ]
        return self_check.check_precision(runtime, twin, clip, about[:ANSWERS])

    def _measured(self, runtime: Runtime, progress: Progress, method: AdaTP) -> Estimate:
        from pipeline.memory import WorkerMemory, free_bytes, working_bytes
        from pipeline.runtime import PREFIX_BYTES

        study, family = self._study, runtime.family
        some = study.videos[: min(3, len(study.videos))]
        progress.started("time", len(some))
        encode = unpruned = pruned = 0.0
        questions = 0
        for video in some:
            clip, seconds = _timed(partial(runtime.encode, video.path))
            encode += seconds
            for question in [one for one in study.questions if one.video == video.name][:QUESTIONS]:
                questions += 1
                unpruned += _timed(partial(runtime.answer, clip, question, None))[1]
                pruned += _timed(partial(runtime.answer, clip, question, method))[1]
            progress.advanced()
        tune = sum(one.video not in study.held_out for one in study.questions)
        weights = sum(one.numel() * one.element_size() for one in runtime.model.parameters())
        worker = WorkerMemory(
            weights,
            PREFIX_BYTES,
            working_bytes(
                runtime.shape,
                frames=runtime.frames,
                tokens=family.video_tokens(runtime.frames) + 512,
                itemsize=family.dtype.itemsize,
            ),
        )
        return Estimate(
            encode=encode / len(some) * len(study.videos),
            baseline=unpruned / questions * len(study.questions),
            trials=TRIALS * pruned / questions * tune,
            held_out=pruned / questions * (len(study.questions) - tune),
            worker=str(worker),
            workers=worker.fitting(weights + (free_bytes(family.device) or 0)),
        )


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin
