"""How alike two videos are, frame by frame: PSNR, SSIM, and how they change over time.

Memory: a few frames in float64.
"""

from dataclasses import dataclass

import numpy as np

WINDOW = 7
"""Side of the square windows of SSIM, in pixels."""


@dataclass(frozen=True)
class Likeness:
    """How alike two videos are.

    Attributes:
        psnr: peak signal-to-noise ratio in dB; None where all pixels are equal.
        ssim: mean structural similarity; 1 where all pixels are equal (Wang et al., 2004, with
            uniform windows, by colour).
        flicker: mean difference of the changes from one frame to the next, of 255 levels; 0 for
            a video of one frame.
    """

    psnr: float | None
    ssim: float
    flicker: float


def likeness(one: np.ndarray, other: np.ndarray) -> Likeness:
    """Compares two videos, uint8 ``[F, H, W, 3]``, which may lie on a disk.

    Raises:
        ValueError: they have different shapes.
    """
    if one.shape != other.shape:
        raise ValueError(f"videos of shapes {one.shape} and {other.shape} can't be compared")
    squares, similarities, changes = [], [], []
    before = None
    for frame, other_frame in zip(one, other, strict=True):
        a, b = (np.asarray(each, np.float64) / 255 for each in (frame, other_frame))
        difference = a - b
        squares.append(np.square(difference).mean())
        similarities.append(ssim(a, b))
        if before is not None:
            changes.append(np.abs(difference - before).mean())
        before = difference
    return Likeness(
        _decibels(float(np.mean(squares))),
        float(np.mean(similarities)),
        255 * float(np.mean(changes)) if changes else 0.0,
    )


def _decibels(square: float) -> float | None:
    return -10 * float(np.log10(square)) if square else None


def ssim(one: np.ndarray, other: np.ndarray, window: int = WINDOW) -> float:
    """The mean structural similarity of two pictures ``[H, W, C]`` in [0, 1].

    Args:
        window: side of the windows; a picture that is smaller is one window.
    """
    window = min(window, *one.shape[:2])

    def means(x: np.ndarray) -> np.ndarray:
        sums = np.pad(x, ((1, 0), (1, 0), (0, 0))).cumsum(0).cumsum(1)
        total = sums[window:, window:] - sums[:-window, window:]
        return (total - sums[window:, :-window] + sums[:-window, :-window]) / window**2

    a, b = means(one), means(other)
    variance_a, variance_b = means(one**2) - a**2, means(other**2) - b**2
    covariance = means(one * other) - a * b
    c1, c2 = 0.01**2, 0.03**2
    ratio = (2 * a * b + c1) * (2 * covariance + c2)
    return float((ratio / ((a**2 + b**2 + c1) * (variance_a + variance_b + c2))).mean())
