"""Time of the pruned prefill over the unpruned one, beside the FLOPs ratio.

    python -m tests.benchmarks.prefill --shape 7b --frames 32 --device cuda
    python -m tests.benchmarks.prefill --shape 7b --frames 32 --device cuda --batch 8 --profile

Two ways to prefill, each against the unpruned model the same way: the whole prompt in one pass (unpruned,
that is transformers' own call of the model); and split where the video ends, as answering does, the stored
prefix built anew each time. AdaTP's own work inside the split prefill is timed where it happens: sending the
plan to the device, scores, ranking, gathers. The encoders are not in these figures; their times stand beside.
The visual tokens lie on the device before, as they do after encoding: their way there is no prefill.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline import packing
from pipeline.clip import Clip
from pipeline.flops import plan_flops, unpruned_flops
from pipeline.methods import AdaTP, Method
from pipeline.packing import Pack
from pipeline.question import Question
from pipeline.runtime import Request, Runtime
from pipeline.video import read_frames
from tests.benchmarks.clock import Clock, medians, seconds, side_by_side, verdict, warm_up
from tests.benchmarks.shapes import Setup, add_options, headline, set_up

TIME_OVER_FLOPS = 1.10  # at most, of the time ratio over the FLOPs ratio
OWN_WORK = 0.02  # at most, of an unpruned prefill
TARGET_SHAPE = ("7b", "cuda")  # where the two targets are set

# Where AdaTP works in the language model: what happens there happens for no other reason.
OWN = {
    "plan to the device": (packing, "stages"),
    "scores": (packing, "row_scores"),
    "ranking and gathers": (Pack, "_rearrange"),
}


@torch.inference_mode()
def one_pass(runtime: Runtime, clip: Clip, question: Question, method: Method | None) -> None:
    """The whole prompt at once."""
    if method is None:
        runtime.model(**runtime.inputs(clip, question), logits_to_keep=1)
    else:
        runtime.one_pass(clip, question, method)


@torch.inference_mode()
def split(runtime: Runtime, clip: Clip, question: Question, method: Method | None) -> None:
    """System prompt and video, then the question, as `Runtime.answer` does; planning included."""
    runtime.forget_prefixes()
    Pack(runtime.family, [runtime.pack_item(Request(clip, question, method))])


def variants(
    runtime: Runtime, clip: Clip, question: Question, method: Method
) -> dict[str, Callable[[], None]]:
    """Both ways, pruned and unpruned."""
    return {
        f"{way.__name__} {name}": lambda way=way, item=item: way(runtime, clip, question, item)
        for way in (one_pass, split)
        for name, item in (("unpruned", None), ("pruned", method))
    }


def own_work(
    runtime: Runtime, clip: Clip, question: Question, method: Method, repeats: int
) -> dict[str, float]:
    """Median seconds of AdaTP's own work in one split prefill, by part.

    Errors: RuntimeError when a part was never met: the code went elsewhere, and zero would be no measurement.
    """
    device, several = runtime.family.device, []
    clock = Clock(device)
    for turn in range(-warm_up(device), repeats):
        with ExitStack() as stack:
            for name, (owner, function) in OWN.items():
                stack.enter_context(clock.during(name, owner, function))
            split(runtime, clip, question, method)
        spent = clock.take()
        if missing := OWN.keys() - spent.keys():
            raise RuntimeError(f"No call was met of: {', '.join(sorted(missing))}.")
        if turn >= 0:
            several.append(spent)
    return medians(several)


def encoders(setup: Setup, repeats: int) -> dict[str, float]:
    """Median seconds of the encoder side for one video and one question."""
    runtime = setup.runtime
    family, encoder = runtime.family, runtime.encoder
    frames = read_frames(setup.video, runtime.frames, size=family.frame_size).frames
    features = family.encode_frames(frames).tower_features
    return side_by_side(
        family.device,
        {
            "vision tower, projector": lambda: family.encode_frames(frames),
            "SigLIP layer, head": lambda: encoder.embed_frames(frames, features),
            "text tower": lambda: encoder.embed_text(setup.questions[0].text),
        },
        repeats,
    )


def throughput(setup: Setup, clip: Clip, method: Method, batch: int, repeats: int) -> dict[str, float]:
    """Questions per second, answered one by one and `batch` at a time, each about a video of its own.

    Stored prefixes are built anew for every question: this is a server's load, not a study's.
    """
    runtime = setup.runtime
    clips = [replace(clip, content_hash=f"{clip.content_hash}{i}") for i in range(batch)]
    pairs = list(zip(clips, setup.questions, strict=True))

    def ask(one: Method | None, at_once: int) -> None:
        for begin in range(0, batch, at_once):
            runtime.forget_prefixes()
            runtime.answer_many([Request(*pair, one) for pair in pairs[begin : begin + at_once]])

    def asking(one: Method | None, at_once: int) -> Callable[[], None]:
        return lambda: ask(one, at_once)

    asked = {
        f"{name}, {at_once} at a time": asking(item, at_once)
        for name, item in (("unpruned", None), ("pruned", method))
        for at_once in (1, batch)
    }
    taken = side_by_side(runtime.family.device, asked, repeats)
    return {name: batch / spent for name, spent in taken.items()}


def operations(work: Callable[[], Any], device: torch.device) -> str:
    """A table of the operations that take most of the device's time."""
    # Read when the profiler first starts: it would write two lines for every use of it.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from torch.profiler import ProfilerActivity, profile

    gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    seconds(device, work)
    with profile(activities=kinds) as profiler:
        seconds(device, work)
    order = "self_device_time_total" if gpu else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=50)


def report(options: argparse.Namespace, setup: Setup) -> None:
    runtime, question = setup.runtime, setup.questions[0]
    clip = runtime.encode(setup.video)
    clip = replace(clip, features=clip.features.to(runtime.family.device))
    method: AdaTP = setup.adatp(clip, p=options.p)
    layout = runtime.layout(clip, question)
    plan = method.plan(layout, runtime.shape.layers)
    flops = plan_flops(plan, layout, runtime.shape) / unpruned_flops(layout, runtime.shape)
    wanted = (options.shape, runtime.family.device.type) == TARGET_SHAPE
    taken = side_by_side(runtime.family.device, variants(runtime, clip, question, method), options.repeats)
    print(headline(options, runtime))
    print(f"{layout.tokens} tokens, p = {options.p}, median of {options.repeats}")
    print(f"FLOPs ratio {flops:.4f}")
    print("| | unpruned s | pruned s | time ratio | time ratio / FLOPs ratio |")
    print("| --- | --- | --- | --- | --- |")
    for way in ("one_pass", "split"):
        unpruned, with_method = taken[f"{way} unpruned"], taken[f"{way} pruned"]
        ratio = with_method / unpruned
        over = f"{ratio / flops:.3f}{verdict(ratio / flops, TIME_OVER_FLOPS if wanted else None)}"
        print(f"| {way.replace('_', ' ')} | {unpruned:.4f} | {with_method:.4f} | {ratio:.4f} | {over} |")
    unpruned = taken["split unpruned"]
    own = own_work(runtime, clip, question, method, options.repeats)
    print("| AdaTP's own work | s | of an unpruned prefill |")
    print("| --- | --- | --- |")
    for name, spent in own.items():
        print(f"| {name} | {spent:.5f} | {spent / unpruned:.2%} |")
    share = sum(own.values()) / unpruned
    print(
        f"| together | {sum(own.values()):.5f} | {share:.2%}{verdict(share, OWN_WORK if wanted else None)} |"
    )
    print("| encoders, not in the above | s | of an unpruned prefill |")
    print("| --- | --- | --- |")
    for name, spent in encoders(setup, options.repeats).items():
        print(f"| {name} | {spent:.4f} | {spent / unpruned:.2%} |")
    if options.batch > 1:
        print("| questions per second, each about a video of its own | |")
        print("| --- | --- |")
        for name, rate in throughput(setup, clip, method, options.batch, options.repeats).items():
            print(f"| {name} | {rate:.3f} |")
    if options.profile:
        print(operations(lambda: split(runtime, clip, question, method), runtime.family.device))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, repeats=3)
    parser.add_argument("--p", type=float, default=0.85, help="nothing is boosted (default: 0.85)")
    parser.add_argument("--batch", type=int, default=1, help="also measure throughput (1: do not)")
    parser.add_argument("--profile", action="store_true", help="also list the pruned prefill's operations")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(options, set_up(options, Path(folder), questions=max(1, options.batch)))


if __name__ == "__main__":
    main()
