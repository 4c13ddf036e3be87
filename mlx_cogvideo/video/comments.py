"""Adds comments to GIF and PNG files in place, and reads them without decoding pictures."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

GIF_SIGNATURES = b"GIF87a", b"GIF89a"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Block types of the GIF89a specification, sections 20 to 27.
_EXTENSION, _COMMENT, _IMAGE, _TRAILER = 0x21, 0xFE, 0x2C, 0x3B
_LONGEST_BLOCK = 255

# A PNG ends with an empty chunk: no length, the type and its checksum.
_IEND = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
# Start of an iTXt chunk (PNG specification, 11.3.3.4): not compressed, no language, no translation.
_ITXT_START = b"Comment" + b"\0" + b"\0\0" + b"\0" + b"\0"


def add_gif_comment(path: Path, comment: bytes) -> None:
    """Puts a comment extension before the trailer of a whole GIF."""
    pieces = (comment[i : i + _LONGEST_BLOCK] for i in range(0, len(comment), _LONGEST_BLOCK))
    blocks = b"".join(bytes([len(piece)]) + piece for piece in pieces)
    extension = bytes([_EXTENSION, _COMMENT]) + blocks + b"\0"
    _replace_end(path, bytes([_TRAILER]), extension + bytes([_TRAILER]))


def add_png_comment(path: Path, comment: bytes) -> None:
    """Puts UTF-8 text in an iTXt chunk before the end of a whole PNG."""
    body = b"iTXt" + _ITXT_START + comment
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    _replace_end(path, _IEND, chunk + _IEND)


def gif_comments(stream: BinaryIO) -> Iterator[bytes]:
    """The comments of a GIF, in the order of the file.

    Raises:
        EOFError: the file is cut off.
        ValueError: its blocks make no sense.
    """
    _skip_color_table(stream, _take(stream, 13)[10])
    while (kind := _take(stream, 1)[0]) != _TRAILER:
        if kind == _EXTENSION:
            label = _take(stream, 1)[0]
            data = b"".join(_sub_blocks(stream))
            if label == _COMMENT:
                yield data
        elif kind == _IMAGE:
            _skip_color_table(stream, _take(stream, 9)[8])
            _take(stream, 1)  # the code size of the compressed pixels
            for _ in _sub_blocks(stream):
                pass
        else:
            raise ValueError(f"it has an unknown block, {kind:#04x}")


def png_comments(stream: BinaryIO) -> Iterator[bytes]:
    """The uncompressed iTXt comments of a PNG, in the order of the file.

    Raises:
        EOFError: the file is cut off.
    """
    _take(stream, len(PNG_SIGNATURE))
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", _take(stream, 8))
        if kind == b"iTXt":
            data = _take(stream, length)
            if data.startswith(_ITXT_START):
                yield data.removeprefix(_ITXT_START)
        else:
            stream.seek(length, 1)
        _take(stream, 4)  # the checksum


def _replace_end(path: Path, old: bytes, new: bytes) -> None:
    with path.open("rb") as stream:
        end = stream.seek(-len(old), 2)
        if stream.read() != old:
            raise OSError(f"{path} doesn't end as it should")
    try:
        _write_at(path, end, new)
    except OSError:  # the disk is full: keep at least the picture intact
        _write_at(path, end, old)
        raise


def _write_at(path: Path, position: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.truncate(position)
        stream.seek(position)
        stream.write(data)


def _sub_blocks(stream: BinaryIO) -> Iterator[bytes]:
    while size := _take(stream, 1)[0]:
        yield _take(stream, size)


def _skip_color_table(stream: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        _take(stream, 3 * 2 ** ((flags & 7) + 1))


def _take(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("it is cut off")
    return data
