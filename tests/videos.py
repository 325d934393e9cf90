"""Video files for tests: written with PyAV, whole or broken on purpose; and real clips."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

# Clips with rights of their own, kept beside the checkout and not redistributed with it.
REAL_CLIPS = Path(__file__).parents[2] / "shared" / "videos"


# What players make of a frame (H, W, 3), by the display matrix a b c d.
TURNS: dict[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]] = {
    (1, 0, 0, 1): lambda frame: frame,
    (0, 1, -1, 0): lambda frame: np.rot90(frame, -1),
    (-1, 0, 0, -1): lambda frame: frame[::-1, ::-1],
    (0, -1, 1, 0): np.rot90,
    (-1, 0, 0, 1): lambda frame: frame[:, ::-1],
    (1, 0, 0, -1): lambda frame: frame[::-1],
    (0, 1, 1, 0): lambda frame: frame.swapaxes(0, 1),
    (0, -1, -1, 0): lambda frame: frame.swapaxes(0, 1)[::-1, ::-1],
}


def real_clip(name: str) -> Path:
    """A real clip, or a skipped test."""
    path = REAL_CLIPS / name
    if not path.is_file():
        pytest.skip(f"{name} is not beside the checkout (../shared/videos)")
    return path


def moving_frames(count: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """(count, H, W, 3): frames that all differ; every frame's brightness at the top left tells its number."""
    texture = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    frames = np.stack(
        [np.kron(np.roll(texture, i // 3, axis=1), np.ones((8, 8, 1), np.uint8)) for i in range(count)]
    )
    frames[:, : height // 2] = (np.arange(count) * 255 // max(count - 1, 1)).astype(np.uint8)[
        :, None, None, None
    ]
    return frames


@contextmanager
def _kept_priority() -> Iterator[None]:
    """Undo what SVT-AV1 does under root: it gives the calling thread real-time priority 99, for good.

    Every later child of the tests would inherit it, and a browser with such threads starves the machine.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def write_video(
    path: Path,
    frames: NDArray[np.uint8],
    fps: int = 24,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
) -> Path:
    """Encode frames (n, H, W, 3) to `path`; its suffix decides the container."""
    with (
        _kept_priority(),
        av.open(str(path), "w", options=dict(container_options or {})) as container,
    ):
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.options = dict(options or {})
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_stamped(
    path: Path,
    frames: NDArray[np.uint8],
    milliseconds: Sequence[int],
    *,
    fps: int = 24,
    codec: str = "libx264",
) -> Path:
    """Encode frames (n, H, W, 3), none of them reordered, each to be shown at its own time."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"bf": "0", "g": "20"}
        encoded = [
            packet
            for frame in frames
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
        ] + stream.encode()
        for packet, stamp in zip(encoded, milliseconds, strict=True):
            packet.pts = packet.dts = stamp
            packet.time_base = Fraction(1, 1000)
            packet.duration = 0
            container.mux(packet)
    return path


def write_audio(path: Path) -> Path:
    """A file with one second of silence and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 44100), np.float32), format="fltp", layout="stereo")
        silence.sample_rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    return path


def truncated(source: Path, target: Path, fraction: float) -> Path:
    """The beginning of a file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * fraction)])
    return target


def with_display_matrix(source: Path, target: Path, matrix: tuple[float, float, float, float]) -> Path:
    """The same mp4 whose frames players show with the point (x, y) at (ax + cy, bx + dy); matrix: a b c d."""
    data = bytearray(source.read_bytes())
    # tkhd, version 0: 4 bytes of name, 4 of version and flags, 36 until the matrix a b u c d v x y w.
    start = data.index(b"tkhd") + 4 + 4 + 36
    for place, value in zip((0, 1, 3, 4), matrix, strict=True):
        fixed = round(value * (1 << 16)).to_bytes(4, "big", signed=True)
        data[start + 4 * place : start + 4 * place + 4] = fixed
    target.write_bytes(data)
    return target
