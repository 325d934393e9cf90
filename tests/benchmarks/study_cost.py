"""What a study cost in baseline passes, what it would cost at the 7B shape, and what the driver adds.

    python -m tests.benchmarks.study_cost --database sqlite:///.tuner/demo/tuner.db --study demo

Counted from the records of a finished study, by plan for LLaVA-OneVision-7B, and naively. The
7B plan takes the study's own videos, each frame twice, so that 16 become 32: the same segments and relevance.
tau_s, tau_t, alpha_boost and gamma_cap are each trial's own; p is solved anew for the trial's FLOPs ratio,
because what p leaves depends on the number of prunings.

Driver time: a search on the study's layouts whose answers are there at once and are made up; counted are
proposing and recording, not answering.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from time import perf_counter, process_time
from typing import NamedTuple

import numpy as np

from pipeline.flops import LLAVA_ONEVISION_7B
from pipeline.keep_ratio import Unreachable
from pipeline.layout import Layout, Layouts
from pipeline.methods import knobs
from tests.benchmarks.clock import verdict
from tuner.evaluation.search_loop import SearchLoop
from tuner.evaluation.tasks import Task
from tuner.planning.planner import SPLITS, Planner
from tuner.planning.study_cost import StudyCost, study_cost
from tuner.records.database import default_database
from tuner.records.store import Store
from tuner.records.values import Pruned, RecordedAnswer, StudyRecord, TrialRecord
from tuner.reporting.from_records import load_summary, make_planner
from tuner.search.optuna_sampler import OptunaSampler
from tuner.search.space import SearchSpace
from tuner.study import Study, load_study
from tuner.study.values import Configuration, Outcome

# Passes for 100 evaluated trials at a budget of 0.3, baseline included.
TARGET, TARGET_7B = 6.0, 9.0

FRAMES_7B, CELLS_7B = 32, 196
# Tokens of the published chat template before the video; after it, beside a question of the study's length.
BEFORE_7B, AFTER_7B = 14, 30


def at_7b(planner: Planner) -> Planner:
    """The study's questions in LLaVA-OneVision-7B: 32 frames of 196 tokens, and longer texts."""
    return Planner(
        [replace(question, layout=_stretched(question.layout)) for question in planner.questions],
        LLAVA_ONEVISION_7B,
        "7b",
    )


def _stretched(layout: Layout) -> Layout:
    source = np.arange(FRAMES_7B) * layout.frames // FRAMES_7B
    similarity = np.ones(FRAMES_7B - 1)  # a frame and itself
    cuts = np.flatnonzero(np.diff(source))
    similarity[cuts] = layout.frame_similarity[source[cuts]]
    return Layout(
        FRAMES_7B,
        CELLS_7B,
        1,
        BEFORE_7B,
        layout.text_after + AFTER_7B,
        similarity,
        layout.frame_relevance[source],
    )


def solved(trials: Sequence[tuple[Configuration, float]], planner: Planner) -> list[Configuration]:
    """These configurations with p for the same FLOPs ratio; those that cannot reach it at their lowest p."""
    result = []
    for configuration, ratio in trials:
        method = configuration.build()
        found = planner.solve(method, ratio)
        if isinstance(found, Unreachable):
            found = method.with_ratio(knobs(method)[method.ratio_field].low)
        result.append(Configuration.from_method(found))
    return result


def show(name: str, cost: StudyCost, target: float | None = None) -> None:
    """One row of the table."""
    print(
        f"| {name} | {cost.trials + cost.pruned} | {cost.passes:.2f}{verdict(cost.passes, target)} | "
        f"{cost.passes_language:.2f} | {100 * cost.shared_share:.1f} % | {100 * cost.spared_share:.1f} % | "
        f"{cost.naive_passes:.1f} | {cost.naive_passes_language:.1f} |"
    )


def planned(
    trials: Sequence[TrialRecord], measured: Mapping[Configuration, Outcome], planner: Planner
) -> tuple[list[TrialRecord], dict[Configuration, Outcome]]:
    """The same trials and held-out measurements at another shape, with p for the same FLOPs ratios."""

    def at(one: Configuration, outcome: Outcome | None) -> tuple[float, Outcome | None]:
        cost = planner.cost(one.build())
        if outcome is None:
            return cost.binding, None
        here = cost.compute[outcome.split]
        return cost.binding, replace(
            outcome, flops_ratio=here.flops_ratio, flops_ratio_end_to_end=here.flops_ratio_end_to_end
        )

    moved = []
    configurations = solved([(trial.configuration, trial.binding_ratio) for trial in trials], planner)
    for trial, configuration in zip(trials, configurations, strict=True):
        ratio, outcome = at(configuration, trial.outcome)
        moved.append(replace(trial, configuration=configuration, binding_ratio=ratio, outcome=outcome))
    ratios = [(item, outcome.flops_ratio) for item, outcome in measured.items()]
    beside = zip(solved(ratios, planner), measured.values(), strict=True)
    compared = {item: at(item, outcome)[1] for item, outcome in beside}
    return moved, {item: outcome for item, outcome in compared.items() if outcome is not None}


def planned_cost(
    trials: Sequence[TrialRecord],
    measured: Mapping[Configuration, Outcome],
    planner: Planner,
    *,
    all_held: bool = False,
) -> StudyCost:
    """Their cost where no answer is shared; each visit of a video builds its prefix anew, or all are held."""
    count = {split: sum(question.split == split for question in planner.questions) for split in SPLITS}
    videos = {
        split: len({question.video for question in planner.questions if question.split == split})
        for split in SPLITS
    }
    visits = sum(videos["tune"] if trial.pruned is None else trial.pruned.videos for trial in trials)
    visits += len(measured) * videos["held_out"]
    # Of a pruned trial as many questions as its share of the videos.
    asked = sum(count["tune"] if trial.pruned is None else 0 for trial in trials)
    asked += round(
        sum(
            count["tune"] * trial.pruned.videos / videos["tune"]
            for trial in trials
            if trial.pruned is not None
        )
    )
    return study_cost(
        planner,
        trials,
        measured,
        answers=len(planner.questions) + asked + len(measured) * count["held_out"],
        shared=0,
        prefixes=None if all_held else sum(videos.values()) + visits,
    )


def report_costs(store: Store, planner: Planner, found: StudyCost) -> None:
    """The study, and its trials at the 7B shape."""
    trials = [trial for trial in store.trials() if not trial.unfinished]
    count = sum(trial.purpose == "search" for trial in trials)
    print("| | trials | passes | language model alone | shared | pruned away | naive | naive, language |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    show("the study", found, TARGET if count == 100 else None)
    big = at_7b(planner)
    asked, compared = planned(trials, store.measured(), big)
    target = TARGET_7B if count == 100 else None
    show("7B by plan, pruned alike", planned_cost(asked, compared, big), target)
    show("the same, all prefixes held", planned_cost(asked, compared, big, all_held=True))
    videos = len({question.video for question in planner.questions if question.split == "tune"})
    whole = [
        question if question.pruned is None else replace(question, pruned=Pruned(0, videos))
        for question in asked
    ]
    show("7B by plan, no trial pruned", planned_cost(whole, compared, big), target)
    per_answer = 1000 * (found.seconds or 0.0) / max(1, found.answers)
    print(
        f"\nA pass of the study: {found.pass_flops:.4g} multiply-adds, {found.pass_language:.4g} of them in "
        f"the language model.\nModel time: {found.seconds:.0f} s for {found.answers} answers, "
        f"{per_answer:.1f} ms each.\n"
    )


class Instant:
    """Answers made up from question and plan: the more tokens stay to the end, the more are right."""

    def __init__(self, study: Study, planner: Planner) -> None:
        self._study = study
        self._shape = planner.shape
        self._layouts = Layouts.of([question.layout for question in planner.questions])
        self._place = {question.id: index for index, question in enumerate(planner.questions)}

    def answers(self, task: Task) -> list[list[RecordedAnswer]]:
        """One list per batch."""
        kept: list[tuple[int, ...]] = [()] * len(self._place)
        if task.configuration is not None:
            plans = task.configuration.build().plans(self._layouts, self._shape.layers)
            kept = list(map(tuple, plans.visual_by_stage[1:].T.tolist()))
        return [
            [self._one(question, kept[self._place[question]]) for question in batch] for batch in task.batches
        ]

    def _one(self, question: str, kept: tuple[int, ...]) -> RecordedAnswer:
        options = self._study.question(question).options or ("",)
        answer = self._study.question(question).answer
        right = options.index(answer) if answer in options else 0
        stays = kept[-1] / self._layouts.items[self._place[question]].visual if kept else 1.0
        drawn = hashlib.sha256(f"{question}{kept}".encode()).digest()[0] / 256
        logprobs = [-2.0] * len(options)
        logprobs[right] += 4 * (0.6 + 0.4 * stays**0.25 - drawn)
        said = max(range(len(options)), key=logprobs.__getitem__)
        if logprobs[right] < -2.0:
            said = (right + 1) % len(options)
        return RecordedAnswer(question, options[said], said, tuple(logprobs), logprobs[said], kept, 0.0)


class Spent(NamedTuple):
    """Seconds by the clock, and of this process's own work; the first includes waiting for a busy machine."""

    wall: float
    cpu: float

    def __add__(self, other: Spent) -> Spent:  # type: ignore[override]
        return Spent(self.wall + other.wall, self.cpu + other.cpu)


def now() -> Spent:
    return Spent(-perf_counter(), -process_time())


def since(begin: Spent) -> Spent:
    return Spent(perf_counter(), process_time()) + begin


def driver_time(
    study: Study, record: StudyRecord, database: str, *, budget: float, trials: int, seed: int = 0
) -> list[Spent]:
    """What the loop spends on each trial: proposing and planning it, writing and judging its answers."""
    planner = make_planner(record)
    instant = Instant(study, planner)
    spent: dict[int, Spent] = {}
    with Store.open(database) as store:
        store.begin(record)
        search = store.search(budget, seed, "budget", trials)
        space = SearchSpace(planner, study.search, budget)
        loop = SearchLoop(study, store, planner, search, space, OptunaSampler(), accept_weak_baseline=True)
        while True:
            begin = now()
            task = loop.propose()
            taken = since(begin)
            if task is None:
                break
            for batch, answers in enumerate(instant.answers(task)):
                begin = now()
                decision = loop.record(task, batch, answers)
                taken += since(begin)
                if decision == "stop":
                    break
            # A trial all of whose answers are there is no work, and counts for the one after it.
            if task.kind == "trial" and task.trial is not None:
                spent[task.trial] = spent.get(task.trial, Spent(0.0, 0.0)) + taken
    return [spent[number] for number in sorted(spent)]


def show_driver(spent: Sequence[Spent]) -> None:
    """Driver time where the study has that many trials, and over all."""
    print("| trials | driver, ms per trial | of which its own work |\n| --- | --- | --- |")
    parts = {f"{end - 9} to {end}": spent[end - 10 : end] for end in (40, 100, 300) if end <= len(spent)}
    for name, some in (parts | {f"all {len(spent)}": spent}).items():
        wall, cpu = (1000 * mean(values) for values in zip(*some, strict=True))
        print(f"| {name} | {wall:.0f} | {cpu:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", default=None, help="by default .tuner/<study>/tuner.db")
    parser.add_argument("--study", default="demo")
    parser.add_argument("--driver-trials", type=int, default=100, help="0: driver time is not taken")
    parser.add_argument("--budget", type=float, default=0.3, help="of the driver's search (default: 0.3)")
    parser.add_argument("--keep", type=Path, help="keep the driver's made-up records in this file")
    arguments = parser.parse_args()
    study = load_study(arguments.study)
    with Store.open(arguments.database or default_database(study.name), create=False) as store:
        record = store.find(study.name)
        if record is None:
            raise SystemExit(f"There are no records of {study.name}.")
        cost = load_summary(study, database=arguments.database).cost
        assert cost is not None
        report_costs(store, make_planner(record), cost)
    if arguments.driver_trials:
        with tempfile.TemporaryDirectory() as folder:
            file = arguments.keep or Path(folder) / "driver.db"
            spent = driver_time(
                study,
                record,
                f"sqlite:///{file}",
                budget=arguments.budget,
                trials=arguments.driver_trials,
            )
            show_driver(spent)


if __name__ == "__main__":
    main()
