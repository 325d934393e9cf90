"""A finished study as values, for everything that only reads results: export, summary, mirror, figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.break_even import Serving
from pipeline.methods import AdaTP, FewerFrames, Method, RandomTokens
from tuner.records.measurements import MeasuredServing, Profiled, ServingCost
from tuner.reporting.values import (
    Compared,
    Comparison,
    EndToEnd,
    HeldOut,
    RegressionRow,
    RunSummary,
    TagRow,
    Trial,
)
from tuner.statistics.values import Interval, Measured, Noise, Tested
from tuner.study.values import AnswerCost, Configuration, Outcome, Setting


def make_outcome(split="tune", accuracy=0.9, flops_ratio=0.295, **changes: Any) -> Outcome:
    values: dict[str, Any] = {
        "split": split,
        "questions": 600,
        "videos": 80,
        "accuracy": accuracy,
        "flops_ratio": flops_ratio,
        "flops_ratio_end_to_end": 0.15 + 0.85 * flops_ratio,
        "flops_ratio_visual": flops_ratio - 0.02,
        "flops_ratio_p95": flops_ratio + 0.03,
        "flops_ratio_max": flops_ratio + 0.06,
        "regressions": round(600 * (0.95 - accuracy)),
        "gained": 4,
        "logprob_change": accuracy - 0.95,
        "seconds": 12.6,
        "peak_bytes_mean": 5.25 * 2**20,
        "peak_bytes_max": 9 * 2**20,
    }
    return Outcome(**(values | changes))


def make_tags(count=3) -> tuple[TagRow, ...]:
    return tuple(
        TagRow(
            key="type",
            value=f"kind{index}",
            questions=200,
            videos=80,
            baseline=0.94,
            accuracy=0.94 - 0.01 * index,
            difference=Measured(-0.01 * index, Interval(-0.01 * index - 0.02, 0.02)),
            lost=2 + 2 * index,
            gained=2,
        )
        for index in range(count)
    )


def make_tested(trial=4, difference=-0.05, bound=-0.068, margin=0.08, level=0.04) -> Tested:
    # Through here: a class of this name in a test module would be taken for a test.
    return Tested(trial, margin, difference, bound, level, bound >= -margin)


def make_trial(number=0, ratio=0.29, accuracy=0.9, budget=0.3) -> Trial:
    configuration = Configuration.from_method(AdaTP(p=0.7 + 0.001 * number))
    return Trial(number, configuration, make_outcome("tune", accuracy, ratio), ratio <= budget)


def make_held_out(configuration: Configuration, accuracy=0.89, flops_ratio=0.297) -> HeldOut:
    outcome = make_outcome("held_out", accuracy, flops_ratio)
    return HeldOut(
        configuration=configuration,
        outcome=outcome,
        accuracy=Measured(accuracy, Interval(accuracy - 0.03, accuracy + 0.025)),
        difference=Measured(accuracy - 0.94, Interval(accuracy - 0.96, accuracy - 0.92)),
        p_value=0.012,
        regression_rate=Measured(outcome.regressions / 600, Interval(0.03, 0.09)),
        mcnemar_p=0.0004,
        divergence=0.031,
        by_tag=make_tags(),
    )


def make_serving(**changes: Any) -> ServingCost:
    """FLOPs: 100 saved per video, 8 more per question. Seconds: 0.5 and 0.05."""
    measured = MeasuredServing(
        device="Example CPU, 1 thread",
        questions=5,
        value_bytes=4,
        baseline=Serving(0.2, 0.0, 0.8, 0.0, 0.01),
        best=Serving(0.2, 0.1, 0.2, 0.01, 0.05),
        profiled=Profiled("v1-q2", 2_000, 800, 2_000, 1_000),
    )
    serving = ServingCost(
        baseline=Serving(50.0, 0.0, 120.0, 0.0, 1.0),
        best=Serving(50.0, 10.0, 10.0, 1.0, 8.0),
        stored_baseline=3 * 2**20,
        stored_best=2**18,
        measured=measured,
    )
    return replace(serving, **changes)


def make_setting(**changes: Any) -> Setting:
    setting = Setting(
        model="example/llava-onevision",
        model_revision="main",
        model_identity="sha256:0123",
        text_encoder="example/siglip",
        text_encoder_revision=None,
        frames=16,
        scoring="words",
        max_new_tokens=16,
        pruning_layers=(2, 3, 4, 5, 6, 7),
        layers=12,
        encoding="0123abcd",
        dtype="bfloat16",
        attention="sdpa",
        device="cuda",
        pooling="average",
        checkpoint_pooling="bilinear",
    )
    return replace(setting, **changes)


def make_regressions(count=5) -> tuple[RegressionRow, ...]:
    return tuple(
        RegressionRow(
            question=f"q{index}",
            video=f"scene{index:03}.mp4",
            text=f"In the scene after brick, what color is ring {index}?",
            options=("red", "green", "blue", "white"),
            answer="red",
            baseline_text="red",
            baseline_margin=2.5 - 0.1 * index,
            pruned_text="blue",
            pruned_margin=-0.5,
            tags={"type": "order", "place": "middle"},
        )
        for index in range(count)
    )


def make_summary(trials=24, budget=0.3, seed=0, **changes: Any) -> RunSummary:
    """Trials spread over compute: more of it answers better, with some noise; a few are over the budget."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(trials):
        method = AdaTP(
            tau_s=float(rng.uniform(0.5, 0.999)),
            tau_t=float(rng.uniform(0, 1)),
            alpha_boost=float(rng.uniform(1, 1.4)),
            gamma_cap=float(rng.uniform(0.9, 1)),
            p=float(rng.uniform(0.7, 0.9)),
        )
        ratio = float(rng.uniform(0.12, 0.36))
        accuracy = round(600 * float(0.95 - 0.5 * (0.4 - ratio) ** 1.3 - rng.exponential(0.02))) / 600
        rows.append(
            Trial(
                number,
                Configuration.from_method(method),
                make_outcome("tune", accuracy, ratio),
                ratio <= budget,
            )
        )
    if rows:
        rows[0] = replace(
            rows[0],
            configuration=Configuration.from_method(AdaTP(p=0.82)),
            outcome=make_outcome("tune", 0.86, 0.2995),
            within_budget=True,
        )
    fitting = [row for row in rows if row.within_budget]
    best = max(fitting, key=lambda row: row.outcome.accuracy) if fitting else None
    summary = RunSummary(
        study="demo",
        study_hash="5f2c9d7be1a04c3388aa0b1f6f7d2e11",
        budget=budget,
        seed=0,
        baseline={
            "tune": Measured(0.95, Interval(0.93, 0.965)),
            "held_out": Measured(0.94, Interval(0.92, 0.958)),
        },
        trials=tuple(rows),
        best=best,
        best_held_out=make_held_out(best.configuration) if best else None,
        defaults=rows[0] if rows else None,
        defaults_held_out=make_held_out(rows[0].configuration, 0.85) if rows else None,
        binds="alpha_boost",
        regressions=make_regressions(),
        infeasible=3,
        shared_answers=1200,
        evaluated_answers=22800,
        seconds=193.0,
        smallest_reachable=0.081,
        setting=make_setting(),
        held_out_videos=80,
        baseline_cost=AnswerCost(0.03, 6.5 * 2**20, 11 * 2**20),
        serving=make_serving(),
        verdict="shown",
        max_drop="0.08",
        margin=0.08,
        tested=(make_tested(best.number),) if best else (),
        provable_drop=0.0285,
        over_defaults=Measured(0.04, Interval(0.01, 0.07)),
        noise=Noise(questions=600, videos=80, flips=2, logprob_mean=3e-6, logprob_max=1.8e-5),
    )
    return replace(summary, **changes)


def make_comparison(count=9, budget=0.3, seed=0, own: RunSummary | None = None, **changes: Any) -> Comparison:
    """Peers at the same FLOPs, some ways apart in accuracy; of `own` the tuned and the default AdaTP, too."""
    rng = np.random.default_rng(seed)
    names = ("Random", "Fewer frames", "FastV", "PyramidDrop", "FastVID", "VisionZip")
    rows = []
    for index in range(count):
        method: Method
        if index < len(names):
            name, method = names[index], RandomTokens(keep_ratio=0.2 + 0.01 * index)
        else:
            name = ("AdaTP without the boost", "AdaTP without deduplication", "AdaTP, one-shot")[index % 3]
            method = AdaTP(alpha_boost=1.0, p=0.7 + 0.01 * index)
        accuracy = round(600 * float(rng.uniform(0.5, 0.88))) / 600
        held_out = make_held_out(Configuration.from_method(method), accuracy, budget - 0.0005 * index)
        rows.append(Compared(name, held_out, f"{name}, solved for the budget."))
    if own is not None:
        for name, held in (("AdaTP, tuned", own.best_held_out), ("AdaTP's defaults", own.defaults_held_out)):
            if held is not None:
                rows.append(Compared(name, held))
    comparison = Comparison(
        study="demo",
        study_hash="5f2c9d7be1a04c3388aa0b1f6f7d2e11",
        budget=budget,
        baseline=Measured(0.94, Interval(0.92, 0.958)),
        baseline_cost=AnswerCost(0.03, 6.5 * 2**20, 11 * 2**20),
        rows=tuple(rows),
    )
    return replace(comparison, **changes)


def make_end_to_end(own: RunSummary) -> EndToEnd:
    """The tuned AdaTP of `own` and two peers at its end-to-end FLOPs; a third cannot come down to them."""
    assert own.best_held_out is not None
    tuned = own.best_held_out
    ratio = tuned.outcome.flops_ratio_end_to_end
    rows = [Compared("AdaTP, tuned", tuned)]
    for name, method, accuracy in (
        ("Fewer frames", FewerFrames(keep_ratio=0.5), 0.91),
        ("Random tokens", RandomTokens(keep_ratio=0.4), 0.8),
    ):
        held_out = make_held_out(Configuration.from_method(method), accuracy)
        outcome = replace(held_out.outcome, flops_ratio_end_to_end=ratio - 0.01)
        rows.append(Compared(name, replace(held_out, outcome=outcome), f"about {name}"))
    return EndToEnd(tuple(rows), {"PyramidDrop": 0.61})
