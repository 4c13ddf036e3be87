"""Reads the frames of clips."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..errors import InvalidInputError

# Without this option, which PyAV 19 removed, a tag that isn't UTF-8 makes a file unreadable.
_OPTIONS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def open_input(path: str | Path, timeout: float | None = None) -> av.container.InputContainer:
    """Opens a file for reading, whatever its tags contain.

    Args:
        timeout: seconds that opening it, or a single read, may take; None sets no limit.
    """
    return av.open(str(path), timeout=timeout, **_OPTIONS)


def read_video(path: str | Path) -> tuple[np.ndarray, Fraction]:
    """Reads all frames of a clip; see ``read_frames``.

    Returns:
        uint8 [F, H, W, 3] and the average frames per second.
    """
    with _first_video(path) as (container, stream):
        frames = np.stack(list(_decoded(path, container, stream)))
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
    with _first_video(path) as (container, stream):
        yield from _decoded(path, container, stream)


@contextmanager
def _first_video(path: str | Path) -> Iterator[tuple]:
    try:
        with open_input(path) as container:
            if not container.streams.video:
                raise InvalidInputError(f"{path} has no video stream")
            yield container, container.streams.video[0]
    except FileNotFoundError as error:
        raise InvalidInputError(f"{path} doesn't exist") from error
    except av.FFmpegError as error:
        raise InvalidInputError(f"{path} can't be read as a video: {error.strerror}") from error


def _decoded(
    path: str | Path, container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[np.ndarray]:
    empty = True
    for frame in container.decode(stream):
        empty = False
        yield frame.to_ndarray(format="rgb24")
    if empty:
        raise InvalidInputError(f"{path} has no frames")
