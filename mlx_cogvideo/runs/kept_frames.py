"""Keeps the frames of a run as they are before an encoder loses something, to compare them."""

from pathlib import Path
from typing import Self

import numpy as np

from ..files import remove_temporary, temporary_path
from ..pipeline.events import Event
from ..video.paths import output_errors, publish


class KeptFrames:
    """Writes the frames of a run to a NumPy file, which is there once they are complete.

    ::

        with KeptFrames(file) as kept:
            kept.observe(event)

    Memory: what the system keeps of the file.
    """

    def __init__(self, file: Path):
        self.file = file
        self._part: Path | None = None
        self._frames: np.ndarray | None = None
        self._count = 0

    def observe(self, event: Event) -> None:
        """Takes the frames of an event.

        Raises:
            OutputError: they can't be written.
        """
        frames = event.frames
        if frames is None:
            return
        with output_errors(self.file):
            if self._frames is None:
                self._part = temporary_path(self.file)
                shape = (event.window.total_frames, *frames.shape[1:])
                self._frames = np.lib.format.open_memmap(self._part, "w+", np.uint8, shape)
            self._frames[self._count : self._count + len(frames)] = frames
            self._count += len(frames)
            if self._count == len(self._frames):
                self._frames.flush()
        if self._count == len(self._frames):
            publish(self._part, self.file, overwrite=True)
            self._frames = self._part = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._part is not None:
            remove_temporary(self._part)

    def load(self) -> np.ndarray:
        """The frames, uint8 ``[F, H, W, 3]``, which stay on the disk."""
        return np.load(self.file, mmap_mode="r")
