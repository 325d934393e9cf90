"""What answering takes, measured: the matrix products torch counts, seconds of what a server does.

Nothing here changes an answer. The analytic counterparts are `pipeline.flops` and `pipeline.break_even`.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from pipeline.break_even import Serving

if TYPE_CHECKING:
    import torch

    from pipeline.clip import Clip
    from pipeline.methods.base import Method
    from pipeline.question import Question
    from pipeline.runtime import Runtime

REPEATS = 5  # timed calls, of which the median counts
TURNS = 3  # of methods that are timed side by side
PATIENCE = 1.0  # seconds after which a call is not repeated any more


# What torch.profiler counts and a decoder layer's cost consists of; a linear layer is one of them.
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


def machine(*, gpu: bool, threads: int) -> str:
    """The processor that measured seconds belong to: the first GPU's name, or the CPU's and its threads.

    Told without torch, whose import takes longer than asking whether there is anything to measure.
    """
    if gpu:
        for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
            found = re.search(r"^Model:\s*(.+)$", file.read_text(errors="replace"), re.MULTILINE)
            if found is not None:
                return found[1].strip()
        return "GPU"
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = "CPU" if found is None else " ".join(found[1].split())
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def device_name(runtime: Runtime) -> str:
    """What the model runs on, as a person calls it."""
    import torch

    device = runtime.family.device
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return machine(gpu=False, threads=torch.get_num_threads()) if device.type == "cpu" else device.type


def profiled_flops(runtime: Runtime, clip: Clip, question: Question, method: Method | None) -> int:
    """Multiply-adds of one prefill in a single pass as torch.profiler counts them, lm_head left out.

    The counterpart of `plan_flops` (None: of `unpruned_flops`): matrix products alone, halved because torch
    counts two per multiply-add. torch gives fused attention no FLOPs, so it runs as plain matrix products,
    whose n x n matrix of scores needs memory that answering does not.
    Errors: torch.OutOfMemoryError where that matrix does not fit.
    """
    # Read when the profiler first starts: it would write two lines for every use of it.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.profiler import ProfilerActivity, profile

    config = runtime.family.language_model.config
    backend = config._attn_implementation
    config._attn_implementation = "sdpa"
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler,
        ):
            runtime.one_pass(clip, question, method)
    finally:
        config._attn_implementation = backend
    counted = sum(int(event.flops or 0) for event in profiler.events() or () if event.name in _PRODUCTS)
    return counted // 2 - int(runtime.family.lm_head.weight.numel())  # read for the last token alone


def serving_seconds(
    runtime: Runtime, clip: Clip, question: Question, method: Method
) -> tuple[Serving, Serving]:
    """Seconds of what a server pays with the unpruned and with the pruned model, for this video and question.

    The clip's file is decoded again (decoding is not counted: both pay it). Each part is the median of up to
    REPEATS warm calls. `question` is everything from the stored prefix to the answer: planning, the
    question's prefill, options or generated tokens. Stored prefixes of other clips are forgotten.
    Errors: VideoError when the file cannot be read any more.
    """
    from pipeline.video import read_frames

    family, encoder, device = runtime.family, runtime.encoder, runtime.family.device
    frames = read_frames(clip.path, runtime.frames, runtime.decode_timeout, size=family.frame_size).frames
    plan = method.plan(runtime.layout(clip, question), runtime.shape.layers)
    seen = frames if plan.frames_encoded is None else frames[: plan.frames_encoded]
    vision = _seconds(device, lambda: family.encode_frames(frames))
    vision_pruned = vision if seen is frames else _seconds(device, lambda: family.encode_frames(seen))
    frame_embedding = text_embedding = 0.0
    if plan.aligned:
        features = family.encode_frames(seen).tower_features
        frame_embedding = _seconds(device, lambda: encoder.embed_frames(seen, features))
        text_embedding = _seconds(device, lambda: encoder.embed_text(question.text))
    layers = runtime.shape.layers if plan.keeps_everything else plan.layers[0]
    prefix, asked = _prefix_and_question(runtime, clip, question, None, runtime.shape.layers)
    prefix_pruned, asked_pruned = _prefix_and_question(runtime, clip, question, method, layers)
    return (
        Serving(vision, 0.0, prefix, 0.0, asked),
        Serving(vision_pruned, frame_embedding, prefix_pruned, text_embedding, asked_pruned),
    )


def answer_seconds(
    runtime: Runtime, clip: Clip, question: Question, methods: Sequence[Method | None]
) -> tuple[float, ...]:
    """Seconds of prefill and answer under each method (None: unpruned), nothing of the prompt kept before.

    The methods take turns, each round in another order, so that what slows the machine for a while slows all
    of them; the median of up to TURNS rounds counts, after one that warms up. Vision tower and embeddings are
    left out. Stored prefixes are forgotten.
    """
    import torch

    device = runtime.family.device

    def once(method: Method | None) -> float:
        runtime.forget_prefixes()
        begin = perf_counter()
        runtime.answer(clip, question, method)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - begin

    for method in methods:
        once(method)
    taken: list[list[float]] = [[] for _ in methods]
    spent = 0.0
    for turn in range(TURNS):
        if spent > PATIENCE * len(methods):
            break
        first = turn * len(methods) // TURNS
        for index in (*range(first, len(methods)), *range(first)):
            taken[index].append(once(methods[index]))
            spent += taken[index][-1]
    return tuple(map(statistics.median, taken))


def _prefix_and_question(
    runtime: Runtime, clip: Clip, question: Question, method: Method | None, layers: int
) -> tuple[float, float]:
    import torch

    def build() -> None:
        runtime.forget_prefixes()
        with torch.inference_mode():
            runtime.prefix(clip, layers)

    prefix = _seconds(runtime.family.device, build)
    return prefix, _seconds(runtime.family.device, lambda: runtime.answer(clip, question, method))


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The median of several calls, the first of which warms up and does not count."""
    import torch

    def once() -> float:
        begin = perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - begin

    once()
    taken = [once()]
    while len(taken) < REPEATS and sum(taken) < PATIENCE:
        taken.append(once())
    return statistics.median(taken)
