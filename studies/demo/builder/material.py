"""The demo's videos and questions as a user would bring them: mp4 files and questions.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import numpy as np

from .data import make_video
from .questions import TYPES, Asked, whole
from .scenes import FPS, SIZE, TOTAL, render

CRF = "29"  # H.264 quality: about 47 kB a video

# How often each type is asked. AdaTP's knobs decide whether the tokens of one object survive; the order of
# scenes and their backgrounds show in so many tokens that no setting loses them, so few ask about those.
MIX = {"color": 4, "place": 3, "shape": 4, "below": 5, "after": 1, "background": 1, "order": 1}


def write_mp4(path: Path, frames: list[np.ndarray]) -> None:
    """Writes RGB frames of SIZE x SIZE pixels as H.264, reproducibly (one thread)."""
    partial = path.with_suffix(".partial.mp4")
    with av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": CRF, "preset": "slow", "threads": "1"}
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    partial.replace(path)


def name(index: int) -> str:
    """File name of a video."""
    return f"{index:03d}.mp4"


def _write_video(task: tuple[Path, int, int]) -> None:
    folder, seed, index = task
    path = folder / name(index)
    if not path.exists():
        video = make_video(seed, index)
        write_mp4(path, [render(video, frame) for frame in range(TOTAL)])


def write_videos(folder: Path, *, seed: int, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(_write_video, [(folder, seed, index) for index in range(count)]))


def ask_all(seed: int, index: int, count: int) -> list[Asked]:
    """Up to `count` different questions about one video, the types in turn, as often as MIX says."""
    rng = np.random.default_rng([seed, index, 1])
    asker = whole(make_video(seed, index), rng)
    found: dict[str, Asked] = {}
    types = [kind for kind in TYPES for _ in range(MIX[kind])]
    order = [types[i] for i in rng.permutation(len(types))]
    for attempt in range(20 * count):
        if len(found) == count:
            break
        question = asker.ask(order[attempt % len(order)])
        if question is not None:
            found.setdefault(question.text, question)
    return list(found.values())


def write_questions(path: Path, *, seed: int, per_video: Sequence[int]) -> int:
    """per_video: how many questions are asked about each video, in order. Returns how many were written."""
    lines = []
    for index, count in enumerate(per_video):
        for number, question in enumerate(ask_all(seed, index, count)):
            tags = {"type": question.type, "when": question.when, "size": question.size}
            lines.append(
                json.dumps(
                    {
                        "id": f"{index:03d}-{number}",
                        "video": name(index),
                        "question": question.text,
                        "options": list(question.options),
                        "answer": question.answer,
                        "tags": tags,
                    }
                )
            )
    path.write_text("\n".join(lines) + "\n")
    return len(lines)
