"""Reads the frames of clips."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from ..errors import InvalidInputError
from ..files import check_is_file
from .paths import ffmpeg_name
from .stalls import answered

# Without this option, which PyAV 19 removed, a tag that isn't UTF-8 makes a file unreadable.
_OPTIONS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# Formats whose files name others, which FFmpeg would open.
_PLAYLISTS = {"concat", "dash", "hls", "imf", "lavfi", "rtsp", "sdp", "webm_dash_manifest"}
# So that a%03d.png is the name of one picture. PyAV would give `options` to the streams as well,
# and its version 17 then ends the process where these are found late, as in flv.
_DEMUXER_OPTIONS = {
    "pattern_type": "none",
    "format_whitelist": ",".join(sorted(av.formats_available - _PLAYLISTS)),
}


def open_input(path: str | Path, timeout: float | None = None) -> av.container.InputContainer:
    """Opens a file for reading, whatever its tags contain, and no other that it names.

    Args:
        timeout: seconds that opening it, or a single read, may take; None sets no limit.

    Raises:
        InvalidInputError: it isn't a file, or is a playlist.
    """
    check_is_file(path)
    name = ffmpeg_name(path)
    try:
        return av.open(name, timeout=timeout, container_options=_DEMUXER_OPTIONS, **_OPTIONS)
    except av.ArgumentError:
        raise InvalidInputError(
            f"{path} is a playlist, or of another kind that names other files: give the clip itself"
        ) from None


@contextmanager
def readable(path: str | Path, kind: str = "video") -> Iterator[None]:
    """Turns the errors of reading a file, a `kind` for the message, into InvalidInputError."""
    try:
        yield
    except av.FFmpegError as error:
        raise InvalidInputError(f"{path} can't be read as a {kind}: {error.strerror}") from error


@contextmanager
def open_clip(
    path: str | Path, timeout: float | None = None
) -> Iterator[av.container.InputContainer]:
    """Opens a file with a video stream; see `open_input`."""
    with open_input(path, timeout) as container:
        if not container.streams.video:
            raise InvalidInputError(f"{path} has no video stream")
        if video_stream(container).codec_context is None:
            raise InvalidInputError(f"{path} is in a codec that FFmpeg doesn't know")
        yield container


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream to read: the one that FFmpeg would play, but no cover if there is another."""
    best = container.streams.best("video")
    clips = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return best if best in clips or not clips else max(clips, key=lambda s: s.height * s.width)


def stored_frames(container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    """The frames of a clip as its decoder makes them."""
    frame = None
    for packet in container.demux(video_stream(container)):
        answered()
        if frame is not None and packet.pts is not None and not packet.size:
            frame.pts = packet.pts  # Theora repeats a frame by an empty packet, which is no error
            yield frame
        else:
            for frame in packet.decode():
                yield frame


def read_video(path: str | Path) -> tuple[np.ndarray, Fraction]:
    """Reads all frames of a clip; see ``read_frames``.

    Returns:
        uint8 [F, H, W, 3] and the average frames per second.
    """
    with readable(path), open_clip(path) as container:
        return np.stack(list(_pixels(path, container))), _rate(container)


def frame_rate(path: str | Path) -> Fraction:
    """The average frames per second of a clip.

    Raises:
        InvalidInputError: the file doesn't exist or has no video.
    """
    with readable(path), open_clip(path) as container:
        return _rate(container)


def _rate(container: av.container.InputContainer) -> Fraction:
    stream = video_stream(container)
    fps = stream.average_rate or stream.guessed_rate
    if container.format.name == "gif":  # delays in hundredths of a second distort the average
        fps = stream.base_rate or fps
    return fps


def read_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Reads the frames of a clip one by one.

    Args:
        path: an mp4, a gif, or any other file that FFmpeg knows.

    Yields:
        uint8 [H, W, 3].

    Raises:
        InvalidInputError: the file doesn't exist or has no video.
    """
    with readable(path), open_clip(path) as container:
        yield from _pixels(path, container)


def _pixels(path: str | Path, container: av.container.InputContainer) -> Iterator[np.ndarray]:
    empty = True
    for frame in stored_frames(container):
        empty = False
        yield frame.to_ndarray(format="rgb24")
    if empty:
        raise InvalidInputError(f"{path} has no frames")
