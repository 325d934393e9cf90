"""Accuracy of several ways to prune at the same FLOPs, on the demo's held-out videos.

    python -m tests.benchmarks.peers --budget 0.3 --best best.json

Each method's ratio is solved for the budget on the held-out questions; AdaTP's other knobs are its defaults,
or those of the exported configuration.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from pipeline.flops import flops_ratio
from pipeline.methods import KNOBS, AdaTP, FewerFrames, Method, OneShot, RandomTokens
from pipeline.plan import StudyPlans
from pipeline.solve import Unreachable, solve_p
from tests.benchmarks.demo import Demo


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=0.3)
    parser.add_argument("--best", type=Path, help="a best.json to show beside the others, as exported")
    parser.add_argument("--cache", type=Path, default=Path(".tuner/benchmarks"))
    arguments = parser.parse_args()
    demo = Demo.load(arguments.cache)
    asked = demo.questions("held_out")
    layouts = demo.layouts(asked)
    methods: dict[str, Method] = {}
    candidates: dict[str, Method] = {
        "AdaTP, defaults": AdaTP(),
        "one-shot attention (FastV's way)": OneShot(),
        "random tokens": RandomTokens(),
        "fewer frames": FewerFrames(),
    }
    for name, method in candidates.items():
        solved = solve_p(method, layouts, demo.runtime.shape, arguments.budget)
        if isinstance(solved, Unreachable):
            print(f"{name}: cannot reach {arguments.budget}; the smallest is {solved.smallest:.4f}")
        else:
            methods[name] = solved
    if arguments.best is not None:
        parameters = json.loads(arguments.best.read_text())["parameters"]
        methods = {"AdaTP, tuned": AdaTP(**{name: parameters[name] for name in KNOBS}), **methods}
    baseline = demo.correct(asked, None, "unpruned")
    videos = np.array([question.video for question, _ in asked])
    print(f"{len(asked)} held-out questions of {len(set(videos))} videos")
    print("| method | FLOPs ratio | accuracy | lost | gained |\n| --- | --- | --- | --- | --- |")
    print(f"| unpruned | 1.0000 | {baseline.mean():.1%} | | |")
    for name, method in methods.items():
        ratio = flops_ratio(
            StudyPlans.of(method, layouts, demo.runtime.shape.layers), layouts, demo.runtime.shape
        )
        right = demo.correct(asked, method, name)
        lost, gained = int((baseline & ~right).sum()), int((~baseline & right).sum())
        print(f"| {name} | {ratio:.4f} | {right.mean():.1%} | {lost} | {gained} |")


if __name__ == "__main__":
    main()
