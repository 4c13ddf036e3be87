"""Clips back into memory."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..errors import InvalidInputError

# Until PyAV 19, which lost the option, a tag that isn't UTF-8 made a file unreadable without it.
_OPTIONS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def open_input(path: str | Path) -> av.container.InputContainer:
    """Opens a file to be read, whatever its tags hold."""
    return av.open(str(path), **_OPTIONS)


def read_video(path: str | Path) -> tuple[np.ndarray, Fraction]:
    """Reads all frames of a clip's first video stream.

    Args:
        path: an mp4, a gif, or any other file that FFmpeg knows.

    Returns:
        uint8 [F, H, W, 3] and the average frames a second.

    Raises:
        InvalidInputError: there is no such file, or no video in it.
    """
    try:
        with open_input(path) as container:
            if not container.streams.video:
                raise InvalidInputError(f"{path} has no video stream")
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            fps = stream.average_rate
            if container.format.name == "gif":  # its delays, whole hundredths, blur the average
                fps = stream.base_rate or fps
    except FileNotFoundError as error:
        raise InvalidInputError(f"{path} doesn't exist") from error
    except av.FFmpegError as error:
        raise InvalidInputError(f"{path} can't be read as a video: {error.strerror}") from error
    if not frames:
        raise InvalidInputError(f"{path} has no frames")
    return np.stack(frames), fps
