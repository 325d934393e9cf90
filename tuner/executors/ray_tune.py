"""Runs work on long-lived Ray workers, local or in a cluster: the only module that imports Ray.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import ray
from ray import cloudpickle as pickle
from ray import tune
from ray.exceptions import AuthenticationError, RayTaskError
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from ray.tune.result import HOSTNAME
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from pipeline.errors import ModelError, NotFiniteError
from tuner.errors import UserError
from tuner.evaluation.description import Computing, ModelDescription
from tuner.evaluation.evaluator import Evaluator, EvaluatorFactory
from tuner.evaluation.memory import is_out_of_memory
from tuner.evaluation.progress import NoProgress, Progress
from tuner.evaluation.tasks import Assignment, Call, Decision, FailureKind, Work
from tuner.executors.metrics import counted
from tuner.executors.starting import Starting
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
    # Ray starts its workers at niceness 15 and gives up on a worker that takes a minute to start: on a busy
    # machine it would start workers and give them up for ever.
    "RAY_worker_niceness": "0",
    "RAY_worker_register_timeout_seconds": "600",
    # Keeps Ray from hiding the machine's GPUs from workers that asked for none, and from warning about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# Tune's results and answers travel as messages; nothing large is ever put into the object store.
_OBJECT_STORE_BYTES = 128 * 2**20

# Seconds within which a cluster has to answer.
_ANSWER = 10.0

# Seconds between two steps of an idle worker.
_IDLE = 0.1


# Seconds within which a worker that is told to end has to end.
_END = 10.0

Value = TypeVar("Value")


class RayExecutor:
    """Runs tasks on `workers` workers, each in a process of its own with `gpus_per_worker` GPUs.

    address: of a running cluster. None starts Ray on this machine and ends it afterwards, unless it runs
    already. In a cluster every node must find videos, model and feature cache under the same paths.
    """

    def __init__(
        self,
        factory: EvaluatorFactory,
        workers: int,
        gpus_per_worker: float = 0.0,
        address: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be 1 or more, but got {workers=}.")
        self._factory = factory
        self._workers = workers
        self._gpus_per_worker = gpus_per_worker
        self._address = address
        self._progress: Progress = progress or NoProgress()
        self._bridge = _Bridge(workers, self._progress.now)
        self._open = ExitStack()
        self._tune: threading.Thread | None = None

    def run(self, work: Work[Any]) -> None:
        """See `Executor.run`. The first work that has something to do starts the workers.

        Errors: UserError if the cluster cannot be reached or has too few GPUs, or no worker computes as is
        required; EvaluationError as `Loop.failed`.
        """
        # Ray takes seconds to start, so first see whether there is anything to do.
        first = work.propose()
        if first is None:
            return
        self._start()
        bridge = self._bridge
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
        self._bridge.required = computing

    def expect(self, contents: Mapping[str, str]) -> None:
        """See `Executor.expect`."""
        self._bridge.expect(contents)

    def close(self) -> None:
        """See `Executor.close`; the next work starts workers anew."""
        thread, self._tune = self._tune, None
        if thread is None:
            return
        self._bridge.close()
        thread.join(_END)
        # Ends Ray where it is ours, and with it workers that have not ended.
        self._open.close()
        required, contents = self._bridge.required, self._bridge.contents
        self._bridge = _Bridge(self._workers, self._progress.now)
        self._bridge.required, self._bridge.contents = required, contents

    def _start(self) -> None:
        """Errors: UserError, see `run`."""
        if self._tune is not None:
            return
        self._progress.now(self._bridge.starting.stand)
        with ExitStack() as stack:
            stack.enter_context(_quiet())
            stack.enter_context(_ray(self._workers, self._gpus_per_worker, self._address))
            if self._address is not None or "RAY_ADDRESS" in os.environ:
                # Ray on this machine alone has no endpoint of metrics.
                stack.enter_context(counted(self._gpus_per_worker))
            folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            self._open = stack.pop_all()
        self._tune = threading.Thread(target=self._run_tune, args=(folder,), name="tune", daemon=True)
        self._tune.start()

    def _run_tune(self, folder: str) -> None:
        bridge = self._bridge
        try:
            tune.run(
                tune.with_parameters(_Trainable, factory=self._factory),
                name="adatp",
                search_alg=_Searcher(bridge),
                scheduler=_Scheduler(bridge),
                stop=_Stopper(bridge),
                callbacks=[_Watch(bridge, self._gpus_per_worker)],
                num_samples=-1,
                max_concurrent_trials=self._workers,
                resources_per_trial={"cpu": 1, "gpu": self._gpus_per_worker},
                max_failures=0,
                raise_on_failed_trial=False,
                storage_path=folder,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
                verbose=0,
            )
        except Exception as error:  # noqa: BLE001 - `run` raises it
            bridge.error = bridge.error or error


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

    def assign(self, task: list[list[Call]] | None) -> None:
        """Sets what the next steps do, batch by batch; None: nothing for the moment."""
        self._task, self._batch = task, 0

    def expect(self, contents: Mapping[str, str]) -> None:
        """See `Evaluator.expect`."""
        assert self._evaluator is not None
        self._evaluator.expect(contents)

    def step(self) -> dict[str, Any]:
        # Loading takes minutes and may fail: the driver learns of the place first.
        if not self._placed:
            self._placed = True
            return {"state": "place"}
        if self._evaluator is None:
            self._evaluator = self._factory()
            return {"state": "ready", "results": _pack(self._evaluator.describe())}
        if self._task is None:
            time.sleep(_IDLE)
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


class _Bridge:
    """What Tune's hooks share: the work, the workers and their tasks by Tune trial, the first error."""

    def __init__(self, workers: int, now: Callable[[str], None]) -> None:
        """now: told how far the workers' start is."""
        self.now = now
        self.work: Work[Any] | None = None
        self.first: Assignment | None = None
        self.starting = Starting(workers, self._say)
        # Actors of workers that are ready.
        self.actors: dict[str, Any] = {}
        self.tasks: dict[str, Assignment] = {}
        self.required: Computing | None = None
        self.contents: Mapping[str, str] = {}
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

    def expect(self, contents: Mapping[str, str]) -> None:
        self.contents = contents
        for actor in self.actors.values():
            actor.expect.remote(contents)

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
        return self._bridge.ask(lambda: self._suggest(trial_id), Searcher.FINISHED)

    def _suggest(self, trial_id: str) -> Any:
        if self._bridge.starting.paused:
            return None
        self._bridge.starting.asked_for(trial_id)
        return {}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing to do: the scheduler was told."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the records are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class _Scheduler(TrialScheduler):
    """Hands out what the work proposes, records every batch and passes on the work's decision."""

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bridge = bridge

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        stays = self._bridge.ask(lambda: self._result(trial, result), otherwise=True)
        return str(TrialScheduler.CONTINUE if stays and not self._bridge.closed else TrialScheduler.STOP)

    def _result(self, trial: Trial, result: dict[str, Any]) -> bool:
        """Whether the worker stays."""
        bridge, worker = self._bridge, trial.trial_id
        if result["state"] == "place":
            bridge.starting.has_place(worker, result[HOSTNAME])
            bridge.now(bridge.starting.stand)
        elif result["state"] == "ready":
            (found,) = pickle.loads(result["results"])
            return self._is_taken(trial, found)
        elif result["state"] == "idle":
            self._hand_out(trial)
        elif worker not in bridge.tasks:
            # Of a task of earlier work, which an error ended.
            self._hand_out(trial, had_task=True)
        elif self._record(worker, result) == "stop":
            del bridge.tasks[worker]
            # Also if there is no task left: else it would answer the next batch of its last task.
            self._hand_out(trial, had_task=True)
        return True

    def _is_taken(self, trial: Trial, found: ModelDescription) -> bool:
        """Whether a worker whose model is loaded may answer for the study; the first says how it is done."""
        bridge, worker = self._bridge, trial.trial_id
        bridge.required = bridge.required or found.computing
        refusal = found.refusal(bridge.required)
        if refusal is not None:
            self._not_started(worker, refusal, certain=True)
            return False
        bridge.starting.got_ready(worker)
        bridge.now(bridge.starting.stand)
        actor: Any = trial.temporary_state.ray_actor
        bridge.actors[worker] = actor
        actor.expect.remote(bridge.contents)
        self._hand_out(trial)
        return True

    def _not_started(self, worker: str, reason: str, *, certain: bool) -> None:
        """Errors: UserError where the reason is certain to come again because all workers are alike."""
        if certain and len(_nodes()) == 1:
            raise UserError(reason)
        self._bridge.starting.failed(worker, reason)

    def _record(self, worker: str, result: dict[str, Any]) -> Decision:
        assert self._bridge.work is not None
        task, use = self._bridge.tasks[worker], CacheUse(**dict(result["cache_use"]))
        results = task.read(pickle.loads(result["results"]))
        return self._bridge.work.record(task, result["batch"], results, use)

    def _hand_out(self, trial: Trial, *, had_task: bool = False) -> None:
        """Gives this worker its next task, if there is one; otherwise it waits for results in flight."""
        task = self._bridge.next(trial.trial_id)
        if task is not None:
            self._bridge.tasks[trial.trial_id] = task
        if task is not None or had_task:
            calls = None if task is None else [task.calls(index) for index in range(len(task.batches))]
            # Ray runs an actor's calls in order: this one before the step that Tune asks for next.
            self._bridge.actors[trial.trial_id].assign.remote(calls)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._bridge.ask(lambda: self._error(trial), None)

    def _error(self, trial: Trial) -> None:
        bridge, worker = self._bridge, trial.trial_id
        bridge.actors.pop(worker, None)
        reason, end = _reason(trial)
        if not bridge.starting.is_ready(worker):
            self._not_started(worker, reason, certain=end == "model")
            return
        bridge.starting.died(worker)
        task = bridge.tasks.pop(worker, None)
        if task is not None:
            assert bridge.work is not None
            bridge.work.failed(task, reason, "raised" if end == "model" else end)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        pending = (trial for trial in tune_controller.get_trials() if trial.status == Trial.PENDING)
        return next(pending, None)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Nothing to do."""

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Nothing to do: the work was told of every batch."""

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Nothing to do."""

    def debug_string(self) -> str:
        return "the work decides"


class _Watch(Callback):
    """Reports when workers wait for a place."""

    def __init__(self, bridge: _Bridge, gpus_per_worker: float) -> None:
        self._bridge = bridge
        self._gpus = gpus_per_worker
        self._each = f"1 CPU and {gpus_per_worker:g} GPU" if gpus_per_worker else "1 CPU"

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._bridge.ask(lambda: self._bridge.starting.look(self._room, self._each), None)

    def _room(self) -> int:
        """How many workers fit on all nodes together if nothing else runs there."""
        return sum(fitting(node, self._gpus) for node in _nodes())


def _nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def fitting(offered: dict[str, float], gpus: float) -> int:
    """How many workers fit on a node with these resources; a fraction of a GPU is of a single GPU."""
    cpus, cards = int(offered.get("CPU", 0)), offered.get("GPU", 0.0)
    if not gpus:
        return cpus
    # The small number makes up for rounding, as in 1 / 0.1.
    return min(cpus, int(cards) * int(1 / gpus + 1e-9) if gpus < 1 else int(cards / gpus))


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


def _reason(trial: Trial) -> tuple[str, FailureKind | Literal["model"]]:
    """Why an attempt failed, as a text for the user and as a kind for the work; "model": a ModelError.

    Errors: NotFiniteError if the attempt raised it, because the same call would raise it again.
    """
    # Tune's own function reads these files from the storage, where they arrive later.
    if trial.pickled_error_file is None or not Path(trial.pickled_error_file).is_file():
        return "Ray gives no reason", "killed"
    error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
    if isinstance(error, RayTaskError):
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if isinstance(cause, NotFiniteError):
            raise cause
        if isinstance(cause, ModelError):
            return str(cause), "model"
        return f"{type(cause).__name__}: {cause}", _end(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "creation task" in lines[0]:
        return lines[-1], "killed"
    return "its worker process died (killed, or out of memory)", "killed"


def _end(error: BaseException) -> FailureKind:
    if is_out_of_memory(error):
        return "out_of_memory"
    # An error of the GPU itself: the process cannot use it any more, as if it had died.
    return "killed" if type(error).__name__ == "AcceleratorError" else "raised"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Ray's and Tune's own reports, which would disturb the progress bars."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def local_ray(workers: int) -> Iterator[None]:
    """Ray on this machine for several runs, each of which would otherwise start and end its own."""
    with _quiet(), _ray(workers, 0.0, None):
        yield


def cluster_resources(address: str) -> str:
    """What a cluster offers, in words. Errors: UserError if there is none."""
    with _quiet(), _ray(1, 0.0, address):
        nodes = _nodes()
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
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
def _ray(workers: int, gpus_per_worker: float, address: str | None) -> Iterator[None]:
    """A connection to Ray; an existing connection is used and left open."""
    ours = not ray.is_initialized()
    # Set in a process that `ray job submit` started.
    address = address or os.environ.get("RAY_ADDRESS")
    if ours and address is not None:
        _connect(address)
    elif ours:
        with _kept_handler():
            ray.init(
                # Never a cluster that happens to run on this machine: `--address auto` asks for that.
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                object_store_memory=_OBJECT_STORE_BYTES,
            )
    try:
        offered = max((node.get("GPU", 0.0) for node in _nodes()), default=0.0)
        if gpus_per_worker > offered:
            raise UserError(
                f"A worker needs {gpus_per_worker:g} GPUs, but Ray offers {offered:g} on one machine at most."
            )
        yield
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
