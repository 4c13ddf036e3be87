"""Writes folders of lossless frames: 0001.png, 0002.png and so on."""

from pathlib import Path

import av
import numpy as np

from .comments import add_png_comment
from .paths import FRAMES, frame_files
from .writer import FrameWriter, as_video_frame


class PngWriter(FrameWriter):
    """Writes a folder of PNG frames, with the record as an iTXt comment in each of them.

    The frame rate is checked, but PNG files can't store it.
    """

    form = FRAMES

    def _make(self, part: Path) -> None:
        part.mkdir()

    def _open(self, height: int, width: int) -> None:
        self._encoder = av.CodecContext.create("png", "w")
        self._encoder.height, self._encoder.width = height, width
        self._encoder.pix_fmt, self._encoder.time_base = "rgb24", 1 / self.fps
        # With more threads the encoder returns frames late.
        self._encoder.thread_count = 1
        self._count = 0

    def _add(self, frame: np.ndarray) -> None:
        self._count += 1
        (packet,) = self._encoder.encode(as_video_frame(frame))
        (self._part / f"{self._count:04d}.png").write_bytes(packet)

    def _finish(self) -> None:
        """Does nothing: every frame is already written."""

    def _store(self, part: Path, comment: str) -> None:
        for file in frame_files(part):
            add_png_comment(file, comment.encode())
