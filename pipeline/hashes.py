"""SHA-256 of files, each read once per machine: a small file in the user's cache folder keeps the hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from pathlib import Path

# Bytes of a file; smaller ones are read in hundredths of a second.
_KEPT_FROM = 2**24

# Nanoseconds for which a file must have been left alone before its hash is kept: times of files are only as
# fine as the system's clock tick, so a file just written may be written again without another time.
_SETTLED = 2 * 10**9

# Files of the Hugging Face cache that were uploaded as large files are named by their SHA-256.
_BLOB = re.compile(r"[0-9a-f]{64}")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    A file in the Hugging Face cache is named by its hash and not read. The hash of another large file is kept
    for as long as its path, size, times and inode stay the same. Errors: OSError when it cannot be read.
    """
    real = path.resolve()
    if path.is_symlink() and real.parent.name == "blobs" and _BLOB.fullmatch(real.name):
        real.stat()  # a link may lead nowhere
        return real.name
    with real.open("rb") as stream:
        status = os.fstat(stream.fileno())
        if status.st_size < _KEPT_FROM:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        key = str(real)
        state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        entry = _kept().get(key)
        if isinstance(entry, list) and entry[:-1] == state and _BLOB.fullmatch(str(entry[-1])):
            return str(entry[-1])
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED:
        _keep(key, [*state, found])
    return found


def user_cache() -> Path:
    """The folder of what this user keeps on this machine. Errors: RuntimeError: the user has no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adatp"


def _file() -> Path:
    return user_cache() / "hashes.json"


def _kept() -> dict[str, object]:
    """Size, times, inode and hash by path; empty where nothing is kept, or what is kept is damaged."""
    try:
        kept = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: the user has no home
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(path: str, entry: list[int | str]) -> None:
    """Adds an entry. Where two processes do at a time, one of the two is lost, and hashed again next time."""
    # Not for ever: files come and go.
    entries = {path: kept for path, kept in _kept().items() if Path(path).exists()} | {path: entry}
    with contextlib.suppress(OSError, RuntimeError):
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(suffix=".unfinished", dir=file.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(entries, stream)
            Path(unfinished).replace(file)
        except BaseException:
            Path(unfinished).unlink(missing_ok=True)
            raise
