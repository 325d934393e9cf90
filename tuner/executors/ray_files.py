"""Files of the driver's machine for workers on machines that do not see its disk.

An actor on the driver's machine reads them and keeps what workers encode; Ray carries the bytes, and spills
them to disk where memory is short.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cache import FeatureCache
from pipeline.video import content_hash
from tuner.evaluation.evaluator import EvaluatorFactory, EvaluatorSpec
from tuner.evaluation.storage import PART, folder_id, is_url, warn_of_room

# Requests that are served at a time.
_AT_A_TIME = 8

# Seconds within which one has to be: many workers may wait for one disk.
_ANSWER = 600.0


@contextmanager
def served(factory: EvaluatorFactory) -> Iterator[EvaluatorFactory]:
    """The factory for workers that may lack the driver's files, which they can ask for in this context."""
    if not isinstance(factory, EvaluatorSpec):
        yield factory
        return
    folder = None if factory.storage is None or is_url(factory.storage) else factory.storage
    here = ray.get_runtime_context().get_node_id()
    actor: Any = ray.remote(_Server)
    server = actor.options(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=3,
        max_concurrency=_AT_A_TIME,
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
    ).remote(frozenset(factory.videos.values()), folder, factory.cache_bytes)
    try:
        seen = None if folder is None else folder_id(folder, create=True)
        yield replace(factory, driver=_Files(server, folder), folder_id=seen)
    finally:
        with suppress(RayError):  # the cluster is gone, and the server with it
            ray.kill(server)


class _Server:
    """`DriverFiles` on the driver's machine. Of videos it reads the study's only."""

    def __init__(self, videos: frozenset[str], folder: str | None, max_bytes: int) -> None:
        self._videos = videos
        self._cache = None if folder is None else FeatureCache(folder, max_bytes)

    def content_hash(self, video: str) -> str:
        return content_hash(self._known(video))

    def part(self, video: str, start: int) -> bytes:
        with Path(self._known(video)).open("rb") as file:
            file.seek(start)
            return file.read(PART)

    def read(self, key: str) -> bytes | None:
        return None if self._cache is None else self._cache.get_bytes(key)

    def write(self, key: str, data: bytes) -> None:
        if self._cache is not None:
            self._cache.put_bytes(key, data)

    def _known(self, video: str) -> str:
        if video not in self._videos:
            raise ValueError(f"{video} is no video of the study")
        return video


class _Files:
    """`DriverFiles` in a worker."""

    def __init__(self, server: Any, folder: str | None) -> None:
        self._server = server
        self._folder = folder
        self._told = False

    def content_hash(self, video: str) -> str:
        found: str = self._ask("content_hash", video)
        return found

    def part(self, video: str, start: int) -> bytes:
        found: bytes = self._ask("part", video, start)
        return found

    def read(self, key: str) -> bytes | None:
        found: bytes | None = self._ask("read", key)
        return found

    def write(self, key: str, data: bytes) -> None:
        try:
            self._ask("write", key, data)
        except OSError as error:
            if not self._told:
                warn_of_room(f"{self._folder} on the driver's machine", error)
            self._told = True

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return ray.get(getattr(self._server, method).remote(*arguments), timeout=_ANSWER)
        except RayTaskError as error:
            # The server's own error, such as a VideoError; Ray's has a traceback for its text.
            if isinstance(error.cause, Exception):
                raise error.cause from None
            raise
