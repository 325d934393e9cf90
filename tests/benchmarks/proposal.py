"""What a proposal takes with many trials there: the sampler, the search loop around it and its one write.

    python -m tests.benchmarks.proposal

The space and the planner are those of the tabulated demo. The trials are made up, a third of them complete
and two thirds pruned; 16 more are pending. --patience looks at all of them each time. Time is CPU time.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from statistics import median
from time import process_time

import numpy as np

from pipeline.methods import AdaTP
from tests.benchmarks.search_quality import BUDGET
from tests.benchmarks.tabulated import Tabulated
from tests.tuner.fakes import begin
from tuner.evaluation.search_loop import SearchLoop
from tuner.records.store import Store
from tuner.records.values import Pruned, TrialRecord
from tuner.search.design import Designed
from tuner.search.optuna_sampler import make_sampler
from tuner.search.space import SearchSpace
from tuner.study.values import Configuration, Outcome

TARGET_MS = 100
PENDING = 16

OUTCOME = Outcome("tune", 100, 25, 0.0, 0.3, 0.3, 0.3, 0.3, 0.3, 0, 0, 0.0, 0.0)


def proposal_ms(table: Tabulated, trials: int, repeats: int) -> float:
    """The median of some proposals after the first, which derives every trial's place in the space."""
    study, planner = table.study, table.planner
    with tempfile.TemporaryDirectory() as folder, Store.open(f"sqlite:///{folder}/t.db") as store:
        begin(store, study)
        record = store.search(BUDGET, 0, "budget", 10**6)
        space = SearchSpace(planner, study.search, BUDGET)
        loop = SearchLoop(study, store, planner, record, space, Designed(make_sampler("tpe")), patience=10**6)
        rng = np.random.default_rng(0)
        defaults = loop._defaults
        rows = [TrialRecord(0, record.id, defaults.configuration, defaults.binding_ratio, None)]
        for number in range(1, trials + PENDING):
            method = AdaTP(
                *rng.uniform((0.2, 0.0, 1.0), (1.0, 0.9, 3.0)).tolist(), p=float(rng.uniform(0.2, 0.9))
            )
            ratio = float(rng.uniform(0.1, BUDGET))
            rows.append(TrialRecord(number, record.id, Configuration.from_method(method), ratio, None))
        for row in rows[:trials]:
            accuracy = float(rng.uniform(0.5, 0.8))
            loop._trials[row.number] = (
                replace(row, pruned=Pruned(0, 10))
                if row.number % 3
                else replace(row, outcome=replace(OUTCOME, accuracy=accuracy))
            )
        loop._trials |= {row.number: row for row in rows[trials:]}
        spent = []
        for _ in range(repeats + 1):
            began = process_time()
            assert not loop._out_of_patience()
            assert loop._next_trial() is not None
            spent.append(1000 * (process_time() - began))
    return median(spent[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 1_000, 3_000, 10_000])
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    table = Tabulated.load()
    print(f"| trials | ms a proposal (mark: {TARGET_MS}) |\n| --- | --- |")
    for trials in arguments.trials:
        print(f"| {trials:,} | {proposal_ms(table, trials, arguments.repeats):.0f} |", flush=True)


if __name__ == "__main__":
    main()
