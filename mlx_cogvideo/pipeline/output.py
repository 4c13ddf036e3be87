"""What a pipeline's call returns: the videos, and how each was made."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InvalidInputError
from ..video import write_latents, write_video
from ..video.arrays import as_uint8
from .recording import Record

OUTPUT_TYPES = {
    "np": "float32 in [0, 1]",
    "pil": "pictures of Pillow",
    "uint8": "uint8",
    "latent": "latents",
}
"""The values of `output_type`, and what they give."""

NO_LATENTS = "a video of several windows has no latents of its own"

STREAMED_TYPES = ("np", "uint8", "latent")
"""Types that a run's events can have."""


@dataclass(frozen=True, eq=False)
class VideoOutput:
    """The videos of a call, and how each was made.

    ``np.asarray(output)`` gives the frames of the only video, uint8 ``[F, H, W, 3]``, and so does
    iterating over it, frame by frame.

    Attributes:
        frames: one video for each prompt, in a list: float32 ``[F, H, W, 3]`` in [0, 1], or what
            `output_type` asks for. Of ``"latent"``, an array ``[videos, f, h, w, c]``.
        fps: frames per second the model was trained at.
    """

    frames: list[Any] | mx.array
    fps: int
    _records: Sequence[Record]
    _identity: Callable[[], dict[str, Any]]

    @property
    def records(self) -> list[Record]:
        """How each video was made; a record is what ``save`` stores.

        The files of a model in a folder are read once for it.
        """
        for record in self._records:
            if not record["model"]:
                record["model"] = self._identity()
        return list(self._records)

    @property
    def record(self) -> Record:
        """The record of the only video."""
        return self.records[self._index(None)]

    def save(
        self,
        path: str | Path,
        index: int | None = None,
        *,
        fps: int | float | Fraction | None = None,
        interpolate: int = 1,
        overwrite: bool = False,
    ) -> None:
        """Writes a video, with its record inside.

        Args:
            path: ends in .mp4 or .gif, or in .safetensors for latents; without an ending it is a
                folder of PNG frames.
            index: number of the video, counted from 0; None is the only one.
            fps: frames per second; None is the model's own.
            interpolate: times the frames per second of the file, 1, 2 or 3.
            overwrite: whether to replace an existing output.

        Raises:
            InvalidInputError: there is no such video, or the ending doesn't fit.
            OutputError: the output can't be written.
        """
        index = self._index(index)
        record = self.records[index]
        if isinstance(self.frames, mx.array):
            latents = np.array(self.frames[index : index + 1])
            write_latents(path, latents, overwrite=overwrite, record=record)
        else:
            rate = self.fps if fps is None else fps
            pixels = as_uint8("frames", self.frames[index])
            settings = record["settings"] | {"fps": float(rate)}
            if interpolate != 1:
                settings["interpolate"] = interpolate
            record = record | {"settings": settings}
            write_video(
                path, pixels, rate, overwrite=overwrite, record=record, interpolate=interpolate
            )

    def _index(self, given: int | None) -> int:
        count = len(self.frames)
        if given is None and count > 1:
            raise InvalidInputError(
                f"this output has {count} videos: choose one by its index, such as frames[0]"
            )
        index = given or 0
        if not 0 <= index < count:
            raise InvalidInputError(f"index must be from 0 to {count - 1}; got {given}")
        return index

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        index = self._index(None)
        if isinstance(self.frames, mx.array):
            array = np.array(self.frames)
        else:
            array = as_uint8("frames", self.frames[index])
        return array if dtype is None else array.astype(dtype)

    def __len__(self) -> int:
        return len(np.asarray(self))

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(np.asarray(self))


def check_output_type(
    output_type: str, extend: int, types: Collection[str] = tuple(OUTPUT_TYPES)
) -> None:
    """Raises InvalidInputError for an output that isn't one of `types`, or can't be made."""
    if output_type not in types:
        known = ", ".join(f"{name} ({OUTPUT_TYPES[name]})" for name in types)
        raise InvalidInputError(f"output_type must be one of {known}; got {output_type!r}")
    if extend and output_type == "latent":
        raise InvalidInputError(NO_LATENTS)
    if output_type == "pil":
        _pillow()


def to_pictures(frames: np.ndarray) -> list[Any]:
    """Converts uint8 frames ``[F, H, W, 3]`` to pictures of Pillow."""
    return [_pillow().fromarray(frame) for frame in frames]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise InvalidInputError(
            "output_type pil needs Pillow: install it (pip install pillow), or ask for np or uint8"
        ) from None
    return Image
