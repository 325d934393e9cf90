"""From a video file to the vision tower's pixels, beside an earlier commit: seconds, and values that differ.

`python -m tests.benchmarks.decoding --before CHECKOUT [VIDEO ...]`, where CHECKOUT is a work tree of that
commit (`git worktree add CHECKOUT COMMIT`). Both versions run in processes of their own and take turns (A B A
B). The fastest turn of each is printed, because other work on the machine can only add to it. Without videos
three of 1080p are written and read: 10 and 40 seconds of H.264 with a key frame every 250 frames (x264's
default), and 40 seconds with one every 24.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import NamedTuple

import av
import numpy as np

ROOT = Path(__file__).parents[2]
SIDE = 384  # of the published towers


class Taken(NamedTuple):
    """What one video cost."""

    seconds: float
    cpu: float  # seconds, of both processes and all their threads


def serve() -> None:
    """For each line `VIDEO|FRAMES|FILE`: reads the video, saves the pixels to FILE, prints what it took."""
    import psutil
    import torch

    from pipeline import video
    from pipeline.families.llava import LlavaModel

    torch.set_num_threads(1)
    model = LlavaModel.__new__(LlavaModel)
    model.model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    model._processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    model._image_size = SIDE  # type: ignore[attr-defined]  # of commits that resize here
    options = {}
    if "size" in signature(video.read_frames).parameters:
        from pipeline.resizing import FrameSize

        options["size"] = model.frame_size = FrameSize(SIDE)

    def cpu() -> float:
        processes = [psutil.Process(), *psutil.Process().children()]
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    video.read_frames(sys.stdin.readline().strip(), 2)  # starts the decoding process
    print(flush=True)
    for line in sys.stdin:
        path, frames, target = line.strip().split("|")
        begin, spent = perf_counter(), cpu()
        decoded = video.read_frames(path, int(frames), **options)
        pixels = torch.cat(list(model._runs(decoded.frames)))
        taken = Taken(perf_counter() - begin, cpu() - spent)
        np.save(target, pixels.numpy())
        print(*taken, flush=True)


class Version:
    """One commit's code, in a process of its own."""

    def __init__(self, checkout: Path, folder: Path, video: Path) -> None:
        self.pixels = folder / f"{checkout.name}.npy"
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--serve"],
            env=os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask(str(video))

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()

    def read(self, video: Path, frames: int) -> Taken:
        """Once from the file to the pixels, which lie in `self.pixels` then."""
        return Taken(*map(float, self._ask(f"{video}|{frames}|{self.pixels}").split()))

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def write_clip(path: Path, seconds: int, key_frames: int) -> Path:
    """1080p at 24 frames a second: texture that moves, at about the bit rate of real clips."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    texture = np.kron(coarse, np.ones((54, 64, 1), np.uint8)) // 2 + rng.integers(
        0, 8, (2160, 3840, 3), np.uint8
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.options = {"preset": "veryfast", "g": str(key_frames)}
        for index in range(seconds * 24):
            row, column = index % 1080, 2 * index % 1920
            image = np.ascontiguousarray(texture[row : row + 1080, column : column + 1920])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def compare(before: Version, after: Version, video: Path, frames: int, repeats: int) -> str:
    """A row of the table."""
    taken = [(before.read(video, frames), after.read(video, frames)) for _ in range(repeats)]
    old, new = ([item[i] for item in taken] for i in range(2))
    difference = np.abs(np.load(before.pixels) - np.load(after.pixels)) * 127.5
    seconds = [min(item.seconds for item in version) for version in (old, new)]
    cpu = [min(item.cpu for item in version) for version in (old, new)]
    return (
        f"| {video.name} | {frames} | {seconds[0]:.2f} | {seconds[1]:.2f} | {seconds[0] / seconds[1]:.1f} "
        f"| {cpu[0]:.2f} | {cpu[1]:.2f} | {(difference > 0.5).mean():.4%} | {difference.max():.0f} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", type=Path, nargs="*")
    parser.add_argument("--before", type=Path, help="a work tree of the commit to compare with")
    parser.add_argument("--frames", type=int, nargs="*", default=[32, 64], help="(default: 32 64)")
    parser.add_argument("--repeats", type=int, default=10, help="(default: 10)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve()
        return
    if options.before is None:
        parser.error("--before is needed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = options.videos or [
            write_clip(folder / "10s.mp4", 10, 250),
            write_clip(folder / "40s.mp4", 40, 250),
            write_clip(folder / "40s_short_gop.mp4", 40, 24),
        ]
        before, after = (Version(item.resolve(), folder, videos[0]) for item in (options.before, ROOT))
        print("| video | frames | before, s | now, s | ratio | CPU before | CPU now | differ | by |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for video in videos:
            for frames in options.frames:
                print(compare(before, after, video, frames, options.repeats), flush=True)
        before.close()
        after.close()


if __name__ == "__main__":
    main()
