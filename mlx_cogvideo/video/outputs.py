"""Writes whole outputs in one call, and opens the writer for a path's ending."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from ..errors import InvalidInputError
from ..files import locked
from .gif import GifWriter
from .metadata import KEY, record_text
from .mp4 import VideoWriter
from .paths import LATENTS, check_output_path, output_form, publish, write_temporary
from .png import PngWriter
from .writer import FrameWriter

_WRITERS = {writer.form: writer for writer in (VideoWriter, GifWriter, PngWriter)}


def open_writer(
    path: str | Path,
    fps: int | float | Fraction,
    *,
    overwrite: bool = False,
    interpolate: int = 1,
) -> FrameWriter:
    """The writer of frames for a path; use it in a with statement.

    Args:
        path: ends in .mp4 or .gif; without an ending, or as text with a slash at the end, it is
            a folder of PNG frames.
        fps: frames per second; at most 50 for a gif.
        overwrite: whether to replace an existing output.
        interpolate: times the frames per second of the file, 1, 2 or 3; see ``FrameWriter``.

    Raises:
        InvalidInputError: the path is a .safetensors file, which holds latents, or the frame rate
            is impossible.
        OutputError: the output can't go there; see ``check_output_path``.
    """
    form = output_form(path)
    if form == LATENTS:
        raise InvalidInputError(f"{path} is for latents: write frames to .mp4, .gif or a folder")
    return _WRITERS[form](path, fps, overwrite=overwrite, interpolate=interpolate)


def write_video(
    path: str | Path,
    frames: np.ndarray | Iterable[np.ndarray],
    fps: int | float | Fraction,
    *,
    overwrite: bool = False,
    record: dict[str, Any] | None = None,
    interpolate: int = 1,
) -> None:
    """Writes a whole clip; arguments and errors as for ``open_writer``.

    Args:
        frames: uint8 [F, H, W, 3], or an iterable of such frames.
        record: how the video was made, stored inside; see ``FrameWriter``.
    """
    with open_writer(path, fps, overwrite=overwrite, interpolate=interpolate) as writer:
        writer.record = record
        for frame in frames:
            writer.write(frame)


def write_latents(
    path: str | Path,
    latents: np.ndarray,
    *,
    overwrite: bool = False,
    record: dict[str, Any] | None = None,
) -> None:
    """Writes a video's latents as the tensor ``latents`` of a safetensors file.

    Args:
        path: ends in .safetensors.
        latents: float32 [1, f, h, w, c], of f latent frames.
        overwrite: whether to replace an existing file.
        record: how the latents were made, stored as JSON in the header under ``mlx_cogvideo``.

    Raises:
        InvalidInputError: the ending, shape or dtype is another one.
        OutputError: the file can't go there; see ``check_output_path``.
    """
    if output_form(path) != LATENTS:
        raise InvalidInputError(f"{path} is for frames: write latents to a {LATENTS} file")
    latents = np.asarray(latents)
    if latents.dtype != np.float32 or latents.ndim != 5 or len(latents) != 1:
        raise InvalidInputError(
            f"latents must be float32 [1, f, h, w, c]; got {latents.dtype} {list(latents.shape)}"
        )
    metadata = None if record is None else {KEY: record_text(record)}
    data = save({"latents": np.ascontiguousarray(latents)}, metadata)
    path = check_output_path(path, overwrite)
    with locked(path, "choose another name"):
        publish(write_temporary(path, data), path, overwrite)
