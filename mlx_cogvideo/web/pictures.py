"""Small pictures of videos, kept in a folder of their own."""

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..errors import InvalidInputError
from ..video import ClipSpec, measure, read_clip
from ..video.picture_writer import write_picture

SIDE = 320
"""Width or height of a thumbnail at most, in pixels."""
_LATEST = 10.0
"""Seconds after which no frame is looked for: all before it are decoded."""
_TIMEOUT = 5.0


def thumbnail(video: Path, folder: Path) -> Path | None:
    """The thumbnail of a video as it is now, which is made if it isn't in the folder yet.

    Returns:
        A JPEG file; None if the video can't be read.

    Raises:
        OutputError: it can't be written.
    """
    file = _file(video, folder)
    if file is None or file.is_file():
        return file
    try:
        pixels = _middle_frame(video)
    except InvalidInputError:
        return None
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    write_picture(file, pixels)
    return file


def remove_thumbnail(video: Path, folder: Path) -> None:
    """Removes the thumbnail of a video that is still there, if it has one."""
    file = _file(video, folder)
    if file is not None:
        file.unlink(missing_ok=True)


def _file(video: Path, folder: Path) -> Path | None:
    """The name of a thumbnail, which changes with the video; None if there is no video."""
    try:
        state = video.stat()
    except OSError:
        return None
    key = f"{video.name}\0{state.st_mtime_ns}\0{state.st_size}"
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.jpg"


def _middle_frame(video: Path) -> np.ndarray:
    """A frame of a video in the size of a thumbnail, uint8 ``[H, W, 3]``."""
    info = measure(video, 8, timeout=_TIMEOUT)
    scale = min(1.0, SIDE / max(info.height, info.width))
    height, width = (max(2, round(scale * side / 2) * 2) for side in (info.height, info.width))
    start = min(info.seconds / 2, _LATEST)
    return read_clip(video, ClipSpec(1, height, width, 8, start=start), timeout=_TIMEOUT)[0]


def write_first_frame(video: Path, file: Path, height: int, width: int) -> None:
    """Writes the first frame of a video as a picture of this size.

    Raises:
        InvalidInputError: the video can't be read.
        OutputError: the picture can't be written.
    """
    write_picture(file, read_clip(video, ClipSpec(1, height, width, 8))[0])
