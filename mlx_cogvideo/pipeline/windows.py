"""Videos longer than a model makes at once: windows, each of which goes on where the last one ends.

A text-to-video model is given the last frames of the window before as its own first ones; an
image-to-video model the last frame as its picture. Where two windows overlap they are blended.

Memory: a window, and the frames of an overlap, however long the video is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from ..errors import InvalidInputError
from .request import Request

OVERLAP = 9
"""Frames that a text-to-video model is given to go on from."""

_SEED_STEP = 0x9E3779B97F4A7C15


def choose_overlap(asked: int | None, *, extend: int, takes_image: bool, num_frames: int) -> int:
    """Frames that two windows share.

    Raises:
        InvalidInputError: a model can't go on from so many.
    """
    if extend < 0:
        raise InvalidInputError(f"extend must be 0 or more; got {extend}")
    if extend == 0:
        if asked is not None:
            raise InvalidInputError("overlap needs extend")
        return 0
    if num_frames == 1:
        raise InvalidInputError("a window of one frame can't go on: ask for more frames")
    if takes_image:
        if asked not in (None, 1):
            raise InvalidInputError(f"an image-to-video model goes on from 1 frame; got {asked}")
        return 1
    overlap = OVERLAP if asked is None else asked
    if overlap < 1 or overlap % 8 != 1 or overlap >= num_frames:
        raise InvalidInputError(
            f"overlap must be 8N+1 (1, 9, 17, ...) and less than the {num_frames} frames of a "
            f"window; got {overlap}"
        )
    return overlap


def window_request(request: Request, number: int, tail: np.ndarray | None) -> Request:
    """The request of a window, from 0.

    Args:
        tail: the last frames before it, ``[overlap, H, W, 3]``, uint8 or in [0, 1]; None for the
            first.
    """
    if number == 0:
        return request
    seed = (request.seed + number * _SEED_STEP) % 2**63
    if tail.dtype != np.uint8:
        tail = np.round(tail * 255).astype(np.uint8)
    source = replace(request.source, image=None, video=None, prefix=tail)
    if request.source.image is not None:
        source = replace(source, image=tail[-1], prefix=None)
    return replace(request, seed=seed, source=source)


class Joiner:
    """Puts windows together.

    Attributes:
        tail: the last frames of the last window, as they were made.
    """

    def __init__(self, overlap: int):
        self.overlap = overlap
        self.tail: np.ndarray | None = None

    def add(self, chunks: Iterable[np.ndarray], *, last: bool) -> Iterator[np.ndarray]:
        """The frames of another window that are settled: those after it may blend with its end.

        Args:
            chunks: its frames, ``[F, H, W, 3]`` each.
            last: whether no window comes after it.
        """
        before, seen, held = self.tail, 0, None
        for chunk in chunks:
            if before is not None and seen < len(before):
                count = min(len(before) - seen, len(chunk))
                blended = _blend(before[seen : seen + count], chunk[:count], seen, len(before))
                chunk = np.concatenate([blended, chunk[count:]])
            seen += len(chunk)
            held = chunk if held is None else np.concatenate([held, chunk])
            settled = len(held) - (0 if last else self.overlap)
            if settled > 0:
                yield held[:settled]
                held = held[settled:]
        self.tail = held


def _blend(before: np.ndarray, after: np.ndarray, first: int, count: int) -> np.ndarray:
    """From one to the other; `first` of `count` frames have been blended."""
    share = (np.arange(first + 1, first + 1 + len(before)) / (count + 1)).reshape(-1, 1, 1, 1)
    mixed = before * (1 - share) + after * share
    return (np.round(mixed) if after.dtype == np.uint8 else mixed).astype(after.dtype)
