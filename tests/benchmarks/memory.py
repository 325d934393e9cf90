"""Peak memory of a trial beside the unpruned model's, each in a process of its own.

    python -m tests.benchmarks.memory --shape 0.5b --frames 8
    python -m tests.benchmarks.memory --shape 7b --frames 32 --device cuda

In every process the model is loaded and the video encoded first; the peak is taken over the questions alone,
weights included. On CUDA it is the allocator's; on a CPU the process's highest resident set, which Linux
counts anew on request.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.memory import working_bytes
from pipeline.question import Question
from pipeline.runtime import Request
from tests.benchmarks.clock import verdict
from tests.benchmarks.prefill import one_pass
from tests.benchmarks.shapes import Setup, add_options, headline, set_up

# The unpruned model as one calls it oneself, and as a study asks it for its baseline; the pruned likewise.
UNPRUNED, BASELINE = "unpruned, one pass", "unpruned, split"
TRIAL, PRUNED = "trial", "pruned, one pass"
# What `working_bytes` plans for.
ENCODING, PACK = "encoding the video", "unpruned, all questions at once"
VARIANTS = (UNPRUNED, BASELINE, TRIAL, PRUNED, ENCODING, PACK)


class Peak(NamedTuple):
    """Bytes."""

    before: int  # weights, and the encoded video
    highest: int
    planned: int  # for encoding and for a pack of all questions

    @property
    def added(self) -> int:
        """What the questions took."""
        return self.highest - self.before


class Meter:
    """Memory of this process on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def restart(self) -> int:
        """Forgets the peak; returns what is held now."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            return torch.cuda.memory_allocated(self._device)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")

    def highest(self) -> int:
        """The peak since it was last forgotten, by this meter or by answering a question."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _status("VmHWM")


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def measure(setup: Setup, variant: str, ratio: float) -> Peak:
    """Peak over all questions about one video."""
    runtime = setup.runtime
    clip = runtime.encode(setup.video)
    method = setup.adatp(clip, flops_ratio=ratio)
    chosen = method if variant in (TRIAL, PRUNED) else None
    meter = Meter(runtime.family.device)
    whole = variant in (ENCODING, PACK)

    def ask(questions: Sequence[Question]) -> None:
        if variant == ENCODING:
            runtime.encode(setup.video)
        elif variant in (UNPRUNED, PRUNED):
            one_pass(runtime, clip, questions[0], chosen)
        else:
            runtime.answer_many([Request(clip, question, chosen) for question in questions])

    # What is loaded at first use belongs to no variant.
    ask(setup.questions if whole else setup.questions[:1])
    runtime.forget_prefixes()
    before = meter.restart()
    highest = before
    for questions in [setup.questions] if whole else [[question] for question in setup.questions]:
        ask(questions)
        highest = max(highest, meter.highest())
    planned = working_bytes(
        runtime.shape,
        frames=runtime.frames,
        tokens=max(runtime.layout(clip, question).tokens for question in setup.questions),
        itemsize=runtime.family.dtype.itemsize,
        batch=len(setup.questions),
    )
    return Peak(before, highest, planned)


def in_own_process(variant: str, arguments: list[str]) -> Peak:
    """The same command for one variant."""
    # Freed memory goes back at once: what an allocator keeps for later would count as in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-m", "tests.benchmarks.memory", *arguments, "--variant", variant]
    run = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parents[2]
    )
    return Peak(**json.loads(run.stdout))


def report(peaks: dict[str, Peak]) -> None:
    print("| | peak GiB | beyond weights and video, MiB |")
    print("| --- | --- | --- |")
    for name, peak in peaks.items():
        print(f"| {name} | {peak.highest / 2**30:.3f} | {peak.added / 2**20:.1f} |")
    for other in (UNPRUNED, BASELINE):
        ratio = peaks[TRIAL].highest / peaks[other].highest
        print(f"trial / {other}: {ratio:.4f}{verdict(ratio, 1.0)}")
    planned, measured = peaks[PACK].planned, max(peaks[ENCODING].added, peaks[PACK].added)
    print(f"encoding and a pack over what was planned, {planned / 2**20:.1f} MiB: {measured / planned:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, repeats=1)
    parser.add_argument("--ratio", type=float, default=0.27, help="FLOPs ratio (default: 0.27)")
    parser.add_argument("--questions", type=int, default=3, help="about the video (default: 3)")
    parser.add_argument("--variant", choices=VARIANTS, help="this one alone, its bytes printed as JSON")
    options = parser.parse_args()
    if options.variant is None:
        report({variant: in_own_process(variant, sys.argv[1:]) for variant in VARIANTS})
        return
    with tempfile.TemporaryDirectory() as folder:
        setup = set_up(options, Path(folder), questions=options.questions)
        print(f"{headline(options, setup.runtime)}: {options.variant}", file=sys.stderr)
        print(json.dumps(measure(setup, options.variant, options.ratio)._asdict()))


if __name__ == "__main__":
    main()
