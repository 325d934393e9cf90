"""A bounded cache of tensors on disk: vision features and embeddings, computed once and shared by all
processes.

One safetensors file per entry. Files appear whole or not at all (written under another name, then renamed),
so any number of processes may read and write one folder; the worst that a race costs is computing an entry
again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:  # importing this module must stay cheap: torch takes seconds
    import torch

_SUFFIX = ".safetensors"
_UNFINISHED = ".unfinished"
_CHECKSUM = "crc32"
# A file still unfinished after this many seconds was left by a process that was killed.
_ABANDONED_AFTER = 3600.0
_LARGEST_HEADER = 100_000_000  # as safetensors itself
_KEY = re.compile(r"[0-9A-Za-z_-]{1,200}")


class TensorCache(Protocol):
    """Where encoded videos are kept."""

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors stored under `key`, on the CPU, or None."""

    def put(
        self, key: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Store tensors under `key`, replacing what was there."""


class FeatureCache:
    """Tensors by key in a folder of at most `max_bytes` bytes; the entries longest unused go first.

    An entry is in use when it is written or read: its file's modification time says when that was last.
    """

    def __init__(self, directory: str | Path, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, but got {max_bytes}.")
        self.directory = Path(directory)
        self.max_bytes = max_bytes

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors stored under `key`, on the CPU, or None.

        A damaged file (cut short, or with bytes other than those written) counts as absent and is removed.
        """
        data = self.get_bytes(key)
        if data is None:
            return None
        try:
            return unpack(data)
        except ValueError:
            self._path(key).unlink(missing_ok=True)
            return None

    def get_bytes(self, key: str) -> bytes | None:
        """The file stored under `key`, which may be damaged, or None."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        _touch(path)
        return data

    def put(
        self, key: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Store tensors under `key`, replacing what was there, then make room.

        An entry larger than the whole cache is not stored. Raises OSError when the disk refuses.
        """
        self.put_bytes(key, pack(tensors, metadata))

    def put_bytes(self, key: str, data: bytes) -> None:
        """As `put`, of what `pack` made."""
        path = self._path(key)
        if len(data) > self.max_bytes:
            path.unlink(missing_ok=True)
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(suffix=_UNFINISHED, dir=self.directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            _touch(Path(unfinished))
            Path(unfinished).replace(path)
        except BaseException:
            Path(unfinished).unlink(missing_ok=True)
            raise
        self._make_room()

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    @property
    def size_bytes(self) -> int:
        """Bytes that all entries take on disk now."""
        return sum(size for _, size, _ in self._entries())

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"a key consists of letters, digits, '-' and '_', but got {key!r}")
        return self.directory / f"{key}{_SUFFIX}"

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(nanosecond of last use, bytes, path) of every entry; unfinished files of killed processes are
        removed.
        """
        entries = []
        try:
            files = list(os.scandir(self.directory))
        except FileNotFoundError:
            return []
        for file in files:
            try:
                state = file.stat()
            except FileNotFoundError:  # another process made room
                continue
            if file.name.endswith(_SUFFIX):
                entries.append((state.st_mtime_ns, state.st_size, Path(file.path)))
            elif file.name.endswith(_UNFINISHED) and time.time() - state.st_mtime > _ABANDONED_AFTER:
                Path(file.path).unlink(missing_ok=True)
        return entries

    def _make_room(self) -> None:
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def pack(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file with a checksum."""
    from safetensors.torch import save

    if metadata is not None and _CHECKSUM in metadata:
        raise ValueError(f"metadata must leave the name {_CHECKSUM!r} to the cache")
    # clone: safetensors refuses tensors that share memory, as slices of one tensor do.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data: bytes = save(plain, {**(metadata or {}), _CHECKSUM: _checksum(plain)})
    return data


def unpack(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors that `pack` was given, on the CPU. ValueError if the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, torch.Tensor] = load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if _metadata(io.BytesIO(data)).get(_CHECKSUM) != _checksum(tensors):
        raise ValueError("other bytes than those written")
    return tensors


def _metadata(file: BinaryIO) -> dict[str, str]:
    """The metadata of a safetensors file: a JSON header behind its length in eight bytes. ValueError if
    damaged.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > _LARGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(file.read(length))
    stored = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(stored, dict):
        raise ValueError("no metadata")
    return stored


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of all bytes; safetensors itself notices a missing end, but no changed bytes."""
    import torch

    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _touch(path: Path) -> None:
    now = (
        time.time_ns()
    )  # explicit: the kernel's own stamps are only as fine as its tick, too coarse to order uses
    with contextlib.suppress(FileNotFoundError):  # another process made room
        os.utime(path, ns=(now, now))
