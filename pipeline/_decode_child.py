"""The process that decodes for `pipeline.video.Decoder`: a script that imports nothing of the package.

Decoders hang, spin and crash on some files, and only ending their process stops them. Requests come as one
JSON line each on standard input, `{"do": ..., "path": ..., "frames": ...}`; each is answered on standard
output by one JSON line, `{"ok": true, ...}` or `{"ok": false, "reason": ...}`, followed by the frames as raw
bytes where there are any. Standard output is ours alone: what libraries print goes to standard error. When
standard input closes, the process ends at once, even in the middle of a decoder that never returns, so
nothing is left behind when the parent is killed.

Two libraries read. decord is the fast one, but it returns neighbours of the frames asked for when it has to
seek in streams whose key frames are followed by frames that are shown before them (open GOPs, x265's
default), and in containers without an exact index (seen with MPEG-TS and AVI). Such files, and codecs decord
does not know (AV1), are read by PyAV, which seeks by time stamp. Times count from the first frame and come
from the container's own stamps.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

try:
    import decord
except (ImportError, OSError, RuntimeError):  # no wheel for arm64; or a library it was built for is missing
    decord = None

# Containers whose index decord seeks by exactly.
DECORD_CONTAINERS = ("mov", "mp4", "matroska", "webm")


class UnreadableError(Exception):
    """Why a video cannot be read: the end of a sentence that begins with its name."""


class Frames(NamedTuple):
    """What a reader returns."""

    pixels: NDArray[np.uint8]  # (n, H, W, 3), RGB, upright
    times: NDArray[np.float64]  # (n,), seconds after the first frame


@dataclass(frozen=True)
class Inspected:
    """What the container says of its video stream, without decoding anything."""

    total: int
    codec: str
    seconds: float
    stamps: tuple[int, ...] | None  # time stamps of all frames in the order shown; None: not usable
    key_stamps: tuple[int, ...]
    time_base: float  # seconds per tick of a stamp
    frame_seconds: float
    decord_is_exact: bool

    @property
    def readers(self) -> tuple[str, ...]:
        """Names of the readers to try, the best first."""
        return tuple(READERS) if self.decord_is_exact and decord is not None else ("pyav",)

    def times(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seconds after the first frame."""
        if self.stamps is None:
            return indices.astype(np.float64) * self.frame_seconds
        stamps = np.asarray(self.stamps, dtype=np.float64)
        times: NDArray[np.float64] = (stamps[indices] - stamps[0]) * np.float64(self.time_base)
        return times


def sample(total: int, count: int) -> NDArray[np.int64]:
    """Indices of `count` frames of `total`, spread evenly, the first and the last included."""
    indices: NDArray[np.int64] = np.linspace(0, total - 1, count, dtype=int)
    return indices


@lru_cache(maxsize=1)
def inspect(path: str) -> Inspected:
    """Read the container from end to end: what is in it, and whether it is all there."""
    try:
        container = av.open(path)
    except FFmpegError as error:
        raise UnreadableError(_why_it_does_not_open(path, error)) from error
    with container:
        stream = _video_stream(container)
        declared = stream.frames
        # Matroska declares no number of frames: there the end of the last packet of any stream must reach the
        # declared end of the file.
        streams = [stream] if declared else list(container.streams)
        stamps: list[int | None] = []
        key_stamps: list[int] = []
        newest_key: int | None = None
        shown_before_key = False
        whole = 0
        end = 0.0
        for packet in container.demux(streams):
            if not packet.size:
                continue
            if packet.pts is not None and packet.time_base is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            whole += not packet.is_corrupt  # a packet cut off by the end of the file is marked corrupt
            if packet.is_discard:
                continue
            stamps.append(packet.pts)
            if packet.pts is None:
                continue
            if packet.is_keyframe:
                newest_key = packet.pts
                key_stamps.append(packet.pts)
            elif newest_key is not None and packet.pts < newest_key:
                shown_before_key = True
        if declared > whole and _frames_outside_edit_list(path) < declared:
            raise UnreadableError(f"is truncated: {whole} of its {declared} frames are there")
        missing = (container.duration or 0) / av.time_base - end
        if "matroska" in container.format.name and missing > max(0.5, 0.05 * end):
            raise UnreadableError(f"is truncated: it ends {missing:.1f} seconds early")
        if not stamps:
            raise UnreadableError("holds no video frames")
        known = [stamp for stamp in stamps if stamp is not None]
        usable = len(set(known)) == len(stamps)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        return Inspected(
            total=len(stamps),
            codec=stream.codec.canonical_name,
            seconds=len(stamps) / rate,
            stamps=tuple(sorted(known)) if usable else None,
            key_stamps=tuple(sorted(key_stamps)),
            time_base=float(stream.time_base or 0),
            frame_seconds=1 / rate,
            decord_is_exact=(
                usable
                and not shown_before_key
                and any(name in DECORD_CONTAINERS for name in container.format.name.split(","))
            ),
        )


def _why_it_does_not_open(path: str, error: FFmpegError) -> str:
    with Path(path).open("rb") as file:
        start = file.read(12)
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide") or start[:4] in (
        b"\x1aE\xdf\xa3",
        b"RIFF",
    ):
        return "is truncated or damaged: it begins like a video, but its index is missing"
    return f"is not a video file ({error.strerror})"


def _video_stream(container: Any) -> Any:
    stream = container.streams.best("video")
    # ffmpeg shows cover pictures of music, and text files, as videos.
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise UnreadableError("holds no video stream")
    if container.format.name == "tty":
        raise UnreadableError("is a text file, not a video")
    return stream


def _frames_outside_edit_list(path: str) -> int:
    """Count of whole frames without regard to an edit list, which may hide frames that are there."""
    with av.open(path, options={"ignore_editlist": "1"}) as container:
        stream = container.streams.best("video")
        return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_corrupt)


def read_decord_batch(path: str, count: int) -> Frames:
    """Use decord in one call: fastest, but spins for ever on some files."""
    return _read_decord(path, count, lambda reader, indices: reader.get_batch(indices).asnumpy())


def read_decord_each(path: str, count: int) -> Frames:
    """Use decord frame by frame: comes through on files on which `get_batch` does not."""
    return _read_decord(
        path, count, lambda reader, indices: np.stack([reader[index].asnumpy() for index in indices])
    )


def _read_decord(path: str, count: int, read: Callable[[Any, list[int]], NDArray[np.uint8]]) -> Frames:
    inspected = inspect(path)
    # fault_tol: any frame decord had to replace by a neighbour is an error; by default it does so silently.
    # num_threads and del: an idle reader goes on decoding ahead.
    reader = decord.VideoReader(path, num_threads=1, fault_tol=0)
    try:
        total = len(reader)
        if total != inspected.total:
            raise RuntimeError(f"decord counts {total} frames, the container {inspected.total}")
        indices = sample(total, count)
        pixels = read(reader, indices.tolist())
        if (
            pixels.shape[-1] != 3
        ):  # it takes the padding of very narrow rows (16, 48 pixels) for a fourth colour
            raise RuntimeError(f"decord returned frames of shape {pixels.shape[1:]}")
        return Frames(pixels, inspected.times(indices))
    finally:
        del reader


def read_pyav(path: str, count: int) -> Frames:
    """Use PyAV: seek by time stamp where the container has usable ones, else decode all frames in order."""
    inspected = inspect(path)
    pixels = None
    if inspected.stamps is not None:
        pixels = _read_stamps(path, [inspected.stamps[i] for i in sample(inspected.total, count)], inspected)
    if pixels is not None:
        return Frames(pixels, inspected.times(sample(inspected.total, count)))
    total = _count_frames(path)
    indices = sample(total, count)
    pixels = _read_indices(path, indices.tolist())
    if total == inspected.total:
        return Frames(pixels, inspected.times(indices))
    return Frames(pixels, indices.astype(np.float64) * inspected.frame_seconds)


def _read_stamps(path: str, wanted: list[int], inspected: Inspected) -> NDArray[np.uint8] | None:
    """Frames shown at these stamps, ascending; None where the decoder's stamps are not the container's."""
    out = _Pixels(len(wanted))
    with av.open(path) as container:
        stream = _video_stream(container)
        decoded = _decode(container, stream, inspected)
        frame: Any = None
        for stamp in wanted:
            # Seeking pays only over a key frame that is still ahead.
            key = bisect_right(inspected.key_stamps, stamp) - 1
            if frame is not None and key >= 0 and inspected.key_stamps[key] > frame.pts:
                container.seek(inspected.key_stamps[key], stream=stream)
                decoded = _decode(container, stream, inspected)
                frame = None
            while frame is None or frame.pts is None or frame.pts < stamp:
                frame = next(decoded, None)
                if frame is None:
                    return None
            if frame.pts != stamp:
                return None
            out.add(frame)
    return out.array


def _read_indices(path: str, wanted: list[int]) -> NDArray[np.uint8]:
    out = _Pixels(len(wanted))
    with av.open(path) as container:
        for index, frame in enumerate(_decode(container, _video_stream(container), None)):
            while out.filled < len(wanted) and wanted[out.filled] == index:
                out.add(frame)
    return out.array


def _count_frames(path: str) -> int:
    with av.open(path) as container:
        total = sum(1 for _ in _decode(container, _video_stream(container), None))
    if total == 0:
        raise UnreadableError("holds no video frames that can be decoded")
    return total


def _decode(container: Any, stream: Any, inspected: Inspected | None) -> Iterator[Any]:
    """Frames from the present position on; a packet that cannot be decoded makes the video a damaged one."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except FFmpegError as error:
            where = ""
            if inspected is not None and inspected.stamps is not None and packet.pts is not None:
                second = (packet.pts - inspected.stamps[0]) * inspected.time_base
                where = f" near second {second:.1f}"
            raise UnreadableError(f"is damaged: it cannot be decoded{where} ({error.strerror})") from error


class _Pixels:
    """The array under construction: allocated when the first frame tells its size, filled in order."""

    def __init__(self, count: int) -> None:
        self.filled = 0
        self._count = count
        self._array: NDArray[np.uint8] | None = None
        self._size = (0, 0)
        self._source: Any = None

    def add(self, frame: Any) -> None:
        """Append a frame, turned upright."""
        if (
            self._array is not None and frame is self._source
        ):  # fewer frames than asked for: the same one again
            self._array[self.filled] = self._array[self.filled - 1]
            self.filled += 1
            return
        if self._array is None:
            self._size = (frame.width, frame.height)
        width, height = self._size  # a stream may change its size midway: all frames take the first one's
        image = frame.to_ndarray(format="rgb24", width=width, height=height)
        image = np.rot90(image, round(frame.rotation / 90) % 4)
        if self._array is None:
            self._array = np.empty((self._count, *image.shape), np.uint8)
        self._array[self.filled] = image
        self.filled += 1
        self._source = frame

    @property
    def array(self) -> NDArray[np.uint8]:
        """(n, H, W, 3); raises UnreadableError while frames are missing."""
        if self._array is None or self.filled < self._count:
            raise UnreadableError("is damaged: fewer frames can be decoded the second time than the first")
        return self._array


READERS: dict[str, Callable[[str, int], Frames]] = {
    "decord_batch": read_decord_batch,
    "decord_each": read_decord_each,
    "pyav": read_pyav,
}


def answer(request: dict[str, Any]) -> tuple[dict[str, Any], NDArray[np.uint8] | None]:
    """The reply to one request: its header, and the frames to send after it."""
    path = request["path"]
    try:
        if request["do"] == "inspect":
            inspect.cache_clear()  # the file may have changed since
            inspected = inspect(path)
            return {
                "ok": True,
                "frames": inspected.total,
                "seconds": inspected.seconds,
                "codec": inspected.codec,
                "readers": inspected.readers,
            }, None
        frames = READERS[request["do"]](path, request["frames"])
    except UnreadableError as error:
        return {"ok": False, "reason": str(error)}, None
    except MemoryError:
        return {
            "ok": False,
            "reason": f"is too large: {request.get('frames')} of its frames do not fit the memory",
        }, None
    except Exception as error:  # noqa: BLE001
        # Whatever a library raises about a file becomes a sentence about that file, not this process's end.
        detail = " ".join(str(error).split())[:200]
        return {"ok": False, "reason": f"cannot be decoded ({type(error).__name__}: {detail})"}, None
    pixels = np.ascontiguousarray(frames.pixels, dtype=np.uint8)
    return {"ok": True, "shape": pixels.shape, "times": frames.times.tolist()}, pixels


def main() -> None:
    """Answer requests until standard input closes."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, requests), daemon=True).start()
    _send(replies, {"ok": True}, None)  # ready: what was slow about starting is over
    while True:
        _send(replies, *answer(json.loads(requests.get())))


def _receive(lines: BinaryIO, requests: queue.SimpleQueue[bytes]) -> None:
    for line in lines:
        requests.put(line)
    os._exit(0)


def _send(replies: BinaryIO, header: dict[str, Any], pixels: NDArray[np.uint8] | None) -> None:
    replies.write(json.dumps(header).encode() + b"\n")
    if pixels is not None:
        replies.write(pixels.data.cast("B"))
    replies.flush()


if __name__ == "__main__":
    main()
