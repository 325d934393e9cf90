"""The process that decodes for `pipeline.video.Decoder`: a script that imports nothing of the package.

Each request is one line of JSON on standard input: `{"do": "inspect", "path": ...}`, or `{"do": READER,
"path": ..., "frames": ..., "size": [side, resample] or null}`. The reply on standard output is one line of
JSON, `{"ok": true, ...}` or `{"ok": false, "reason": ...}`, followed by the raw bytes of the frames if there
are any. Empty lines before it report that the work goes on. What libraries print goes to standard error. The
process ends when standard input closes, even inside a decoder that never returns, so none is left behind when
the parent is killed.

decord reads first, because it is faster. PyAV reads what decord cannot read exactly: streams whose key frames
are followed by frames that are shown before them (open GOPs, the default of x265) and containers without an
exact index (seen with MPEG-TS and AVI), where decord returns neighbours of the frames asked for; mirrored
videos; several video streams; streams with gaps in time; and all but 8-bit 4:2:0 of H.264 and HEVC. It also
reads again what decord reported an error about, and is the one to decide what is damaged: a frame is refused
where its decoder met an error since the last key frame. Times count from the first frame and come from the
container's time stamps.
"""

from __future__ import annotations

import json
import os
import queue
import runpy
import sys
import tempfile
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
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

resized = runpy.run_path(str(Path(__file__).with_name("resizing.py")))["resized"]

# Containers whose index decord seeks by exactly.
DECORD_CONTAINERS = ("mov", "mp4", "matroska", "webm")

# What decord shows exactly as PyAV. Damage of which a decoder does not tell (VP8, VP9) looks otherwise in its
# older ffmpeg and with its threads, and HEVC of ten bits gets other colours.
DECORD_CODECS = ("h264", "hevc")
DECORD_PIXELS = ("yuv420p", "yuvj420p")

# Longest gap between frames, in usual ones, over which none is missing: for frames lost from within an H.264
# stream the older ffmpeg of decord fills in otherwise than PyAV's.
REGULAR = 1.5

# Frames whose order is compared with that of their stamps where it is in doubt: more than any codec reorders.
ORDER_CHECKED = 32

# Seconds by which a decoding stamp must lie before an earlier one to begin a new recording; ffmpeg's value.
CLOCK_RESTART = 0.1

# Where libraries write to: standard error, which `main` makes a file.
LOG = 2

# Threads that decode one video in decord.
DECODING_THREADS = min(4, os.cpu_count() or 1)

# Threads that resize frames while the next ones are decoded, and how many frames may wait for them.
RESIZING_THREADS = 2
WAITING_FRAMES = 4

# Frames that decord decodes between two reports of progress, and the shortest time between two, in seconds.
FRAMES_PER_STEP = 32
REPORT_INTERVAL = 0.1

# Bytes that a slow machine reads in a second, from a network drive, and pixels that it decodes.
SLOW_READING = 10e6
SLOW_DECODING = 10e6


# The side of a square in pixels and Pillow's number of the filter, as `resized` takes them.
Size = tuple[int, int]


class UnreadableError(Exception):
    """Why a video cannot be read: the end of a sentence that begins with its name."""


class Progress:
    """Reports to the parent that the work goes on."""

    output: BinaryIO | None = None  # None: nobody waits
    _reported = 0.0

    def report(self) -> None:
        """Called after every packet, frame or step."""
        now = time.monotonic()
        if self.output is not None and now - self._reported >= REPORT_INTERVAL:
            self._reported = now
            self.output.write(b"\n")
            self.output.flush()


PROGRESS = Progress()


class Frames(NamedTuple):
    """What a reader returns."""

    pixels: NDArray[np.uint8]  # (n, H, W, 3), RGB, upright, resized where a size was given
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
    allowance: float  # seconds that one step of reading may take on a slow machine
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
        container = av.open(path, metadata_errors="replace")
    except FFmpegError as error:
        raise UnreadableError(_why_it_does_not_open(path, error)) from error
    with container:
        stream = _video_stream(container)
        packets: list[Stamped] = []
        key_stamps: list[int] = []
        newest_key: int | None = None
        shown_before_key = False
        first_frame: Any = None
        whole = 0
        cut_off = False
        for packet in _packets(container, stream):
            if not packet.size:
                continue
            cut_off = packet.is_corrupt
            whole += not packet.is_corrupt
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
        # A header's count or length proves nothing: AVIs count frames dropped while recording, edit lists
        # hide some, and ffmpeg and PyAV read Matroska that just ends to where it ends.
        if cut_off:
            if stream.frames > whole:
                raise UnreadableError(f"is truncated: {whole} of its {stream.frames} frames are there")
            raise UnreadableError("is truncated: its last frame is cut off")
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
            # decord reads the whole file when it opens it.
            allowance=Path(path).stat().st_size / SLOW_READING
            + FRAMES_PER_STEP * stream.width * stream.height / SLOW_DECODING,
            stamps=tuple(ascending) if usable else None,
            key_stamps=tuple(sorted(key_stamps)),
            order_in_doubt=order_in_doubt,
            time_base=time_base,
            frame_seconds=frame_seconds,
            clock_restarts=clock_restarts,
            decord_is_exact=(
                usable
                and stream.codec.canonical_name in DECORD_CODECS
                and stream.pix_fmt in DECORD_PIXELS
                and key_stamps[:1] == ascending[:1]
                and _is_regular(ascending)
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


def _is_regular(stamps: Sequence[int]) -> bool:
    """Whether these ascending stamps leave no gap in which a frame may be missing."""
    gaps = np.diff(stamps)
    return not gaps.size or bool(gaps.max() <= REGULAR * np.median(gaps))


def timeline(shown: Sequence[Stamped], time_base: float, frame_seconds: float) -> Timeline:
    """When frames are shown, whatever the order of `shown`.

    Frames without a stamp are spread evenly between those that have one. So are frames of one stamp up to the
    next, no further apart than is usual in this video: a container may lack the resolution for its rate.
    frame_seconds: between two frames, where stamps say nothing.
    """
    count = len(shown)
    order = np.arange(count)
    places = [place for place, frame in enumerate(shown) if frame.stamp is not None]
    known = sorted((frame.stamp, frame.duration) for frame in shown if frame.stamp is not None)
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
    latest: int | None = None  # the same of the stamps
    restart = CLOCK_RESTART / time_base
    for frame in shown:
        if frame.clock is not None:
            if (
                newest is not None
                and frame.clock + shift < newest - restart
                and (frame.stamp is None or latest is None or frame.stamp + shift < latest - restart)
            ):
                shift = newest + frame.duration - frame.clock
            newest = frame.clock + shift
        if frame.stamp is not None:
            latest = frame.stamp + shift if latest is None else max(latest, frame.stamp + shift)
        joined.append(
            frame._replace(
                clock=None if frame.clock is None else frame.clock + shift,
                stamp=None if frame.stamp is None else frame.stamp + shift,
            )
        )
    return joined


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Packets from the present position on."""
    packets = container.demux(stream)
    while True:
        PROGRESS.report()
        try:
            packet = next(packets)
        except StopIteration:
            return
        except FFmpegError as error:
            raise UnreadableError(f"is damaged: its container cannot be read ({error.strerror})") from error
        yield packet


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
        return "is truncated or damaged: it begins like a video, but its header or index cannot be read"
    return f"is not a video file ({error.strerror})"


def _video_stream(container: Any) -> Any:
    """The stream that ffmpeg would show, made to raise an error where it would show a spoilt frame."""
    stream = container.streams.best("video")
    # ffmpeg shows cover pictures of music, and text files, as videos.
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise UnreadableError("holds no video stream")
    if container.format.name == "tty":
        raise UnreadableError("is a text file, not a video")
    if stream.codec_context is None:
        raise UnreadableError("is damaged, or of a codec that is not known here")
    stream.codec_context.options = {"err_detect": "explode"}
    return stream


def read_decord(path: str, count: int, size: Size | None) -> Frames:
    """Use decord."""
    inspected = inspect(path)
    os.lseek(LOG, 0, os.SEEK_SET)
    os.ftruncate(LOG, 0)
    decord.logging.set_level(decord.logging.ERROR)
    # fault_tol=0: a frame that cannot be decoded is an error, where decord otherwise returns its neighbour.
    reader = decord.VideoReader(path, num_threads=DECODING_THREADS, fault_tol=0)
    try:
        PROGRESS.report()
        total = len(reader)
        if total != inspected.total:
            raise RuntimeError(f"decord counts {total} frames, the container {inspected.total}")
        indices = sample(total, count)
        keys = list(reader.get_key_indices())
        if keys != [bisect_left(inspected.stamps or (), stamp) for stamp in inspected.key_stamps]:
            raise RuntimeError("decord takes other frames for key frames than the container does")
        pixels = _Pixels(count, size)
        position = 0
        index = -1
        for wanted in indices.tolist():
            if wanted == index:
                pixels.repeat()
                continue
            index = wanted
            # decord decodes from the last key frame before the one wanted, or from where it is if that is
            # later: done in steps, so that progress can be reported.
            position = max(position, keys[bisect_right(keys, index) - 1])
            for step in range(position + FRAMES_PER_STEP, index, FRAMES_PER_STEP):
                reader.seek_accurate(step)
                PROGRESS.report()
            image = reader[index].asnumpy()
            position = index + 1
            # decord takes the padding of very narrow rows (16 or 48 pixels) for a fourth colour.
            if image.shape[-1] != 3:
                raise RuntimeError(f"decord returned a frame of shape {image.shape}")
            pixels.add(image)
            PROGRESS.report()
        # decord shows spoilt frames as if they were whole; that they are spoilt stands in the log alone.
        if os.fstat(LOG).st_size:
            raise RuntimeError("decord met errors on the way")
        return Frames(pixels.array, inspected.timeline.times[indices], inspected.timeline.seconds)
    finally:
        del reader  # an idle reader goes on decoding ahead


def read_pyav(path: str, count: int, size: Size | None) -> Frames:
    """Use PyAV: seek by time stamp where the container has usable ones, else decode all frames in order."""
    inspected = inspect(path)
    shown = inspected.timeline
    indices = sample(inspected.total, count)
    if inspected.stamps is not None and (not inspected.order_in_doubt or _shown_as_stamped(path, inspected)):
        found = None
        with suppress(UnreadableError):  # which may come from a wrong index: decoding in order decides
            found = _read_stamps(path, [inspected.stamps[i] for i in indices], inspected, size)
        if found is not None:
            return Frames(found.array, shown.times[indices], shown.seconds)
    decoded, pixels = _read_indices(path, indices.tolist(), inspected, size)
    if len(decoded) != inspected.total:
        if inspected.clock_restarts:
            decoded = _joined(decoded, inspected.time_base)
        shown = timeline(decoded, inspected.time_base, inspected.frame_seconds)
        indices = sample(len(decoded), count)
        pixels = _read_indices(path, indices.tolist(), inspected, size)[1]
    return Frames(pixels.array, shown.times[indices], shown.seconds)


def _shown_as_stamped(path: str, inspected: Inspected) -> bool:
    """Whether the first frames come out of the decoder in the order of the container's stamps."""
    with av.open(path, metadata_errors="replace") as container:
        decoded = islice(_decode(container, _video_stream(container), inspected), ORDER_CHECKED)
        stamps = tuple(frame.pts for frame in decoded)
    return inspected.stamps is not None and stamps == inspected.stamps[: len(stamps)]


def _read_stamps(path: str, wanted: list[int], inspected: Inspected, size: Size | None) -> _Pixels | None:
    """Frames shown at these stamps, ascending; None where the decoder's stamps are not the container's."""
    pixels = _Pixels(len(wanted), size)
    with av.open(path, metadata_errors="replace") as container:
        stream = _video_stream(container)
        decoded = _decode(container, stream, inspected)
        frame: Any = None
        for stamp in wanted:
            if frame is not None and frame.pts == stamp:
                pixels.repeat()
                continue
            # Seeking pays only over a key frame that is still ahead.
            key = bisect_right(inspected.key_stamps, stamp) - 1
            if frame is not None and key >= 0 and inspected.key_stamps[key] > frame.pts:
                start = inspected.key_stamps[key]
                try:
                    container.seek(start, stream=stream)
                except FFmpegError:  # a bare stream, without a container
                    return None
                decoded = _decode(container, stream, inspected, start)
                frame = next(
                    (frame for frame in decoded if frame.pts is not None and frame.pts >= start), None
                )
                if frame is None or frame.pts != start or not frame.key_frame:
                    return None  # the index is wrong: frames from here on would lack what they build on
            while frame is None or frame.pts is None or frame.pts < stamp:
                frame = next(decoded, None)
                if frame is None:
                    return None
            if frame.pts != stamp:
                return None
            pixels.add_frame(frame)
    return pixels


def _read_indices(
    path: str, wanted: list[int], inspected: Inspected, size: Size | None
) -> tuple[list[Stamped], _Pixels]:
    """The stamps of all frames in the order shown, which are their own clock, and the frames wanted."""
    pixels = _Pixels(len(wanted), size)
    copies = Counter(wanted)
    shown: list[Stamped] = []
    with av.open(path, metadata_errors="replace") as container:
        for frame in _decode(container, _video_stream(container), inspected):
            for copy in range(copies[len(shown)]):
                if copy:
                    pixels.repeat()
                else:
                    pixels.add_frame(frame)
            shown.append(Stamped(frame.pts, frame.pts, frame.duration or 0))
    if not shown:
        raise UnreadableError("holds no video frames that can be decoded")
    return shown, pixels


def _decode(container: Any, stream: Any, inspected: Inspected, start: int | None = None) -> Iterator[Any]:
    """Frames from the present position on; a packet that cannot be decoded makes the video a damaged one.

    start: stamp of the key frame sought; frames shown before it may lack what they build on.
    """
    for packet in _packets(container, stream):
        try:
            yield from packet.decode()
        except FFmpegError as error:
            if start is not None and packet.pts is not None and packet.pts < start:
                continue
            where = ""
            if inspected.stamps is not None and packet.pts is not None:
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
    """The frames of a reply, added in order; threads resize them while the next ones are decoded."""

    _threads = ThreadPoolExecutor(RESIZING_THREADS)

    def __init__(self, count: int, size: Size | None) -> None:
        self._count = count
        self._size = size
        self._filled = 0
        self._array: NDArray[np.uint8] | None = None
        self._waiting: deque[Future[None]] = deque()
        self._image: NDArray[np.uint8] | None = None
        self._shape = (0, 0)
        self._matrix: tuple[int, int, int, int] | None = None

    def add(self, image: NDArray[np.uint8]) -> None:
        """Append (H, W, 3), RGB, upright."""
        if self._array is None:
            shape = image.shape if self._size is None else (self._size[0], self._size[0], 3)
            self._array = np.empty((self._count, *shape), np.uint8)
        self._image = image
        if len(self._waiting) == WAITING_FRAMES:
            self._waiting.popleft().result()
        self._waiting.append(self._threads.submit(self._fill, self._array[self._filled], image))
        self._filled += 1

    def add_frame(self, frame: Any) -> None:
        """Append a frame of PyAV, turned upright.

        A stream may change its size midway, and may tell its orientation with key frames alone: all frames
        take those of the first.
        """
        if self._array is None:
            self._shape = (frame.width, frame.height)
            self._matrix = _display_matrix(frame)
        width, height = self._shape
        self.add(_upright(frame.to_ndarray(format="rgb24", width=width, height=height), self._matrix))

    def repeat(self) -> None:
        """Append the last frame again: the video has fewer than were asked for."""
        assert self._image is not None
        self.add(self._image)

    def _fill(self, target: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
        target[:] = image if self._size is None else resized(image, *self._size)

    @property
    def array(self) -> NDArray[np.uint8]:
        """(n, H, W, 3); raises UnreadableError while frames are missing."""
        if self._array is None or self._filled < self._count:
            raise UnreadableError("is damaged: fewer frames can be decoded the second time than the first")
        while self._waiting:
            self._waiting.popleft().result()
        return self._array


READERS: dict[str, Callable[[str, int, Size | None], Frames]] = {"decord": read_decord, "pyav": read_pyav}


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
                "allowance": inspected.allowance,
            }, None
        frames = READERS[request["do"]](path, request["frames"], request["size"])
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
    return {
        "ok": True,
        "shape": frames.pixels.shape,
        "times": frames.times.tolist(),
        "seconds": frames.seconds,
    }, frames.pixels


def main() -> None:
    """Answer requests until standard input closes."""
    PROGRESS.output = replies = os.fdopen(os.dup(1), "wb")
    os.dup2(_empty_file(), LOG)
    os.dup2(LOG, 1)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, requests), daemon=True).start()
    _send(replies, {"ok": True}, None)  # ready: what was slow about starting is over
    while True:
        _send(replies, *answer(json.loads(requests.get())))


def _empty_file() -> int:
    """A file without a name, in memory where the system has such files: on a full or a read-only disk a
    decoder's remark would be lost, and with it that a video is damaged.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("log")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


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
