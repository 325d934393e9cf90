"""One question of a trial, beside the same question asked with nothing kept.

    python -m tests.benchmarks.trial --shape 0.5b --frames 8
    python -m tests.benchmarks.trial --shape 7b --frames 32 --device cuda

Both use the same configuration and keep the same tokens. The naive way decodes the video, runs vision tower,
projector, aligned encoder and text tower, and prefills the whole prompt in one pass, for every question. A
trial finds the video encoded and the plan made; the stored prefix it builds once for all questions about a
video, and that is counted in. Both read a letter off the last row, so lm_head sees one row (it is left out of
FLOPs).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.clip import Clip
from pipeline.flops import chunk_flops, layer_flops, plan_flops
from pipeline.methods import AdaTP
from pipeline.question import Question, option_texts
from pipeline.video import read_frames
from tests.benchmarks.clock import Clock, medians, verdict, warm_up
from tests.benchmarks.shapes import Setup, add_options, headline, set_up

DECODE, VISION, FRAMES, TEXT = "decode", "vision tower, projector", "frame embeddings", "text tower"
SINGLE_PASS, PREFIX, QUESTION = "pruned prefill, one pass", "stored prefix", "question pass"
NAIVE = (DECODE, VISION, FRAMES, TEXT, SINGLE_PASS)

TARGETS = {("0.5b", "cpu"): 0.10, ("7b", "cuda"): 0.45}  # the second with decoding left out


class Said(NamedTuple):
    """What both ways have to agree on."""

    option: int | None
    kept: tuple[int, ...]


@torch.inference_mode()
def naive(setup: Setup, question: Question, method: AdaTP, clock: Clock) -> Said:
    """From the file to the answer, nothing kept before or after."""
    runtime = setup.runtime
    runtime._text_embedding.cache_clear()
    with clock.part(DECODE):
        decoded = read_frames(setup.video, runtime.frames, size=runtime.family.frame_size)
    with (
        clock.during(VISION, runtime.family, "encode_frames"),
        clock.during(FRAMES, runtime.encoder, "embed_frames"),
    ):
        clip = runtime._clip("", "", runtime._encode_frames(*decoded, setup.video.name))
    with clock.part(TEXT):
        runtime.text_embedding(question)
    with clock.part(SINGLE_PASS):
        pack = runtime.one_pass(clip, question, method)
        logits = pack.logits(0)
        letters = [runtime.family.answer_ids(text)[0] for text in option_texts(question, runtime.scoring)]
        return Said(int(logits[letters].argmax()), pack.kept(0))


@torch.inference_mode()
def trial(setup: Setup, clip: Clip, method: AdaTP, clock: Clock) -> list[Said]:
    """All questions about one video, as a study's worker asks them."""
    runtime = setup.runtime
    # Planned before: this embeds the questions, outside of what is timed.
    layouts = [runtime.layout(clip, question) for question in setup.questions]
    first = method.plan(layouts[0], runtime.shape.layers).layers[0]
    runtime.forget_prefixes()
    with clock.part(PREFIX):
        runtime.prefix(clip, first)
    said = []
    for question in setup.questions:
        with clock.part(QUESTION):
            answer = runtime.answer(clip, question, method)
        said.append(Said(answer.option, answer.kept))
    return said


class Measured(NamedTuple):
    """Seconds for one question."""

    naive: dict[str, float]  # by part
    prefix: float  # for one video
    question: float

    def trial(self, questions: int) -> float:
        """With the video's prefix shared by its questions."""
        return self.prefix / questions + self.question

    def ratio(self, questions: int, *, without: tuple[str, ...] = ()) -> float:
        """One trial / one naive trial."""
        return self.trial(questions) / sum(spent for name, spent in self.naive.items() if name not in without)


def measure(setup: Setup, clip: Clip, method: AdaTP, repeats: int) -> Measured:
    """Medians of both ways in turn. On a GPU one turn before them does not count (see `warm_up`).

    Errors: RuntimeError when the two do not keep the same tokens: they would not be the same work.
    """
    device = setup.runtime.family.device
    clock, naives, trials = Clock(device), [], []
    count = len(setup.questions)
    for turn in range(-warm_up(device), repeats):
        index = turn % count
        alone = naive(setup, setup.questions[index], method, clock)
        spent_naive = clock.take()
        asked = trial(setup, clip, method, clock)
        spent_trial = clock.take()
        if alone.kept != asked[index].kept:
            raise RuntimeError(f"One way kept {alone.kept}, the other {asked[index].kept}.")
        if turn >= 0:
            naives.append(spent_naive)
            trials.append(spent_trial)
    parts = medians(trials)
    return Measured(medians(naives), parts[PREFIX], parts[QUESTION] / count)


class Flops(NamedTuple):
    """Multiply-adds for one question."""

    naive: float
    prefix: float
    question: float


def flops(setup: Setup, clip: Clip, method: AdaTP) -> Flops:
    """What both ways compute, for the first question."""
    shape, question = setup.runtime.shape, setup.questions[0]
    assert shape.vision is not None
    layout = setup.runtime.layout(clip, question)
    plan = method.plan(layout, shape.layers)
    language = plan_flops(plan, layout, shape)
    stored, after, first = layout.tokens - layout.text_after, layout.text_after, plan.layers[0]
    question_pass = language + first * (chunk_flops(shape, after, stored) - layer_flops(shape, layout.tokens))
    frame = shape.vision.frame(shape.hidden) + shape.vision.frame_embedding()
    return Flops(
        naive=layout.frames * frame + shape.vision.text_embedding() + language,
        prefix=first * layer_flops(shape, stored),
        question=question_pass,
    )


def report(options: argparse.Namespace, setup: Setup) -> None:
    clip = setup.runtime.encode(setup.video)
    method = setup.adatp(clip, flops_ratio=options.ratio)
    count = len(setup.questions)
    got, counted = measure(setup, clip, method, options.repeats), flops(setup, clip, method)
    print(headline(options, setup.runtime))
    print(f"FLOPs ratio {options.ratio}, {count} questions per video, median of {options.repeats}")
    print("| | seconds for one question |")
    print("| --- | --- |")
    for name in NAIVE:
        print(f"| naive: {name} | {got.naive[name]:.4f} |")
    print(f"| naive | {sum(got.naive.values()):.4f} |")
    print(f"| trial: {PREFIX}, its share of {got.prefix:.4f} | {got.prefix / count:.4f} |")
    print(f"| trial: {QUESTION} | {got.question:.4f} |")
    print(f"| trial | {got.trial(count):.4f} |")
    target = TARGETS.get((options.shape, setup.runtime.family.device.type))
    on_cpu = setup.runtime.family.device.type == "cpu"
    whole, encoded = got.ratio(count), got.ratio(count, without=(DECODE,))
    print(f"trial / naive: {whole:.4f}{verdict(whole, target if on_cpu else None)}")
    print(f"with decoding left out: {encoded:.4f}{verdict(encoded, None if on_cpu else target)}")
    print(f"with the prefix stored before: {got.question / sum(got.naive.values()):.4f}")
    expected = (counted.prefix / count + counted.question) / counted.naive
    stored = counted.question / counted.naive
    print(f"FLOPs of the two: {expected:.4f}, with the prefix stored before {stored:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, repeats=3)
    parser.add_argument("--ratio", type=float, default=0.27, help="FLOPs ratio (default: 0.27)")
    parser.add_argument("--questions", type=int, default=3, help="per video (default: 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(options, set_up(options, Path(folder), questions=options.questions))


if __name__ == "__main__":
    main()
