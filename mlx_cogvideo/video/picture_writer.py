"""Writes single pictures."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from .paths import publish, write_temporary
from .writer import as_video_frame

_FORMATS = {".png": ("png", "rgb24"), ".jpg": ("mjpeg", "yuvj420p")}
"""A picture's encoder and its pixels, by the ending of its file."""


GREY = 160
"""Level of what is between the frames of a sheet."""


def write_picture(file: Path, pixels: np.ndarray) -> None:
    """Writes uint8 ``[H, W, 3]`` as a PNG or JPEG file, which is there as a whole or not at all.

    Raises:
        OutputError: it can't be written.
    """
    codec, pixel_format = _FORMATS[file.suffix]
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width, _ = pixels.shape
    encoder.pix_fmt, encoder.thread_count = pixel_format, 1
    encoder.time_base = 1
    frame = as_video_frame(pixels).reformat(format=pixel_format)
    data = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
    publish(write_temporary(file, data), file, overwrite=True)


def contact_sheet(
    videos: Sequence[np.ndarray], columns: int = 5, *, width: int = 320, gap: int = 4
) -> np.ndarray:
    """Frames of videos side by side: a row for each video, and the same times in each column.

    Args:
        videos: uint8 ``[F, H, W, 3]`` of one shape, which may lie on a disk.
        columns: frames of each video, evenly from the first to the last; all where it has fewer.
        width: of a frame at most, in pixels; small frames are enlarged by a whole number.
        gap: between two frames, in pixels.

    Returns:
        uint8 ``[H, W, 3]``, grey between the frames.
    """
    count, high, wide, _ = videos[0].shape
    scale = width / wide if wide > width else width // wide
    high, wide = max(1, round(scale * high)), max(1, round(scale * wide))
    times = np.unique(np.linspace(0, count - 1, min(columns, count)).round().astype(int))
    step, how = (high + gap, wide + gap), "AREA" if scale < 1 else "POINT"
    sheet = np.full((len(videos) * step[0] - gap, len(times) * step[1] - gap, 3), GREY, np.uint8)
    for row, video in enumerate(videos):
        for column, time in enumerate(times):
            frame = as_video_frame(np.ascontiguousarray(video[time]))
            y, x = row * step[0], column * step[1]
            shown = frame.reformat(width=wide, height=high, interpolation=how)
            sheet[y : y + high, x : x + wide] = shown.to_ndarray(format="rgb24")
    return sheet
