"""Long videos at the 7B shape, by plan: compute, memory, and how fast answers are decoded at best.

    python -m tests.benchmarks.long_videos

LLaVA-OneVision-7B in bfloat16, 196 tokens a frame, one question of 40 tokens; AdaTP at p = 0.85 with nothing
boosted. Nothing is measured: memory is that of `pipeline.memory.working_bytes` beside the weights, and a
token's time is that of reading weights and cache once, which no GPU undercuts.
"""

from __future__ import annotations

import numpy as np

from pipeline.flops import LLAVA_ONEVISION_7B, plan_flops, unpruned_flops
from pipeline.layout import Layout
from pipeline.memory import RESERVED_BYTES, WorkerMemory, working_bytes
from pipeline.methods import AdaTP

FRAMES = (32, 64, 128, 256)
CELLS, BEFORE, AFTER = 196, 14, 40
WEIGHTS = 16_060_000_000  # bytes: 8.03 billion numbers, vision tower and projector among them
ALIGNED = 1_900_000_000  # bytes of the aligned SigLIP's part in float32, its text tower above all
BANDWIDTH = 3.35e12  # bytes a second, H100 SXM
DEVICE = 80e9
TRAINED = 32_768  # positions that Qwen2-7B was trained for


def rows() -> list[str]:
    """The table's lines."""
    shape, lines = LLAVA_ONEVISION_7B, []
    for frames in FRAMES:
        layout = Layout(frames, CELLS, 1, BEFORE, AFTER, np.ones(frames - 1), np.zeros(frames))
        plan = AdaTP(tau_t=2.0, p=0.85).plan(layout, shape.layers)
        whole, pruned = unpruned_flops(layout, shape), plan_flops(plan, layout, shape)
        each = 2 * shape.kv_width * 2  # bytes of keys and values of one token in one layer
        cache = layout.tokens * shape.layers * each
        kept = sum(plan.tokens_per_layer(shape.layers, layout)) * each
        prefix = (layout.tokens - AFTER) * (plan.layers[0] * each + 2 * shape.hidden)
        working = working_bytes(shape, frames=frames, tokens=layout.tokens, itemsize=2)
        worker = WorkerMemory(WEIGHTS + ALIGNED, prefix, working, RESERVED_BYTES)
        speed = [BANDWIDTH / (WEIGHTS + held) for held in (cache, kept)]
        note = "" if layout.tokens <= TRAINED else " (beyond training)"
        lines.append(
            f"| {frames} | {layout.tokens:,}{note} | {whole / 1e12:.0f} / {pruned / 1e12:.0f} "
            f"({pruned / whole:.0%}) | {cache / 2**20:,.0f} / {kept / 2**20:,.0f} | {prefix / 2**20:,.0f} | "
            f"{working / 2**30:.1f} | {worker.fitting(int(DEVICE))} | {speed[0]:.0f} / {speed[1]:.0f} |"
        )
    return lines


def main() -> None:
    print(
        "| frames | tokens | prefill TFLOPs | keys and values, MiB | stored prefix, MiB | "
        "working memory, GiB | workers on 80 GB | tokens/s at most |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows()))


if __name__ == "__main__":
    main()
