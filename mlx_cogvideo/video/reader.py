"""Reads the frames of clips."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..errors import InvalidInputError
from .paths import ffmpeg_name

# Without this option, which PyAV 19 removed, a tag that isn't UTF-8 makes a file unreadable.
_OPTIONS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def open_input(path: str | Path, timeout: float | None = None) -> av.container.InputContainer:
    """Opens a file for reading, whatever its tags contain.

    Args:
        timeout: seconds that opening it, or a single read, may take; None sets no limit.
    """
    return av.open(ffmpeg_name(path), timeout=timeout, **_OPTIONS)


@contextmanager
def readable(path: str | Path, kind: str = "video") -> Iterator[None]:
    """Turns the errors of reading a file, a `kind` for the message, into InvalidInputError."""
    try:
        yield
    except FileNotFoundError:
        raise InvalidInputError(f"{path} doesn't exist") from None
    except IsADirectoryError:
        raise InvalidInputError(f"{path} is a folder") from None
    except av.FFmpegError as error:
        raise InvalidInputError(f"{path} can't be read as a {kind}: {error.strerror}") from error


@contextmanager
def open_clip(
    path: str | Path, timeout: float | None = None
) -> Iterator[av.container.InputContainer]:
    """Opens a file with a video stream; see `open_input`."""
    with open_input(path, timeout) as container:
        if not container.streams.video:
            raise InvalidInputError(f"{path} has no video stream")
        yield container


def read_video(path: str | Path) -> tuple[np.ndarray, Fraction]:
    """Reads all frames of a clip; see ``read_frames``.

    Returns:
        uint8 [F, H, W, 3] and the average frames per second.
    """
    with readable(path), open_clip(path) as container:
        frames = np.stack(list(_decoded(path, container)))
        stream = container.streams.video[0]
        fps = stream.average_rate
        if container.format.name == "gif":  # delays in hundredths of a second distort the average
            fps = stream.base_rate or fps
    return frames, fps


def read_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Reads the frames of a clip's first video stream one by one.

    Args:
        path: an mp4, a gif, or any other file that FFmpeg knows.

    Yields:
        uint8 [H, W, 3].

    Raises:
        InvalidInputError: the file doesn't exist or has no video.
    """
    with readable(path), open_clip(path) as container:
        yield from _decoded(path, container)


def _decoded(path: str | Path, container: av.container.InputContainer) -> Iterator[np.ndarray]:
    empty = True
    for frame in container.decode(video=0):
        empty = False
        yield frame.to_ndarray(format="rgb24")
    if empty:
        raise InvalidInputError(f"{path} has no frames")
