"""How good is the search? Whole searches over the tabulated demo, set against the best of a large design.

    python -m tests.benchmarks.search_quality --seeds 10 --out quality.jsonl

Each run is the tuner's own loop with its records; only the model is replaced by the table of its answers
(`tests.benchmarks.tabulated`). The reference front is that of every tabulated configuration within the
budget, plus `--design` random ones. Hypervolume counts completed trials within the budget, relative to the
reference front's, on the tune and on the held-out part; cost is counted in baseline passes of the language
model. One line per run is written: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.flops import chunk_flops, layer_flops, pruned_by_question, unpruned_by_question
from pipeline.layout import Layouts
from pipeline.methods import AdaTP, from_dict
from tests.benchmarks.table import ALPHA, TAU_S, TAU_T, P, method_at
from tests.benchmarks.tabulated import Tabulated, TabulatedEvaluator
from tests.tuner.fakes import study_record
from tuner.evaluation.loop import Loop
from tuner.evaluation.search_loop import SearchLoop
from tuner.evaluation.tasks import Task
from tuner.records.store import Store
from tuner.records.values import RecordedAnswer
from tuner.search.design import Designed
from tuner.search.optuna_sampler import make_sampler
from tuner.search.sampler import SamplerName
from tuner.search.selection import hypervolume
from tuner.search.space import SearchSpace

BUDGET = 0.3
GOAL = 0.98


@dataclass(frozen=True)
class Strategy:
    """One way to search."""

    sampler: SamplerName = "tpe"
    race: bool = True
    design: int = 8
    trials: int = 100
    # Trials in flight at once.
    workers: int = 1


STRATEGIES = {
    "ours": Strategy(),
    "ours, longer": Strategy(trials=180),
    "ours, 400 trials": Strategy(trials=400),
    "ours, 4 workers": Strategy(workers=4),
    "ours, no race": Strategy(race=False),
    "random": Strategy("random", race=False, design=0, trials=300),
}


@dataclass
class _Costs:
    """Multiply-adds of single answers, by plan."""

    table: Tabulated
    _made: dict[AdaTP, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layouts = Layouts.of([question.layout for question in self.table.planner.questions])
        self.shape = self.table.planner.shape
        self.baseline = float(unpruned_by_question(self.layouts, self.shape).sum())

    def of(self, method: AdaTP) -> np.ndarray:
        """(Q,) the question through the stored layers, then the pruned rest."""
        if method not in self._made:
            plans = method.plans(self.layouts, self.shape.layers)
            after = self.layouts.text_after
            before = self.layouts.visual + self.layouts.text - after
            stored = plans.layers[0]
            whole = stored * layer_flops(self.shape, before + after)
            own = stored * chunk_flops(self.shape, after, before)
            self._made[method] = pruned_by_question(plans, self.shape) - whole + own
        return self._made[method]


@dataclass
class _Metered(TabulatedEvaluator):
    """Counts what is asked."""

    costs: _Costs | None = None
    spent: float = 0.0

    def __call__(self) -> _Metered:
        return self

    def answer(
        self,
        configuration: Mapping[str, Any] | None,
        questions: Sequence[str],
        references: Mapping[str, str],
        *,
        reshaped: bool = False,
    ) -> list[dict[str, Any]]:
        assert self.costs is not None
        if configuration is not None:
            method = from_dict(configuration)
            assert isinstance(method, AdaTP)
            costs = self.costs.of(method)
            self.spent += float(sum(costs[self.table.index[question]] for question in questions))
        return super().answer(configuration, questions, references)


@dataclass
class _Turns:
    """An executor of equal workers in one process: each has a task, and a batch of each is answered in turn.

    It notes what was spent when a trial ended.
    """

    evaluator: _Metered
    workers: int
    # By number, in the order in which trials ended.
    spent: dict[int, float] = field(default_factory=dict)

    def run(self, loop: Loop) -> None:
        tasks: deque[tuple[Task, int]] = deque()
        while True:
            while len(tasks) < self.workers and (proposed := loop.propose()) is not None:
                tasks.append((proposed, 0))
            for number, trial in loop._trials.items():
                if not trial.unfinished:
                    self.spent.setdefault(number, self.evaluator.spent)
            if not tasks:
                return
            task, batch = tasks.popleft()
            found = [
                RecordedAnswer.from_dict(item)
                for configuration, questions in task.calls(batch)
                for item in self.evaluator.answer(configuration, questions, task.references)
            ]
            if loop.record(task, batch, found) == "continue":
                tasks.append((task, batch + 1))


def search(table: Tabulated, costs: _Costs, strategy: Strategy, seed: int) -> dict[str, Any]:
    """One search: what each trial cost and whether it was pruned, with accuracies on both splits."""
    evaluator = _Metered(table, costs=costs)
    executor = _Turns(evaluator, strategy.workers)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Store.open(f"sqlite:///{folder}/t.db") as store:
        study, planner = table.study, table.planner
        store.begin(replace(study_record(study), questions=planner.questions))
        record = store.search(BUDGET, seed, "budget", strategy.trials, sampler=strategy.sampler)
        loop = SearchLoop(
            study,
            store,
            planner,
            record,
            SearchSpace(planner, study.search, BUDGET),
            Designed(make_sampler(strategy.sampler), strategy.design),
            race=strategy.race,
            above_budget=(),
        )
        executor.run(loop)
        trials = {trial.number: trial for trial in store.trials()}
        asked = store.count_answers()
    rows = []
    for trial in map(trials.__getitem__, executor.spent):
        method = trial.configuration.build()
        assert isinstance(method, AdaTP)
        correct = table.answers(method).correct
        rows.append(
            {
                "knobs": [method.tau_s, method.tau_t, method.alpha_boost, method.gamma_cap, method.p],
                "ratio": trial.binding_ratio,
                "pruned": None if trial.pruned is None else trial.pruned.videos,
                "tune": float(correct[table.tune].mean()),
                "held_out": float(correct[~table.tune].mean()),
            }
        )
    return {
        "trials": rows,
        "spent": [item / costs.baseline for item in executor.spent.values()],
        "answers": asked,
        "seconds": time.perf_counter() - began,
    }


@dataclass(frozen=True)
class Reference:
    """The front of a large design, and the point that areas are measured from."""

    accuracy: float
    area: dict[str, float]
    size: int

    def share(self, points: Sequence[tuple[float, float]], split: str) -> float:
        return hypervolume(points, (BUDGET + 1e-9, self.accuracy)) / self.area[split]


def reference(table: Tabulated, design: int) -> Reference:
    """From all lattice points within the budget and `design` random configurations with p solved for targets
    below it.
    """
    rng = np.random.default_rng(0)
    methods = [method_at(*item) for item in product(TAU_S, TAU_T, ALPHA, P)]
    space = SearchSpace(table.planner, table.study.search, BUDGET)
    for _ in range(design):
        point = {name: float(rng.uniform(range_.low, range_.high)) for name, range_ in space.ranges.items()}
        method = space.candidate(point).configuration.build()
        assert isinstance(method, AdaTP)
        methods.append(method)
    points: dict[str, list[tuple[float, float]]] = {"tune": [], "held_out": []}
    for method in methods:
        ratio = table.planner.binding_ratio(method)
        if ratio <= BUDGET + 1e-9:
            correct = table.answers(method).correct
            points["tune"].append((ratio, float(correct[table.tune].mean())))
            points["held_out"].append((ratio, float(correct[~table.tune].mean())))
    # The worst accuracy at the budget's end of the design: a search gets nothing for reaching it.
    near = [accuracy for ratio, accuracy in points["tune"] if ratio > 0.9 * BUDGET]
    worst = min(near)
    return Reference(
        worst,
        {split: hypervolume(of, (BUDGET + 1e-9, worst)) for split, of in points.items()},
        len(points["tune"]),
    )


def curve(run: dict[str, Any], found: Reference, split: str) -> Iterator[tuple[float, float]]:
    """(passes spent, share of the reference hypervolume) after each trial."""
    points: list[tuple[float, float]] = []
    for spent, row in zip(run["spent"], run["trials"], strict=True):
        if row["pruned"] is None and row["ratio"] <= BUDGET + 1e-9:
            points.append((row["ratio"], row[split]))
        yield spent, found.share(points, split)


def reached(run: dict[str, Any], found: Reference, split: str, goal: float = GOAL) -> float:
    """Passes until this share of the reference; infinite where a run never gets there."""
    return next((spent for spent, share in curve(run, found, split) if share >= goal), float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--design", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("quality.jsonl"))
    arguments = parser.parse_args()
    table = Tabulated.load()
    costs = _Costs(table)
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    if arguments.out.exists():
        for line in arguments.out.read_text().splitlines():
            run = json.loads(line)
            runs[run["strategy"], run["seed"]] = run
    for seed in range(arguments.seeds):
        for name in arguments.strategies:
            if (name, seed) not in runs:
                run = {"strategy": name, "seed": seed, **search(table, costs, STRATEGIES[name], seed)}
                runs[name, seed] = run
                with arguments.out.open("a") as file:
                    file.write(json.dumps(run) + "\n")
                print(f"{name}, seed {seed}: {run['seconds']:.0f} s", flush=True)
    found = reference(table, arguments.design)
    print(
        f"reference: {found.size} configurations within {BUDGET}; areas above an accuracy of "
        f"{found.accuracy:.3f}: tune {found.area['tune']:.5f}, held out {found.area['held_out']:.5f}"
    )
    print(
        "| strategy | trials | passes | pruned | tune area | held-out area | passes to 98 % (median, seeds "
        "there) | best tune | held out there |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for name in arguments.strategies:
        mine = [run for (strategy, _), run in runs.items() if strategy == name]
        last = {split: [list(curve(run, found, split))[-1][1] for run in mine] for split in found.area}
        times = [reached(run, found, "tune") for run in mine]
        best = [
            max((row for row in run["trials"] if row["pruned"] is None), key=lambda row: row["tune"])
            for run in mine
        ]
        pruned = np.mean([row["pruned"] is not None for run in mine for row in run["trials"]])
        print(
            f"| {name} | {STRATEGIES[name].trials} | {np.mean([run['spent'][-1] for run in mine]):.2f} "
            f"| {100 * pruned:.0f} % | {np.mean(last['tune']):.3f} | {np.mean(last['held_out']):.3f} "
            f"| {np.median(times):.2f} ({np.isfinite(times).sum()} of {len(mine)}) "
            f"| {100 * np.mean([row['tune'] for row in best]):.1f} "
            f"| {100 * np.mean([row['held_out'] for row in best]):.1f} |"
        )


if __name__ == "__main__":
    main()
