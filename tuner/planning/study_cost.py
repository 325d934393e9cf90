"""What a study costs in baseline passes, from the recorded trials: no plan is made and no answer is read.

Counted as in `pipeline.flops`, in multiply-adds; lm_head and the answers' own tokens are left out, and so is
what `tuner run` measures at its end for a server. One pass is the unpruned model asked once about everything,
every video encoded once and every question a whole prefill: the denominator of `flops_ratio`, with vision.
A study costs less per answer, as it is computed (docs/method.md, "How a question is run"):

    once per video        vision tower, projector, aligned frame embeddings
    once per question     text embedding
    per prefix built      system prompt and video through the layers before the first pruning
    per answer            the question's own tokens through those layers, then the pruned rest

Done naively, every question of every trial encodes its video anew and prefills in one pass; no answer is
shared between trials and no trial is pruned early.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.flops import ModelShape, VisionShape, chunk_flops, layer_flops, unpruned_flops
from pipeline.plan import pruning_layers
from tuner.planning.planner import SPLITS, Planner
from tuner.records.values import StoredQuestion, TrialRecord
from tuner.statistics.values import Noise
from tuner.study.values import Configuration, Outcome


@dataclass(frozen=True)
class StudyCost:
    """What a study cost, in multiply-adds; `_language`: the language model's part of them.

    `pass_`: one baseline pass. `spent`: all of the study, baseline, encoding and noise floor included.
    `naive`: the same baseline, trials and held-out measurements done naively.
    """

    pass_flops: float
    pass_language: float
    spent: float
    spent_language: float
    naive: float
    naive_language: float
    # Model time of the answers, measured; None for a plan.
    seconds: float | None
    # Evaluated, by baseline, trials and held-out measurements.
    answers: int
    # Answers that the ended trials needed; of these, the ones that other trials with equal plans had, and the
    # ones that were not asked for because their trial was pruned.
    wanted: int
    shared: int
    spared: int
    # Complete, and pruned.
    trials: int
    pruned: int

    @property
    def passes(self) -> float:
        """Baseline passes that the study cost."""
        return self.spent / self.pass_flops

    @property
    def passes_language(self) -> float:
        """The same for the language model alone, cost and pass."""
        return self.spent_language / self.pass_language

    @property
    def naive_passes(self) -> float:
        """Baseline passes of the study done naively."""
        return self.naive / self.pass_flops

    @property
    def naive_passes_language(self) -> float:
        """The same for the language model alone, cost and pass."""
        return self.naive_language / self.pass_language

    @property
    def shared_share(self) -> float:
        """Share of the trials' answers that equal plans gave."""
        return self.shared / self.wanted if self.wanted else 0.0

    @property
    def spared_share(self) -> float:
        """Share of the trials' answers that pruning trials made unnecessary."""
        return self.spared / self.wanted if self.wanted else 0.0


def study_cost(
    planner: Planner,
    trials: Sequence[TrialRecord],
    measured: Mapping[Configuration, Outcome],
    *,
    answers: int,
    shared: int,
    prefixes: int | None = None,
    noise: Noise | None = None,
    seconds: float | None = None,
) -> StudyCost:
    """The cost of a study with these trials and held-out measurements.

    answers: how many the model gave, the baseline's included; `seconds`: their sum. shared: how many the
    complete trials found instead. prefixes: how many were built (`CacheUse`); None counts each video's once
    for the baseline and once for pruned answers. Which trials shared answers is not looked up: every answer
    costs the mean of what trials and measurements asked for. What killed runs lost is in no record.
    Errors: ValueError when the model's shape has no vision part.
    """
    vision = planner.shape.vision
    if vision is None:
        raise ValueError("What a study costs needs the shape of the vision tower, but it is None.")
    both = _Questions(planner.questions, planner.shape, vision)
    by_split = {
        split: _Questions(
            [question for question in planner.questions if question.split == split], planner.shape, vision
        )
        for split in SPLITS
    }
    tune, held_out = by_split["tune"], by_split["held_out"]
    naive, naive_language = both.unpruned + both.encoders, both.unpruned
    complete = ended_early = spared = 0
    asked = own = 0.0  # answers needed, if none were shared, and their FLOPs
    for trial in trials:
        if trial.outcome is not None:
            complete += 1
            ratio, share = trial.outcome.flops_ratio, 1.0
        elif trial.pruned is not None:
            ratio, share = trial.binding_ratio, trial.pruned.videos / tune.videos
            ended_early += 1
            spared += round((1 - share) * tune.count)
        else:
            continue  # unfinished: what it was asked is counted in `answers`
        naive_language += ratio * tune.unpruned
        naive += ratio * tune.unpruned + tune.encoders + tune.aligned
        asked += share * tune.count
        own += share * tune.answered(trial.configuration, ratio)
    for configuration, outcome in measured.items():
        naive_language += outcome.flops_ratio * held_out.unpruned
        naive += outcome.flops_ratio_end_to_end * (held_out.unpruned + held_out.encoders)
        asked += held_out.count
        own += held_out.answered(configuration, outcome.flops_ratio)

    # Prefixes of the unpruned model reach through every layer. They are built once, and for the noise floor.
    unpruned, unpruned_prefixes = both.answered(None, 1.0), both.videos
    if noise is not None:
        unpruned *= 1 + noise.questions / both.count
        unpruned_prefixes += noise.videos
    pruned = max(0, answers - both.count)
    pruned_prefixes = max((prefixes or 0) - unpruned_prefixes, both.videos if pruned else 0)
    depth = pruning_layers(planner.shape.layers)[0]
    spent = unpruned + (pruned * own / asked if asked else 0.0)
    spent += both.prefix * (unpruned_prefixes * planner.shape.layers + pruned_prefixes * depth)
    # Questions that are worded alike are embedded once, but count twice here: their texts are not known.
    encoded_once = both.frames * (vision.frame(planner.shape.hidden) + vision.frame_embedding())
    encoded_once += both.count * vision.text_embedding()
    return StudyCost(
        pass_flops=both.frames * vision.frame(planner.shape.hidden) + both.unpruned,
        pass_language=both.unpruned,
        spent=encoded_once + spent,
        spent_language=spent,
        naive=naive,
        naive_language=naive_language,
        seconds=seconds,
        answers=answers,
        wanted=(complete + ended_early) * tune.count,
        shared=shared,
        spared=spared,
        trials=complete,
        pruned=ended_early,
    )


class _Questions:
    """Sums over some questions, in multiply-adds."""

    def __init__(self, questions: Sequence[StoredQuestion], shape: ModelShape, vision: VisionShape) -> None:
        layouts = [question.layout for question in questions]
        by_video = {question.video: question.layout for question in questions}
        self._shape, self._example = shape, layouts[0] if layouts else None
        self.count, self.videos = len(questions), len(by_video)
        # Frames of the videos, each once.
        self.frames = sum(layout.frames for layout in by_video.values())
        self.unpruned = float(sum(unpruned_flops(layout, shape) for layout in layouts))
        # Every question with its own pass over its video: the vision tower, and what AdaTP needs besides.
        frames = sum(layout.frames for layout in layouts)
        self.encoders = float(frames * vision.frame(shape.hidden))
        self.aligned = float(frames * vision.frame_embedding() + self.count * vision.text_embedding())
        # One layer: the mean prefix, and how far an answer from its prefix is below a whole question.
        before = [(layout.tokens - layout.text_after, layout.text_after) for layout in layouts]
        whole = sum(layer_flops(shape, layout.tokens) for layout in layouts)
        self._saved = float(whole - sum(chunk_flops(shape, new, cached) for cached, new in before))
        ends = [layout.tokens - layout.text_after for layout in by_video.values()]
        self.prefix = sum(layer_flops(shape, end) for end in ends) / max(1, self.videos)
        self._stored: dict[str, int] = {}

    def answered(self, configuration: Configuration | None, ratio: float) -> float:
        """All of these questions, each from its video's prefix on, at this FLOPs ratio."""
        if configuration is None or self._example is None:
            return ratio * self.unpruned - self._shape.layers * self._saved
        if configuration.method not in self._stored:
            plan = configuration.build().plan(self._example, self._shape.layers)
            self._stored[configuration.method] = plan.layers[0] if plan.layers else self._shape.layers
        return ratio * self.unpruned - self._stored[configuration.method] * self._saved
