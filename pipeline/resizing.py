"""Frames resized as the published image processors resize them, by Pillow: the only place that does it.

The decoding process runs this file by its path, so it imports nothing of the package.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class FrameSize(NamedTuple):
    """The square that a vision tower reads."""

    side: int  # pixels
    resample: int = 3  # Pillow's number of the filter, as processor files give it; 3 is bicubic


def resized(frame: NDArray[np.uint8], side: int, resample: int) -> NDArray[np.uint8]:
    """A frame (H, W, 3) squeezed to (side, side, 3), the aspect ratio not kept.

    Width first and height second, rounded to whole numbers in between, as every Pillow before 13 does. Pillow
    13 begins with the height of portrait frames, which changes values by up to 2 of 255; the published models
    were trained with older releases.
    """
    from PIL import Image

    image = Image.fromarray(frame)
    return np.asarray(image.resize((side, image.height), resample).resize((side, side), resample))
