"""Clips for training: where they lie, and which of their frames are taken."""

import json
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from clips import make_clip

from mlx_cogvideo import InvalidInputError
from mlx_cogvideo.training.clips import Clip, Shape, find_clips, read_clip
from mlx_cogvideo.video import write_video

FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="makes its clips with ffmpeg")


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def sidecars(data):
    touch(data / "b.mp4"), touch(data / "b.txt", " two\nlines\n")
    touch(data / "deep/a.MOV"), touch(data / "deep/a.txt", "first")
    touch(data / "notes.md")
    return {"b.mp4": "two lines", "deep/a.MOV": "first"}


def sat(data):
    # "videos" in the path of the folder itself must not be taken for the one inside.
    touch(data / "videos/x/a.mp4"), touch(data / "labels/x/a.txt", "first")
    touch(data / "videos/b.mp4")
    return {"videos/x/a.mp4": "first", "videos/b.mp4": ""}


def two_files(data):
    for name in "ab":
        touch(data / f"{name}.mp4")
    touch(data / "videos.txt", "a.mp4\nb.mp4\n"), touch(data / "prompts.txt", "first\nsecond\n")
    return {"a.mp4": "first", "b.mp4": "second"}


def jsonl(data):
    rows = [{"file_name": "a.mp4", "text": "first"}, {"video": "b.mp4", "caption": "second"}]
    touch(data / "metadata.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    touch(data / "a.mp4"), touch(data / "b.mp4")
    return {"a.mp4": "first", "b.mp4": "second"}


def table(data):
    touch(data / "metadata.csv", 'file_name,text\na.mp4,"first, with a comma"\n')
    touch(data / "a.mp4")
    return {"a.mp4": "first, with a comma"}


@pytest.mark.parametrize("layout", [sidecars, sat, two_files, jsonl, table])
def test_clips_are_found_in_each_layout(tmp_path, layout):
    data = tmp_path / "videos"
    expected = layout(data)
    assert sorted(find_clips(data), key=lambda c: c.path) == sorted(
        (Clip(data / path, text) for path, text in expected.items()), key=lambda c: c.path
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no clips"),
        ({"a.mp4": ""}, "none of the 1 clips in .* has a caption"),
        (
            {"metadata.jsonl": '{"file_name": "a.mp4", "text": "x"}'},
            "lists files that aren't there",
        ),
        ({"metadata.jsonl": '{"text": "x"}'}, "line 1 of .* names no file"),
        ({"videos.txt": "a\nb", "prompts.txt": "x"}, "has 2 lines and prompts.txt 1"),
    ],
    ids=["empty", "no captions", "missing", "no file", "uneven"],
)
def test_a_folder_that_cant_be_learned_is_one_line(tmp_path, files, message):
    for name, text in files.items():
        touch(tmp_path / name, text)
    with pytest.raises(InvalidInputError, match=message):
        find_clips(tmp_path)


def numbered(path, frames, fps, *options, size="64x48") -> Path:
    """A clip whose frame number can be read from its brightness: 5 more each frame."""
    width, height = map(int, size.split("x"))
    raw = b"".join(bytes([20 + 5 * i]) * (width * height * 3) for i in range(frames))
    command = [FFMPEG, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size]
    command += ["-r", str(fps), "-i", "-", *options, str(path)]
    subprocess.run(command, input=raw, check=True)
    return path


def numbers(clip: np.ndarray) -> list[int]:
    return [round((frame.mean() - 20) / 5) for frame in clip]


SHAPE = Shape(9, 48, 64, 8)
X264 = ("-c:v", "libx264", "-crf", "4")


@needs_ffmpeg
@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (8, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (30, [0, 4, 7, 11, 15, 19, 22, 26, 30]),
        (25, [0, 3, 6, 9, 12, 16, 19, 22, 25]),
        ("30000/1001", [0, 4, 7, 11, 15, 19, 22, 26, 30]),
        (4, [0, 0, 1, 1, 2, 2, 3, 3, 4]),
    ],
)
def test_those_frames_are_taken_that_are_nearest_to_the_wanted_times(tmp_path, fps, expected):
    clip = numbered(tmp_path / "a.mp4", 40, fps, *X264)
    assert numbers(read_clip(clip, SHAPE)) == expected


@needs_ffmpeg
def test_a_variable_frame_rate_is_followed_by_its_timestamps(tmp_path):
    # Every frame but each fourth is dropped in the second half: 8 a second, then 2.
    keep = "select='lt(n,8)+not(mod(n,4))'"
    clip = numbered(tmp_path / "a.mp4", 40, 8, "-vf", keep, "-fps_mode", "vfr", *X264)
    taken = numbers(read_clip(clip, Shape(17, 48, 64, 8)))
    assert taken == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 12, 12, 12, 12, 16, 16]


@needs_ffmpeg
@pytest.mark.parametrize(
    "options",
    [
        ("-c:v", "libx265", "-x265-params", "log-level=error", "-crf", "4"),
        ("-c:v", "libvpx-vp9", "-crf", "4", "-b:v", "0"),
        ("-c:v", "libx264", "-pix_fmt", "yuv420p10le", "-crf", "4"),
        ("-f", "lavfi", "-i", "sine=d=5", "-shortest", "-c:a", "aac", *X264),
    ],
    ids=["hevc", "vp9", "10-bit", "audio"],
)
def test_the_codecs_of_real_clips_are_read(tmp_path, options):
    suffix = "webm" if "libvpx-vp9" in options else "mp4"
    clip = numbered(tmp_path / f"a.{suffix}", 12, 8, *options)
    assert numbers(read_clip(clip, SHAPE)) == list(range(9))


@needs_ffmpeg
def test_frames_are_left_out_at_both_ends(tmp_path):
    clip = numbered(tmp_path / "a.mp4", 15, 8, *X264)
    assert numbers(read_clip(clip, Shape(9, 48, 64, 8, skip=(3, 3)))) == list(range(3, 12))
    with pytest.raises(InvalidInputError, match="has 8 frames at 8 a second, and 9 are wanted"):
        read_clip(clip, Shape(9, 48, 64, 8, skip=(4, 3)))


def halves(path, height=64, width=96) -> Path:
    """Red above blue."""
    clip = np.zeros((9, height, width, 3), np.uint8)
    clip[:, : height // 2, :, 0] = clip[:, height // 2 :, :, 2] = 255
    write_video(path, clip, 8)
    return path


@pytest.mark.parametrize(("sign", "red_at"), [(1, -8), (-1, 8)], ids=["right", "left"])
def test_a_clip_of_a_turned_phone_is_turned(tmp_path, sign, red_at):
    path = halves(tmp_path / "a.mp4")
    content = bytearray(path.read_bytes())
    # The matrix of the track's header: a quarter turn to the right, or to the left.
    start = content.index(b"tkhd") + 44
    matrix = [0, sign << 16, 0, -sign << 16, 0, 0, 0, 0, 1 << 30]
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    clip = read_clip(path, Shape(9, 96, 64, 8))
    assert (clip[0, 48, red_at] > 150).tolist() == [True, False, False]
    assert (clip[0, 48, -red_at] > 150).tolist() == [False, False, True]


@pytest.mark.parametrize("size", [(32, 32), (16, 64), (96, 48), (128, 192)], ids=str)
def test_a_clip_covers_the_shape_and_is_cropped_at_the_middle(tmp_path, size):
    clip = read_clip(halves(tmp_path / "a.mp4"), Shape(9, *size, 8))
    assert clip.shape == (9, *size, 3)
    middle, step = size[0] // 2, max(size[0] // 8, 3)
    assert (clip[0, middle - step, size[1] // 2] > 150).tolist() == [True, False, False]
    assert (clip[0, middle + step, size[1] // 2] > 150).tolist() == [False, False, True]


def test_an_odd_size_and_a_still_image_are_read(tmp_path):
    write_video(tmp_path / "frames", make_clip(1, 49, 65), 8)
    (image,) = (tmp_path / "frames").iterdir()
    assert read_clip(image, Shape(1, 48, 64, 8)).shape == (1, 48, 64, 3)
    with pytest.raises(InvalidInputError, match="has 1 frames"):
        read_clip(image, SHAPE)


@pytest.mark.parametrize("content", [b"", b"no video at all"], ids=["empty", "text"])
def test_a_damaged_clip_is_one_line(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"a\.mp4 can't be read as a video"):
        read_clip(tmp_path / "a.mp4", SHAPE)
    with pytest.raises(InvalidInputError, match="doesn't exist"):
        read_clip(tmp_path / "b.mp4", SHAPE)
