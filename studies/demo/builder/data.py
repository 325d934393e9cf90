"""Training frames of the demo models: rendered once, kept in memory as the pixels that the encoder sees."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .questions import CELLS
from .scenes import BACKGROUNDS, COLORS, SAMPLED, SHAPES, STEP, Video, random_video, render

UNCLEAR = -1  # label of the cells that a moving object is leaving or entering
PIXELS = 64  # side of the image that the vision tower takes


@dataclass(frozen=True)
class Labels:
    """What is in each cell of each sampled frame. Arrays are int8: (videos, SAMPLED) or (videos, SAMPLED,
    CELLS)."""

    background: np.ndarray
    shape: np.ndarray  # 0 is nothing, then SHAPES
    color: np.ndarray  # 0 is nothing, then COLORS


def make_video(seed: int, index: int) -> Video:
    return random_video(np.random.default_rng([seed, index]))


def resize(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC))


def _rendered(task: tuple[int, int]) -> np.ndarray:
    video = make_video(*task)
    return np.stack([resize(render(video, i * STEP)) for i in range(SAMPLED)])


def labels_of(videos: list[Video]) -> Labels:
    background = np.zeros((len(videos), SAMPLED), np.int8)
    shape = np.zeros((len(videos), SAMPLED, CELLS), np.int8)
    color = np.zeros((len(videos), SAMPLED, CELLS), np.int8)
    for v, video in enumerate(videos):
        for i in range(SAMPLED):
            shot = video.shot_at(i * STEP)
            scene = video.scenes[video.shots[shot].scene]
            background[v, i] = BACKGROUNDS.index(scene.background)
            for thing in scene.things:
                if thing.moves and 0.2 < video.progress(i * STEP, shot) < 0.8:
                    shape[v, i, [thing.cell, thing.end_cell]] = UNCLEAR
                    color[v, i, [thing.cell, thing.end_cell]] = UNCLEAR
                    continue
                cell = video.cell_of(thing, i * STEP, shot)
                shape[v, i, cell] = 1 + SHAPES.index(thing.shape)
                color[v, i, cell] = 1 + COLORS.index(thing.color)
    return Labels(background, shape, color)


def training_set(folder: Path, seed: int, count: int) -> tuple[list[Video], np.ndarray]:
    """(videos, uint8 pixels of shape (count, SAMPLED, PIXELS, PIXELS, 3)); the pixels are cached in
    `folder`."""
    videos = [make_video(seed, i) for i in range(count)]
    path = folder / f"pixels-{seed}-{count}.npy"
    if not path.exists():
        with ProcessPoolExecutor() as pool:
            pixels = np.stack(list(pool.map(_rendered, [(seed, i) for i in range(count)], chunksize=16)))
        partial = path.with_suffix(".partial.npy")
        np.save(partial, pixels)
        partial.replace(path)
    return videos, np.load(path, mmap_mode="r")
