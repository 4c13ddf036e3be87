"""Reads clips and pictures with the frames, frame rate and size that a model needs."""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import ceil, inf
from pathlib import Path
from statistics import median

import av
import numpy as np

from ..errors import InvalidInputError
from ..files import check_is_file, file_digest
from .pixels import FITS, ClipSpec, fitted, pixel_aspect, quarter_turns
from .reader import decoded, open_clip, readable, video_stream
from .stalls import answered, within
from .stills import check_no_animated_webp, check_whole, converted

IMAGES = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".jp2", ".tga", ".ppm"),
}
"""Suffixes of pictures: frames of a clip in a folder, or clips of one frame."""

CLIPS = {
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".gif", ".apng"),
    *(".ts", ".mts", ".m2ts", ".m2t", ".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".flv", ".f4v"),
    *(".ogv", ".ogg", ".mxf", ".dv", ".mjpeg", ".y4m"),
}
"""Suffixes of clips."""

TIMEOUT = 20.0
"""Seconds that opening a file, or a single read, may take."""


@dataclass(frozen=True)
class ClipInfo:
    """What is known of a clip before its frames are read.

    Attributes:
        height, width: size as players show it, in pixels.
        frames: number of frames at the requested rate.
        seconds: how long it lasts.
    """

    height: int
    width: int
    frames: int
    seconds: float = field(default=0.0, compare=False, repr=False)


def read_clip(
    path: Path, spec: ClipSpec, position: tuple[float, float] = (0.5, 0.5), timeout: float = TIMEOUT
) -> np.ndarray:
    """The frames of a clip, uint8 ``[F, H, W, 3]``.

    Memory: the frames that are taken, and one more.

    Args:
        path: any file that FFmpeg reads, or a folder of pictures, which are frames in the order of
            their names, at the rate of `spec`.
        position: the part that cropping keeps, from top to bottom and from left to right: 0 keeps
            the upper or left edge, 1 the lower or right one.
        timeout: in seconds; see `TIMEOUT`.

    Raises:
        InvalidInputError: the clip can't be read, or is too short.
    """
    return within(timeout, path, lambda: _read_frames(path, spec, position, timeout))


def read_image(path: str | Path, height: int, width: int, fit: str = "crop") -> np.ndarray:
    """A picture, uint8 ``[H, W, 3]``: rotated by its EXIF data, on white where transparent.

    Args:
        height, width: size in pixels.
        fit: one of `FITS`.

    Raises:
        InvalidInputError: the picture can't be read.
    """
    if fit not in FITS:
        raise InvalidInputError(f"fit must be one of {', '.join(FITS)}; got {fit!r}")
    path, spec = Path(path), ClipSpec(1, height, width, 1, fit=fit)
    return within(TIMEOUT, path, lambda: _read_frame(path, spec, (0.5, 0.5), TIMEOUT))


def measure(
    path: Path,
    fps: float,
    skip: tuple[int, int] = (0, 0),
    timeout: float = TIMEOUT,
    kind: str = "video",
    start: float = 0.0,
    end: float | None = None,
) -> ClipInfo:
    """The size and number of frames that `read_clip` could take from a clip.

    Args:
        path, timeout: as for `read_clip`.
        fps, skip, start, end: as in `ClipSpec`.
        kind: the word for the file in errors.

    Raises:
        InvalidInputError: the clip can't be read.
    """
    return within(timeout, path, lambda: _measure(path, fps, skip, timeout, kind, start, end))


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder, in the order of their names; numbers in these count as numbers.

    Hidden files are no frames: a Mac writes ._1.png beside 1.png on disks of other systems.

    Raises:
        InvalidInputError: there are none.
    """
    pictures = (path for path in folder.iterdir() if path.suffix.lower() in IMAGES)
    files = sorted((p for p in pictures if not p.name.startswith(".")), key=_natural_order)
    if not files:
        raise InvalidInputError(f"{folder} holds no frames ({', '.join(sorted(IMAGES))})")
    return files


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    parts = re.split("([0-9]+)", path.name)
    return [int(part) if part.isdecimal() else part for part in parts], path.name


def content_digest(path: Path, timeout: float = TIMEOUT) -> str:
    """The SHA-256 in hexadecimal of a file, or of the pictures in a folder of frames.

    Args:
        timeout: seconds that a file may take, and one more for each megabyte.

    Raises:
        InvalidInputError: a file can't be read.
    """
    whole = hashlib.sha256()
    for file, size in within(timeout, path, partial(_sizes, path)).items():
        whole.update(within(timeout + size / 1e6, file, partial(_digest, file)))
    return whole.hexdigest()


def _sizes(path: Path) -> dict[Path, int]:
    """The bytes of a file, or of each of the pictures in a folder of frames."""
    files = picture_files(path) if path.is_dir() else [path]
    for file in files:
        check_is_file(file)
    return {file: file.stat().st_size for file in files}


def _digest(file: Path) -> bytes:
    try:
        return bytes.fromhex(file_digest(file))
    except OSError as error:
        raise InvalidInputError(f"{file} can't be read: {error.strerror}") from error


def _measure(
    path: Path,
    fps: float,
    skip: tuple[int, int],
    timeout: float,
    kind: str,
    start: float,
    end: float | None,
) -> ClipInfo:
    files = picture_files(path) if path.is_dir() else []
    first = files[0] if files else path
    with readable(first, kind):
        with _opened(first, timeout) as container:
            times, _ = _timestamps(container)
        with _opened(first, timeout) as container:
            frame, aspect = _first_frame(container, first), pixel_aspect(container)
    if files:
        times = [i / fps for i in range(len(files))]
    times, _ = _usable(times, skip, start, end)
    height, width = frame.height, round(frame.width * aspect)
    if quarter_turns(frame) % 2:
        height, width = width, height
    seconds = _seconds(times)
    frames = max(min(len(times), 1), ceil(seconds * fps - 1e-6))
    return ClipInfo(height, width, frames, seconds)


def _read_frames(
    path: Path, spec: ClipSpec, position: tuple[float, float], timeout: float
) -> np.ndarray:
    if path.is_dir():
        files = picture_files(path)
        wanted = _pick([i / spec.fps for i in range(len(files))], spec, path)
        frames = {i: _read_frame(files[i], spec, position, timeout) for i in sorted({*wanted})}
        return np.stack([frames[i] for i in wanted])
    with readable(path):
        with _opened(path, timeout) as container:
            times, shown = _timestamps(container)
        wanted = [shown[i] for i in _pick(times, spec, path)]
        with _opened(path, timeout) as container:
            frames = _read(container, wanted, spec, position)
        if len(frames) < len(set(wanted)):
            with _opened(path, timeout) as container:
                times = _times_in_order(container)
            wanted = _pick(times, spec, path)
            with _opened(path, timeout) as container:
                frames = _read(container, wanted, spec, position, by_order=True)
        if missing := set(wanted) - frames.keys():
            raise InvalidInputError(
                f"{path} is damaged: {len(missing)} of its frames can't be decoded"
            )
        return np.stack([frames[pts] for pts in wanted])


@contextmanager
def _opened(path: Path, timeout: float) -> Iterator[av.container.InputContainer]:
    check_is_file(path)
    check_no_animated_webp(path)
    with converted(path, timeout) as file, open_clip(file, timeout) as container:
        check_whole(path, container)
        answered()
        yield container


def _timestamps(container: av.container.InputContainer) -> tuple[list[float], list[int]]:
    """The time of each frame, in seconds and in the file's time base."""
    stream = video_stream(container)
    shown = []
    for packet in container.demux(stream):
        answered()
        # Packets to discard lie outside of the part that an edit list shows.
        if packet.pts is not None and not packet.is_discard:
            shown.append(packet.pts)
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


def _times_in_order(container: av.container.InputContainer) -> list[float]:
    """The time of each decoded frame in seconds.

    For files whose packets have no times of their own: AVI numbers frames in stored order.
    """
    stream = video_stream(container)
    shown = [frame.pts for frame in decoded(container)]
    if None in shown or shown != sorted(shown):
        return [i / float(stream.average_rate) for i in range(len(shown))]
    return _at_steady_rate([float(pts * stream.time_base) for pts in shown], stream)


def _usable(
    times: list[float], skip: tuple[int, int], start: float, end: float | None
) -> tuple[list[float], int]:
    """The times in the wanted part of a clip, and the number of the frame that is their first."""
    first, last = skip[0], len(times) - skip[1]
    if times:
        first = max(first, bisect_left(times, times[0] + start - 1e-6))
    if times and end is not None:
        last = min(last, bisect_left(times, times[0] + end - 1e-6))
    return times[first : max(last, 0)], first


def _seconds(times: list[float]) -> float:
    """How long the frames of these times are shown, the last for as long as most of them."""
    if len(times) < 2:
        return 0.0
    return times[-1] - times[0] + median(b - a for a, b in pairwise(times))


def _pick(times: list[float], spec: ClipSpec, path: Path) -> list[int]:
    """The numbers of the clip's frames that are nearest to the wanted times."""
    times, first = _usable(times, spec.skip, spec.start, spec.end)
    picked, i = [], 0
    for count in range(spec.frames):
        time = times[0] + count / spec.fps if times else 0.0
        while i + 1 < len(times) and times[i + 1] - time < time - times[i] - 1e-6:
            i += 1
        if not times or (
            time >= times[0] + _seconds(times) - 1e-6 and count > 0 and not spec.repeat_last
        ):
            raise InvalidInputError(
                f"{path} has {count} frames at {spec.fps:g} a second, and {spec.frames} are wanted"
            )
        picked.append(first + i)
    return picked


def _read(
    container: av.container.InputContainer,
    wanted: list[int],
    spec: ClipSpec,
    position: tuple[float, float],
    *,
    by_order: bool = False,
) -> dict[int, np.ndarray]:
    """The wanted frames that the file has, by their timestamps, or by their numbers.

    Returns no frame if timestamps go back, because then they don't belong to the frames.
    """
    frames: dict[int, np.ndarray] = {}
    aspect, before = pixel_aspect(container), -inf
    for number, frame in enumerate(decoded(container)):
        pts = number if by_order else frame.pts
        if pts is None:  # as in a picture
            pts = wanted[0] if number == 0 else before
        if pts < before:
            return {}
        before = pts
        if pts in wanted and pts not in frames:
            frames[pts] = fitted(frame, spec, position, aspect)
        if pts >= wanted[-1] and (by_order or pts > wanted[-1]):
            break
    return frames


def _read_frame(
    path: Path, spec: ClipSpec, position: tuple[float, float], timeout: float
) -> np.ndarray:
    with readable(path, "picture"), _opened(path, timeout) as container:
        aspect = pixel_aspect(container)
        return fitted(_first_frame(container, path), spec, position, aspect)


def _first_frame(container: av.container.InputContainer, path: Path) -> av.VideoFrame:
    frame = next(decoded(container), None)
    if frame is None:
        raise InvalidInputError(f"{path} has no frames")
    return frame
