"""The demo tabulated: every answer on a lattice of AdaTP's knobs, asked of the real model once.

    python -m tests.benchmarks.table --out .tuner/table [--shard 0/2]

tau_s and tau_t act in steps, so a plan depends on them through segments and boosted segments alone; p and
the boost are tabulated on a lattice and interpolated between (`tests.benchmarks.tabulated`). One file per
video, written whole: the same command goes on where it was stopped, and shards share the folder.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
from rich.progress import track

from pipeline.methods import AdaTP
from pipeline.runtime import Request
from tests.benchmarks.demo import Demo

# From no cut inside a scene to almost everywhere.
TAU_S = (0.5, 0.98, 0.99, 0.994, 0.997, 0.998, 0.999, 0.9996)
TAU_T = (0.05, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0)
P = (0.20, 0.30, 0.38, 0.44, 0.48, 0.52, 0.56, 0.60)
ALPHA = (1.0, 1.2, 1.5)

PACK = 16


def method_at(tau_s: float, tau_t: float, alpha: float, p: float) -> AdaTP:
    """A lattice point; gamma_cap never binds but at 1."""
    return AdaTP(tau_s=tau_s, tau_t=tau_t, alpha_boost=alpha, gamma_cap=1.0, p=p)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(".tuner/table"))
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th video from the i-th on")
    parser.add_argument("--cache", type=Path, default=Path(".tuner/benchmarks"))
    arguments = parser.parse_args()
    shard, shards = map(int, arguments.shard.split("/"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    demo = Demo.load(arguments.cache)
    # Tune videos first: what the search sees is of use before the rest is there.
    videos = [*demo.study.videos_of("tune"), *demo.study.videos_of("held_out")]
    lattice = [method_at(*point) for point in product(TAU_S, TAU_T, ALPHA, P)]
    for video in track(videos[shard::shards], description="videos"):
        target = arguments.out / f"{Path(video.name).stem}.npz"
        if target.exists():
            continue
        clip = demo.runtime.encode(video.path)
        names, questions, methods = [], [], []
        for question in (question for question in demo.study.questions if question.video == video.name):
            layout = demo.runtime.layout(clip, question)
            seen: dict[str, AdaTP | None] = {demo.runtime.fingerprint(None, layout): None}
            for method in lattice:
                seen.setdefault(demo.runtime.fingerprint(method, layout), method)
            names += [f"{question.id}|{fingerprint[:32]}" for fingerprint in seen]
            questions += [question] * len(seen)
            methods += list(seen.values())
        logprobs: list[tuple[float, ...]] = []
        for begin in range(0, len(names), PACK):
            some = zip(questions[begin : begin + PACK], methods[begin : begin + PACK], strict=True)
            answers = demo.runtime.answer_many([Request(clip, item, method) for item, method in some])
            logprobs += [answer.option_logprobs or () for answer in answers]
        temporary = target.with_suffix(".tmp.npz")
        np.savez_compressed(temporary, names=np.array(names), logprobs=np.array(logprobs, dtype=np.float32))
        temporary.replace(target)
        demo.runtime.forget_prefixes()


if __name__ == "__main__":
    main()
