"""How a stored frame becomes pixels: its colours, orientation, fields, transparency and damage."""

import gc
import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.codec.context import Flags
from clips import make_clip
from commands import errors, generate
from PIL import Image, ImageOps

from mlx_cogvideo import InvalidInputError
from mlx_cogvideo.cli.lora import main as lora
from mlx_cogvideo.video import (
    ClipInfo,
    ClipSpec,
    measure,
    read_clip,
    read_image,
    read_video,
    write_video,
)
from mlx_cogvideo.video.writer import as_video_frame

SHAPE = ClipSpec(9, 32, 48, 8)

# Colours of SDR: primaries, white, a skin, and a gray ramp.
PATCHES = np.array(
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (200, 150, 120)]
    + [(level, level, level) for level in (0, 16, 64, 128, 192, 235)]
)
# H.273 numbers of primaries and transfer; the matrices from BT.709 are those of ITU-R BT.2087
# (BT.2020) and of the primaries of SMPTE EG 432-1 (P3).
BT2020 = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
P3 = [[0.8225, 0.1775, 0.0], [0.0332, 0.9668, 0.0], [0.0171, 0.0724, 0.9105]]


def pq(light: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: the signal of light in units of 203 cd/m2."""
    power = (light * 203 / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100: the signal that a display of 1000 cd/m2 shows as this light."""
    light = light * 0.203
    luminance = np.maximum(light @ [0.2627, 0.6780, 0.0593], 1e-12)[..., None]
    scene = light * luminance ** (1 / 1.2 - 1)
    dark, bright = np.sqrt(3 * scene), np.log(np.maximum(12 * scene - 0.28466892, 1e-12))
    return np.where(scene <= 1 / 12, dark, 0.17883277 * bright + 0.55991073)


def power(light: np.ndarray) -> np.ndarray:
    return light ** (1 / 2.4)


def linear(light: np.ndarray) -> np.ndarray:
    return light


IDENTITY = np.eye(3)
COLORS = {
    "PQ": (9, 16, BT2020, pq),
    "HLG": (9, 18, BT2020, hlg),
    "PQ of no named primaries": (2, 16, BT2020, pq),
    "BT.2020": (9, 14, BT2020, power),
    "Display P3": (12, 13, P3, power),
    "DCI-P3": (11, 1, P3, power),
    "linear": (1, 8, IDENTITY, linear),
    "linear BT.2020": (9, 8, BT2020, linear),
}
CODECS = {".mkv": ("ffv1", "yuv444p16le"), ".mp4": ("libx265", "yuv420p10le")}
CODECS |= {".png": ("png", "rgb48be"), ".avif": ("libsvtav1", "yuv420p10le")}


def ycbcr(signal: np.ndarray, matrix: int) -> np.ndarray:
    """RGB from 0 to 1 in 16 bits of limited range, by the matrix of BT.2020 (9) or BT.709."""
    red, blue = (0.2627, 0.0593) if matrix == 9 else (0.2126, 0.0722)
    luma = signal @ [red, 1 - red - blue, blue]
    cb, cr = (signal[..., 2] - luma) / (2 - 2 * blue), (signal[..., 0] - luma) / (2 - 2 * red)
    return np.stack([16 + 219 * luma, 128 + 224 * cb, 128 + 224 * cr], -1) * 256


def tagged(path: Path, signal: np.ndarray, primaries=2, transfer=2, matrix=1) -> Path:
    """Writes RGB from 0 to 1 ``[H, W, 3]`` as a clip or picture with tags of its colours."""
    codec, form = CODECS[path.suffix]
    signal = np.clip(signal, 0, 1)
    if form == "rgb48be":
        pixels, source, tags = signal * 65535, "rgb48le", (0, 2)
    else:
        pixels, source, tags = ycbcr(signal, matrix), "yuv444p16le", (matrix, 1)
    frame = av.VideoFrame.from_ndarray(np.rint(pixels).astype(np.uint16), format=source)
    frame.colorspace, frame.color_range = tags
    frame = frame.reformat(format=form)
    options = {"x265-params": "log-level=none", "crf": "4"} if "420" in form else {}
    with av.open(path, "w", format="image2" if path.suffix == ".png" else None) as container:
        stream = container.add_stream(codec, rate=8, options=options)
        stream.height, stream.width, stream.pix_fmt = *signal.shape[:2], form
        for target in (frame, stream.codec_context):
            target.color_primaries, target.color_trc = primaries, transfer
            target.colorspace, target.color_range = tags
        for number in range(1 if path.suffix in (".png", ".avif") else 9):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def patches(path: Path, colors: str, sdr: np.ndarray = PATCHES) -> Path:
    """Writes SDR colours as light of the same look in other colours, each 32 pixels wide."""
    primaries, transfer, matrix, curve = COLORS[colors]
    light = (sdr / 255) ** 2.4 @ np.transpose(matrix)
    signal = columns(curve(light))
    return tagged(path, signal, primaries, transfer, 1 if primaries in (1, 11, 12) else 9)


def columns(row: np.ndarray) -> np.ndarray:
    """Colours ``[W, C]`` as pixels ``[32, 32 W, C]``."""
    return np.repeat(np.repeat(row[None], 32, 0), 32, 1)


def centers(pixels: np.ndarray) -> np.ndarray:
    return pixels[16, 16::32].astype(int)


def assert_near(seen: np.ndarray, expected: np.ndarray) -> None:
    """Within 5 levels; of saturated colours, the dark channels have only 0.6 % more light."""
    is_gray = np.ptp(expected, axis=-1, keepdims=True) == 0
    allowed = np.where((expected < 40) & ~is_gray, 31, 5)
    assert (np.abs(seen - expected) <= allowed).all(), seen - expected


@pytest.mark.parametrize("suffix", [".mkv", ".png"])
@pytest.mark.parametrize("colors", COLORS)
def test_colours_come_back_as_those_of_sdr(tmp_path, colors, suffix):
    path = patches(tmp_path / f"a{suffix}", colors)
    if suffix == ".png" and colors == "PQ of no named primaries":
        pytest.skip("PNG has both or none")
    assert_near(centers(read_image(path, 32, 32 * len(PATCHES))), PATCHES)


@pytest.mark.parametrize(("suffix", "colors"), [(".mp4", "HLG"), (".avif", "PQ")])
def test_hdr_is_read_from_the_codecs_of_phones(tmp_path, suffix, colors):
    path = patches(tmp_path / f"a{suffix}", colors)
    assert_near(centers(read_image(path, 32, 32 * len(PATCHES))), PATCHES)
    if suffix == ".mp4":
        clip = read_clip(path, ClipSpec(9, 32, 32 * len(PATCHES), 8))
        assert_near(centers(clip[8]), PATCHES)


@pytest.mark.parametrize("codec", ["libx265", "prores_ks"])
def test_colours_that_only_the_container_names_are_known(tmp_path, codec):
    signal = columns(pq((PATCHES / 255) ** 2.4 @ np.transpose(BT2020)))
    pixels = np.rint(ycbcr(signal, 9)).astype(np.uint16)
    frame = av.VideoFrame.from_ndarray(pixels, format="yuv444p16le").reformat(format="yuv422p10le")
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width, encoder.pix_fmt = *signal.shape[:2], "yuv422p10le"
    encoder.time_base, frame.pts = Fraction(1, 8), 0
    encoder.options = {"x265-params": "log-level=none", "crf": "4"} if codec == "libx265" else {}
    with av.open(tmp_path / "a.mov", "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = *signal.shape[:2], "yuv422p10le"
        tags = stream.codec_context
        tags.color_primaries, tags.color_trc, tags.colorspace, tags.color_range = 9, 16, 9, 1
        for packet in [*encoder.encode(frame), *encoder.encode()]:
            packet.stream = stream
            container.mux(packet)
    with av.open(tmp_path / "a.mov") as container:
        assert next(container.decode(video=0)).color_trc != 16
    assert_near(centers(read_image(tmp_path / "a.mov", *signal.shape[:2])), PATCHES)


@pytest.mark.parametrize("curve", ["PQ", "HLG"])
def test_highlights_are_compressed_and_not_cut_off(tmp_path, curve):
    nits = np.array([100, 180, 203, 250, 350, 600, 1000])
    signal = COLORS[curve][3](np.repeat(nits[:, None] / 203, 3, 1))
    wide = columns(signal)
    path = tagged(tmp_path / "a.mkv", wide, *COLORS[curve][:2], 9)
    seen = centers(read_image(path, 32, wide.shape[1]))[:, 0]
    assert (np.diff(seen) >= 0).all()
    assert 188 <= seen[0] <= 190 and seen[2] == 251 and seen[-1] == 255
    assert seen[2] < seen[3] < seen[-1], "what is brighter than white is still told apart"


@pytest.mark.parametrize("tags", [(1, 1, 1), (2, 2, 2), (6, 6, 6), (5, 6, 5), (1, 13, 1)], ids=str)
def test_sdr_is_taken_as_it_is(tmp_path, tags):
    sdr = columns(PATCHES / 255)
    path = tagged(tmp_path / "a.mkv", sdr, *tags)
    (plain, *_), _ = read_video(path)
    assert (read_image(path, *plain.shape[:2]) == plain).all()


def test_transparent_hdr_is_on_white(tmp_path):
    signal = columns(pq((PATCHES / 255) ** 2.4 @ np.transpose(BT2020)))
    pixels = np.full((*signal.shape[:2], 4), 65535, np.uint16)
    pixels[..., :3], pixels[:16, :, 3] = np.rint(signal * 65535), 0
    frame = av.VideoFrame.from_ndarray(pixels, format="rgba64le").reformat(format="rgba64be")
    frame.color_primaries, frame.color_trc, frame.color_range = 9, 16, 2
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = signal.shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.thread_count = "rgba64be", 1, 1
    (packet,) = encoder.encode(frame)
    (tmp_path / "a.png").write_bytes(packet)
    read = read_image(tmp_path / "a.png", *signal.shape[:2]).astype(int)
    assert (read[8, 16::32] == 255).all()
    assert_near(read[24, 16::32], PATCHES)


def test_colours_of_a_matrix_that_ffmpeg_takes_for_another_are_refused(tmp_path):
    path = tagged(tmp_path / "a.mkv", np.full((32, 32, 3), 0.5), 9, 16, 9)
    content = path.read_bytes()
    # Element 0x55B1 of Matroska's Colour says the matrix: 14 is ICtCp.
    path.write_bytes(content.replace(b"\x55\xb1\x81\x09", b"\x55\xb1\x81\x0e"))
    with pytest.raises(InvalidInputError, match=r"a\.mkv stores its colours as ICtCp"):
        read_image(path, 32, 32)


def profile(colorants: list[tuple[int, int, int]]) -> bytes:
    """An ICC profile with this CIE XYZ under D50 of red, green and blue, in 65536ths."""
    primaries = [struct.pack(">4s4x3i", b"XYZ ", *each) for each in colorants]
    curve = struct.pack(">4s4xIH2x", b"curv", 1, round(2.2 * 256))
    names, tags = [b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC"], [*primaries, *[curve] * 3]
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, tag in zip(names, tags, strict=True):
        table += struct.pack(">4sII", name, start + len(body), len(tag))
        body += tag
    header = struct.pack(
        ">I4xI12s12x4s28x3i48x",
        start + len(body),
        2 << 24,
        b"mntrRGB XYZ ",
        b"acsp",
        63190,
        65536,
        54061,
    )
    return header + table + body


# The colorants of the profiles that Apple and the ICC publish.
P3_PROFILE = profile([(33760, 15804, -69), (19148, 45379, 2745), (10282, 4353, 51385)])
SRGB_PROFILE = profile([(28578, 14581, 912), (25241, 46981, 6362), (9376, 3973, 46799)])


@pytest.mark.parametrize("suffix", ["jpg", "avif"])
def test_pictures_are_in_the_primaries_of_their_profile(tmp_path, suffix):
    stored = (((PATCHES / 255) ** 2.4 @ np.transpose(P3)) ** (1 / 2.4) * 255).round()
    pixels = columns(stored).astype(np.uint8)
    options = {"quality": 98, "subsampling": "4:4:4"}
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, icc_profile=P3_PROFILE, **options)
    assert_near(centers(read_image(path, *pixels.shape[:2])), PATCHES)
    for other in (SRGB_PROFILE, P3_PROFILE[:140], bytes(200)):
        Image.fromarray(pixels).save(path, icc_profile=other, **options)
        assert close(read_image(path, *pixels.shape[:2]), pixels)


def test_a_png_with_a_profile_is_read_again_and_again(tmp_path):
    pixels = corners()
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=P3_PROFILE)
    for _ in range(15):
        assert (read_image(tmp_path / "a.png", 32, 48) == pixels).all()
        gc.collect()


def corners(height: int = 32, width: int = 48) -> np.ndarray:
    """Red, green and blue corners, and a dark one: no turned or mirrored picture is the same."""
    pixels = np.full((height, width, 3), 20, np.uint8)
    pixels[: height // 2, : width // 2] = 250, 20, 20
    pixels[: height // 2, width // 2 :] = 20, 250, 20
    pixels[height // 2 :, : width // 2] = 20, 20, 250
    return pixels


def close(pixels: np.ndarray, expected: np.ndarray) -> bool:
    return np.abs(pixels.astype(int) - expected.astype(int)).mean() < 5


NEW_EXIF = [
    pytest.param(
        suffix,
        marks=pytest.mark.skipif(
            av.library_versions["libavcodec"] < (62, 20),
            reason="this FFmpeg reads EXIF of JPEG only",
        ),
    )
    for suffix in ("png", "webp", "tif")
]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", *NEW_EXIF])
def test_a_picture_is_turned_and_mirrored_by_its_exif_orientation(tmp_path, suffix, orientation):
    image, exif = Image.fromarray(corners()), Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif, quality=98)
    with Image.open(path) as saved:
        expected = np.asarray(ImageOps.exif_transpose(saved))
    assert close(read_image(path, *expected.shape[:2]), expected)
    assert measure(path, 8) == ClipInfo(*expected.shape[:2], 1)


# The four numbers of a matrix, and what becomes of the stored picture.
MATRICES = {
    "as stored": ((1, 0, 0, 1), lambda p: p),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "mirrored upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "to the right": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "transposed upside down": ((0, -1, -1, 0), lambda p: p[::-1, ::-1].swapaxes(0, 1)),
    "to the left": ((0, -1, 1, 0), lambda p: np.rot90(p)),
}


def with_matrix(path: Path, name: str) -> Path:
    """Writes a clip of `corners` with one of the matrices."""
    write_video(path, np.repeat(corners()[None], 9, 0), 8)
    a, b, c, d = MATRICES[name][0]
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", MATRICES)
def test_a_clip_is_turned_and_mirrored_by_its_display_matrix(tmp_path, name):
    path, expected = with_matrix(tmp_path / "a.mp4", name), MATRICES[name][1](corners())
    clip = read_clip(path, ClipSpec(9, *expected.shape[:2], 8))
    assert close(clip[4], expected)
    assert measure(path, 8) == ClipInfo(*expected.shape[:2], 9)


@pytest.mark.parametrize("name", ["as stored", "mirrored"])
def test_frames_that_were_read_are_not_kept(tmp_path, name):
    path = with_matrix(tmp_path / "a.mp4", name)
    gc.collect()
    gc.disable()
    try:
        read_clip(path, SHAPE)
        assert sum(isinstance(each, av.VideoFrame) for each in gc.get_objects()) <= 2
    finally:
        gc.enable()


def bars(count: int) -> np.ndarray:
    """A bar that moves by 3 pixels a picture, uint8 ``[count, 64, 96, 3]``."""
    clip = np.full((count, 64, 96, 3), 30, np.uint8)
    for i in range(count):
        clip[i, :, 3 * i : 3 * i + 20] = 220
    return clip


def woven(pictures: np.ndarray) -> np.ndarray:
    """Frames of two fields each, the lower rows first, from twice as many pictures."""
    frames = pictures[::2].copy()
    frames[:, ::2] = pictures[1::2, ::2]
    return frames


def write_ts(path: Path, pieces: list[tuple[np.ndarray, bool]]) -> Path:
    """Writes frames 8 a second; of each piece it is said whether its frames are interlaced."""
    with av.open(path, "w", format="mpegts") as container:
        stream, count = container.add_stream("libx264", rate=8), 0
        stream.height, stream.width = pieces[0][0].shape[1:3]
        for frames, interlaced in pieces:
            encoder = av.CodecContext.create("libx264", "w")
            encoder.height, encoder.width, encoder.pix_fmt = *frames.shape[1:3], "yuv420p"
            encoder.time_base, encoder.options = Fraction(1, 8), {"crf": "4", "bf": "0"}
            if interlaced:
                encoder.flags |= Flags.interlaced_dct | Flags.interlaced_me
            for frame in [*frames, None]:
                picture = frame if frame is None else as_video_frame(frame)
                if picture is not None:
                    picture.pts, count = count, count + 1
                for packet in encoder.encode(picture):
                    packet.stream = stream
                    container.mux(packet)
    return path


def comb(frames: np.ndarray) -> float:
    """The mean difference of rows from their neighbours."""
    return np.abs(np.diff(frames.astype(int), 2, axis=1)).mean()


def test_an_interlaced_clip_is_deinterlaced_at_its_own_times(tmp_path):
    pictures = bars(24)
    path = write_ts(tmp_path / "a.ts", [(woven(pictures), True)])
    stored, _ = read_video(path)
    clip = read_clip(path, ClipSpec(9, 64, 96, 8))
    assert measure(path, 8) == ClipInfo(64, 96, 12)
    assert comb(stored) > 10 and comb(clip) < 1
    for i in range(9):
        assert close(clip[i], pictures[2 * i])


def test_progressive_frames_stay_as_they_are_even_among_interlaced_ones(tmp_path):
    pictures = bars(10)
    path = write_ts(tmp_path / "a.ts", [(pictures, False)])
    stored, _ = read_video(path)
    assert (read_clip(path, ClipSpec(9, 64, 96, 8)) == stored[:9]).all()
    mixed = [(pictures, False), (woven(bars(12)), True), (pictures, False)]
    path = write_ts(tmp_path / "mixed.ts", mixed)
    stored, _ = read_video(path)
    clip = read_clip(path, ClipSpec(25, 64, 96, 8))
    assert (clip[:10] == stored[:10]).all() and (clip[16:] == stored[16:25]).all()
    assert comb(stored[10:16]) > 10 and comb(clip[10:16]) < 1


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_a_transparent_webm_is_on_white(tmp_path, codec):
    pixels = np.zeros((32, 48, 4), np.uint8)
    pixels[..., 0], pixels[:, 24:, 3] = 200, 255
    with av.open(tmp_path / "a.webm", "w") as container:
        stream = container.add_stream(codec, rate=8, options={"auto-alt-ref": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        for _ in range(9):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for frame in (
        read_clip(tmp_path / "a.webm", SHAPE)[8],
        read_image(tmp_path / "a.webm", 32, 48),
    ):
        assert (frame[:, :20] >= 254).all()
        assert close(frame[:, 28:], np.broadcast_to((200, 0, 0), (32, 20, 3)))


PICTURES = {
    "jpg": {},
    "progressive.jpg": {"progressive": True},
    "restart.jpg": {"restart_marker_blocks": 4},
    "png": {},
    "webp": {},
    "lossless.webp": {"lossless": True},
    "bmp": {},
    "gif": {},
    "frames.gif": {"save_all": True, "duration": 100},
    "raw.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "avif": {},
    "jp2": {},
}


def noisy(name: str) -> bytes:
    """A whole file of noise above a plain colour."""
    pixels = np.full((96, 96, 3), (90, 160, 40), np.uint8)
    pixels[:48] = np.random.default_rng(0).integers(0, 256, (48, 96, 3))
    others = [Image.fromarray(pixels[::-1])] if name == "frames.gif" else []
    options = PICTURES[name] | ({"append_images": others} if others else {})
    data = io.BytesIO()
    kinds = {"jpg": "jpeg", "tif": "tiff", "jp2": "jpeg2000"}
    suffix = name.split(".")[-1]
    Image.fromarray(pixels).save(data, kinds.get(suffix, suffix), **options)
    return data.getvalue()


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_is_cut_off_is_refused_and_a_whole_one_is_not(tmp_path, name):
    content, path = noisy(name), tmp_path / f"a.{name}"
    path.write_bytes(content)
    assert close(read_image(path, 96, 96)[56:], np.broadcast_to((90, 160, 40), (40, 96, 3)))
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InvalidInputError, match=r"a\.\w.* (can't be read|is damaged)"):
            read_image(path, 96, 96)


def test_a_tiff_with_jpeg_compression_is_refused(tmp_path):
    Image.fromarray(corners()).save(tmp_path / "a.tif", compression="jpeg")
    with pytest.raises(InvalidInputError, match=r"a\.tif is a TIFF with JPEG compression"):
        read_image(tmp_path / "a.tif", 32, 48)


@pytest.mark.parametrize("name", ["jpg", "gif"])
def test_a_command_refuses_a_picture_that_is_cut_off(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    Path(f"a.{name}").write_bytes(noisy(name)[:3000])
    code = generate("x.mp4", "--model", "demo-i2v", "--image", f"a.{name}", "--dry-run")
    (line,) = errors(capsys.readouterr().err)
    assert code == 2 and f"a.{name}" in line


@pytest.mark.parametrize(
    ("codec", "share"), [("libx264", 0.01), ("mpeg4", 0.1), ("mpeg2video", 0.1), ("prores_ks", 0.3)]
)
def test_a_clip_is_refused_if_a_frame_that_is_needed_is_damaged(tmp_path, codec, share):
    path = tmp_path / "a.mov"
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=8, options={"g": "12"})
        stream.height, stream.width = 96, 128
        stream.pix_fmt = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
        for frame in make_clip(24, 96, 128):
            container.mux(stream.encode(as_video_frame(frame)))
        container.mux(stream.encode())
    with av.open(path) as container:
        first = next(packet for packet in container.demux(video=0))
    content = bytearray(path.read_bytes())
    middle = first.pos + first.size * 2 // 3
    part = slice(middle, middle + int(first.size * share))
    content[part] = bytes(byte ^ 0x5A for byte in content[part])
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"a\.mov (is damaged: \d+ of|can't be read)"):
        read_clip(path, ClipSpec(9, 48, 64, 8))
    with pytest.raises(InvalidInputError, match=r"a\.mov (is damaged|can't be read)"):
        measure(path, 8)
    assert read_clip(path, ClipSpec(9, 48, 64, 8, skip=(12, 0))).shape == (9, 48, 64, 3)


def folder_of(folder: Path, sizes: list[tuple[int, int]], suffix: str = "png") -> Path:
    folder.mkdir()
    for number, size in enumerate(sizes, start=1):
        Image.new("RGB", size, (90, 160, 40)).save(folder / f"{number}.{suffix}")
    return folder


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_frames_of_two_sizes_are_refused_by_name(tmp_path, suffix):
    folder = folder_of(tmp_path / "walk", [(48, 32)] * 8 + [(64, 32)], suffix)
    expected = rf"walk .* one size: 1\.{suffix} is 48x32 and 9\.{suffix} is 64x32"
    for reading in (lambda: measure(folder, 8), lambda: read_clip(folder, SHAPE)):
        with pytest.raises(InvalidInputError, match=expected):
            reading()


def test_frames_have_the_size_in_which_they_are_shown(tmp_path):
    folder = folder_of(tmp_path / "walk", [(48, 32)] * 8, "jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (32, 48)).save(folder / "9.jpg", exif=turned)
    assert measure(folder, 8) == ClipInfo(32, 48, 9)
    Image.new("RGB", (48, 32)).save(folder / "9.jpg", exif=turned)
    with pytest.raises(InvalidInputError, match=r"9\.jpg is 32x48"):
        measure(folder, 8)


def test_what_is_converted_is_said_once_also_in_a_dry_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    hdr = patches(tmp_path / "hdr.mkv", "HLG")
    assert generate("x.mp4", "--video", hdr, "--dry-run") == 0
    assert capsys.readouterr().err.count("hdr.mkv is in HDR (HLG)") == 1
    patches(tmp_path / "hdr.png", "PQ")
    assert generate("x.mp4", "--model", "demo-i2v", "--image", "hdr.png", "--dry-run") == 0
    assert capsys.readouterr().err.count("hdr.png is in HDR (PQ)") == 1
    data = tmp_path / "clips"
    data.mkdir()
    patches(data / "a.mkv", "Display P3")
    write_ts(data / "b.mkv", [(woven(bars(24)), True)])
    for name in "ab":
        (data / f"{name}.txt").write_text("a bar moves")
    small = ["--frames", "9", "--height", "32", "--width", "48"]
    assert lora(["--data", str(data), "--model", "demo", *small, "--dry-run"]) == 0
    err = capsys.readouterr().err
    assert err.count("a.mkv is in Display P3") == 1 and err.count("b.mkv is interlaced") == 1
