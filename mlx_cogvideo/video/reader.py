"""Clips back into memory."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..errors import InvalidInputError


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
        with av.open(str(path), metadata_errors="replace") as container:
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
