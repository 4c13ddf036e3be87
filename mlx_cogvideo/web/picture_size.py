"""Reads the size of a picture from its header: FFmpeg decodes a picture when it opens it.

It also inflates texts and profiles in it, of which a small file may hold gigabytes.
"""

from typing import BinaryIO

_STANDALONE = {0x01, *range(0xD0, 0xD9)}
"""Markers of JPEG without a length."""
_LONGEST_KEYWORD = 82
"""Bytes of a text's keyword in a PNG with what says whether the text is compressed."""
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of JPEG whose segments have the size."""


def picture_size(file: BinaryIO) -> tuple[int, int] | None:
    """The width and height that a PNG, GIF, BMP, WebP or JPEG says it has, or None."""
    file.seek(0)
    start = file.read(32).ljust(32, b"\0")
    if start.startswith(b"\x89PNG"):
        return _big(start[16:20]), _big(start[20:24])
    if start.startswith(b"GIF8"):
        return _little(start[6:8]), _little(start[8:10])
    if start.startswith(b"BM"):
        return _little(start[18:22]), abs(int.from_bytes(start[22:26], "little", signed=True))
    if start[8:12] == b"WEBP":
        return _webp_size(start)
    return _jpeg_size(file) if start.startswith(b"\xff\xd8") else None


def packed_bytes(file: BinaryIO) -> int:
    """The bytes of compressed texts and profiles in a PNG; 0 in other pictures."""
    file.seek(0)
    if not file.read(8).startswith(b"\x89PNG"):
        return 0
    count = 0
    while len(head := file.read(8)) == 8:
        length, kind = _big(head[:4]), head[4:]
        if kind in (b"zTXt", b"iCCP"):
            count += length
        elif kind == b"iTXt":
            start = file.read(min(length, _LONGEST_KEYWORD))
            _, _, rest = start.partition(b"\0")
            count += length if rest[:1] == b"\1" else 0
            length -= len(start)
        file.seek(length + 4, 1)
    return count


def _webp_size(start: bytes) -> tuple[int, int] | None:
    match start[12:16]:
        case b"VP8X":
            return _little(start[24:27]) + 1, _little(start[27:30]) + 1
        case b"VP8L":
            bits = _little(start[21:25])
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            return _little(start[26:28]) & 0x3FFF, _little(start[28:30]) & 0x3FFF
    return None


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    file.seek(2)
    while len(marker := file.read(2)) == 2 and marker[0] == 0xFF:
        if marker[1] == 0xFF:  # a byte that fills
            file.seek(-1, 1)
        elif marker[1] in _FRAMES:
            segment = file.read(7)
            return _big(segment[5:7]), _big(segment[3:5])
        elif marker[1] not in _STANDALONE:
            file.seek(max(_big(file.read(2)) - 2, 0), 1)
    return None


def _big(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _little(value: bytes) -> int:
    return int.from_bytes(value, "little")
