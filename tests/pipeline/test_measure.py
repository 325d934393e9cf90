"""Memory, matrix products and seconds are those of the work they were measured around."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline import measure, peak_memory
from pipeline.flops import plan_flops, unpruned_flops
from pipeline.measure import answer_seconds, machine, profiled_flops, serving_seconds
from pipeline.methods import AdaTP, FastV, FewerFrames
from pipeline.packing import BACKENDS
from pipeline.peak_memory import PeakMemory
from tests.checkpoints import scenes
from tests.videos import write_video

MIB = 2**20


def linux() -> bool:
    return peak_memory._reset_highest() is not None


@pytest.mark.skipif(not linux(), reason="this system does not tell a process's highest resident set")
@pytest.mark.quick
def test_memory_that_came_and_went_inside_the_block_is_seen():
    gc.collect()
    with PeakMemory(torch.device("cpu")) as peak, mmap.mmap(-1, 64 * MIB) as pages:
        # New pages: an allocator may have as many at hand that are resident.
        for start in range(0, 64 * MIB, mmap.PAGESIZE):
            pages[start] = 1
    assert 60 * MIB < peak.bytes < 80 * MIB
    with PeakMemory(torch.device("cpu")) as peak:
        pass
    assert peak.bytes < 8 * MIB


@pytest.mark.quick
def test_memory_held_before_does_not_count():
    held = torch.ones(64 * MIB // 4)
    with PeakMemory(torch.device("cpu")) as peak:
        held.add_(1)
    assert peak.bytes is None or peak.bytes < 8 * MIB


@pytest.mark.quick
def test_where_the_system_does_not_tell_there_is_no_figure(monkeypatch, tmp_path):
    monkeypatch.setattr(peak_memory, "_PROCESS", tmp_path / "nothing")
    with PeakMemory(torch.device("cpu")) as peak:
        pass
    assert peak.bytes is None
    with PeakMemory(torch.device("meta")) as peak:
        pass
    assert peak.bytes is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_memory_is_exact_and_what_the_allocator_keeps_does_not_count():
    device = torch.device("cuda")
    for _ in range(2):
        held = torch.empty(8 * MIB, dtype=torch.uint8, device=device)
        with PeakMemory(device) as peak:
            torch.empty(64 * MIB, dtype=torch.uint8, device=device)
        assert peak.bytes == 64 * MIB
        del held


def test_every_answer_says_what_memory_it_added(runtime, clip, question):
    answer = runtime.answer(clip, question, AdaTP(p=0.5))
    assert (answer.peak_bytes is not None) == (linux() or torch.cuda.is_available())


@pytest.mark.parametrize(
    "method",
    [None, AdaTP(p=0.6), AdaTP(p=0.8, score_query="mean", deduplicate="drop"), FastV(0.3), AdaTP(p=1.0)],
    ids=str,
)
@pytest.mark.parametrize("which", ["runtime", "eager"])
def test_torch_counts_what_we_count(request, which, clip, question, method):
    loaded = request.getfixturevalue(which)
    layout = loaded.layout(clip, question)
    planned = (
        unpruned_flops(layout, loaded.shape)
        if method is None
        else plan_flops(method.plan(layout, 12), layout, loaded.shape)
    )
    assert profiled_flops(loaded, clip, question, method) == planned


def test_profiling_leaves_the_model_as_it_was(runtime, clip, question):
    before = runtime.answer(clip, question, AdaTP(p=0.6))
    profiled_flops(runtime, clip, question, AdaTP(p=0.6))
    after = runtime.answer(clip, question, AdaTP(p=0.6))
    assert (after.option_logprobs, after.kept) == (before.option_logprobs, before.kept)
    assert runtime.family.language_model.config._attn_implementation in BACKENDS
    assert not runtime.family.lm_head._forward_pre_hooks


def test_the_parts_a_server_pays_for_are_timed_apart(runtime, question, tmp_path: Path):
    write_video(tmp_path / "v.mp4", scenes(16, scene_length=4))
    clip = runtime.encode(tmp_path / "v.mp4")
    unpruned, pruned = serving_seconds(runtime, clip, question, AdaTP(p=0.5))
    assert unpruned.frame_embedding == unpruned.text_embedding == 0
    assert unpruned.vision == pruned.vision
    assert min(pruned.frame_embedding, pruned.text_embedding, pruned.question, unpruned.question) > 0
    # Two layers of twelve.
    assert 0 < pruned.prefix < unpruned.prefix
    fewer = serving_seconds(runtime, clip, question, FewerFrames(keep_ratio=0.5))[1]
    assert fewer.frame_embedding == fewer.text_embedding == 0


def test_a_slow_call_is_timed_once_after_its_warming_up(monkeypatch):
    calls = []
    monkeypatch.setattr(measure, "PATIENCE", 0.0)
    measure._seconds(torch.device("cpu"), lambda: calls.append(1))
    assert len(calls) == 2


class Asked:
    """A runtime that notes what it was asked, and takes no time for it."""

    def __init__(self):
        self.family = SimpleNamespace(device=torch.device("cpu"))
        self.calls = []

    def forget_prefixes(self):
        self.calls.append("forget")

    def answer(self, clip, question, method):
        self.calls.append(method)


@pytest.mark.quick
def test_methods_timed_side_by_side_take_turns_and_start_from_nothing():
    asked, methods = Asked(), (None, "one", "two")
    seconds = answer_seconds(asked, None, None, methods)
    assert len(seconds) == 3
    assert asked.calls[::2] == ["forget"] * 12
    # The first round warms up; after it each begins once.
    rounds = [tuple(asked.calls[1::2][start : start + 3]) for start in range(0, 12, 3)]
    assert rounds == [methods, methods, ("one", "two", None), ("two", None, "one")]


@pytest.mark.quick
def test_slow_methods_have_one_turn(monkeypatch):
    asked = Asked()
    monkeypatch.setattr(measure, "PATIENCE", 0.0)
    answer_seconds(asked, None, None, (None, "one"))
    assert asked.calls[1::2] == [None, "one", None, "one"]


@pytest.mark.quick
def test_a_machine_has_a_name_without_torch():
    assert machine(gpu=False, threads=1).endswith(", 1 thread")
    assert machine(gpu=False, threads=2).endswith(", 2 threads")
    assert machine(gpu=True, threads=1)
