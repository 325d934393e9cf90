"""Guarded decoding: evenly sampled frames of a video file, or one clear sentence on why there are none.

Decoding runs in a process of its own (`pipeline/_decode_child.py`), because decoders spin, hang and crash on
some files and only SIGKILL ends them. The process is started by the first request (about a second), serves
any number of videos and is replaced after a kill. It is a plain subprocess and no `multiprocessing` one:
those import the caller's `__main__` again, so that every user's script would need a guard.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import selectors
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError, VideoError

# Importing numpy, decord and PyAV takes a second; on a busy machine with a cold disk, many.
START_TIMEOUT = 120.0

# How files begin that name other files, or addresses, to read: HLS, FFmpeg's list of files, SDP. DASH is XML.
PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"v=0\r", b"v=0\n")


class DecodedVideo(NamedTuple):
    """Sampled frames of one video."""

    frames: NDArray[np.uint8]  # (n, H, W, 3), RGB, upright
    times: NDArray[np.float64]  # (n,), seconds after the video's first frame
    seconds: float  # the video's length: from its first frame until the last one ends


class VideoInfo(NamedTuple):
    """What the container says, without decoding."""

    frames: int
    seconds: float
    codec: str


class _FailedError(Exception):
    """One request did not succeed; the message is the end of a sentence that begins with the file's name."""


class _EndedError(_FailedError):
    """The decoding process is gone."""


class Decoder:
    """Reads videos, one at a time, through one guarded process; a context manager, safe to share by threads.

    `timeout` is the number of seconds each attempt may take: inspecting the container, then each of up to
    three readers (decord in one call, decord frame by frame, PyAV). `command` replaces the process, for
    tests.
    """

    def __init__(self, timeout: float = 60.0, *, command: Sequence[str] | None = None) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be positive, but got {timeout}.")
        self.timeout = timeout
        # -P: the folder of the script, whose files have names like "video", stays out of the import path.
        self._command = command or (sys.executable, "-P", str(Path(__file__).with_name("_decode_child.py")))
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # process id of the starter: after a fork the pipes belong to the parent
        self._unread = b""

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; a later request starts another."""
        with self._lock:
            self._kill()

    def read_frames(self, path: str | Path, frames: int, timeout: float | None = None) -> DecodedVideo:
        """What the function `read_frames` describes; `timeout` replaces the decoder's for this video."""
        if frames < 1:
            raise ValueError(f"frames must be at least 1, but got {frames}.")
        file = check_file(path)
        with self._lock:
            reason = ""
            inspected = self._inspect(path, file, timeout)
            for reader in inspected["readers"]:
                request = {"do": reader, "path": file, "frames": frames}
                try:
                    header, pixels = self._ask(request, "be decoded", timeout)
                except _FailedError as error:
                    reason = str(error)
                    continue
                assert pixels is not None
                times = np.asarray(header["times"], dtype=np.float64)
                return DecodedVideo(pixels, times, header["seconds"])
            raise _video_error(path, reason)

    def probe(self, path: str | Path, timeout: float | None = None) -> VideoInfo:
        """Count, length and codec without decoding; VideoError for what is no video or is truncated."""
        file = check_file(path)
        with self._lock:
            header = self._inspect(path, file, timeout)
        return VideoInfo(header["frames"], header["seconds"], header["codec"])

    def _inspect(self, path: str | Path, file: str, timeout: float | None) -> dict[str, Any]:
        try:
            return self._ask({"do": "inspect", "path": file}, "be opened", timeout)[0]
        except _FailedError as error:
            raise _video_error(path, str(error)) from error

    def _ask(
        self, request: dict[str, Any], aim: str, timeout: float | None
    ) -> tuple[dict[str, Any], NDArray[np.uint8] | None]:
        """One request and its reply; any trouble ends the process, and the next request meets a fresh one."""
        self._start()
        seconds = self.timeout if timeout is None else timeout
        try:
            header, pixels = self._exchange(request, time.monotonic() + seconds)
        except TimeoutError as error:
            self._kill()
            raise _FailedError(f"could not {aim} within {seconds:g} seconds") from error
        except _EndedError:
            code = self._kill()
            raise _FailedError(f"could not {aim}: the decoder crashed on it (exit code {code})") from None
        except (
            BaseException
        ):  # an interrupt in the middle of a reply: the rest of it must not answer the next request
            self._kill()
            raise
        if not header["ok"]:
            raise _FailedError(header["reason"])
        return header, pixels

    def _start(self) -> None:
        if self._process is not None and self._owner != os.getpid():
            self._process = None  # the parent's process: not ours to end
        if self._process is not None and self._process.poll() is not None:
            self._kill()
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # ffmpeg's remarks on broken streams; what matters comes as an error
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the parent, which then closes standard input
        )
        self._owner = os.getpid()
        self._unread = b""
        try:
            self._receive_line(time.monotonic() + START_TIMEOUT)
        except (TimeoutError, _EndedError):
            code = self._kill()
            raise PipelineError(
                f"the video decoding process did not start (exit code {code}); running "
                f"{' '.join(self._command)!r} by hand shows why"
            ) from None
        except BaseException:
            self._kill()
            raise

    def _exchange(
        self, request: dict[str, Any], deadline: float
    ) -> tuple[dict[str, Any], NDArray[np.uint8] | None]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError as error:
            raise _EndedError from error
        header: dict[str, Any] = json.loads(self._receive_line(deadline))
        if "shape" not in header:
            return header, None
        pixels = np.empty(header["shape"], dtype=np.uint8)
        self._receive_into(pixels.data.cast("B"), deadline)
        return header, pixels

    def _receive_line(self, deadline: float) -> bytes:
        while b"\n" not in self._unread:
            chunk = os.read(self._wait(deadline), 1 << 16)
            if not chunk:
                raise _EndedError
            self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _receive_into(self, target: memoryview, deadline: float) -> None:
        filled = min(len(self._unread), len(target))
        target[:filled] = self._unread[:filled]
        self._unread = self._unread[filled:]
        while filled < len(target):
            count = os.readv(self._wait(deadline), [target[filled:]])
            if not count:
                raise _EndedError
            filled += count

    def _wait(self, deadline: float) -> int:
        """The descriptor to read from, once there is something to read; TimeoutError at the deadline."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
        return descriptor

    def _kill(self) -> int | None:
        """End the process and return its exit code."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        process.kill()
        code = process.wait()
        process.stdin.close()
        process.stdout.close()
        return code


def read_frames(path: str | Path, frames: int, timeout: float = 60.0) -> DecodedVideo:
    """Sample `frames` frames evenly, the first and the last included.

    The indices are `np.linspace(0, total - 1, frames, dtype=int)`, as the field samples; a video with fewer
    frames repeats some. Raises VideoError with one sentence that names the file and says what is wrong with
    it: missing, not readable, empty, truncated, no video stream, damaged, timed out. `timeout` is in seconds,
    for each attempt. All callers share one decoding process, which ends with the interpreter.
    """
    return _shared_decoder().read_frames(path, frames, timeout)


def probe(path: str | Path, timeout: float = 60.0) -> VideoInfo:
    """Count, length and codec of a video without decoding it; raises VideoError as `read_frames` does."""
    return _shared_decoder().probe(path, timeout)


@cache
def _shared_decoder() -> Decoder:
    decoder = Decoder()
    atexit.register(decoder.close)
    return decoder


def content_hash(path: str | Path) -> str:
    """SHA-256 of the file's bytes, read in pieces; raises VideoError when it cannot be read.

    A process reads a file once, until its size or its time of modification changes.
    """
    try:
        file = check_file(path)
        state = Path(file).stat()
        return _hashed(file, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise _video_error(path, f"cannot be read ({error.strerror})") from error


@lru_cache(maxsize=2**16)
def _hashed(path: str, size: int, modified: int) -> str:
    """Size and modified, in bytes and nanoseconds: by which a changed file is known."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: str | Path) -> str:
    """The absolute path of a readable file with something in it, which decoding may still find to be no
    video.

    Absolute, so that no decoder takes a name with a colon for a URL. Raises VideoError.
    """
    absolute = Path(path).absolute()
    try:
        state = absolute.stat()
        if stat.S_ISDIR(state.st_mode):
            raise _video_error(path, "is a folder, not a video file")
        if not stat.S_ISREG(state.st_mode):
            raise _video_error(path, "is not a regular file")
        with absolute.open("rb") as file:
            beginning = file.read(4096)
    except FileNotFoundError as error:
        raise _video_error(path, "is not there") from error
    except PermissionError as error:
        raise _video_error(path, "cannot be read: permission denied") from error
    except (OSError, ValueError) as error:
        raise _video_error(path, f"cannot be read ({error})") from error
    if state.st_size == 0:
        raise _video_error(path, "is empty")
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(PLAYLISTS) or (text.startswith(b"<") and b"<MPD" in text):
        raise _video_error(
            path,
            "is a playlist: the files that it names may change without a sign of it; allowed is one file "
            "that holds the whole video (`ffmpeg -i PLAYLIST -c copy VIDEO.mp4` makes it)",
        )
    return str(absolute)


def _video_error(path: str | Path, reason: str) -> VideoError:
    return VideoError(f"video {path} {reason}", path)
