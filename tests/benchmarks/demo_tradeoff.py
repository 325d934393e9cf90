"""Is the demo's trade-off real? A random design of AdaTP configurations, all at the same FLOPs.

    python -m tests.benchmarks.demo_tradeoff --budget 0.3 --configurations 100 --table design.csv

Prints the spread of accuracy over the design, what each knob explains, and random pruning beside it. Tune
videos only. The table is written row by row: the same command again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from pipeline.flops import flops_ratio
from pipeline.keep_ratio import Unreachable, solve_keep_ratio
from pipeline.methods import KNOBS, AdaTP, RandomTokens
from tests.benchmarks.demo import Demo

COLUMNS = (*KNOBS, "flops_ratio", "accuracy")


def draw(rng: np.random.Generator, similarities: np.ndarray, unboosted: float) -> AdaTP:
    """Uniform over what `tuner run` searches: tau_s by its rank among the study's similarities, gamma_cap
    from p to 1.

    unboosted: the p that reaches the budget when nothing is boosted.
    """
    return AdaTP(
        tau_s=float(np.clip(np.quantile(similarities, rng.uniform()), 0.5, 0.999)),
        tau_t=float(rng.uniform(0, 1)),
        alpha_boost=float(rng.uniform(1, 1.5)),
        gamma_cap=float(rng.uniform(unboosted, 1)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=0.3)
    parser.add_argument("--configurations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=Path("design.csv"))
    parser.add_argument("--cache", type=Path, default=Path(".tuner/benchmarks"))
    arguments = parser.parse_args()
    demo = Demo.load(arguments.cache)
    shape = demo.runtime.shape
    asked = demo.questions("tune")
    layouts = demo.layouts(asked)
    similarities = np.concatenate([layout.frame_similarity for layout in layouts.items])
    flat = solve_keep_ratio(AdaTP(tau_s=-1.0, alpha_boost=1.0), layouts, shape, arguments.budget)
    assert not isinstance(flat, Unreachable)
    rng = np.random.default_rng(arguments.seed)
    rows: list[dict[str, float]] = []
    if arguments.table.exists():
        with arguments.table.open() as file:
            rows = [{name: float(row[name]) for name in COLUMNS} for row in csv.DictReader(file)]
    drawn = 0
    while len(rows) < arguments.configurations or drawn < len(rows):
        method = solve_keep_ratio(draw(rng, similarities, flat.ratio), layouts, shape, arguments.budget)
        if isinstance(method, Unreachable):
            continue
        drawn += 1
        if drawn <= len(rows):
            continue
        ratio = flops_ratio(method.plans(layouts, shape.layers), shape)
        right = demo.correct(asked, method, f"configuration {drawn}")
        values = [getattr(method, name) for name in KNOBS]
        rows.append(dict(zip(COLUMNS, [*values, ratio, float(right.mean())], strict=True)))
        new = not arguments.table.exists()
        with arguments.table.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(rows[-1])
    accuracy = np.array([row["accuracy"] for row in rows])
    baseline = demo.correct(asked, None, "unpruned").mean()
    random = solve_keep_ratio(RandomTokens(), layouts, shape, arguments.budget)
    assert not isinstance(random, Unreachable)
    print(f"{len(rows)} configurations at FLOPs ratio {arguments.budget}, {len(asked)} tune questions")
    print(f"unpruned {baseline:.3f}, random pruning {demo.correct(asked, random, 'random').mean():.3f}")
    print(
        f"design: min {accuracy.min():.3f} median {np.median(accuracy):.3f} max {accuracy.max():.3f} "
        f"spread {100 * (accuracy.max() - accuracy.min()):.1f} points"
    )
    print(
        "| knob | rank correlation | lower third | middle third | upper third |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for name in KNOBS:
        values_of = np.array([row[name] for row in rows])
        thirds = np.array_split(accuracy[np.argsort(values_of, kind="stable")], 3)
        print(
            f"| {name} | {spearmanr(values_of, accuracy).statistic:+.2f} | "
            + " | ".join(f"{third.mean():.3f}" for third in thirds)
            + " |"
        )


if __name__ == "__main__":
    main()
