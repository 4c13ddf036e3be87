"""What an uploaded picture or clip is, found out before a frame of it is decoded."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidInputError
from ..video.reader import open_clip, readable, video_stream
from .picture_size import packed_bytes, picture_size

MOST_PIXELS = 50_000_000
"""Pixels of a frame: a phone's largest pictures have 48 million."""
_MOST_SIDE = 16_384
_MOST_PACKED = 64 * 1024
"""Bytes of compressed texts and profiles; a thousand times as much may be in them."""
_LONGEST_READ = 10.0
_MAGIC = (
    (0, b"\x89PNG\r\n\x1a\n", "image", ".png"),
    (0, b"\xff\xd8\xff", "image", ".jpg"),
    (0, b"GIF8", "image", ".gif"),
    (8, b"WEBP", "image", ".webp"),
    (0, b"BM", "image", ".bmp"),
    (0, b"II*\0", "image", ".tiff"),
    (0, b"MM\0*", "image", ".tiff"),
    (4, b"ftypheic", "image", ".heic"),
    (4, b"ftypheix", "image", ".heic"),
    (4, b"ftypmif1", "image", ".heic"),
    (4, b"ftypavif", "image", ".avif"),
    (4, b"ftyp", "video", ".mp4"),
    (4, b"moov", "video", ".mov"),
    (4, b"wide", "video", ".mov"),
    (4, b"mdat", "video", ".mov"),
    (0, b"\x1a\x45\xdf\xa3", "video", ".mkv"),
    (8, b"AVI ", "video", ".avi"),
)
"""Where a kind of file has which bytes; the first that fits counts."""
TYPES = (
    "PNG, JPEG, WebP, GIF, HEIC, AVIF, BMP or TIFF pictures, and MP4, MOV, WebM, MKV or AVI clips"
)


@dataclass(frozen=True, kw_only=True)
class Media:
    """What an uploaded file is.

    Attributes:
        kind: ``image`` or ``video``; a GIF of several frames is a video.
        suffix: the ending of its name.
        width, height: in pixels.
    """

    kind: str
    suffix: str
    width: int
    height: int


def check_media(path: Path) -> Media:
    """Finds out what a file is by its first bytes, and its size by its header.

    Raises:
        InvalidInputError: it is of no type that is taken, damaged or too large.
    """
    with path.open("rb") as file:
        start = file.read(32)
        kinds = ((k, end) for at, magic, k, end in _MAGIC if start[at : at + len(magic)] == magic)
        kind, suffix = next(kinds, ("", ""))
        if not kind:
            raise InvalidInputError(f"the uploaded file is of another type than {TYPES}")
        if packed_bytes(file) > _MOST_PACKED:
            raise InvalidInputError(
                f"the uploaded image has more than {_MOST_PACKED // 1024} KiB of compressed texts "
                "and profiles: save it without metadata"
            )
        if (size := picture_size(file)) is not None:
            _check_size(kind, *size)
    with readable("the uploaded file", kind), open_clip(path, _LONGEST_READ) as container:
        context = video_stream(container).codec_context
        width, height = context.width, context.height
        _check_size(kind, width, height)
        if suffix == ".gif":
            packets = (packet for packet in container.demux(video=0) if packet.size)
            kind = "video" if sum(1 for _ in zip(range(2), packets, strict=False)) > 1 else kind
    return Media(kind=kind, suffix=suffix, width=width, height=height)


def _check_size(kind: str, width: int, height: int) -> None:
    if not 0 < width <= _MOST_SIDE or not 0 < height <= _MOST_SIDE:
        raise InvalidInputError(
            f"the uploaded {kind} has {width}x{height} pixels: each side may have 1 to {_MOST_SIDE}"
        )
    if width * height > MOST_PIXELS:
        raise InvalidInputError(
            f"the uploaded {kind} has {width}x{height} pixels: at most "
            f"{MOST_PIXELS // 1_000_000} million are taken"
        )
