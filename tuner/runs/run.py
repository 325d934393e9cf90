"""`tuner run` as a library function: one call from a study to its summary, whatever was done before.

Only this process writes the records. What they hold is not computed again: the same call with everything
there returns without loading a model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.cache import FeatureCache
from pipeline.errors import PipelineError
from pipeline.measure import machine as machine_name
from tuner.errors import UserError, disk_may_be_full
from tuner.evaluation.ad_hoc_loop import AdHocLoop, AdHocRequest
from tuner.evaluation.description import Computing
from tuner.evaluation.evaluator import CACHE_BYTES, EvaluatorSpec, Executor, refused_address
from tuner.evaluation.loop import Loop
from tuner.evaluation.progress import NoProgress, Progress
from tuner.evaluation.search_loop import SearchLoop
from tuner.evaluation.serving import measure_serving
from tuner.evaluation.storage import check_storage, is_url, machine_cache, normal
from tuner.executors.in_process import InProcessExecutor
from tuner.executors.placement import Placement
from tuner.planning.planner import Planner
from tuner.records.database import default_database
from tuner.records.store import Store
from tuner.records.values import Goal, SearchRecord, StudyRecord
from tuner.reporting.from_records import (
    chosen,
    loss_correlation,
    make_planner,
    setting_from,
    summarise,
)
from tuner.reporting.inspection import inspect, pack, unpack
from tuner.reporting.values import RunSummary
from tuner.reporting.wording import pooled
from tuner.runs.study_record import define, revise
from tuner.runs.workers import Workers
from tuner.search.choices import in_words
from tuner.search.sampler import SAMPLERS, SamplerName
from tuner.search.selection import level_of
from tuner.search.space import SearchSpace, cheapest, smallest_reachable
from tuner.statistics.margin import DEFAULT_MAX_DROP, MaxDrop
from tuner.statistics.paired import provable_drop
from tuner.statistics.wording import looks_before, provable
from tuner.study import Study
from tuner.study.values import Configuration


@dataclass(frozen=True)
class RunOptions:
    """What a run is asked for; nothing here belongs to the study's identity."""

    # FLOPs ratio that binds, in (0, 1]; None: the cheapest configuration that loses no more than `max_drop`.
    budget: float | None = None
    # Trials this search evaluates in all, those of earlier runs included.
    trials: int = 40
    seed: int = 0
    # Seconds after which no further trial begins.
    timeout: float | None = None
    # None: as many as the cluster suggests.
    workers: int | None = 1
    # GPUs per Ray worker; None shares those of this machine among the workers, and gives each worker one in a
    # cluster that has any.
    gpus_per_worker: float | None = None
    # A Ray cluster; None is this machine.
    address: str | None = None
    # Seconds without any worker after which the run ends; None: it waits.
    wait_for_workers: float | None = None
    # Seconds that a worker may take for a batch of videos before it is ended; None follows those before it.
    batch_timeout: float | None = None
    # URL of the records; None is .tuner/<study>/tuner.db.
    database: str | None = None
    sampler: SamplerName = "tpe"
    # What held-out accuracy may lose against the unpruned model: "0.01" is one point, "1%" of the baseline's.
    max_drop: str = DEFAULT_MAX_DROP
    # Whether trials that others confidently beat at the same cost are pruned.
    race: bool = True
    # Trials in a row that add nothing to the front after which no further one begins.
    patience: int | None = None
    skip_bad_videos: bool = False
    # Whether to go on where the unpruned model does no better than guessing.
    accept_weak_baseline: bool = False
    # Where encoded videos are kept, a folder or a URL; None is .tuner/<study>/features.
    storage: str | None = None
    # Bound of a folder of them.
    cache_bytes: int = CACHE_BYTES
    # Bytes of prefixes that each worker keeps on its device, and as many of vision features in host memory;
    # None: a share of what is free.
    cache_memory: int | None = None
    # Threads of each worker's model on a CPU.
    threads: int = 1
    # Questions that a worker asks in one packed forward; 1 asks as production does, to the last bit.
    batch: int = 8
    # Whether the best configuration is looked at afterwards, for the pictures of what pruning does.
    inspect: bool = True


class InterruptedRunError(Exception):
    """The run was ended by the person who began it; the message says how to go on."""

    exit_code: int = 130


def run(
    study: Study,
    options: RunOptions,
    progress: Progress | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> RunSummary:
    """Encodes, answers, searches and measures what is not there yet, and says what came out.

    Errors: UserError for options, videos or a model that will not do, a budget nothing can reach, an unpruned
    model that does no better than guessing, or a study whose model is asked in another way than when its
    records began, or that another process runs. InterruptedRunError after Ctrl-C.
    EvaluationError when evaluations keep failing. DiskFullError when there is no room to write.
    """
    began = clock()
    with prepared(study, options, progress or NoProgress()) as session:
        loop = session.loop(options, clock, began)
        if not loop.trials:
            session.say_what_can_be_shown(options)
        session.execute(loop)
        session.measure_serving(options)
        if options.inspect:
            session.inspect(options)
        return replace(session.summary(options), seconds=clock() - began)


def ask(
    study: Study, options: RunOptions, requests: Sequence[AdHocRequest], progress: Progress | None = None
) -> None:
    """These questions with these configurations, beside any search; answers that are there are not asked for.

    Errors: as `run`.
    """
    with prepared(study, options, progress or NoProgress()) as session:
        session.execute(session.beside(requests=requests))


@dataclass(eq=False)
class Session:
    """A study with open records, and the workers that hold its model."""

    study: Study
    store: Store
    record: StudyRecord
    planner: Planner
    workers: Workers
    # What seconds are measured on, told without loading a model; None in a cluster, where a worker tells.
    machine: str | None
    progress: Progress
    accept_weak_baseline: bool = False

    def loop(
        self,
        options: RunOptions,
        clock: Callable[[], float],
        began: float,
    ) -> SearchLoop:
        """The search these options ask for, as a loop; `began`: when, by that clock, the run did."""
        from tuner.search.design import Designed
        from tuner.search.optuna_sampler import make_sampler

        timeout = options.timeout
        if timeout is not None:
            timeout = max(0.0, timeout - (clock() - began))
        return SearchLoop(
            self.study,
            self.store,
            self.planner,
            self.search(options),
            SearchSpace(self.planner, self.study.search, _budget(options), _goal(options)),
            Designed(make_sampler(options.sampler)),
            race=options.race,
            patience=options.patience,
            timeout=timeout,
            clock=clock,
            progress=self.progress,
            accept_weak_baseline=self.accept_weak_baseline,
        )

    def beside(
        self, measure: Sequence[Configuration] = (), requests: Sequence[AdHocRequest] = ()
    ) -> AdHocLoop:
        """Work beside the searches."""
        return AdHocLoop(
            self.study,
            self.store,
            self.planner,
            measure=measure,
            requests=requests,
            progress=self.progress,
            accept_weak_baseline=self.accept_weak_baseline,
        )

    def search(self, options: RunOptions) -> SearchRecord:
        """The search these options ask for, written where there is none."""
        return self.store.search(
            _budget(options),
            options.seed,
            "budget",  # the only search space today; old records name another one too
            options.trials,
            sampler=options.sampler,
            goal=_goal(options),
            max_drop=str(MaxDrop.parse(options.max_drop)),
        )

    def say_what_can_be_shown(self, options: RunOptions) -> None:
        """Before any trial: whether the margin is one that so many videos can show at all."""
        counted = self.study.without(self.store.quarantined())
        videos = [question.video for question in counted.questions_of("held_out")]
        if videos:
            taken = len(self.store.looks())
            drop = provable_drop(videos, level=level_of(_goal(options), taken + 1))
            asked = MaxDrop.parse(options.max_drop)
            alike = loss_correlation(self.study, self.store, self.planner)
            # A share of the baseline's accuracy, not known yet, is at most that share of all questions.
            said = provable(drop, len(set(videos)), asked.value, alike)
            if taken:
                said += f" {looks_before(taken, level_of('max_drop', taken + 1))}"
            self.progress.message(said)

    def execute(self, loop: Loop) -> None:
        """Runs a loop to its end. Errors: InterruptedRunError where a person ended it."""
        try:
            self.workers.run(loop)
        except KeyboardInterrupt:
            loop.interrupt()
        if loop.interrupted:
            so_far = ""
            if isinstance(loop, SearchLoop):
                done = sum(trial.outcome is not None for trial in loop.trials)
                best = loop.best_so_far()
                so_far = f" with {done} trials complete{f' ({best})' if best else ''}"
            raise InterruptedRunError(
                f"Interrupted{so_far}. Everything answered is kept: the same command goes on. "
                "`tuner status` shows what there is."
            )

    def measure_serving(self, options: RunOptions) -> None:
        """What a server would pay for the best configuration, once for each machine.

        It tells something about the result and changes nothing in it: where it cannot be measured, the run
        says so and ends as it would have.
        """
        choice = chosen(self.study, self.store, self.planner, self.search(options))
        if choice is None:
            return
        best = choice.trial
        if self.store.serving(best.configuration, self.machine) is not None:
            return
        try:
            found = measure_serving(
                self.workers.run_whole,
                self.planner,
                best.configuration.build(),
                self.progress,
                leave_out=self.store.quarantined(),
            )
        except (PipelineError, UserError) as error:
            self.progress.message(f"What a server would pay could not be measured: {error}")
        except KeyboardInterrupt:
            raise InterruptedRunError(
                "Interrupted while measuring what a server would pay. Everything else is there: "
                "the same command measures it."
            ) from None
        else:
            self.store.record_serving(best.configuration, self.measured_on, found)

    def inspect(self, options: RunOptions) -> None:
        """What the best configuration does to the videos, once, for the pictures.

        Like `measure_serving` it changes nothing in the result and ends no run.
        """
        choice = chosen(self.study, self.store, self.planner, self.search(options))
        if choice is None or not self.study.questions_of("held_out"):
            return
        best = choice.trial.configuration
        there = self.store.inspection(best)
        if there is not None and unpack(there) is not None:
            return
        try:
            found = inspect(
                self.workers.run_whole,
                self.study,
                self.record.hash,
                self.store,
                self.planner,
                best,
                progress=self.progress,
            )
            self.store.record_inspection(best, pack(found))
        except (PipelineError, UserError, OSError) as error:
            self.progress.message(f"What pruning does to the videos could not be looked at: {error}")
        except KeyboardInterrupt:
            raise InterruptedRunError(
                "Interrupted while looking at what pruning does to the videos. Everything else is there: "
                "the same command goes on."
            ) from None

    @property
    def measured_on(self) -> str:
        """What the workers measure seconds on."""
        return self.machine or self.workers.describe().machine

    def summary(self, options: RunOptions) -> RunSummary:
        """What the search these options ask for has come to."""
        return summarise(self.study, self.store, self.record, self.search(options))


@contextmanager
def prepared(study: Study, options: RunOptions, progress: Progress) -> Iterator[Session]:
    """The study with its records, made where there are none and brought up to date where the study changed,
    and the budget checked.
    """
    check_options(options)
    database = options.database or default_database(study.name)
    storage = normal(options.storage or Path(".tuner") / study.name / "features")
    with (
        disk_may_be_full(),
        Store.open(database, say=progress.message) as store,
        store.held(study.name),
    ):
        before = store.find(study.name)
        spec = worker_spec(study, options, storage)
        with closing(Workers(executor_for(spec, options, progress), progress)) as workers:
            setting = None if before is None else setting_from(before.setting)
            if before is not None:
                known = (None, None) if setting is None else (setting.dtype, setting.device)
                workers.require(Computing(before.encoding, *known))
            try:
                study, record = define(
                    study, before, store, workers, progress, skip_bad_videos=options.skip_bad_videos
                )
            except KeyboardInterrupt:
                raise InterruptedRunError(
                    "Interrupted while encoding. What was encoded is kept: the same command goes on."
                ) from None
            if workers.described:
                store.count_cache_use(workers.cache_use)
                progress.message(_kept_in(storage, options.cache_bytes))
            elif setting is not None and setting.pooling is not None:
                cells = record.questions[0].layout.cells
                progress.message(pooled(setting.pooling, setting.checkpoint_pooling, cells))
            if before is None:
                if others := [item.owner for item in store.in_use() if item.name == study.name]:
                    progress.message(
                        f"This database also has a study {study.name!r} of {' and '.join(others)}, which "
                        f"stays as it is: this one is {store.owner}'s. TUNER_OWNER names another owner."
                    )
                store.begin(record)
                if there := store.count_answers():
                    progress.message(f"{there:,} answers to its questions are there already.")
            elif record != before:
                revise(study, before, record, store, progress)
            contents = record.parts["videos"]
            workers.expect({str(video.path.absolute()): contents[video.name] for video in study.videos})
            planner = make_planner(record)
            _check_budget(study, planner, _budget(options))
            remote = _cluster(options) and not _in_process(options)
            machine = None if remote else _machine(spec)
            yield Session(
                study, store, record, planner, workers, machine, progress, options.accept_weak_baseline
            )


def _kept_in(storage: str, most: int) -> str:
    if is_url(storage):
        folder = machine_cache(most).directory
        each = f"each machine keeps at most {most / 2**30:.3g} GiB of them in {folder}"
        return f"Vision features: in {storage}; {each}."
    held_there = FeatureCache(storage, most).size_bytes / 2**20
    return f"Vision features: {held_there:.0f} MiB in {storage}, at most {most / 2**30:.3g} GiB."


def executor_for(spec: EvaluatorSpec, options: RunOptions, progress: Progress) -> Executor:
    """This process, or Ray workers, as the options ask for."""
    if _in_process(options):
        return InProcessExecutor(spec, progress)
    from tuner.executors.ray_tune import RayExecutor

    def factory_for(placed: Placement) -> EvaluatorSpec:
        gpus = placed.gpus_per_worker
        return replace(spec, device="auto" if gpus > 0 else "cpu", workers=placed.per_machine, gpu_share=gpus)

    return RayExecutor(
        factory_for,
        options.workers,
        options.gpus_per_worker if _cluster(options) else _gpus_per_worker(options),
        options.address,
        progress,
        wait_for_workers=options.wait_for_workers,
        batch_timeout=options.batch_timeout,
    )


def _cluster(options: RunOptions) -> str | None:
    """The cluster's address, which `ray job submit` names too."""
    return options.address or os.environ.get("RAY_ADDRESS")


def _in_process(options: RunOptions) -> bool:
    return options.workers == 1 and options.address is None


def _budget(options: RunOptions) -> float:
    return 1.0 if options.budget is None else options.budget


def _goal(options: RunOptions) -> Goal:
    return "max_drop" if options.budget is None else "budget"


def worker_spec(study: Study, options: RunOptions, storage: str | None) -> EvaluatorSpec:
    """What a worker loads; `storage`: where encoded videos are kept, None for nowhere."""
    # A worker without a GPU of its own must not take one that it sees.
    gpus = 1.0 if _in_process(options) else _gpus_per_worker(options)
    spec = EvaluatorSpec.of(
        study, storage, device="auto" if gpus > 0 else "cpu", threads=options.threads, batch=options.batch
    )
    return replace(
        spec,
        cache_bytes=options.cache_bytes,
        store_bytes=options.cache_memory,
        workers=options.workers or 1,
        gpu_share=gpus,
    )


def _machine(spec: EvaluatorSpec) -> str:
    return machine_name(gpu=spec.device == "auto" and gpus_here() > 0, threads=spec.threads)


def gpus_here() -> int:
    """GPUs of this machine, counted without torch: its import takes longer than a run with nothing to do."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _gpus_per_worker(options: RunOptions) -> float:
    if options.gpus_per_worker is not None:
        return options.gpus_per_worker
    here = 0 if _cluster(options) else gpus_here()
    return min(1.0, here / (options.workers or 1))


def check_options(options: RunOptions) -> None:
    """Errors: UserError with everything that is wrong with the options."""
    problems = []
    if options.budget is not None and not 0 < options.budget <= 1:
        problems.append(f"the budget is a FLOPs ratio in (0, 1], but got {options.budget:g}")
    try:
        MaxDrop.parse(options.max_drop)
    except UserError as error:
        problems += error.problems
    for name, least in (("trials", 0), ("seed", 0), ("workers", 1), ("threads", 1), ("batch", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            problems.append(f"{name} is {least} or more, but got {value}")
    if options.workers is None and not _cluster(options):
        problems.append("workers follow a cluster, so without an address their number is named")
    for name in ("timeout", "wait_for_workers", "batch_timeout"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            named = name.replace("_", " ")
            problems.append(f"the {named} is a number of seconds above 0, but got {value:g}")
    if options.gpus_per_worker is not None and options.gpus_per_worker < 0:
        problems.append(f"gpus per worker is 0 or more, but got {options.gpus_per_worker:g}")
    if options.patience is not None and options.patience < 1:
        problems.append(f"patience is 1 or more, but got {options.patience}")
    if options.address is not None:
        problems += filter(None, [refused_address(options.address, "--address")])
    elif options.workers != 1 and "RAY_ADDRESS" in os.environ:
        problems += filter(None, [refused_address(os.environ["RAY_ADDRESS"], "RAY_ADDRESS")])
    if options.sampler not in SAMPLERS:
        problems.append(f"samplers are {', '.join(SAMPLERS)}, but got {options.sampler!r}")
    problems += check_storage(options.storage)
    if problems:
        raise UserError(problems)


def _check_budget(study: Study, planner: Planner, budget: float) -> None:
    smallest = smallest_reachable(planner, study.search)
    if budget < smallest:
        closest = cheapest(planner, study.search)
        knobs = in_words(closest.configuration, [name for name, _ in study.search.choices])
        raise UserError(
            f"no configuration of this study fits the budget {budget:g}: the closest needs "
            f"{smallest:.4f}, the smallest budget that can be reached here ({knobs})"
        )
