"""The base of all writers of frames: checks, the temporary file, and its final name."""

from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Self

import av
import numpy as np

from ..errors import InvalidInputError, OutputError
from ..files import locked, remove_temporary, temporary_path
from .interpolation import make_interpolator
from .metadata import record_text
from .paths import check_output_path, output_errors, output_form, publish

SLOWEST, FASTEST = 0.02, 1000.0
"""Frames per second that mp4 and gif files can carry, and players show."""
# The denominator of NTSC rates such as 24000/1001.
MAX_DENOMINATOR = 1001


class FrameWriter:
    """Writes frames one by one; the output appears after the last.

    ::

        with open_writer("clip.mp4", fps=8) as writer:
            writer.write(frames)
            writer.record = {"mlx_cogvideo": "0.1.0", "settings": {"seed": 1}}

    Until then the frames go to a hidden temporary file or folder beside it, and no other process
    can write the output. An exception in the block removes the temporary, so that a partial clip
    never has the final name.

    Attributes:
        path: path of the output.
        fps: frames per second of the file.
        record: how the video was made, stored inside; JSON with the key ``mlx_cogvideo``. Set it
            anywhere in the block; None stores nothing.
    """

    form: ClassVar[str]
    """The ending of the outputs that a subclass writes."""

    def __init__(
        self,
        path: str | Path,
        fps: int | float | Fraction,
        *,
        overwrite: bool = False,
        interpolate: int = 1,
    ) -> None:
        """Checks the path and the frame rate; nothing is written yet.

        Args:
            path: path of the output; its folder must exist.
            fps: frames per second, stored exactly up to a denominator of 1001.
            overwrite: whether to replace an existing output.
            interpolate: times the frames per second of the file, 1, 2 or 3; ``interpolation``
                makes the frames between those that are written.

        Raises:
            InvalidInputError: fps isn't a number from 0.02 to 1000, or there are other frames to
                interpolate.
            OutputError: the output can't go there; see ``check_output_path``.
        """
        self.path = check_output_path(path, overwrite)
        if output_form(path) != self.form:
            raise OutputError(f"{type(self).__name__} can't write {path}: use open_writer")
        self._interpolator = make_interpolator(interpolate)
        self.fps = _exact_rate(fps) * interpolate
        self.record: dict[str, Any] | None = None
        self._overwrite = overwrite
        self._part: Path | None = None
        self._size: tuple[int, int] | None = None
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(locked(self.path, "choose another name"))
            part = temporary_path(self.path)
            with output_errors(self.path):
                self._make(part)
            self._part = part
            stack.callback(self._abandon)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        with self._stack:
            if kind is None:
                self._complete()

    def write(self, frames: np.ndarray) -> None:
        """Appends frames, uint8 [F, H, W, 3], or a single one, [H, W, 3].

        Raises:
            InvalidInputError: the shape or dtype is another one, or the size differs from the
                frames before.
            OutputError: the disk is full or the folder is gone.
        """
        if self._part is None:
            raise InvalidInputError(f"use {type(self).__name__} in a with statement")
        frames = np.asarray(frames)
        frames = frames[None] if frames.ndim == 3 else frames
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
            raise InvalidInputError(
                f"frames must be uint8 [F, H, W, 3]; got {frames.dtype} {list(frames.shape)}"
            )
        size = frames.shape[1:3]
        if size != (self._size or size):
            raise InvalidInputError(f"all frames must have one size: got {size} after {self._size}")
        with output_errors(self.path):
            if self._size is None:
                self._open(*size)
                self._size = size
            for frame in map(np.ascontiguousarray, frames):
                shown = [frame] if self._interpolator is None else self._interpolator.add(frame)
                for each in shown:
                    self._add(each)

    def _make(self, part: Path) -> None:
        """Creates the temporary, so that a write-protected folder is noticed before any frame."""
        part.touch(exist_ok=False)

    def _open(self, height: int, width: int) -> None:
        """Starts the encoder."""
        raise NotImplementedError

    def _add(self, frame: np.ndarray) -> None:
        """Encodes a contiguous frame, uint8 [H, W, 3]."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Encodes the remaining frames and closes the temporary."""
        self._container.mux(self._stream.encode())
        self._close()

    def _store(self, part: Path, comment: str) -> None:
        """Stores the record's JSON in the finished temporary, or raises and leaves it unchanged."""
        raise NotImplementedError

    def _complete(self) -> None:
        if self._size is None:
            raise InvalidInputError("a video needs at least one frame; got none")
        with output_errors(self.path):
            for frame in () if self._interpolator is None else self._interpolator.end():
                self._add(frame)
            self._finish()
        # From here on the video is finished and is kept, whatever happens.
        part, self._part = self._part, None
        if self.record is not None:
            with output_errors(self.path, part):
                self._store(part, record_text(self.record))
        publish(part, self.path, self._overwrite)

    def _abandon(self) -> None:
        """Closes and removes an unfinished temporary; errors here would hide the original one."""
        with suppress(OSError, av.FFmpegError):
            self._close()
        part, self._part = self._part, None
        if part is not None:
            with suppress(OSError):
                remove_temporary(part)

    def _close(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.close()


def as_video_frame(pixels: np.ndarray) -> av.VideoFrame:
    """A frame of PyAV from uint8 [H, W, 3]."""
    return av.VideoFrame.from_ndarray(pixels, format="rgb24")


def _exact_rate(fps: int | float | Fraction) -> Fraction:
    try:
        rate = Fraction(fps).limit_denominator(MAX_DENOMINATOR)
    except (TypeError, ValueError, OverflowError):
        rate = Fraction(0)
    if not SLOWEST <= float(rate) <= FASTEST:
        raise InvalidInputError(
            f"fps must be a positive number, from {SLOWEST:g} to {FASTEST:g}; got {fps}"
        )
    return rate
