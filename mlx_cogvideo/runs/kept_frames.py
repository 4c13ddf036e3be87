"""Keeps the frames of a run as they are before an encoder loses something, to compare them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from ..files import remove_temporary, temporary_path
from ..pipeline.events import Event
from ..video.paths import output_errors, publish


@dataclass
class KeptFrames:
    """Writes the frames of a run to a NumPy file, which is there once they are complete.

    ::

        with KeptFrames(file, shape) as kept:
            kept.observe(event)

    Attributes:
        file: where they go.
        shape: ``[F, H, W, 3]`` of all frames.
    """

    file: Path
    shape: tuple[int, ...]
    _part: Path | None = field(default=None, init=False)
    _stream: BinaryIO | None = field(default=None, init=False)

    def observe(self, event: Event) -> None:
        """Takes the frames of an event.

        Raises:
            OutputError: they can't be written.
        """
        if event.frames is None:
            return
        with output_errors(self.file):
            if self._stream is None:
                self._part = temporary_path(self.file)
                self._stream = self._part.open("xb")
                header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
                np.lib.format.write_array_header_1_0(self._stream, header)
            self._stream.write(np.ascontiguousarray(event.frames, np.uint8).tobytes())
            if event.done == event.total:
                self._stream.close()
        if event.done == event.total:
            publish(self._part, self.file, overwrite=True)
            self._stream = self._part = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._stream is not None:
            self._stream.close()
            remove_temporary(self._part)

    @property
    def are_whole(self) -> bool:
        """Whether the frames are there and can be read."""
        return opened(self.file, self.shape, np.uint8) is not None

    def load(self) -> np.ndarray:
        """The frames, uint8 ``[F, H, W, 3]``, which stay on the disk."""
        return np.load(self.file, mmap_mode="r")


def opened(file: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray | None:
    """An array of a NumPy file, which stays on the disk; None if the file holds no such array."""
    try:
        array = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    is_it = isinstance(array, np.ndarray) and (array.shape, array.dtype) == (shape, dtype)
    return array if is_it else None
