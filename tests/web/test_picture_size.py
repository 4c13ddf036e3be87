"""Sizes of pictures as FFmpeg finds them, from their headers alone."""

import io
import zlib

import av
import numpy as np
import pytest

from mlx_cogvideo.errors import InvalidInputError
from mlx_cogvideo.web.media import check_media
from mlx_cogvideo.web.picture_size import packed_bytes, picture_size


def encoded(codec: str, pix_fmt: str, height: int, width: int, **options: str) -> bytes:
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, pix_fmt, 1
    encoder.thread_count, encoder.options = 1, options
    frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), "rgb24")
    frame = frame.reformat(format=pix_fmt)
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    return b"".join(map(bytes, packets))


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("png", "rgb24"), ("mjpeg", "yuvj420p"), ("bmp", "bgr24")]
)
def test_the_size_is_that_of_the_picture(codec, pix_fmt):
    contents = encoded(codec, pix_fmt, height=34, width=60)
    assert picture_size(io.BytesIO(contents)) == (60, 34)


@pytest.mark.parametrize("lossless", ["0", "1"])
def test_the_size_of_a_webp(lossless):
    if "libwebp" not in av.codecs_available:
        pytest.skip("this FFmpeg writes no WebP")
    pix_fmt = "yuv420p" if lossless == "0" else "bgra"
    contents = encoded("libwebp", pix_fmt, height=34, width=60, lossless=lossless)
    assert picture_size(io.BytesIO(contents)) == (60, 34)


def test_a_gif_and_an_extended_webp():
    assert picture_size(io.BytesIO(b"GIF89a\x3c\0\x22\0")) == (60, 34)
    webp = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x3b\0\0\x21\0\0"
    assert picture_size(io.BytesIO(webp)) == (60, 34)


def test_a_jpeg_with_segments_before_the_size():
    jpeg = encoded("mjpeg", "yuvj420p", height=34, width=60)
    metadata = b"\xff\xe1\xff\xff" + bytes(0xFFFD)
    assert picture_size(io.BytesIO(jpeg[:2] + metadata * 3 + b"\xff" + jpeg[2:])) == (60, 34)
    assert picture_size(io.BytesIO(jpeg[:2] + metadata)) is None


def test_another_file_has_none():
    assert picture_size(io.BytesIO(b"")) is None
    assert picture_size(io.BytesIO(b"\0\0\0\x18ftypmp42")) is None


def chunk(kind: bytes, contents: bytes) -> bytes:
    return len(contents).to_bytes(4, "big") + kind + contents + b"\0" * 4


def with_chunks(*chunks: bytes) -> bytes:
    """A PNG with more chunks after its first one."""
    png = encoded("png", "rgb24", height=34, width=60)
    end = 8 + 12 + 13
    return png[:end] + b"".join(chunks) + png[end:]


def test_packed_texts_and_profiles_of_a_png_are_counted():
    plain = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 5000)
    packed = chunk(b"iTXt", b"Comment\0\1\0\0\0" + b"x" * 88), chunk(b"zTXt", b"x" * 30)
    assert packed_bytes(io.BytesIO(with_chunks(plain))) == 0
    assert packed_bytes(io.BytesIO(with_chunks(plain, *packed, chunk(b"iCCP", b"x" * 7)))) == 137
    assert packed_bytes(io.BytesIO(b"GIF89a")) == 0


def test_a_picture_with_much_packed_text_is_refused_before_it_is_read(tmp_path):
    text = zlib.compress(b"x" * 100_000_000)
    assert len(text) > 64 * 1024
    file = tmp_path / "a.png"
    file.write_bytes(with_chunks(chunk(b"zTXt", b"Comment\0\0" + text)))
    with pytest.raises(InvalidInputError, match="64 KiB of compressed texts"):
        check_media(file)
