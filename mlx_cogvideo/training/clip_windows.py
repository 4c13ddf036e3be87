"""Chooses the windows of a long clip that are learned, each as a sample of its own."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil

import numpy as np

from ..video import ClipSpec

PLACES = ("spread", "random")
"""Where the windows of a clip begin: evenly from its beginning to its end, or anywhere."""


def window_count(frames: int, spec: ClipSpec, wanted: int) -> int:
    """The number of windows to learn: no more than are needed to cover a clip of `frames`."""
    return max(1, min(wanted, ceil(frames / spec.frames)))


def choose_windows(
    spec: ClipSpec,
    wanted: int,
    frames_of: Callable[[ClipSpec], int],
    random: np.random.Generator | None = None,
) -> list[ClipSpec]:
    """The windows of a clip, in order; they lie in the part of it that `spec` gives.

    Args:
        spec: how the clip is read; it is the first window itself.
        wanted: number of windows, if the clip is long enough.
        frames_of: measures the frames that the part of a spec has.
        random: draws the places; None spreads them evenly.
    """
    frames = frames_of(spec)
    count = window_count(frames, spec, wanted)
    if count == 1:
        return [spec]
    # Starts are times of the clip, whatever is skipped at its beginning.
    head = frames_of(replace(spec, skip=(0, spec.skip[1]))) - frames if spec.skip[0] else 0

    def at(offset: int) -> ClipSpec:
        return replace(spec, start=spec.start + (head + offset) / spec.fps) if offset else spec

    last = frames - spec.frames
    # A window begins with the clip's next frame, which may be too late for the last window.
    while last and frames_of(at(last)) < spec.frames:
        last -= 1
    count = min(count, last + 1)
    if random is None:
        offsets = np.linspace(0, last, count).round().astype(int)
    else:
        offsets = np.sort(random.choice(last + 1, count, replace=False))
    return [at(offset) for offset in offsets.tolist()]
