"""The record of how a video was made: JSON inside the file."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
from safetensors import SafetensorError, safe_open

from ..errors import InvalidInputError
from ..files import check_is_file
from .comments import GIF_SIGNATURES, PNG_SIGNATURE, gif_comments, png_comments
from .paths import frame_files
from .reader import open_input

KEY = "mlx_cogvideo"
"""Key of the package's version in a record, and of the record in a safetensors header."""


def record_text(record: dict[str, Any]) -> str:
    """The record as JSON that can be encoded as UTF-8.

    A value of a type that JSON lacks, such as a Path, becomes its ``str``: no video is lost for it.
    """
    text = json.dumps(record, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as from a badly encoded command line
        text = json.dumps(record, default=str)
    return text


def read_record(path: str | Path) -> dict[str, Any] | None:
    """The record inside an output.

    Args:
        path: an mp4, gif, PNG or safetensors file, whatever its name, or a folder of numbered
            PNG frames, whose first frame is read.

    Returns:
        A dict with at least the key ``mlx_cogvideo``, or None if the file has no record.

    Raises:
        InvalidInputError: the file doesn't exist or can't be read.
    """
    path = Path(path)
    try:
        file = next(iter(frame_files(path)), None) if os.path.isdir(path) else path
        if file is None:
            raise EOFError("it is a folder without numbered PNG frames")
        records = (_as_record(comment) for comment in _comments(file))
        return next((record for record in records if record is not None), None)
    except InvalidInputError:
        raise
    except (OSError, av.FFmpegError, SafetensorError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(f"{path} can't be read: {reason}") from error


def _comments(file: Path) -> Iterator[str | bytes]:
    """The comments of a file whose type follows from its first bytes."""
    check_is_file(file)
    with file.open("rb") as stream:
        start = stream.read(9)
        stream.seek(0)
        if start.startswith(GIF_SIGNATURES):
            yield from gif_comments(stream)
            return
        if start.startswith(PNG_SIGNATURE):
            yield from png_comments(stream)
            return
    if start[8:] == b"{":  # safetensors: JSON after its length in 8 bytes
        with safe_open(file, framework="numpy") as stored:
            yield (stored.metadata() or {}).get(KEY, "")
        return
    with open_input(file) as container:
        yield from (text for name, text in container.metadata.items() if name.lower() == "comment")


def _as_record(comment: str | bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(comment)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and KEY in record else None
