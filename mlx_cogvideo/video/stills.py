"""Pictures that FFmpeg can't read as they are: HEIC, AVIF of several parts, and animated WEBP."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import av

from ..errors import InvalidInputError

SIPS = Path("/usr/bin/sips")
"""The converter of pictures that comes with macOS."""

_SRGB = "/System/Library/ColorSync/Profiles/sRGB Profile.icc"
_HEIC = {".heic", ".heif"}


@contextmanager
def converted(path: Path, timeout: float) -> Iterator[Path]:
    """A file that FFmpeg reads: on macOS a temporary PNG in sRGB of a HEIC, else the file itself.

    Raises:
        InvalidInputError: the conversion fails or takes more than `timeout` seconds.
    """
    if path.suffix.lower() not in _HEIC or not SIPS.exists():
        yield path
        return
    with TemporaryDirectory() as folder:
        png = Path(folder, "picture.png")
        command = [SIPS, "-s", "format", "png", "-m", _SRGB, path.absolute(), "--out", png]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=timeout)
        except (OSError, subprocess.SubprocessError):
            png.unlink(missing_ok=True)
        if not png.is_file():  # for some errors sips says that all is well
            raise InvalidInputError(f"{path} can't be converted by {SIPS}: make a JPEG of it")
        yield png


def check_whole(path: Path, container: av.container.InputContainer) -> None:
    """Raises InvalidInputError for a picture that consists of several, of which one would be read.

    A HEIC of an iPhone has many tiles; an AVIF may have its transparency beside it.
    """
    streams = container.streams.video
    if len(streams) > 1 and "mov" in container.format.name and all(s.frames == 1 for s in streams):
        raise InvalidInputError(
            f"{path} is a picture of {len(streams)} parts (tiles, or colours and transparency): "
            "make a JPEG or PNG of it"
        )


def check_no_animated_webp(path: Path) -> None:
    """Raises InvalidInputError for an animated WEBP."""
    with path.open("rb") as stream:
        start = stream.read(21)
    is_extended = start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X"
    if is_extended and start[20:] and start[20] & 2:
        raise InvalidInputError(f"{path} is an animated WEBP: make a GIF or mp4 of it")
