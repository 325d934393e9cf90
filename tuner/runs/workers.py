"""The workers of a run: whatever needs the study's model is done by them, through an executor.

The driver loads no model and needs no GPU, unless it is itself the only worker (`--workers 1`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.errors import ModelError
from tuner.errors import UserError
from tuner.evaluation.call_loop import CallLoop
from tuner.evaluation.description import Computing, ModelDescription
from tuner.evaluation.evaluator import EncodedVideo, Executor
from tuner.evaluation.progress import Progress
from tuner.evaluation.tasks import Call, Work
from tuner.records.measurements import CacheUse


class Workers:
    """Processes that hold the study's model. None starts, and nothing is loaded, before there is work."""

    def __init__(self, executor: Executor, progress: Progress) -> None:
        self._executor = executor
        self._progress = progress
        self._description: ModelDescription | None = None
        # Of the encoding.
        self.cache_use = CacheUse()

    @property
    def described(self) -> bool:
        """Whether a worker was asked what its model is."""
        return self._description is not None

    def run(self, work: Work[Any]) -> None:
        """Runs work to its end, or until a person interrupts it.

        Errors: UserError where the model cannot be loaded, or computes otherwise than the study's.
        """
        try:
            with _interruptible(work, self._progress):
                self._executor.run(work)
        except ModelError as error:
            raise UserError(str(error)) from error

    def run_whole(self, work: Work[Any]) -> None:
        """As `run`. Errors: KeyboardInterrupt, too, where a person ended it."""
        self.run(work)
        if work.interrupted:
            raise KeyboardInterrupt

    def describe(self) -> ModelDescription:
        """What the first worker says of its model: later ones have to compute as it does."""
        if self._description is None:
            found: list[ModelDescription] = []

            def take(_: Call, results: list[ModelDescription]) -> None:
                found.extend(results)

            self._progress.started("loading the model", None)
            self.run_whole(
                CallLoop("Loading the model", None, [[Call("describe", {})]], take, progress=self._progress)
            )
            (self._description,) = found
            self._executor.require(self._description.computing)
        return self._description

    def encode(self, videos: Mapping[str, Sequence[str]]) -> dict[str, EncodedVideo]:
        """What planning needs of videos: by absolute path, for the ids of the questions about each."""
        found: dict[str, EncodedVideo] = {}

        def take(call: Call, results: list[EncodedVideo]) -> None:
            (found[call.arguments["video"]],) = results

        def give_up(call: Call, reason: str) -> None:
            path = call.arguments["video"]
            found[path] = EncodedVideo("", {}, f"video {path} could not be encoded: {reason}")

        calls = [Call("encode", {"video": path, "questions": tuple(ids)}) for path, ids in videos.items()]
        loop = CallLoop(
            "Encoding",
            "encoding",
            [[call] for call in calls],
            take,
            give_up=give_up,
            progress=self._progress,
        )
        self.run_whole(loop)
        self.cache_use += loop.cache_use
        return found

    def require(self, computing: Computing) -> None:
        """See `Executor.require`."""
        self._executor.require(computing)

    def expect(self, contents: Mapping[str, str]) -> None:
        """See `Executor.expect`."""
        self._executor.expect(contents)

    def close(self) -> None:
        """Ends them."""
        self._executor.close()


@contextmanager
def _interruptible(work: Work[Any], progress: Progress) -> Iterator[None]:
    """The first Ctrl-C ends the batches in flight and keeps them, the second ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        if work.interrupted:
            raise KeyboardInterrupt
        work.interrupt()
        progress.message("Ending the batch in flight; Ctrl-C again ends at once.")

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
