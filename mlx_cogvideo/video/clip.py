"""Reads clips and pictures with the frames, frame rate and size that a model needs."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import ceil, inf
from pathlib import Path

import av
import numpy as np

from ..errors import InvalidInputError
from ..files import check_is_file, file_digest
from .damage import CHECKS
from .decoding import decoded
from .orientation import is_upright
from .pixels import FITS, ClipSpec, fitted, pixel_aspect, shown_size
from .reader import open_clip, readable, video_stream
from .stalls import answered, within
from .stills import check_no_animated_webp, check_whole, converted
from .timing import pick, seconds_shown, times_in_order, timestamps, usable

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
    return within(TIMEOUT, path, lambda: _read_frame(path, path, spec, (0.5, 0.5), TIMEOUT))


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

    def work() -> ClipInfo:
        files = picture_files(path) if path.is_dir() else []
        first = files[0] if files else path
        with readable(first, kind):
            with _opened(first, timeout) as container:
                times, _ = timestamps(container)
            size = _shown_size(first, path, timeout)
        if files:
            _check_sizes(files, path, timeout)
            times = [i / fps for i in range(len(files))]
        part, _ = usable(times, skip, start, end)
        seconds = seconds_shown(part)
        frames = max(min(len(part), 1), ceil(seconds * fps - 1e-6))
        return ClipInfo(*size, frames, seconds)

    return within(timeout, path, work)


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


def _read_frames(
    path: Path, spec: ClipSpec, position: tuple[float, float], timeout: float
) -> np.ndarray:
    if path.is_dir():
        files = picture_files(path)
        wanted = pick([i / spec.fps for i in range(len(files))], spec, path)
        numbers = sorted({*wanted})
        _check_sizes([files[i] for i in numbers], path, timeout)
        frames = {i: _read_frame(files[i], path, spec, position, timeout) for i in numbers}
        return np.stack([frames[i] for i in wanted])
    with readable(path):
        with _opened(path, timeout) as container:
            times, shown = timestamps(container)
        wanted = [shown[i] for i in pick(times, spec, path)]
        with _opened(path, timeout) as container:
            frames = _read(container, path, wanted, spec, position)
        if len(frames) < len(set(wanted)):
            with _opened(path, timeout) as container:
                times = times_in_order(container, path)
            wanted = pick(times, spec, path)
            with _opened(path, timeout) as container:
                frames = _read(container, path, wanted, spec, position, by_order=True)
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
        if check := CHECKS.get(video_stream(container).codec_context.name):
            check(path)
        answered()
        yield container


def _read(
    container: av.container.InputContainer,
    path: Path,
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
    for number, (frame, is_whole) in enumerate(decoded(container, path)):
        pts = number if by_order else frame.pts
        if pts is None:  # as in a picture
            pts = wanted[0] if number == 0 else before
        if pts < before:
            return {}
        before = pts
        if is_whole and pts in wanted and pts not in frames:
            frames[pts] = fitted(frame, spec, position, aspect)
        if pts >= wanted[-1] and (by_order or pts > wanted[-1]):
            break
    return frames


def _read_frame(
    path: Path, clip: Path, spec: ClipSpec, position: tuple[float, float], timeout: float
) -> np.ndarray:
    """A picture; `clip` is the folder that it is a frame of, or the picture itself."""
    with readable(path, "picture"), _opened(path, timeout) as container:
        aspect = pixel_aspect(container)
        return fitted(_first_frame(container, path, clip), spec, position, aspect)


def _shown_size(path: Path, clip: Path, timeout: float, *, decode: bool = True) -> tuple[int, int]:
    """Height and width of a clip, or of a picture; see `_read_frame`.

    Args:
        decode: whether they may depend on a frame's side data.
    """
    with _opened(path, timeout) as container:
        if not decode:
            stored = video_stream(container).codec_context
            return stored.height, round(stored.width * pixel_aspect(container))
        return shown_size(_first_frame(container, path, clip), pixel_aspect(container))


def _first_frame(container: av.container.InputContainer, path: Path, clip: Path) -> av.VideoFrame:
    frame, is_whole = next(decoded(container, clip), (None, False))
    if frame is None:
        raise InvalidInputError(f"{path} has no frames")
    if not is_whole:
        raise InvalidInputError(f"{path} is damaged: only a part of it can be decoded")
    return frame


def _check_sizes(files: list[Path], clip: Path, timeout: float) -> None:
    """Raises InvalidInputError if the pictures of a clip differ in their size as shown."""
    first: tuple[int, int] | None = None
    for file in files:
        with readable(file, "picture"):
            size = _shown_size(file, clip, timeout, decode=not is_upright(file))
        if size != (first := first or size):
            (height, width), (other_height, other_width) = first, size
            raise InvalidInputError(
                f"the frames of {clip} must have one size: {files[0].name} is {width}x{height} and "
                f"{file.name} is {other_width}x{other_height}"
            )
