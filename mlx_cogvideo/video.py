"""Reading and writing clips with PyAV: mp4 files that every player opens.

H.264 in yuv420p with BT.709 colours, the index in front (faststart) so that a browser can begin
to play before the end has arrived.
"""

import os
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from .errors import InvalidInputError, OutputError

SUFFIX = ".mp4"
# Visually lossless for most clips; x264's own default of 23 is meant for streaming.
CRF = 18
# Codes of ITU-T H.273: primaries, transfer curve and matrix have one number; luma is 16 to 235.
BT709 = 1
LIMITED_RANGE = 1
# That of the NTSC rates, 24000/1001 and its like.
MAX_DENOMINATOR = 1001


class VideoWriter:
    """Writes frames to an mp4 as they come; the file appears when the last one is in.

    ::

        with VideoWriter("clip.mp4", fps=8) as writer:
            writer.write(frames)

    Until then the frames go to a temporary file in the same folder. Leaving the block by an
    exception removes it, so a partial clip never bears the final name.
    """

    def __init__(
        self, path: str | Path, fps: int | float | Fraction, *, overwrite: bool = False
    ) -> None:
        """Checks the path and the frame rate; nothing is written yet.

        Args:
            path: where the mp4 goes; its folder must exist.
            fps: frames a second. Kept exactly, up to a denominator of 1001.
            overwrite: replace a file that is there.

        Raises:
            InvalidInputError: fps isn't a positive number.
            OutputError: the file can't go there; see ``check_output_path``.
        """
        self.path = check_output_path(path, overwrite)
        self.fps = _exact_rate(fps)
        self._overwrite = overwrite
        self._temporary: Path | None = None
        self._size: tuple[int, int] | None = None
        self._container = None
        self._stream = None

    def __enter__(self) -> Self:
        try:
            handle, name = tempfile.mkstemp(SUFFIX, f".{self.path.stem}.", self.path.parent)
        except OSError as error:
            raise OutputError(f"{self.path} can't be written: {error.strerror}") from error
        os.close(handle)
        self._temporary = Path(name)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._abandon()

    def write(self, frames: np.ndarray) -> None:
        """Appends frames, uint8 [F, H, W, 3], or a single one, [H, W, 3].

        Raises:
            InvalidInputError: another shape or dtype, an odd size, or not the size of the frames
                before.
            OutputError: the disk is full or the folder went away.
        """
        if self._temporary is None:
            raise InvalidInputError("use VideoWriter in a with statement")
        frames = np.asarray(frames)
        frames = frames[None] if frames.ndim == 3 else frames
        _check_frames(frames)
        size = frames.shape[1:3]
        self._size = self._size or size
        if size != self._size:
            raise InvalidInputError(f"all frames must have one size: got {size} after {self._size}")
        try:
            if self._stream is None:
                self._open(*size)
            for frame in frames:
                self._container.mux(self._stream.encode(_as_yuv(frame)))
        except OSError as error:
            raise OutputError(f"{self.path} can't be written: {error.strerror}") from error

    def _open(self, height: int, width: int) -> None:
        self._container = av.open(
            str(self._temporary), "w", format="mp4", options={"movflags": "+faststart"}
        )
        stream = self._container.add_stream("libx264", rate=self.fps, options={"crf": str(CRF)})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        self._stream = stream

    def _finish(self) -> None:
        if self._stream is None:
            raise InvalidInputError("a video needs at least one frame; got none")
        try:
            self._container.mux(self._stream.encode())
            self._close()
            _give_usual_permissions(self._temporary)
            if self.path.exists() and not self._overwrite:
                kept, self._temporary = self._temporary, None
                raise OutputError(f"{self.path} appeared meanwhile: the finished video is {kept}")
            self._temporary.replace(self.path)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"{self.path} can't be written: {error.strerror}") from error

    def _abandon(self) -> None:
        """Closes and removes what ``_finish`` hasn't moved away."""
        try:
            self._close()
        finally:
            if self._temporary is not None:
                self._temporary.unlink(missing_ok=True)
                self._temporary = None

    def _close(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.close()


def write_video(
    path: str | Path,
    frames: np.ndarray | Iterable[np.ndarray],
    fps: int | float | Fraction,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a whole clip.

    Args:
        path: where the mp4 goes.
        frames: uint8 [F, H, W, 3] with even H and W, or an iterable of such frames.
        fps: frames a second; see ``VideoWriter``.
        overwrite: replace a file that is there.

    Raises:
        InvalidInputError: the frames or the frame rate can't be a video.
        OutputError: the file can't go there; see ``check_output_path``.
    """
    with VideoWriter(path, fps, overwrite=overwrite) as writer:
        for frame in frames:
            writer.write(frame)


def read_video(path: str | Path) -> tuple[np.ndarray, Fraction]:
    """Reads all frames of a clip's first video stream.

    Returns:
        uint8 [F, H, W, 3] and the average frames a second.

    Raises:
        InvalidInputError: there is no such file, or no video in it.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InvalidInputError(f"{path} has no video stream")
            stream = container.streams.video[0]
            frames = [_as_rgb(frame) for frame in container.decode(stream)]
            fps = stream.average_rate
    except FileNotFoundError as error:
        raise InvalidInputError(f"{path} doesn't exist") from error
    except av.FFmpegError as error:
        raise InvalidInputError(f"{path} can't be read as a video: {error.strerror}") from error
    if not frames:
        raise InvalidInputError(f"{path} has no frames")
    return np.stack(frames), fps


def check_output_path(path: str | Path, overwrite: bool = False) -> Path:
    """Makes sure that a video can be written to ``path``; call it before any expensive work.

    Returns:
        The path.

    Raises:
        OutputError: the ending isn't .mp4, the folder is missing or closed to writing, or there
            is such a file already and overwrite is false.
    """
    path = Path(path)
    if path.suffix.lower() != SUFFIX:
        raise OutputError(f"only {SUFFIX} can be written: name the output {path.stem}{SUFFIX}")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} doesn't exist: make it first")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: choose another name or overwrite it (--overwrite)")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {path.parent} can't be written to: choose another")
    return path


def _exact_rate(fps: int | float | Fraction) -> Fraction:
    """The frame rate as a fraction; mp4 knows no other."""
    try:
        rate = Fraction(fps).limit_denominator(MAX_DENOMINATOR)
    except (TypeError, ValueError, OverflowError):
        rate = Fraction(0)
    if rate <= 0:
        raise InvalidInputError(f"fps must be a positive number; got {fps}")
    return rate


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise InvalidInputError(
            f"frames must be uint8 [F, H, W, 3]; got {frames.dtype} {list(frames.shape)}"
        )
    height, width = frames.shape[1:3]
    if height % 2 or width % 2 or not height or not width:
        raise InvalidInputError(
            f"H.264 in yuv420p needs an even height and width; got {height}x{width}: "
            f"crop to {height - height % 2}x{width - width % 2}"
        )


def _as_yuv(pixels: np.ndarray) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
    )


def _as_rgb(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="rgb24")


def _give_usual_permissions(path: Path) -> None:
    """What open() would have given; mkstemp makes files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
