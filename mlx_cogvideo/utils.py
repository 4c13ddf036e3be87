"""Functions that scripts for diffusers import from ``diffusers.utils``."""

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .pipeline.output import VideoOutput
from .pipeline.sources import check_no_address
from .video import ClipSpec, measure, read_clip, read_image, write_video
from .video.arrays import as_uint8
from .video.reader import frame_rate

__all__ = ["export_to_video", "load_image", "load_video"]


def export_to_video(
    video_frames: Any,
    output_video_path: str | Path | None = None,
    fps: int | float | Fraction | None = None,
) -> str:
    """Writes frames to a file, and replaces one that exists.

    Args:
        video_frames: what a pipeline's call returns, or one of its ``frames``: floats in [0, 1] or
            uint8, ``[F, H, W, 3]``, or a list of pictures.
        output_video_path: ends in .mp4 or .gif, or without an ending is a folder of PNG frames;
            None is a temporary .mp4.
        fps: frames per second; None is the model's own, or 10 for frames alone.

    Returns:
        The path.

    Raises:
        InvalidInputError: these aren't the frames of one video.
        OutputError: the file can't be written.
    """
    if output_video_path is None:
        output_video_path = Path(tempfile.mkdtemp(prefix="mlx_cogvideo-"), "video.mp4")
    if isinstance(video_frames, VideoOutput):
        rate = video_frames.fps if fps is None else fps
        video_frames.save(output_video_path, fps=rate, overwrite=True)
        return str(output_video_path)
    frames = as_uint8("video_frames", video_frames)
    write_video(output_video_path, frames, 10 if fps is None else fps, overwrite=True)
    return str(output_video_path)


def load_image(image: str | Path) -> np.ndarray:
    """Reads a picture in its own size, turned as its EXIF data say, on white where transparent.

    Returns:
        uint8 ``[H, W, 3]``.

    Raises:
        InvalidInputError: it can't be read, or is an address.
    """
    check_no_address("image", image)
    found = measure(Path(image), 1, kind="picture")
    return read_image(image, found.height, found.width, "stretch")


def load_video(video: str | Path) -> np.ndarray:
    """Reads all frames of a clip in their own size.

    Args:
        video: any file that FFmpeg reads, or a folder of pictures.

    Memory: all frames. A pipeline's call that gets the path reads only the frames that it needs.

    Returns:
        uint8 ``[F, H, W, 3]``.

    Raises:
        InvalidInputError: it can't be read, or is an address.
    """
    check_no_address("video", video)
    rate = 8.0 if Path(video).is_dir() else float(frame_rate(video))
    found = measure(Path(video), rate)
    spec = ClipSpec(found.frames, found.height, found.width, rate, fit="stretch")
    return read_clip(Path(video), spec)
