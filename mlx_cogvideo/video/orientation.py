"""Turns and mirrors stored pictures as display matrices of tracks, and EXIF data, say."""

from contextlib import suppress
from pathlib import Path

import av
import numpy as np

from .comments import PNG_SIGNATURE
from .side_data import DISPLAY_MATRIX, side_data


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """The linear part ``a, b, c, d`` of the display matrix; FFmpeg makes one of EXIF data, too.

    A stored point goes to ``(a x + c y, b x + d y)``, with x to the right and y down.
    """
    data = side_data(frame, DISPLAY_MATRIX)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(data, np.int32).tolist()
    return a, b, c, d


def is_sideways(matrix: tuple[int, int, int, int]) -> bool:
    """Whether stored rows are shown as columns."""
    a, b, _, _ = matrix
    return abs(b) > abs(a)


def as_shown(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Stored pixels ``[H, W, C]`` as they are shown, mirrored and turned by quarter turns."""
    a, b, c, d = matrix
    if is_sideways(matrix):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def is_upright(path: Path) -> bool:
    """Whether a picture is a PNG or JPEG without EXIF data; False for all other files."""
    start = b""
    with suppress(OSError), path.open("rb") as stream:
        start = stream.read(2**16)
    return start.startswith((PNG_SIGNATURE, b"\xff\xd8")) and b"exif" not in start.lower()
