"""Guarded decoding: evenly sampled frames of a video file, or one clear sentence on why there are none.

Decoding runs in a process of its own (`pipeline/_decode_child.py`), because decoders spin, hang and crash on
some files and only SIGKILL ends them. The first request starts the process, which takes about a second; it
serves any number of videos, and a killed one is replaced. It is no process of `multiprocessing`, which would
import the caller's `__main__` again, so that every user's script would need a guard.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError, VideoError
from pipeline.hashes import file_hash
from pipeline.resizing import FrameSize

# Seconds without progress after which decoding is given up.
TIMEOUT = 60.0

# Importing numpy, decord and PyAV takes a second; on a busy machine with a cold disk, many.
START_TIMEOUT = 120.0

# How files begin that name other files, or addresses, to read: HLS, FFmpeg's list of files, SDP. DASH is XML.
PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"v=0\r", b"v=0\n")


class DecodedVideo(NamedTuple):
    """Sampled frames of one video."""

    frames: NDArray[np.uint8]  # (n, H, W, 3), RGB, upright, resized where a size was given
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

    timeout: seconds without progress after which decoding is given up, beside what a slow machine needs for
    one step (reading the whole file, or decoding 32 frames of its size). A video may take any time as long as
    its decoding goes on. command: replaces the process, for tests.
    """

    def __init__(self, timeout: float = TIMEOUT, *, command: Sequence[str] | None = None) -> None:
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

    def read_frames(
        self, path: str | Path, frames: int, timeout: float | None = None, *, size: FrameSize | None = None
    ) -> DecodedVideo:
        """What the function `read_frames` describes; `timeout` replaces the decoder's for this video."""
        if frames < 1:
            raise ValueError(f"frames must be at least 1, but got {frames}.")
        file = check_file(path)
        with self._lock:
            reason = ""
            inspected = self._inspect(path, file, timeout)
            limit = self._limit(timeout) + inspected["allowance"]
            for reader in inspected["readers"]:
                request = {"do": reader, "path": file, "frames": frames, "size": size}
                try:
                    header, pixels = self._ask(request, "be decoded", limit)
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

    def _limit(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else timeout

    def _inspect(self, path: str | Path, file: str, timeout: float | None) -> dict[str, Any]:
        try:
            return self._ask({"do": "inspect", "path": file}, "be opened", self._limit(timeout))[0]
        except _FailedError as error:
            raise _video_error(path, str(error)) from error

    def _ask(
        self, request: dict[str, Any], aim: str, limit: float
    ) -> tuple[dict[str, Any], NDArray[np.uint8] | None]:
        """One request and its reply; any trouble ends the process, and the next request meets a fresh one.

        limit: seconds without progress.
        """
        self._start()
        try:
            header, pixels = self._exchange(request, limit)
        except TimeoutError as error:
            self._kill()
            raise _FailedError(
                f"could not {aim}: no progress for {limit:.1f} seconds (decode_timeout allows more)"
            ) from error
        except _EndedError:
            code = self._kill()
            raise _FailedError(f"could not {aim}: the decoder crashed on it (exit code {code})") from None
        except BaseException:
            # An interrupt in the middle of a reply: the rest of it must not answer the next request.
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
            self._receive_line(START_TIMEOUT)
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
        self, request: dict[str, Any], limit: float
    ) -> tuple[dict[str, Any], NDArray[np.uint8] | None]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError as error:
            raise _EndedError from error
        line = b""
        while not line:  # an empty line reports progress
            line = self._receive_line(limit)
        header: dict[str, Any] = json.loads(line)
        if "shape" not in header:
            return header, None
        pixels = np.empty(header["shape"], dtype=np.uint8)
        self._receive_into(pixels.data.cast("B"), limit)
        return header, pixels

    def _receive_line(self, limit: float) -> bytes:
        while b"\n" not in self._unread:
            chunk = os.read(self._wait(limit), 1 << 16)
            if not chunk:
                raise _EndedError
            self._unread += chunk
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _receive_into(self, target: memoryview, limit: float) -> None:
        filled = min(len(self._unread), len(target))
        target[:filled] = self._unread[:filled]
        self._unread = self._unread[filled:]
        while filled < len(target):
            count = os.readv(self._wait(limit), [target[filled:]])
            if not count:
                raise _EndedError
            filled += count

    def _wait(self, limit: float) -> int:
        """The descriptor to read from, once there is something to read; TimeoutError at the limit."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            if not selector.select(limit):
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


def read_frames(
    path: str | Path, frames: int, timeout: float = TIMEOUT, *, size: FrameSize | None = None
) -> DecodedVideo:
    """Sample `frames` frames evenly, the first and the last included.

    The indices are `np.linspace(0, total - 1, frames, dtype=int)`, as the field samples; a video with fewer
    frames repeats some. size: what frames are resized to, by the decoding process; None leaves them as they
    are. timeout: seconds without progress, as `Decoder` describes. Raises VideoError with one sentence that
    names the file and says what is wrong with it: missing, not readable, empty, truncated, no video stream,
    damaged, no progress. All callers share one decoding process, which ends with the interpreter.
    """
    return _shared_decoder().read_frames(path, frames, timeout, size=size)


def probe(path: str | Path, timeout: float = TIMEOUT) -> VideoInfo:
    """Count, length and codec of a video without decoding it; raises VideoError as `read_frames` does."""
    return _shared_decoder().probe(path, timeout)


@cache
def _shared_decoder() -> Decoder:
    decoder = Decoder()
    atexit.register(decoder.close)
    return decoder


def content_hash(path: str | Path) -> str:
    """SHA-256 of the file's bytes; raises VideoError when it cannot be read.

    A process reads a file once, and a machine a large file once, until its size or time of modification
    changes.
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
    return file_hash(Path(path))


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
