"""Evaluates on long-lived Ray workers, local or in a cluster: the only module that imports Ray.

One Tune trial is one worker, from its start to its death: it loads its model once and gets one `Work` after
another. Work is handed to workers that are ready and to nobody else: what is bound to a worker without a
place, while others have nothing to do, would wait for ever. Tune's own retries, checkpoints and restores stay
out of it, because the loop knows better what is missing. The scheduler below is the one place that records
and decides: Tune skips the searcher's `on_trial_result` when a trial is stopped, and skips the scheduler when
the trainable says it is done, so the trainable never does.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle as pickle
from ray import tune
from ray.exceptions import AuthenticationError, RayTaskError
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from ray.tune.result import HOSTNAME
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from pipeline.errors import NotFiniteError
from tuner.errors import UserError
from tuner.evaluation.evaluator import Evaluator, EvaluatorFactory, is_out_of_memory
from tuner.evaluation.failures import FailureKind
from tuner.evaluation.loop import Decision, Loop
from tuner.evaluation.tasks import Work
from tuner.executors.starting import Starting
from tuner.records.measurements import CacheUse
from tuner.records.values import RecordedAnswer

# Read by Ray when it starts and by Tune when it runs.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else every batch is written to JSON, CSV and TensorBoard files too.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Workers keep the directory of the driver: paths mean the same there.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ctrl-C belongs to the driver, which ends the batches in flight.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A dead worker is reported by the loop.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # The state of the Tune experiment is never restored: writing it once an hour is writing it at the end.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Ray starts its workers at niceness 15 and gives up on one that takes a minute to start: on a busy
    # machine they would start, and be given up, for ever.
    "RAY_worker_niceness": "0",
    "RAY_worker_register_timeout_seconds": "600",
    # Keeps workers without a GPU from hiding those of the machine, and Ray from warning about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# Tune's results and answers travel as messages; nothing large is ever put into the object store.
_OBJECT_STORE_BYTES = 128 * 2**20

# A cluster answers within so many seconds.
_ANSWER = 10.0

# An idle worker looks up this often, in seconds.
_IDLE = 0.1


@dataclass(frozen=True)
class RayExecutor:
    """`workers` evaluations at a time, each in a process of its own with `gpus_per_worker` GPUs.

    `address`: of a running cluster; None starts Ray on this machine and ends it afterwards, unless it runs
    already. In a cluster the videos, the model and the feature cache must lie where every node finds them.
    """

    factory: EvaluatorFactory
    workers: int
    gpus_per_worker: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"There is at least one worker, but got {self.workers=}.")

    def run(self, loop: Loop) -> None:
        """See `Executor.run`.

        Errors: UserError when the cluster cannot be reached or has no GPU to offer; EvaluationError as
        `Loop.failed`.
        """
        bridge = _Bridge(loop, self.workers)
        # Ray takes seconds to start: first see whether there is anything to do.
        bridge.first = loop.propose()
        if bridge.first is None:
            return
        with (
            _quiet(),
            _ray(self.workers, self.gpus_per_worker, self.address),
            tempfile.TemporaryDirectory() as folder,
        ):
            tune.run(
                tune.with_parameters(_Trainable, factory=self.factory),
                name="adatp",
                search_alg=_Searcher(bridge),
                scheduler=_Scheduler(bridge),
                stop=_Stopper(bridge),
                callbacks=[_Watch(bridge, self.gpus_per_worker)],
                num_samples=-1,
                max_concurrent_trials=self.workers,
                resources_per_trial={"cpu": 1, "gpu": self.gpus_per_worker},
                max_failures=0,
                raise_on_failed_trial=False,
                storage_path=folder,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
                verbose=0,
            )
        if bridge.error is not None:
            raise bridge.error


class _Trainable(tune.Trainable):
    """One worker: keeps its evaluator and answers one batch per step.

    Each step says where it is: it has a `place`, is `ready` (the model is loaded), is `idle`, or `answered`.
    What the caches did for a batch travels with its answers: a worker that dies takes its last counts along.
    """

    def setup(self, config: dict[str, Any], factory: EvaluatorFactory | None = None) -> None:
        assert factory is not None  # handed over by tune.with_parameters
        self._factory = factory
        self._placed = False
        self._evaluator: Evaluator | None = None
        self._work: dict[str, Any] | None = None
        self._batch = 0

    def assign(self, work: dict[str, Any] | None) -> None:
        """What the next steps answer, batch by batch; None: nothing for the moment."""
        self._work, self._batch = work, 0

    def step(self) -> dict[str, Any]:
        # Loading takes minutes and may fail: the driver hears of the place first.
        if not self._placed:
            self._placed = True
            return {"state": "place"}
        if self._evaluator is None:
            self._evaluator = self._factory()
            return {"state": "ready"}
        if self._work is None:
            time.sleep(_IDLE)
            return {"state": "idle"}
        batch = self._batch
        answers = []
        for configuration, questions in self._work["batches"][batch]:
            answers += self._evaluator.answer(
                configuration, questions, self._work["references"], reshaped=self._work["reshaped"]
            )
        self._batch += 1
        # As pairs: Tune takes a dict apart.
        use = list(self._evaluator.cache_use().items())
        return {"state": "answered", "batch": batch, "answers": answers, "cache_use": use}


class _Bridge:
    """What Tune's hooks share: the loop, the workers and their works by Tune trial, the first error."""

    def __init__(self, loop: Loop, workers: int) -> None:
        self.loop = loop
        self.first: Work | None = None
        self.starting = Starting(workers, loop.say)
        self.works: dict[str, Work] = {}
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its stopper into an experiment state that is never restored.
        return {}

    def next(self) -> Work | None:
        if self.loop.interrupted:
            return None
        work, self.first = self.first, None
        return self.loop.propose() if work is None else work

    @property
    def over(self) -> bool:
        """Whether nothing is being answered and nothing will be."""
        if self.error is not None:
            return True
        return not self.works and (self.loop.finished or self.loop.interrupted)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Keeps an error of the loop as it is; Tune would wrap its text and go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it is raised again by `RayExecutor.run`
            self.error = self.error or error
            self.loop.interrupt()


class _Searcher(Searcher):
    """Asks for as many workers as Tune takes."""

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__()
        self._bridge = bridge

    def suggest(self, trial_id: str) -> Any:
        if self._bridge.over:
            return Searcher.FINISHED
        if self._bridge.starting.paused:
            return None
        self._bridge.starting.asked_for(trial_id)
        return {}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing to do: the scheduler heard of it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the records are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class _Scheduler(TrialScheduler):
    """Hands out what the loop proposes, records every batch and passes the loop's decision on."""

    def __init__(self, bridge: _Bridge) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bridge = bridge

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        bridge, worker = self._bridge, trial.trial_id
        with bridge.guarded():
            if result["state"] == "place":
                bridge.starting.has_place(worker, result[HOSTNAME])
            elif result["state"] == "ready":
                bridge.starting.got_ready(worker)
                self._hand_out(trial)
            elif result["state"] == "idle":
                self._hand_out(trial)
            elif self._record(worker, result) == "stop":
                del bridge.works[worker]
                # It does not ask for work: it would answer the next batch of what it has.
                self._hand_out(trial, had_work=True)
        return str(TrialScheduler.STOP if bridge.over else TrialScheduler.CONTINUE)

    def _record(self, worker: str, result: dict[str, Any]) -> Decision:
        answers = [RecordedAnswer.from_dict(one) for one in result["answers"]]
        use = CacheUse(**dict(result["cache_use"]))
        return self._bridge.loop.record(self._bridge.works[worker], result["batch"], answers, use)

    def _hand_out(self, trial: Trial, *, had_work: bool = False) -> None:
        """Gives this worker its next work, if there is some; otherwise it waits for answers in flight."""
        work = self._bridge.next()
        if work is not None:
            self._bridge.works[trial.trial_id] = work
        if work is not None or had_work:
            # Ray runs an actor's calls in their order: this one before the step that Tune asks for next.
            actor: Any = trial.temporary_state.ray_actor
            actor.assign.remote(None if work is None else _plain(work))

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        bridge, worker = self._bridge, trial.trial_id
        with bridge.guarded():
            reason, end = _reason(trial)
            if not bridge.starting.is_ready(worker):
                bridge.starting.failed(worker, reason)
                return
            bridge.starting.died(worker)
            work = bridge.works.pop(worker, None)
            if work is not None:
                bridge.loop.failed(work, reason, end)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        pending = (trial for trial in tune_controller.get_trials() if trial.status == Trial.PENDING)
        return next(pending, None)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Nothing to do."""

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Nothing to do: the loop heard of every batch."""

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Nothing to do."""

    def debug_string(self) -> str:
        return "the loop decides"


class _Watch(Callback):
    """Says when some workers have no place."""

    def __init__(self, bridge: _Bridge, gpus_per_worker: float) -> None:
        self._bridge = bridge
        self._gpus = gpus_per_worker
        self._each = f"1 CPU and {gpus_per_worker:g} GPU" if gpus_per_worker else "1 CPU"

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        with self._bridge.guarded():
            self._bridge.starting.look(self._room, self._each)

    def _room(self) -> int:
        """How many workers fit on all nodes together, if nobody else uses them."""
        return sum(fitting(node, self._gpus) for node in _nodes())


def _nodes() -> list[dict[str, float]]:
    """What each node that is there offers."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def fitting(offered: dict[str, float], gpus: float) -> int:
    """How many workers fit on a node that offers this; a share of a GPU is one of a single GPU."""
    cpus, cards = int(offered.get("CPU", 0)), offered.get("GPU", 0.0)
    if not gpus:
        return cpus
    # 1 / 0.1 is 10, whatever rounding makes of it.
    return min(cpus, int(cards) * int(1 / gpus + 1e-9) if gpus < 1 else int(cards / gpus))


class _Stopper(Stopper):
    """Ends Tune when nothing is left to answer, even where workers still wait for a place."""

    def __init__(self, bridge: _Bridge) -> None:
        self._bridge = bridge

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._bridge.over


def _plain(work: Work) -> dict[str, Any]:
    """What a worker is told."""
    return {
        "batches": [work.calls(index) for index in range(len(work.batches))],
        "references": dict(work.references),
        "reshaped": work.reshaped,
    }


def _trial_name(trial: Trial) -> str:
    return str(trial.trial_id)


def _reason(trial: Trial) -> tuple[str, FailureKind]:
    """What a person wants to know of a failed attempt, and the loop: the exception, or that the process is
    gone.

    Errors: NotFiniteError where the attempt raised it: asked again, the question would raise it again.
    """
    # Tune's own reading of these files looks in the storage, where they arrive later.
    if trial.pickled_error_file is None or not Path(trial.pickled_error_file).is_file():
        return "Ray gives no reason", "killed"
    error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
    if isinstance(error, RayTaskError):
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if isinstance(cause, NotFiniteError):
            raise cause
        return f"{type(cause).__name__}: {cause}", _end(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "creation task" in lines[0]:
        return lines[-1], "killed"
    return "its worker process died (killed, or out of memory)", "killed"


def _end(error: BaseException) -> FailureKind:
    if is_out_of_memory(error):
        return "out_of_memory"
    # An error of the GPU itself: nothing works any more in that process, so it is as good as dead.
    return "killed" if type(error).__name__ == "AcceleratorError" else "raised"


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray's and Tune's own reports would tear the progress bars apart."""
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
    """Ray on this machine for several runs, which else start and end their own."""
    with _quiet(), _ray(workers, 0.0, None):
        yield


@contextmanager
def _ray(workers: int, gpus_per_worker: float, address: str | None) -> Iterator[None]:
    """A connection to Ray; one that was there before is used and left as it is."""
    ours = not ray.is_initialized()
    # Set in a process that `ray job submit` started.
    address = address or os.environ.get("RAY_ADDRESS")
    if ours and address is not None:
        _connect(address)
    elif ours:
        ray.init(
            # Never a cluster that happens to run on this machine: that is what `--address auto` is for.
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
                f"A worker wants {gpus_per_worker:g} GPUs, but Ray offers {offered:g} on one machine at most."
            )
        yield
    finally:
        if ours:
            ray.shutdown()


def _connect(address: str) -> None:
    """Errors: UserError when there is no cluster, or it does not let us in."""
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
        # Ray tells of a refusal in the text of the cause only.
        if AuthenticationError.__name__ in str(error.__cause__):
            raise _locked(address) from error
        raise UserError(f"There is no Ray cluster at {address!r}: {error}") from error


def _locked(address: str) -> UserError:
    return UserError(
        f"The Ray cluster at {address!r} lets nobody in without its token: set RAY_AUTH_MODE=token, and "
        "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH where the token is not in ~/.ray/auth_token. (A cluster that "
        "starts where that file lies wants it, and Ray writes one when it first runs on a machine.)"
    )


def _knock(address: str) -> None:
    """Ray tries for two minutes, without a word, where nobody answers."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # such as auto, which Ray looks up
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"There is no Ray cluster at {address!r}: {error}") from error
