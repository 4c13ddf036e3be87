"""Reads clips and pictures with the frames, frame rate and size that a model needs."""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path

import av
import numpy as np

from ..errors import InvalidInputError
from ..files import file_digest
from .pixels import FITS, ClipSpec, fitted, pixel_aspect, quarter_turns
from .reader import open_clip, readable

CLIPS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"}
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
TIMEOUT = 20.0
"""Seconds that opening a file, or a single read, may take."""


@dataclass(frozen=True)
class ClipInfo:
    """The size of a clip as players show it, in pixels, and its frames at the requested rate."""

    height: int
    width: int
    frames: int


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
    return _read_frame(Path(path), ClipSpec(1, height, width, 1, fit=fit), (0.5, 0.5), TIMEOUT)


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
    return ClipInfo(height, width, max(min(len(times), 1), ceil(_seconds(times) * fps - 1e-6)))


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


def content_digest(path: Path) -> str:
    """The SHA-256 in hexadecimal of a file, or of the pictures in a folder of frames.

    Raises:
        InvalidInputError: a file can't be read.
    """
    files, whole = picture_files(path) if path.is_dir() else [path], hashlib.sha256()
    try:
        for file in files:
            whole.update(bytes.fromhex(file_digest(file)))
    except OSError as error:
        raise InvalidInputError(f"{path} can't be read: {error.strerror}") from error
    return whole.hexdigest()


@contextmanager
def _opened(path: Path, timeout: float) -> Iterator[av.container.InputContainer]:
    with open_clip(path, timeout) as container:
        if path.suffix.lower() in (".heic", ".heif") and len(container.streams.video) > 1:
            raise InvalidInputError(f"{path} is a HEIC of many tiles: make a JPEG or PNG of it")
        yield container


def _timestamps(container: av.container.InputContainer) -> tuple[list[float], list[int]]:
    """The time of each frame, in seconds and in the file's time base."""
    stream = container.streams.video[0]
    packets = container.demux(stream)
    # Packets to discard lie outside of the part that an edit list shows.
    shown = sorted(p.pts for p in packets if p.pts is not None and not p.is_discard)
    return [float(pts * stream.time_base) for pts in shown], shown


def _times_in_order(container: av.container.InputContainer) -> list[float]:
    """The time of each decoded frame in seconds.

    For files whose packets have no times of their own: AVI numbers frames in stored order.
    """
    stream = container.streams.video[0]
    shown = [frame.pts for frame in container.decode(video=0)]
    if None in shown or shown != sorted(shown):
        return [i / float(stream.average_rate) for i in range(len(shown))]
    return [float(pts * stream.time_base) for pts in shown]


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
    """How long the frames of these times are shown, the last for an average frame's time."""
    if len(times) < 2:
        return 0.0
    return (times[-1] - times[0]) * len(times) / (len(times) - 1)


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
    for number, frame in enumerate(container.decode(video=0)):
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
    frame = next(container.decode(video=0), None)
    if frame is None:
        raise InvalidInputError(f"{path} has no frames")
    return frame
