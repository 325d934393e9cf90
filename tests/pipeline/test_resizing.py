from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.resizing import resized

pytestmark = pytest.mark.quick


def cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


FILTERS = {2: (triangle, 1), 3: (cubic, 2)}  # by Pillow's number: the function, and how far it reaches


def first_axis(pixels: NDArray[np.int64], target: int, resample: int) -> NDArray[np.int64]:
    """Pillow's Resample.c for 8 bits (Pillow 11), written out: weights are whole numbers of 2**-22."""
    function, reach = FILTERS[resample]
    size = len(pixels)
    scale = size / target
    support = reach * max(scale, 1.0)
    rows = []
    for index in range(target):
        center = (index + 0.5) * scale
        low, high = max(0, int(center - support + 0.5)), min(size, int(center + support + 0.5))
        weights = [function((place - center + 0.5) / max(scale, 1.0)) for place in range(low, high)]
        total = sum(weights)
        whole = [math.floor(abs(w / total) * 2**22 + 0.5) * (-1 if w / total < 0 else 1) for w in weights]
        summed = np.tensordot(np.array(whole), pixels[low:high], 1) + 2**21
        rows.append((summed >> 22).clip(0, 255))
    return np.stack(rows)


@pytest.mark.parametrize("resample", FILTERS, ids=["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width"), [(54, 96), (96, 54), (37, 101), (101, 37), (17, 11), (32, 64), (64, 32), (8, 200)]
)
def test_frames_are_resized_as_pillow_did_when_the_models_were_trained(
    height: int, width: int, resample: int
) -> None:
    """Width first for portrait frames too, where Pillow 13 begins with the height; enlarged ones as well.

    Before, torch in float32 stood for Pillow: 1 value in 600 to 30,000 was off by 1 or 2 of 255.
    """
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    across = first_axis(frame.swapaxes(0, 1).astype(np.int64), 32, resample).swapaxes(0, 1)
    assert np.array_equal(resized(frame, 32, resample), first_axis(across, 32, resample))


def test_a_turned_view_is_resized_like_its_copy() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    view = frame.swapaxes(0, 1)[::-1]
    assert np.array_equal(resized(view, 16, 3), resized(view.copy(), 16, 3))
