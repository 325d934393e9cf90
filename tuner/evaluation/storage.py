"""Where encoded videos are kept, and how workers on other machines get them and the videos.

A storage is a folder, or a URL that fsspec knows, such as s3://bucket/prefix. What lies elsewhere than on a
machine's own disk or a shared volume is kept there, too, in the user's cache folder: each machine reads it
once. Encoded videos are stored under a hash of the video's bytes and of all that encodes them. So an entry is
written once and never changes, it does not matter who wrote it, and two workers that encode the same video at
the same time write the same.

Videos themselves are in no storage: each is decoded once in a cluster, by one worker. A worker that does not
see the file gets a copy from the driver's machine (`DriverFiles`), and deletes it when it is decoded.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from pipeline.cache import FeatureCache, pack, unpack
from pipeline.errors import VideoError
from pipeline.hashes import user_cache
from tuner.errors import DiskFullError, UserError, is_full, without_passwords

if TYPE_CHECKING:
    import torch
    from tenacity import Retrying

# Seconds for which a storage that fails is asked again (before a run begins: less), and after which it is
# then asked anew.
PATIENCE = 120.0
PATIENCE_AT_FIRST = 30.0
PAUSE = 300.0

# By URL scheme, for fsspec. botocore would wait for minutes for a server that is cut off, several times over.
_OPTIONS = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 20, "retries": {"total_max_attempts": 1}}}
}

# Bytes of a video that travel at once.
PART = 16 * 2**20

# Copies of videos older than this many seconds were left by processes that were killed.
_ABANDONED_AFTER = 86_400.0
_COPIES = "adatp-video-"

# In a folder of encoded videos: by its content a worker knows that it sees the driver's folder.
_ID = "folder.id"

Value = TypeVar("Value")


class DriverFiles(Protocol):
    """Files of the driver's machine, for workers on other machines."""

    def content_hash(self, video: str) -> str:
        """SHA-256 of a video's bytes, by its absolute path. Errors: VideoError."""

    def part(self, video: str, start: int) -> bytes:
        """Up to `PART` bytes of a video, from `start` on; none at its end. Errors: OSError."""

    def read(self, key: str) -> bytes | None:
        """An encoded video, as a file of `FeatureCache`, or None."""

    def write(self, key: str, data: bytes) -> None:
        """Keeps an encoded video."""


class _Clips(Protocol):
    """Encoded videos elsewhere, as files of `FeatureCache`."""

    def read(self, key: str) -> bytes | None: ...

    def write(self, key: str, data: bytes) -> None: ...


def is_url(storage: str) -> bool:
    """Whether it is no folder that this machine may see."""
    return "://" in storage


def normal(storage: str | Path) -> str:
    """A URL as it is; a folder's absolute path."""
    text = str(storage)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return text if is_url(text) else str(Path(text).expanduser().absolute())


def check_storage(storage: str | None) -> list[str]:
    """What is wrong with this place for encoded videos, in sentences; a storage is asked."""
    if storage is None:
        return []
    if (problems := _misnamed(storage)) or not is_url(storage := normal(storage)):
        return problems
    try:
        ObjectStorage(storage).check()
    except UserError as error:
        return list(error.problems)
    return []


def try_storage(storage: str) -> str:
    """What a small file met there that was written, read and deleted, in words.

    Errors: UserError where it could not be written or read.
    """
    if problems := _misnamed(storage):
        raise UserError(problems)
    if is_url(place := normal(storage)):
        kept = ObjectStorage(place).check(f"tried-{uuid.uuid4().hex}", patience=0.0, delete=True)
        return f"{place} can be written and read{f'; what was tried stays as {kept}' if kept else ''}"
    folder = Path(place)
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{there} cannot be written: {error.strerror}") from error
    return (
        f"{folder} can be written" if there == folder else f"{folder} is not there yet: `tuner run` makes it"
    )


def _misnamed(storage: str) -> list[str]:
    """What is wrong with its name alone."""
    if re.match(r"[a-z][a-z0-9+.-]+:", storage) and not is_url(storage):
        return [f"--storage is a folder or a URL such as s3://bucket/prefix, but got {storage!r}"]
    if not is_url(storage := normal(storage)):
        found = Path(storage)
        return [f"--storage is a folder or a URL, but {found} is a file"] if found.is_file() else []
    if without_passwords(storage) != storage:
        told = f"--storage {without_passwords(storage)} has a password in it, which others see: credentials "
        return [f"{told}belong into the environment or the files that the storage's own client reads"]
    return []


def folder_id(folder: str | Path, *, create: bool = False) -> str | None:
    """What tells this folder from one of the same name on another machine; None where it has none yet, or
    cannot be read. create: make folder and id where they are missing.
    """
    file = Path(folder) / _ID
    with suppress(OSError):
        if create and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError), file.open("x", encoding="utf-8") as stream:
                stream.write(uuid.uuid4().hex)
        return file.read_text(encoding="utf-8") or None
    return None


class DispensableCache(FeatureCache):
    """A cache of features that the study can do without: on a full disk they are computed when needed."""

    _told = False

    def put_bytes(self, key: str, data: bytes) -> None:
        """As `FeatureCache.put_bytes`, but a failed write is a warning, given once."""
        try:
            super().put_bytes(key, data)
        except OSError as error:
            if not self._told:
                warn_of_room(self.directory, error)
            self._told = True


class SharedCache:
    """Encoded videos that are kept elsewhere, for all machines, and in a folder of this one."""

    def __init__(self, local: FeatureCache, elsewhere: _Clips) -> None:
        self._local = local
        self._elsewhere = elsewhere

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors stored under `key`, on the CPU, or None. What is damaged counts as absent."""
        found = self._local.get(key)
        if found is not None:
            return found
        data = self._elsewhere.read(key)
        if data is None:
            return None
        try:
            found = unpack(data)
        except ValueError:
            return None
        self._local.put_bytes(key, data)
        return found

    def put(
        self, key: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Store tensors under `key`, here and elsewhere."""
        data = pack(tensors, metadata)
        self._local.put_bytes(key, data)
        self._elsewhere.write(key, data)


def machine_cache(max_bytes: int) -> FeatureCache:
    """Where this machine keeps encoded videos of a storage: in the user's cache folder."""
    try:
        folder = user_cache()
    except RuntimeError:  # the user has no home
        folder = Path(tempfile.gettempdir()) / "adatp"
    return DispensableCache(folder / "features", max_bytes)


class ObjectStorage:
    """Encoded videos under a URL that fsspec knows. None is ever deleted there, and nothing is listed.

    A storage that fails is asked again, with growing pauses, for `patience` seconds. After that the study
    goes on without it, with a warning, and for `PAUSE` seconds it is not asked. An object storage shows an
    object whole or not at all; elsewhere readers notice by the checksum what is not complete yet.
    """

    def __init__(
        self, url: str, *, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Errors: UserError where fsspec does not know such URLs, or lacks a package for them."""
        import fsspec

        self.url = url
        self._patience = patience
        self._clock = clock
        self._not_before = clock()
        scheme = url.partition("://")[0]
        # aiohttp's tasks that a lost connection leaves behind would print tracebacks of what is tried again.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        try:
            self._files, self._root = fsspec.core.url_to_fs(url, **_OPTIONS.get(scheme, {}))
        except ImportError as error:
            how = "pip install 'adatp-tuner[s3]'" if scheme == "s3" else str(error)
            raise UserError(f"--storage {url} needs a package that is not installed: {how}") from error
        except ValueError as error:
            raise UserError(f"--storage {url} is no folder and no URL that fsspec knows: {error}") from error

    def read(self, key: str) -> bytes | None:
        """See `DriverFiles.read`; None, too, while the storage does not answer."""
        path = self._path(key)

        def read() -> bytes | None:
            try:
                data: bytes = self._files.cat_file(path)
            # S3 refuses what is missing where nothing may be listed. `check` has seen that what is there
            # may be read.
            except (FileNotFoundError, PermissionError):
                return None
            return data

        return self._asked(read)

    def write(self, key: str, data: bytes) -> None:
        """See `DriverFiles.write`; nothing is kept while the storage does not answer."""
        path = self._path(key)
        self._asked(lambda: self._files.pipe_file(path, data))

    def check(
        self, key: str = "writable", *, patience: float = PATIENCE_AT_FIRST, delete: bool = False
    ) -> str | None:
        """Writes a few bytes and reads them. delete: deletes them, too; their path where that is refused, for
        nothing else here needs it.

        Errors: UserError where nothing can be written or read there now.
        """
        path = self._path(key)

        def try_it() -> None:
            self._files.pipe_file(path, b"written to be read")
            self._files.cat_file(path)

        try:
            _attempts(patience)(try_it)
        except Exception as error:
            raise UserError(
                f"--storage {self.url} cannot be used: {_said(error)}. Allowed is a place that exists, where "
                "objects may be read and written."
            ) from error
        if delete:
            try:
                self._files.rm_file(path)
            except Exception:  # noqa: BLE001 - each client has its own errors
                return path
        return None

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}.safetensors"

    def _asked(self, function: Callable[[], Value]) -> Value | None:
        """The function's value; None where it keeps failing."""
        if self._clock() < self._not_before:
            return None
        try:
            return _attempts(self._patience)(function)
        except Exception as error:  # noqa: BLE001 - each client has its own errors
            self._not_before = self._clock() + PAUSE
            _warn(
                "The storage %s does not answer, and videos are encoded where they are needed; it is asked "
                "again in %.0f minutes: %s",
                self.url,
                PAUSE / 60,
                _said(error),
            )
            return None


@contextmanager
def copied(files: DriverFiles, video: str, digest: str) -> Iterator[Path]:
    """A copy of a video of the driver's machine, for as long as the context lasts.

    Errors: VideoError if its bytes have another hash than `digest`; DiskFullError.
    """
    place = Path(tempfile.gettempdir())
    for left in place.glob(f"{_COPIES}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_AFTER:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=_COPIES) as folder:
        copy = Path(folder) / Path(video).name
        found = hashlib.sha256()
        try:
            with copy.open("wb") as file:
                while part := files.part(video, file.tell()):
                    found.update(part)
                    file.write(part)
        except OSError as error:
            if not is_full(error):
                raise
            raise DiskFullError.of(f"a copy of the video {video} to {place}", error.strerror) from error
        if found.hexdigest() != digest:
            raise other_bytes(video)
        yield copy


def other_bytes(video: str) -> VideoError:
    """A video is not the one that was asked for."""
    return VideoError(
        f"video {video} is not the file that the study was recorded with: its bytes differ.", video
    )


def _attempts(seconds: float) -> Retrying:
    """Calls a function until it raises no error, for so long at most; the last error is passed on."""
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    return Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_delay(seconds),
        wait=wait_random_exponential(multiplier=0.5, max=10),
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    """Neither a refusal, nor a bucket that is gone, nor credentials that nobody gave."""
    return not isinstance(error, PermissionError | FileNotFoundError) and type(error).__name__ not in (
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
    )


def _said(error: Exception) -> str:
    return without_passwords(str(error).strip() or type(error).__name__).rstrip(".")


def warn_of_room(folder: str | Path, error: OSError) -> None:
    """Encoded videos find no room in this folder."""
    text = "Vision features cannot be stored in %s; videos are encoded whenever they are needed: %s"
    _warn(text, folder, error)


def _warn(text: str, *values: object) -> None:
    logging.getLogger("tuner").warning(text, *values)
