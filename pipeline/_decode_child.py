"""The process that decodes for `pipeline.video.Decoder`: a script that imports nothing of the package.

Decoders hang, spin and crash on some files, and only ending their process stops them. Requests come as one
JSON line each on standard input, `{"do": ..., "path": ..., "frames": ...}`; each is answered on standard
output by one JSON line, `{"ok": true, ...}` or `{"ok": false, "reason": ...}`, followed by the frames as raw
bytes where there are any. Standard output is ours alone: what libraries print goes to standard error. When
standard input closes, the process ends at once, even in the middle of a decoder that never returns, so
nothing is left behind when the parent is killed.

Two libraries read. decord is the fast one, but it returns neighbours of the frames asked for when it has to
seek in streams whose key frames are followed by frames that are shown before them (open GOPs, x265's
default), and in containers without an exact index (seen with MPEG-TS and AVI); it mirrors nothing, and
chooses for itself among several video streams. Such files, and codecs decord does not know (AV1), are read
by PyAV, which seeks by time stamp. Times count from the first frame and come from the container's own stamps.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
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

# Frames whose order is compared with that of their stamps where it is in doubt: more than any codec reorders.
ORDER_CHECKED = 32

# Seconds by which a decoding stamp must lie before an earlier one to begin a new recording; ffmpeg's value.
CLOCK_RESTART = 0.1


class UnreadableError(Exception):
    """Why a video cannot be read: the end of a sentence that begins with its name."""


class Frames(NamedTuple):
    """What a reader returns."""

    pixels: NDArray[np.uint8]  # (n, H, W, 3), RGB, upright
    times: NDArray[np.float64]  # (n,), seconds after the first frame
    seconds: float  # until the last frame of the video ends


class Timeline(NamedTuple):
    """When all frames of a video are shown."""

    times: NDArray[np.float64]  # (frames,), seconds after the first frame, ascending
    seconds: float  # until the last one ends


class Stamped(NamedTuple):
    """A packet's or a frame's place in time, in ticks of its stream's time base."""

    clock: int | None  # never runs back within one recording
    stamp: int | None  # when it is shown
    duration: int  # 0: not known


@dataclass(frozen=True, eq=False)
class Inspected:
    """What the container says of its video stream, without decoding more than its first frame."""

    timeline: Timeline
    codec: str
    stamps: tuple[int, ...] | None  # of all frames in the order shown; None: frames cannot be found by them
    key_stamps: tuple[int, ...]
    order_in_doubt: bool  # the decoder may show frames in another order than that of their stamps
    time_base: float  # seconds per tick of a stamp
    frame_seconds: float  # by the frame rate, for where stamps say nothing
    clock_restarts: bool  # whether this container's stamps may begin anew in the middle
    decord_is_exact: bool

    @property
    def total(self) -> int:
        """Count of frames."""
        return len(self.timeline.times)

    @property
    def readers(self) -> tuple[str, ...]:
        """Names of the readers to try, the best first."""
        return tuple(READERS) if self.decord_is_exact and decord is not None else ("pyav",)


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
        packets: list[Stamped] = []
        key_stamps: list[int] = []
        newest_key: int | None = None
        shown_before_key = False
        first_frame: Any = None
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
            if first_frame is None:
                first_frame = _first_frame(packet)
            if packet.is_discard:
                continue
            packets.append(Stamped(packet.dts, packet.pts, packet.duration or 0))
            if packet.pts is None:
                continue
            if packet.is_keyframe:
                newest_key = packet.pts
                key_stamps.append(packet.pts)
            elif newest_key is not None and packet.pts < newest_key:
                shown_before_key = True
        # The header of an AVI counts frames dropped while recording, which stand in it as empty chunks.
        dropped = container.format.name == "avi" and _riff_is_whole(path)
        if declared > whole and not dropped and _frames_outside_edit_list(path) < declared:
            raise UnreadableError(f"is truncated: {whole} of its {declared} frames are there")
        missing = (container.duration or 0) / av.time_base - end
        if "matroska" in container.format.name and missing > max(0.5, 0.05 * end):
            raise UnreadableError(f"is truncated: it ends {missing:.1f} seconds early")
        if not packets:
            raise UnreadableError("holds no video frames")
        stamps = [packet.stamp for packet in packets if packet.stamp is not None]
        ascending = sorted(stamps)
        time_base = float(stream.time_base or 0)
        frame_seconds = 1 / float(stream.average_rate or stream.guessed_rate or 25)
        clock_restarts = _clock_may_restart(container)
        joined = _joined(packets, time_base) if clock_restarts else packets
        usable = joined == packets and len(set(stamps)) == len(packets)
        # A container that cannot tell when reordered frames are shown (AVI) gives the order of decoding.
        order_in_doubt = stamps == ascending and stream.codec_context.has_b_frames
        return Inspected(
            timeline=timeline(joined, time_base, frame_seconds),
            codec=stream.codec.canonical_name,
            stamps=tuple(ascending) if usable else None,
            key_stamps=tuple(sorted(key_stamps)),
            order_in_doubt=order_in_doubt,
            time_base=time_base,
            frame_seconds=frame_seconds,
            clock_restarts=clock_restarts,
            decord_is_exact=(
                usable
                and not shown_before_key
                and not order_in_doubt
                and (first_frame is None or _display_matrix(first_frame) is None)
                and len(container.streams.video) == 1
                and any(name in DECORD_CONTAINERS for name in container.format.name.split(","))
            ),
        )


def _clock_may_restart(container: Any) -> bool:
    """Whether this kind of container may be several recordings put end to end, each with its own clock."""
    return bool(container.format.flags & av.format.Flags.ts_discont.value)


def timeline(shown: Sequence[Stamped], time_base: float, frame_seconds: float) -> Timeline:
    """When frames are shown, whatever the order of `shown`.

    Frames without a stamp are spread evenly between those that have one. So are frames of one stamp up to the
    next, no further apart than is usual in this video: a container may lack the resolution for its rate.
    frame_seconds: between two frames, where stamps say nothing.
    """
    count = len(shown)
    order = np.arange(count)
    places = [place for place, one in enumerate(shown) if one.stamp is not None]
    known = sorted((one.stamp, one.duration) for one in shown if one.stamp is not None)
    ticks = np.interp(order, places, [stamp for stamp, _ in known]) if known else np.zeros(count)
    seconds = (ticks - ticks[0]) * time_base
    moments, first, frames = np.unique(seconds, return_index=True, return_counts=True)
    gaps = np.diff(moments)
    usual = float(np.median(gaps)) if gaps.size else frame_seconds
    step = np.minimum(np.append(gaps, np.inf) / frames, usual)
    times: NDArray[np.float64] = moments.repeat(frames) + (order - first.repeat(frames)) * step.repeat(frames)
    last = known[-1][1] * time_base if known else 0.0
    if not last:
        last = float(np.median(np.diff(times))) if count > 1 else frame_seconds
    return Timeline(times, float(times[-1]) + last)


def _joined(shown: Sequence[Stamped], time_base: float) -> list[Stamped]:
    """The same with stamps that go on where those of the container begin anew: recordings put end to end."""
    joined: list[Stamped] = []
    shift = 0
    newest: int | None = None  # on the clock that goes on
    for one in shown:
        if one.clock is not None:
            if newest is not None and one.clock + shift < newest - CLOCK_RESTART / time_base:
                shift = newest + one.duration - one.clock
            newest = one.clock + shift
        joined.append(
            one._replace(
                clock=None if one.clock is None else one.clock + shift,
                stamp=None if one.stamp is None else one.stamp + shift,
            )
        )
    return joined


def _first_frame(packet: Any) -> Any:
    """The frame that this packet completes, if any."""
    try:
        return next(iter(packet.decode()), None)
    except FFmpegError:  # reading says what is damaged, and where
        return None


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
        stream = _video_stream(container)
        return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_corrupt)


def _riff_is_whole(path: str) -> bool:
    """Whether an AVI is as long as its outermost chunks say; large ones have several."""
    size = Path(path).stat().st_size
    end = 0
    with Path(path).open("rb") as file:
        while end < size and file.read(4) == b"RIFF":
            end += 8 + int.from_bytes(file.read(4), "little")
            file.seek(end)
    return end <= size


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
        return Frames(pixels, inspected.timeline.times[indices], inspected.timeline.seconds)
    finally:
        del reader


def read_pyav(path: str, count: int) -> Frames:
    """Use PyAV: seek by time stamp where the container has usable ones, else decode all frames in order."""
    inspected = inspect(path)
    shown = inspected.timeline
    indices = sample(inspected.total, count)
    if inspected.stamps is not None and (not inspected.order_in_doubt or _shown_as_stamped(path, inspected)):
        pixels = _read_stamps(path, [inspected.stamps[i] for i in indices], inspected)
        if pixels is not None:
            return Frames(pixels, shown.times[indices], shown.seconds)
    decoded = _decode_all(path)
    if len(decoded) != inspected.total:
        if inspected.clock_restarts:
            decoded = _joined(decoded, inspected.time_base)
        shown = timeline(decoded, inspected.time_base, inspected.frame_seconds)
        indices = sample(len(decoded), count)
    return Frames(_read_indices(path, indices.tolist()), shown.times[indices], shown.seconds)


def _shown_as_stamped(path: str, inspected: Inspected) -> bool:
    """Whether the first frames come out of the decoder in the order of the container's stamps."""
    with av.open(path) as container:
        decoded = islice(_decode(container, _video_stream(container), inspected), ORDER_CHECKED)
        stamps = tuple(frame.pts for frame in decoded)
    return inspected.stamps is not None and stamps == inspected.stamps[: len(stamps)]


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
                try:
                    container.seek(inspected.key_stamps[key], stream=stream)
                except FFmpegError:  # a bare stream, without a container
                    return None
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


def _decode_all(path: str) -> list[Stamped]:
    """All frames' stamps in the order shown; they are their own clock."""
    with av.open(path) as container:
        decoded = [
            Stamped(frame.pts, frame.pts, frame.duration or 0)
            for frame in _decode(container, _video_stream(container), None)
        ]
    if not decoded:
        raise UnreadableError("holds no video frames that can be decoded")
    return decoded


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


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """a, b, c, d of the matrix that takes a point (x, y) of the frame to (ax + cy, bx + dy) on the screen.

    Of the container or of the stream itself; None: the frame is shown as it is.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = (int(value) for value in np.frombuffer(data, np.int32)[:5])
    return None if a > 0 and d > 0 and not b and not c else (a, b, c, d)


def _upright(image: NDArray[np.uint8], matrix: tuple[int, int, int, int] | None) -> NDArray[np.uint8]:
    """(H, W, 3) turned and mirrored as players show it.

    Exact for the eight matrices of right angles. Any other gets the nearest of them (ffmpeg turns by the very
    angle and fills the corners with black, which no model was trained on); scale is not applied, as ffmpeg
    does not.
    """
    if matrix is None:
        return image
    a, b, c, d = matrix
    if abs(a) + abs(d) < abs(b) + abs(c):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


class _Pixels:
    """The array under construction: allocated when the first frame tells its size, filled in order."""

    def __init__(self, count: int) -> None:
        self.filled = 0
        self._count = count
        self._array: NDArray[np.uint8] | None = None
        self._size = (0, 0)
        self._matrix: tuple[int, int, int, int] | None = None
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
            self._matrix = _display_matrix(frame)
        # A stream may change its size midway, and may tell its orientation with key frames alone: all frames
        # take the first one's.
        width, height = self._size
        image = frame.to_ndarray(format="rgb24", width=width, height=height)
        image = _upright(image, self._matrix)
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
                "seconds": inspected.timeline.seconds,
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
    return {
        "ok": True,
        "shape": pixels.shape,
        "times": frames.times.tolist(),
        "seconds": frames.seconds,
    }, pixels


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
