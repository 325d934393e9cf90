"""What a worker sees when it looks at a question for the pictures of what pruning does: which tokens stay,
where attention lies, and the frames themselves.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError, VideoError
from pipeline.layout import FloatArray, IntArray
from pipeline.methods import AdaTP, from_dict
from pipeline.trace import Segment, segments, trace
from pipeline.video import read_frames
from tuner.evaluation.memory import NO_MEMORY, is_out_of_memory

if TYPE_CHECKING:
    from pipeline.clip import Clip
    from pipeline.question import Question
    from pipeline.runtime import Runtime

# Frames in one strip, which is as many as a laptop's screen shows side by side.
FRAMES_PER_STRIP = 16
# Of a frame in a strip, pixels. A multiple of 16, JPEG's blocks: frames do not run into each other.
FRAME_WIDTH = 96
JPEG_QUALITY = 60


@dataclass(frozen=True, eq=False)
class Film:
    """A video's sampled frames, side by side in strips of up to `FRAMES_PER_STRIP`."""

    # Of one frame, pixels.
    width: int
    height: int
    # JPEG.
    strips: tuple[bytes, ...]
    # (frames,) seconds after the video's first frame.
    times: FloatArray


@dataclass(frozen=True, eq=False)
class Seen:
    """A question's prefill under one configuration; of its prunings the first, the middle and the last."""

    # Visual tokens left after each pruning.
    kept: tuple[int, ...]
    # Layers before which tokens were dropped, and the tokens left after each, as ascending indices into the
    # video's sequence; empty where the plan keeps everything.
    layers: tuple[int, ...]
    tokens: tuple[IntArray, ...]
    # As in `pipeline.trace.Trace`.
    attention: FloatArray
    # Of AdaTP; empty for other methods.
    segments: tuple[Segment, ...]


def look(
    runtime: Runtime,
    find: Callable[[str], tuple[Clip, Question]],
    file: Callable[[str], AbstractContextManager[str]],
    question: str,
    configurations: Sequence[Mapping[str, Any]],
    *,
    film: bool,
) -> dict[str, Any]:
    """What is `seen` of a question under each configuration, and its video's `film` where it is wanted.
    find: gives a question by its id, with its encoded video. file: gives a video's file by its path.

    `unreadable` says why the video cannot be read any more, `error` what else would come again.
    """
    try:
        clip, asked = find(question)
        frames = None
        if film:
            with file(clip.path) as path:
                frames = _film(path, clip.frame_times)
    except VideoError as error:
        return {"unreadable": str(error)}
    except PipelineError as error:
        return {"error": str(error)}
    seen = []
    for configuration in configurations:
        method = from_dict(configuration)
        try:
            found = trace(runtime, clip, asked, method)
        except PipelineError as error:
            return {"error": str(error)}
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return {"error": NO_MEMORY}
        last = len(found.layers) - 1
        shown = sorted({0, last // 2, last}) if last >= 0 else []
        seen.append(
            Seen(
                kept=found.kept,
                layers=tuple(found.layers[index] for index in shown),
                tokens=tuple(found.tokens[index] for index in shown),
                attention=found.attention,
                segments=segments(method, runtime.layout(clip, asked)) if isinstance(method, AdaTP) else (),
            )
        )
    return {"seen": seen, "film": frames}


def _film(path: str, times: FloatArray) -> Film:
    """Errors: VideoError."""
    frames = read_frames(path, len(times)).frames
    small = [_small(frame) for frame in frames]
    height, width, _ = small[0].shape
    starts = range(0, len(small), FRAMES_PER_STRIP)
    strips = (np.concatenate(small[start : start + FRAMES_PER_STRIP], axis=1) for start in starts)
    return Film(width, height, tuple(_jpeg(strip) for strip in strips), np.asarray(times, dtype=np.float64))


def _small(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width, _ = frame.shape
    # Upright videos are no higher than wide ones are broad, or one card would fill a screen.
    size = (FRAME_WIDTH, min(FRAME_WIDTH, max(1, round(FRAME_WIDTH * height / width))))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return file.getvalue()
