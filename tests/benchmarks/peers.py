"""Accuracy of several ways to prune at the same FLOPs, on the demo's held-out videos.

    python -m tests.benchmarks.peers --budget 0.3 --best best.json

Each method's ratio is solved for the budget on the held-out questions; AdaTP's other knobs are its defaults,
or those of the exported configuration.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipeline.flops import compute
from pipeline.methods import KNOBS, AdaTP, FewerFrames, Method, OneShot, RandomTokens
from pipeline.plan import StudyPlans
from pipeline.solve import Unreachable, solve_p
from tests.benchmarks.demo import Demo
from tuner import statistics
from tuner.results import Measured


def percent(one: Measured) -> str:
    bounds = "" if one.interval is None else f" [{one.interval.low:.1%}, {one.interval.high:.1%}]"
    return f"{one.value:.1%}{bounds}"


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
    videos = [question.video for question, _ in asked]
    print(f"{len(asked)} held-out questions of {len(set(videos))} videos")
    print("| | accuracy on held-out videos [95 %] | regressions | gained | FLOPs ratio | end to end |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| unpruned | {percent(statistics.share(baseline, videos))} | - | - | 1 | 1 |")
    for name, method in methods.items():
        cost = compute(StudyPlans.of(method, layouts, demo.runtime.shape.layers), demo.runtime.shape)
        right = demo.correct(asked, method, name)
        lost, gained = int((baseline & ~right).sum()), int((~baseline & right).sum())
        print(
            f"| {name} | {percent(statistics.share(right, videos))} | {lost} | {gained} "
            f"| {cost.flops_ratio:.4f} | {cost.flops_ratio_end_to_end:.4f} |"
        )


if __name__ == "__main__":
    main()
