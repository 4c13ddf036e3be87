"""When the frames of a clip are shown, and which of them a model needs."""

from bisect import bisect_left
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import median

import av

from ..errors import InvalidInputError
from .decoding import decoded
from .pixels import ClipSpec
from .reader import video_stream
from .stalls import answered


def timestamps(container: av.container.InputContainer) -> tuple[list[float], list[int]]:
    """The time of each frame, in seconds and in the file's time base.

    The latter are numbers of frames in files without times, such as raw H.264.
    """
    stream = video_stream(container)
    shown, stored = [], 0
    for packet in container.demux(stream):
        answered()
        stored += packet.size > 0
        # Packets to discard lie outside of the part that an edit list shows.
        if packet.pts is not None and not packet.is_discard:
            shown.append(packet.pts)
    if not shown and stored:
        rate = float(stream.average_rate or stream.guessed_rate)
        return [i / rate for i in range(stored)], [*range(stored)]
    times = [float(pts * stream.time_base) for pts in sorted(shown)]
    return _at_steady_rate(times, stream), sorted(shown)


def _at_steady_rate(times: list[float], stream: av.VideoStream) -> list[float]:
    """The times without the rounding of files that count milliseconds or hundredths.

    Unchanged if they aren't, within a tick, multiples of a frame's time.
    """
    rate, tick = float(stream.guessed_rate or 0), float(stream.time_base)
    if not times or not 0 < rate < 0.5 / tick:
        return times
    steady = [times[0] + round((time - times[0]) * rate) / rate for time in times]
    near = (abs(a - b) <= 1.01 * tick for a, b in zip(times, steady, strict=True))
    return steady if all(near) else times


def times_in_order(container: av.container.InputContainer, path: Path) -> list[float]:
    """The time of each decoded frame in seconds.

    For files whose packets have no times of their own: AVI numbers frames in stored order.
    """
    stream = video_stream(container)
    shown = [frame.pts for frame, _ in decoded(container, path)]
    if None in shown or shown != sorted(shown):
        rate = float(stream.average_rate or stream.guessed_rate)
        return [i / rate for i in range(len(shown))]
    return _at_steady_rate([float(pts * stream.time_base) for pts in shown], stream)


def usable(
    times: list[float], skip: tuple[int, int], start: float, end: float | None
) -> tuple[list[float], int]:
    """The times in the wanted part of a clip, and the number of the frame that is their first."""
    first, last = skip[0], len(times) - skip[1]
    if times:
        first = max(first, bisect_left(times, times[0] + start - 1e-6))
    if times and end is not None:
        last = min(last, bisect_left(times, times[0] + end - 1e-6))
    return times[first : max(last, 0)], first


def seconds_shown(times: list[float]) -> float:
    """How long the frames of these times are shown, the last for as long as most of them."""
    if len(times) < 2:
        return 0.0
    return times[-1] - times[0] + median(b - a for a, b in pairwise(times))


def pick(times: list[float], spec: ClipSpec, path: Path) -> list[int]:
    """The numbers of the clip's frames that are nearest to the wanted times."""
    times, first = usable(times, spec.skip, spec.start, spec.end)
    begin = times[0] if times else 0.0
    end = inf if spec.repeat_last else begin + seconds_shown(times) - 1e-6
    picked, i = [], 0
    for count in range(spec.frames):
        time = begin + count / spec.fps
        while i + 1 < len(times) and times[i + 1] - time < time - times[i] - 1e-6:
            i += 1
        if not times or (time >= end and count > 0):
            raise InvalidInputError(
                f"{path} has {count} frames at {spec.fps:g} a second, and {spec.frames} are wanted"
            )
        picked.append(first + i)
    return picked
