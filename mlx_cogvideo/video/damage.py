"""Refuses pictures of which FFmpeg decodes only a part, without an error."""

import struct
from contextlib import suppress
from pathlib import Path

from ..errors import InvalidInputError
from .comments import gif_comments

_COMPRESSION = 259
_JPEG = 6, 7


def check_gif(path: Path) -> None:
    """Raises InvalidInputError for a GIF that is cut off: what is missing would be black."""
    try:
        with path.open("rb") as stream, suppress(ValueError):
            for _ in gif_comments(stream):
                pass
    except EOFError as error:
        raise InvalidInputError(f"{path} is damaged: {error}") from None


def check_tiff(path: Path) -> None:
    """Raises InvalidInputError for a TIFF with JPEG compression, which would be black."""
    with path.open("rb") as stream, suppress(struct.error):
        start = stream.read(8)
        order = "<" if start.startswith(b"II") else ">"
        stream.seek(*struct.unpack(f"{order}I", start[4:]))
        (fields,) = struct.unpack(f"{order}H", stream.read(2))
        for _ in range(fields):
            tag, _, _, value = struct.unpack(f"{order}HHIHxx", stream.read(12))
            if tag == _COMPRESSION and value in _JPEG:
                raise InvalidInputError(f"{path} is a TIFF with JPEG compression: make a PNG of it")


CHECKS = {"gif": check_gif, "tiff": check_tiff}
"""The check of a picture, by the name of its codec."""
