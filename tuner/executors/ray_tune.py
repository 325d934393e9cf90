"""Runs work on long-lived Ray workers, local or in a cluster.

A Tune trial is a worker, from its start to its end: it loads the model once and gets one task after another,
of one piece of work after another. Only workers that are ready get tasks: a task that is bound to a worker
without a place would wait for ever while other workers have nothing to do. Tune's own retries, checkpoints
and restores are not used, because the work knows what is missing. The scheduler below records all results and
passes on all decisions: Tune skips the searcher's `on_trial_result` when a trial is stopped, and skips the
scheduler when the trainable reports that it is done. So the trainable never reports that.

Tune runs in a thread of its own for as long as there are workers. Its hooks hand everything that touches
the work to the thread that called `run` and wait for it: records, progress and Ctrl-C stay in that thread.
Between two pieces of work the hooks, and with them the workers, wait.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import ray
from ray import cloudpickle as pickle
from ray import tune
from ray.air.execution._internal import actor_manager
from ray.exceptions import (
    ActorUnavailableError,
    AuthenticationError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)
from ray.tune import Callback, Stopper
from ray.tune.execution import tune_controller
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from pipeline.errors import ModelError, NotFiniteError
from tuner.errors import UserError
from tuner.evaluation.description import Computing, ModelDescription
from tuner.evaluation.evaluator import Evaluator, EvaluatorFactory
from tuner.evaluation.failures import EvaluationError
from tuner.evaluation.memory import is_out_of_memory
from tuner.evaluation.progress import NoProgress, Progress
from tuner.evaluation.tasks import Assignment, Call, Decision, FailureKind, Work
from tuner.executors.deadlines import Deadlines
from tuner.executors.metrics import counted
from tuner.executors.placement import Machine, Placement, placement, refusal
from tuner.executors.ray_files import served
from tuner.executors.starting import Starting
from tuner.executors.warnings import Warnings
from tuner.records.measurements import CacheUse

# Read by Ray when it starts and by Tune when it runs.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else every batch is written to JSON, CSV and TensorBoard files too.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Workers keep the directory of the driver: paths mean the same there.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ctrl-C is for the driver, which ends the run after the batches in flight.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The work reports a worker that died.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The state of the Tune experiment is never restored: writing it once an hour is writing it at the end.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Keeps Ray from hiding the machine's GPUs from workers that asked for none, and from warning about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# Read by each machine's part of Ray when it starts, so without effect on a running cluster. Ray starts its
# workers at niceness 15 and gives up on a worker that takes a minute to start: on a busy machine it would
# start workers and give them up for ever.
_STARTING = {"RAY_worker_niceness": "0", "RAY_worker_register_timeout_seconds": "600"}

# Of Ray on this machine: Tune's results and answers travel as messages, and workers read files themselves.
_OBJECT_STORE_BYTES = 128 * 2**20

# Seconds within which a cluster has to answer.
_ANSWER = 10.0

# Seconds within which a worker that is told to end has to end.
_END = 10.0

# Seconds between two looks at places and deadlines.
_WATCH = 0.5

# Seconds after which an idle worker is asked whether it lives.
_ALIVE = 10.0

# Seconds within which the cluster knows why a worker died.
_DEATH = 3.0

# What a worker is at beside batches, in place of the kind of calls.
_LOADING = "loading"
_IDLE = "idle"

Value = TypeVar("Value")


class RayExecutor:
    """Runs tasks on long-lived workers, each in a process of its own.

    address: of a running cluster. None starts Ray on this machine and ends it afterwards, unless it runs
    already. In a cluster workers on machines that do not see the driver's files ask for them
    (`ray_files`); the model they must find by themselves.
    """

    def __init__(
        self,
        factory_for: Callable[[Placement], EvaluatorFactory],
        workers: int | None = None,
        gpus_per_worker: float | None = None,
        address: str | None = None,
        progress: Progress | None = None,
        *,
        wait_for_workers: float | None = None,
        batch_timeout: float | None = None,
    ) -> None:
        """factory_for: what a worker loads, once it is known how many there are. workers, gpus_per_worker:
        None follows the cluster, see `placement`. wait_for_workers: seconds without any worker after which
        the run ends; None: it waits. batch_timeout: seconds that a batch may take; None: see `Deadlines`.
        """
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be 1 or more, but got {workers=}.")
        self._factory_for = factory_for
        self._workers = workers
        self._gpus_per_worker = gpus_per_worker
        self._address = address
        self._progress: Progress = progress or NoProgress()
        self._wait = wait_for_workers
        self._batch_timeout = batch_timeout
        self._required: Computing | None = None
        self._contents: Mapping[str, str] = {}
        self._bridge: _Bridge | None = None
        self._open = ExitStack()
        self._tune: threading.Thread | None = None

    def run(self, work: Work[Any]) -> None:
        """See `Executor.run`. The first work that has something to do starts the workers.

        Errors: UserError if the cluster cannot be reached or no worker can ever fit or compute as is
        required; EvaluationError as `Loop.failed`, or where no worker can be started.
        """
        # Ray takes seconds to start, so first see whether there is anything to do.
        first = work.propose()
        if first is None:
            return
        bridge = self._bridge = self._bridge or self._start(work)
        bridge.begin(work, first)
        while not bridge.over:
            try:
                job = bridge.jobs.get(timeout=1.0)
            except queue.Empty:
                if self._tune is None or not self._tune.is_alive():
                    raise bridge.error or RuntimeError("Ray Tune ended before its work did.") from None
            else:
                job()
        if bridge.error is not None:
            raise bridge.error

    def require(self, computing: Computing) -> None:
        """See `Executor.require`."""
        self._required = computing
        if self._bridge is not None:
            self._bridge.required = computing

    def expect(self, contents: Mapping[str, str]) -> None:
        """See `Executor.expect`."""
        self._contents = contents
        if self._bridge is not None:
            self._bridge.expect(contents)

    def close(self) -> None:
        """See `Executor.close`; the next work starts workers anew."""
        bridge, self._bridge = self._bridge, None
        thread, self._tune = self._tune, None
        if bridge is None or thread is None:
            return
        bridge.close()
        thread.join(_END)
        # Ends Ray where it is ours, and with it workers that have not ended.
        self._open.close()
        self._required = bridge.required

    def _start(self, work: Work[Any]) -> _Bridge:
        """Errors: UserError, see `run`."""
        self._progress.now("reaching Ray")
        with ExitStack() as stack:
            stack.enter_context(_quiet())
            address = stack.enter_context(_ray(self._workers or 1, self._address))
            machines = _machines()
            placed = placement(machines, self._workers, self._gpus_per_worker)
            refused = refusal(
                machines,
                placed.gpus_per_worker,
                may_grow=address is not None,
                waits=self._wait is not None,
            )
            if refused is not None:
                raise UserError(refused)
            factory = self._factory_for(placed)
            if address is not None:
                factory = stack.enter_context(served(factory))
                # Ray on this machine alone has no endpoint of metrics.
                stack.enter_context(counted(placed.gpus_per_worker))
            folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            self._open = stack.pop_all()
        if self._workers is None or (self._gpus_per_worker is None and placed.gpus_per_worker):
            work.say(f"{placed.workers} workers, each with {placed.each}, as the cluster suggests.")
        bridge = _Bridge(
            placed,
            self._progress.now,
            wait=self._wait,
            batches=Deadlines(self._batch_timeout),
            required=self._required,
            contents=self._contents,
        )
        self._tune = threading.Thread(
            target=_run_tune, args=(bridge, factory, folder), name="tune", daemon=True
        )
        self._tune.start()
        return bridge


# Ways in which a worker ends that are no `RayActorError`.
_OTHER_ENDS = (OutOfMemoryError, WorkerCrashedError, NodeDiedError, ObjectLostError, RuntimeEnvSetupError)


class _ActorManager(actor_manager.RayActorManager):
    """Tune looks around ten times a second, which costs more than all batches of a few workers. What ends a
    wait is an event of a worker; the other looks are ours.
    """

    def next(self, timeout: float | None = None) -> bool:
        """See `RayActorManager.next`: waits for an event for up to `timeout` seconds, here for `_WATCH`."""
        return bool(super().next(None if timeout is None else max(timeout, _WATCH)))


def _teach_tune() -> None:
    """To wait longer (`_ActorManager`), and what a worker's end is: Ray Tune 2.60 knows `RayActorError` only,
    and ends itself where Ray's memory monitor ended the worker, or its machine was lost together with a
    result.
    """
    vars(tune_controller)["RayActorManager"] = _ActorManager
    for module in (actor_manager, tune_controller):
        vars(module)["RayActorError"] = (RayActorError, *_OTHER_ENDS)


def _run_tune(bridge: _Bridge, factory: EvaluatorFactory, folder: str) -> None:
    _teach_tune()
    try:
        tune.run(
            tune.with_parameters(_Trainable, factory=factory),
            name="adatp",
            search_alg=_Searcher(bridge),
            scheduler=_Scheduler(bridge),
            stop=_Stopper(bridge),
            callbacks=[_Watch(bridge)],
            num_samples=-1,
            max_concurrent_trials=bridge.placement.workers,
            resources_per_trial=_bundle(bridge.placement),
            max_failures=0,
            raise_on_failed_trial=False,
            storage_path=folder,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
            verbose=0,
        )
    except SystemExit:
        # So Ray ends whoever waits when `close` ends the connection, where stopping the workers takes longer.
        return
    except Exception as error:  # noqa: BLE001 - `run` raises it
        bridge.error = bridge.error or error


def _bundle(placed: Placement) -> dict[str, float]:
    return {"CPU": 1, "GPU": placed.gpus_per_worker}


class _Trainable(tune.Trainable):
    """A worker: keeps its evaluator and makes the calls of one batch per step.

    Each step reports a state: `place` (the process runs), `ready` (the model is loaded), `idle`, `done`. A
    batch's cache use is sent with its results: the last counts of a worker that dies are lost.
    """

    def setup(self, config: dict[str, Any], factory: EvaluatorFactory | None = None) -> None:
        assert factory is not None  # handed over by tune.with_parameters
        self._factory = factory
        self._placed = False
        self._evaluator: Evaluator | None = None
        self._task: list[list[Call]] | None = None
        self._batch = 0
        self._warnings = Warnings()
        self._warnings.listen()

    def assign(self, task: list[list[Call]] | None) -> None:
        """Sets what the next steps do, batch by batch; None: nothing for the moment."""
        self._task, self._batch = task, 0

    def expect(self, contents: Mapping[str, str]) -> None:
        """See `Evaluator.expect`."""
        assert self._evaluator is not None
        self._evaluator.expect(contents)

    def step(self) -> dict[str, Any]:
        return {**self._step(), "warnings": self._warnings.take()}

    def _step(self) -> dict[str, Any]:
        # Loading takes minutes and may fail: the driver learns of the place first.
        if not self._placed:
            self._placed = True
            return {"state": "place", "node": ray.get_runtime_context().get_node_id()}
        if self._evaluator is None:
            self._evaluator = self._factory()
            return {"state": "ready", "results": _pack(self._evaluator.describe())}
        if self._task is None:
            return {"state": "idle"}
        batch = self._batch
        results: list[Any] = []
        for call in self._task[batch]:
            results += getattr(self._evaluator, call.method)(**call.arguments)
        self._batch += 1
        # As pairs and bytes, because Tune flattens dicts.
        use = list(self._evaluator.cache_use().items())
        return {"state": "done", "batch": batch, "results": _pack(results), "cache_use": use}


def _pack(results: list[Any]) -> bytes:
    """As Tune passes them on unread."""
    packed: bytes = pickle.dumps(results)  # type: ignore[no-untyped-call]
    return packed


class _Batch(NamedTuple):
    """What a worker is at: the kind of its calls, and when it began, on the monotonic clock."""

    kind: str
    began: float


class _Bridge:
    """What Tune's hooks share: the work, the workers and their tasks by Tune trial, the first error."""

    def __init__(
        self,
        placed: Placement,
        now: Callable[[str], None],
        *,
        wait: float | None,
        batches: Deadlines,
        required: Computing | None,
        contents: Mapping[str, str],
    ) -> None:
        """now: told how far the workers' start is. Others: see `RayExecutor`."""
        self.placement = placed
        self.now = now
        self.work: Work[Any] | None = None
        self.first: Assignment | None = None
        self.starting = Starting(
            placed.workers, self._say, gpus=placed.gpus_per_worker, each=placed.each, wait=wait
        )
        # Tune's trials of workers that have a place, and which of them Tune does not ask for a step.
        self.trials: dict[str, Trial] = {}
        self.idle: dict[str, float] = {}
        # Whether idle workers may find something to do.
        self.news = False
        self.tasks: dict[str, Assignment] = {}
        self.at: dict[str, _Batch] = {}
        # Workers that were ended because they hung, with the reason.
        self.hung: dict[str, str] = {}
        self.batches = batches
        self.loads = Deadlines()
        self.required = required
        self.contents = contents
        self.warnings: set[str] = set()
        self.error: Exception | None = None
        # For the thread that called `run`.
        self.jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        self.closed = False

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its stopper into an experiment state that is never restored.
        return {}

    def begin(self, work: Work[Any], first: Assignment) -> None:
        self.work, self.first, self.error = work, first, None
        self.tasks.clear()
        self.news = True
        self.now(self.starting.stand)

    def actor(self, worker: str) -> Any:
        return self.trials[worker].temporary_state.ray_actor

    def expect(self, contents: Mapping[str, str]) -> None:
        self.contents = contents
        for worker in self.trials:
            if self.starting.is_ready(worker):
                self.actor(worker).expect.remote(contents)

    def close(self) -> None:
        """Lets all hooks return at once, which end the workers."""
        self.closed = True
        while True:
            try:
                self.jobs.get_nowait()()
            except queue.Empty:
                return

    def _say(self, text: str) -> None:
        if self.work is not None:
            self.work.say(text)

    def next(self, worker: str) -> Assignment | None:
        assert self.work is not None
        if self.work.interrupted:
            return None
        task, self.first = self.first, None
        return self.work.propose(worker) if task is None else task

    def warn(self, worker: str, texts: Sequence[str]) -> None:
        for text in texts:
            if text not in self.warnings:
                self.warnings.add(text)
                self._say(f"Warning of a worker on {self.starting.machine(worker).host}: {text}")

    def end_hung(self) -> None:
        """Ends workers whose batch, or whose loading of the model, takes longer than it may."""
        for worker, (kind, began) in list(self.at.items()):
            loads = kind == _LOADING
            allowed = (self.loads if loads else self.batches).seconds(kind)
            if time.monotonic() - began <= allowed or worker in self.hung:
                continue
            what = (
                "its worker did not load the model" if loads else "its worker did not end the batch of videos"
            )
            named = "" if loads else " (--batch-timeout names another limit)"
            self.hung[worker] = f"{what} within {allowed:.0f} s, and was ended{named}"
            # Tune is told that it died.
            ray.kill(self.actor(worker))

    @property
    def over(self) -> bool:
        """Whether nothing of the work is being done and nothing more will be."""
        if self.error is not None or self.work is None:
            return True
        return not self.tasks and (self.work.finished or self.work.interrupted)

    def ask(self, function: Callable[[], Value], otherwise: Value) -> Value:
        """The function's value, computed in the thread that called `run`.

        Its error is raised there as it is (Tune would wrap its text and continue), and ends the work; here
        `otherwise` is returned then, as after `close`.
        """
        answered = threading.Event()
        values: list[Value] = []

        def job() -> None:
            try:
                if not self.closed:
                    values.append(function())
            except Exception as error:  # noqa: BLE001 - `RayExecutor.run` raises it
                self.error = self.error or error
                if self.work is not None:
                    self.work.interrupt()
            finally:
                answered.set()

        if self.closed:
            return otherwise
        self.jobs.put(job)
        while not (answered.wait(1.0) or self.closed):
            pass
        return values[0] if values else otherwise


class _Searcher(Searcher):
    """Asks for as many workers as Tune takes."""

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        if self._bridge.closed:
            return Searcher.FINISHED
        return None if self._bridge.starting.paused else {}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing to do: the scheduler was told."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the records are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class _Scheduler(TrialScheduler):
    """Hands out what the work proposes, records every batch and passes on the work's decision.

    Tune asks a worker that has nothing to do for no step until there is something (`NOOP`), except from time
    to time to see whether it lives.
    """

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bridge = bridge

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A new worker keeps away from machines that are left out."""
        nodes = ",".join(self._bridge.starting.left_out)
        if nodes:
            trial.update_resources(
                tune.PlacementGroupFactory(
                    [_bundle(self._bridge.placement)],
                    bundle_label_selector=[{"ray.io/node-id": f"!in({nodes})"}],
                )
            )

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        bridge = self._bridge
        # "" after an error, which ends the work and not the workers that are ready.
        decision = bridge.ask(lambda: self._result(trial, result), "")
        if not decision and result["state"] in ("idle", "done"):
            bridge.idle[trial.trial_id] = time.monotonic()
            decision = TrialScheduler.NOOP
        return TrialScheduler.STOP if bridge.closed or not decision else decision

    def _result(self, trial: Trial, result: dict[str, Any]) -> str:
        """What Tune does with the worker next."""
        bridge, worker, state = self._bridge, trial.trial_id, result["state"]
        going = bridge.at.pop(worker, None)
        bridge.warn(worker, result["warnings"])
        if state == "place":
            bridge.trials[worker] = trial
            if not bridge.starting.has_place(worker, _machine(result["node"])):
                return self._end(worker)
            bridge.at[worker] = _Batch(_LOADING, time.monotonic())
            bridge.now(bridge.starting.stand)
            return TrialScheduler.CONTINUE
        if going is not None and going.kind != _IDLE:
            took = bridge.loads if going.kind == _LOADING else bridge.batches
            took.took(going.kind, time.monotonic() - going.began)
        if state == "ready":
            (found,) = pickle.loads(result["results"])
            return self._taken(worker, found)
        if state == "done" and worker in bridge.tasks:
            # Else it is of a task of earlier work, which an error ended.
            bridge.starting.answered(worker)
            bridge.news = True
            if self._record(worker, result) == "continue":
                self._begins(worker, int(result["batch"]) + 1)
                return TrialScheduler.CONTINUE
            del bridge.tasks[worker]
        return TrialScheduler.CONTINUE if self._hand_out(worker) else self._rests(worker)

    def _end(self, worker: str) -> str:
        self._bridge.trials.pop(worker, None)
        return TrialScheduler.STOP

    def _taken(self, worker: str, found: ModelDescription) -> str:
        """Whether a worker whose model is loaded may answer for the study; the first says how it is done."""
        bridge = self._bridge
        bridge.required = bridge.required or found.computing
        refused = found.refusal(bridge.required)
        if refused is not None:
            bridge.starting.failed(worker, refused, _machines(), certain=True)
            return self._end(worker)
        bridge.starting.got_ready(worker)
        bridge.now(bridge.starting.stand)
        bridge.actor(worker).expect.remote(bridge.contents)
        return TrialScheduler.CONTINUE if self._hand_out(worker) else self._rests(worker)

    def _record(self, worker: str, result: dict[str, Any]) -> Decision:
        assert self._bridge.work is not None
        task, use = self._bridge.tasks[worker], CacheUse(**dict(result["cache_use"]))
        results = task.read(pickle.loads(result["results"]))
        return self._bridge.work.record(task, result["batch"], results, use)

    def _hand_out(self, worker: str) -> bool:
        """Gives this worker its next task, if there is one; otherwise it waits for results in flight."""
        task = self._bridge.next(worker)
        if task is None:
            return False
        self._bridge.tasks[worker] = task
        # Ray runs an actor's calls in order: this one before the step that Tune asks for next.
        calls = [task.calls(index) for index in range(len(task.batches))]
        self._bridge.actor(worker).assign.remote(calls)
        self._begins(worker, 0)
        return True

    def _begins(self, worker: str, batch: int) -> None:
        calls = self._bridge.tasks[worker].calls(batch)
        self._bridge.at[worker] = _Batch(calls[0].method if calls else "answer", time.monotonic())

    def _rests(self, worker: str) -> str:
        # Else it would answer the next batch of its last task when it is asked whether it lives.
        self._bridge.actor(worker).assign.remote(None)
        self._bridge.idle[worker] = time.monotonic()
        return TrialScheduler.NOOP

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        bridge = self._bridge
        if bridge.idle and not bridge.closed:
            seen = time.monotonic() - _ALIVE
            if bridge.news or any(since < seen for since in bridge.idle.values()):
                woken: list[Trial] = []
                bridge.ask(lambda: self._wake(seen, woken), None)
                for trial in woken:
                    # Tune offers no other way to resume a trial after NOOP.
                    tune_controller._schedule_trial_train(trial)
        pending = (trial for trial in tune_controller.get_trials() if trial.status == Trial.PENDING)
        return next(pending, None)

    def _wake(self, seen: float, woken: list[Trial]) -> None:
        """Adds to `woken` the idle workers that have something to do now, or have rested since before `seen`.

        Those before an error of the work are among them.
        """
        bridge = self._bridge
        bridge.news = False
        for worker, since in list(bridge.idle.items()):
            if bridge.work is not None and not bridge.over and self._hand_out(worker):
                pass
            elif since < seen:
                bridge.at[worker] = _Batch(_IDLE, time.monotonic())
            else:
                continue
            del bridge.idle[worker]
            woken.append(bridge.trials[worker])

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._bridge.ask(lambda: self._error(trial), None)

    def _error(self, trial: Trial) -> None:
        bridge, worker, starting = self._bridge, trial.trial_id, self._bridge.starting
        bridge.at.pop(worker, None)
        bridge.idle.pop(worker, None)
        bridge.trials.pop(worker, None)
        bridge.news = True
        hung = bridge.hung.pop(worker, None)
        ending = _ending(trial, starting.machine(worker)) if hung is None else _Ending(hung, "timed_out")
        task = bridge.tasks.pop(worker, None)
        ready = starting.is_ready(worker)
        if task is not None:
            assert bridge.work is not None
            bridge.work.failed(task, ending.reason, ending.kind)
        if ready and ending.kind == "raised":
            starting.raised(worker, ending.reason)
        elif ready or ending.kind == "lost":
            starting.died(worker)
        else:
            starting.failed(
                worker,
                ending.reason,
                _machines(),
                certain=ending.certain,
                machine=ending.machine,
            )
        bridge.now(starting.stand)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Nothing to do: the work was told of every batch."""

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Nothing to do."""

    def debug_string(self) -> str:
        return "the work decides"


class _Watch(Callback):
    """Looks from time to time for workers that have no place or do not come back."""

    def __init__(self, bridge: _Bridge) -> None:
        self._bridge = bridge
        self._next = 0.0

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _WATCH
            self._bridge.ask(self._look, None)

    def _look(self) -> None:
        self._bridge.end_hung()
        self._bridge.starting.look(_machines)


def _machines() -> tuple[Machine, ...]:
    """Those that are alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return tuple(
        Machine(node["NodeID"], node["NodeManagerHostname"], node["Resources"])
        for node in nodes
        if node["Alive"]
    )


def _machine(node: str) -> Machine:
    """A node by its id, while it lives."""
    found = (machine for machine in _machines() if machine.id == node)
    return next(found, Machine(node, "a lost machine"))


class _Stopper(Stopper):
    """Ends Tune when its workers are no longer wanted, even if some still wait for a place."""

    def __init__(self, bridge: _Bridge) -> None:
        self._bridge = bridge

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._bridge.closed


def _trial_name(trial: Trial) -> str:
    return str(trial.trial_id)


# From Ray's memory monitor, which chooses among the workers of a machine.
_LOW_MEMORY = "Ray ended its worker process, because its machine ran low on memory"

_LOST = "its machine was lost"
_DIED = "its worker process died (killed, or out of memory)"


class _Ending(NamedTuple):
    """Why an attempt ended."""

    reason: str
    kind: FailureKind
    # Whether the next worker on the same machine would meet the same.
    certain: bool = False
    # Of a worker that never had a place.
    machine: Machine | None = None


def _ending(trial: Trial, machine: Machine) -> _Ending:
    """Why a worker ended; `machine`: where it ran, without an id where that is not known.

    Errors: NotFiniteError if the attempt raised it, because the same call would raise it again.
    """
    # Tune's own function reads these files from the storage, where they arrive later.
    if trial.pickled_error_file is None or not Path(trial.pickled_error_file).is_file():
        return _other_ending(trial)
    error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
    if isinstance(error, RayTaskError):
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if isinstance(cause, NotFiniteError):
            raise cause
        if isinstance(cause, ModelError):
            return _Ending(str(cause), "raised", certain=True)
        return _Ending(f"{type(cause).__name__}: {cause}", _end(cause))
    text = str(error)
    if not machine.id:
        # It ended before it told its place.
        node = _actor(error.actor_id).get("Address", {}).get("NodeID", "")
        machine = _machine(node) if node.strip("f") else machine
    if error.actor_init_failed:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return _Ending(lines[-1], "raised", machine=machine)
    if error.preempted:
        return _Ending("its machine was taken away (preempted)", "lost")
    if isinstance(error, ActorUnavailableError):
        # Only where the cluster hears of the process's own death: what cannot be reached may live.
        text = _cause_of_death(error.actor_id)
        process = "worker process has died" in text
    else:
        process = "its node has died" not in text
    if "OUT_OF_MEMORY" in text:
        return _Ending(_LOW_MEMORY, "killed", machine=machine)
    alive = not machine.id or any(other.id == machine.id for other in _machines())
    return _Ending(_DIED, "killed", machine=machine) if process and alive else _Ending(_LOST, "lost")


def _other_ending(trial: Trial) -> _Ending:
    """Of a worker whose error Tune does not keep, only its text: one of `_OTHER_ENDS`."""
    path = None if trial.error_file is None else Path(trial.error_file)
    text = path.read_text() if path is not None and path.is_file() else ""
    if "low on memory" in text:
        return _Ending(_LOW_MEMORY, "killed")
    if "runtime environment" in text.lower():
        return _Ending(text.strip().splitlines()[-1], "raised")
    return _Ending(_LOST, "lost")


def _actor(actor_id: str | None) -> dict[str, Any]:
    """What the cluster knows of an actor."""
    found: dict[str, Any] = {} if actor_id is None else ray._private.state.actors(actor_id)
    return found


def _cause_of_death(actor_id: str | None) -> str:
    """Why an actor ended whose connection broke; "" if it has not, as when its machine cannot be reached.

    The cluster may hear of a death later than the connection breaks.
    """
    until = time.monotonic() + _DEATH
    while time.monotonic() < until:
        info = _actor(actor_id)
        if info.get("State") == "DEAD":
            return str(info.get("DeathCause", ""))
        time.sleep(0.1)
    return ""


def _end(error: BaseException) -> FailureKind:
    if is_out_of_memory(error):
        return "out_of_memory"
    # An error of the GPU itself: the process cannot use it any more, as if it had died.
    return "killed" if type(error).__name__ == "AcceleratorError" else "raised"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Ray's and Tune's own reports, which would disturb the progress bars."""
    settings = _ENVIRONMENT | _STARTING
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    # What happens on the machines is printed to stdout, where a command's result belongs; there is no option.
    listener = ray._private.worker.listen_error_messages
    ray._private.worker.listen_error_messages = lambda *_: None
    try:
        yield
    finally:
        logger.setLevel(level)
        ray._private.worker.listen_error_messages = listener
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def local_ray(workers: int) -> Iterator[None]:
    """Ray on this machine for several runs, each of which would otherwise start and end its own."""
    with _quiet(), _ray(workers, None):
        yield


def cluster_resources(address: str) -> str:
    """What a cluster offers, in words. Errors: UserError if there is none."""
    with _quiet(), _ray(1, address):
        nodes = _machines()
    cpus, gpus = (sum(node.resources.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    return f"{len(nodes)} nodes with {cpus:g} CPUs and {gpus:g} GPUs"


@contextmanager
def _kept_handler() -> Iterator[None]:
    """Ray would end the process at SIGTERM, with exit code 1: the command line ends the run as at Ctrl-C."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        if not callable(before):
            raise
        # Ray's own handlers have ended its start.
        before(signal.SIGTERM, None)
        raise KeyboardInterrupt from None
    finally:
        # Elsewhere Ray sets none, and none may be set.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _told_if_too_slow() -> Iterator[None]:
    """Ray gives up where it does not come up within 30 s, and has no error of its own for that."""
    try:
        yield
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise EvaluationError(
            "Ray did not start on this machine within the 30 s that it takes at most: is the machine "
            "overloaded? The same command tries again; --workers 1 does without Ray."
        ) from error


@contextmanager
def _ray(workers: int, address: str | None) -> Iterator[str | None]:
    """A connection to Ray, with the cluster's address; an existing connection is used and left open."""
    ours = not ray.is_initialized()
    # Set in a process that `ray job submit` started.
    address = address or os.environ.get("RAY_ADDRESS")
    if ours and address is not None:
        _connect(address)
    elif ours:
        with _kept_handler(), _told_if_too_slow():
            ray.init(
                # Never a cluster that happens to run on this machine: `--address auto` asks for that.
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                object_store_memory=_OBJECT_STORE_BYTES,
                # Every process would send what it does to Ray's dashboard, which there is none of.
                _system_config={"task_events_report_interval_ms": 0},
            )
    try:
        yield address
    finally:
        if ours:
            ray.shutdown()


def _connect(address: str) -> None:
    """Connects to a cluster. Errors: UserError if there is none, or if it refuses the connection."""
    _knock(address)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            runtime_env={"env_vars": dict(_ENVIRONMENT)},
        )
    except AuthenticationError as error:
        raise _locked(address) from error
    except (ConnectionError, ValueError) as error:
        # Ray names a refused authentication only in the text of the cause.
        if AuthenticationError.__name__ in str(error.__cause__):
            raise _locked(address) from error
        raise UserError(f"There is no Ray cluster at {address!r}: {error}") from error


def _locked(address: str) -> UserError:
    return UserError(
        f"The Ray cluster at {address!r} requires its token: set RAY_AUTH_MODE=token and, if the token is "
        "not in ~/.ray/auth_token, RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. (Ray writes that file when it "
        "first runs on a machine, and a cluster that is started on such a machine requires the token.)"
    )


def _knock(address: str) -> None:
    """Checks that something answers: Ray would try for two minutes without a message."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # such as `auto`, which Ray resolves
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"There is no Ray cluster at {address!r}: {error}") from error
