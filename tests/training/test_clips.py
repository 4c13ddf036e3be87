"""Clips for training: where they are found, and which of their frames are read."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import av
import mlx.core as mx
import numpy as np
import pytest
from clips import make_clip

from mlx_cogvideo import CogVideoXPipeline, InvalidInputError
from mlx_cogvideo.device import Machine
from mlx_cogvideo.nn.autoencoder import AutoencoderKLCogVideoX
from mlx_cogvideo.training.clips import Clip, choose_spec, find_clips
from mlx_cogvideo.training.latent_cache import Cache
from mlx_cogvideo.training.prepare import IMAGE_DRAWS, ClipOptions, prepare
from mlx_cogvideo.video import ClipInfo, ClipSpec, content_digest, measure, read_clip, write_video

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
    # "videos" in the path of the folder itself must not be confused with the one inside.
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
        ({}, "no clips"),
        ({"a.mp4": ""}, "caption"),
        ({"metadata.jsonl": '{"file_name": "a.mp4", "text": "x"}'}, r"a\.mp4"),
        ({"metadata.jsonl": '{"text": "x"}'}, "line 1 of .*metadata.jsonl"),
        ({"videos.txt": "a\nb", "prompts.txt": "x"}, "2 lines and prompts.txt 1"),
    ],
    ids=["empty", "no captions", "missing", "no file", "uneven"],
)
def test_a_wrong_folder_of_clips_is_one_line(tmp_path, files, message):
    for name, text in files.items():
        touch(tmp_path / name, text)
    with pytest.raises(InvalidInputError, match=message):
        find_clips(tmp_path)


def numbered(path, frames, fps, *options, size="64x48") -> Path:
    """Writes a clip whose frames are 5 levels brighter each, so that they can be identified."""
    width, height = map(int, size.split("x"))
    raw = b"".join(bytes([20 + 5 * i]) * (width * height * 3) for i in range(frames))
    command = [FFMPEG, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size]
    command += ["-r", str(fps), "-i", "-", *options, str(path)]
    subprocess.run(command, input=raw, check=True)
    return path


def numbers(clip: np.ndarray) -> list[int]:
    """Returns which frames of a `numbered` clip these are."""
    return [round((frame.mean() - 20) / 5) for frame in clip]


SHAPE = ClipSpec(9, 48, 64, 8)
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
def test_the_frames_nearest_to_the_sampling_times_are_read(tmp_path, fps, expected):
    clip = numbered(tmp_path / "a.mp4", 40, fps, *X264)
    assert numbers(read_clip(clip, SHAPE)) == expected


@needs_ffmpeg
def test_clips_of_variable_frame_rate_are_read_by_timestamp(tmp_path):
    # In the second half, only each fourth frame is kept: 8 a second, then 2.
    keep = "select='lt(n,8)+not(mod(n,4))'"
    clip = numbered(tmp_path / "a.mp4", 40, 8, "-vf", keep, "-fps_mode", "vfr", *X264)
    taken = numbers(read_clip(clip, ClipSpec(17, 48, 64, 8)))
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
def test_frames_can_be_skipped_at_both_ends(tmp_path):
    clip = numbered(tmp_path / "a.mp4", 15, 8, *X264)
    assert numbers(read_clip(clip, ClipSpec(9, 48, 64, 8, skip=(3, 3)))) == list(range(3, 12))
    with pytest.raises(InvalidInputError, match="8 frames at 8 a second"):
        read_clip(clip, ClipSpec(9, 48, 64, 8, skip=(4, 3)))


def halves(path, height=64, width=96) -> Path:
    """Writes a clip of red above blue."""
    clip = np.zeros((9, height, width, 3), np.uint8)
    clip[:, : height // 2, :, 0] = clip[:, height // 2 :, :, 2] = 255
    write_video(path, clip, 8)
    return path


@pytest.mark.parametrize("size", [(32, 32), (16, 64), (96, 48), (128, 192)], ids=str)
def test_a_clip_is_scaled_to_cover_the_size_and_cropped_at_the_center(tmp_path, size):
    clip = read_clip(halves(tmp_path / "a.mp4"), ClipSpec(9, *size, 8))
    assert clip.shape == (9, *size, 3)
    middle, step = size[0] // 2, max(size[0] // 8, 3)
    assert (clip[0, middle - step, size[1] // 2] > 150).tolist() == [True, False, False]
    assert (clip[0, middle + step, size[1] // 2] > 150).tolist() == [False, False, True]


def test_an_odd_size_and_a_still_image_are_read(tmp_path):
    write_video(tmp_path / "frames", make_clip(1, 49, 65), 8)
    (image,) = (tmp_path / "frames").iterdir()
    assert read_clip(image, ClipSpec(1, 48, 64, 8)).shape == (1, 48, 64, 3)
    with pytest.raises(InvalidInputError, match="1 frame"):
        read_clip(image, SHAPE)


@pytest.mark.parametrize("content", [b"", b"no video at all"], ids=["empty", "text"])
def test_a_damaged_clip_is_one_line(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"a\.mp4 can't be read"):
        read_clip(tmp_path / "a.mp4", SHAPE)
    with pytest.raises(InvalidInputError, match="doesn't exist"):
        read_clip(tmp_path / "b.mp4", SHAPE)


# One test for each thing that the original tools get wrong about clips.


@needs_ffmpeg
def test_quirk_skipped_frames_at_the_end_are_not_read_past(tmp_path):
    # The original raises an IndexError if exactly as many frames are left as are needed.
    clip = numbered(tmp_path / "a.mp4", 47, 8, *X264)
    taken = numbers(read_clip(clip, ClipSpec(41, 48, 64, 8, skip=(3, 3))))
    assert taken == list(range(3, 44))
    with pytest.raises(InvalidInputError, match="41 frames"):
        read_clip(clip, ClipSpec(49, 48, 64, 8, skip=(3, 3)))


@needs_ffmpeg
def test_quirk_the_tail_is_also_skipped_in_long_clips(tmp_path):
    clip = numbered(tmp_path / "a.mp4", 40, 8, *X264)
    with pytest.raises(InvalidInputError, match="15 frames"):
        read_clip(clip, ClipSpec(17, 48, 64, 8, skip=(0, 25)))


@needs_ffmpeg
def test_quirk_a_high_frame_rate_does_not_replace_duration(tmp_path):
    clip = numbered(tmp_path / "a.mp4", 45, 30, *X264)  # a second and a half
    with pytest.raises(InvalidInputError, match="12 frames"):
        read_clip(clip, ClipSpec(17, 48, 64, 8))
    assert numbers(read_clip(clip, SHAPE)) == [0, 4, 7, 11, 15, 19, 22, 26, 30]


@needs_ffmpeg
def test_quirk_a_short_clip_is_padded_only_on_request_and_to_the_requested_length(tmp_path):
    clip = numbered(tmp_path / "a.mp4", 6, 8, *X264)
    with pytest.raises(InvalidInputError, match="6 frames"):
        read_clip(clip, SHAPE)
    taken = numbers(read_clip(clip, replace(SHAPE, repeat_last=True)))
    assert taken == [0, 1, 2, 3, 4, 5, 5, 5, 5]


def test_quirk_a_clip_with_nothing_left_is_an_error_not_minus_three_frames(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 5)
    for repeat in (False, True):
        with pytest.raises(InvalidInputError, match="0 frames"):
            read_clip(clip, ClipSpec(9, 48, 64, 8, skip=(3, 3), repeat_last=repeat))


def test_quirk_a_clip_of_one_frame_keeps_its_axes(tmp_path):
    clip = write_clip(tmp_path / "a.png", 1)
    assert read_clip(clip / "0001.png", ClipSpec(1, 24, 32, 8)).shape == (1, 24, 32, 3)


def test_quirk_an_empty_caption_is_no_caption_and_not_an_error(tmp_path):
    touch(tmp_path / "a.mp4"), touch(tmp_path / "a.txt"), touch(tmp_path / "b.mp4")
    touch(tmp_path / "b.txt", "one")
    assert [clip.caption for clip in find_clips(tmp_path)] == ["", "one"]


def test_quirk_clips_come_in_the_order_of_their_names(tmp_path):
    for name in ("c", "a", "d/b", "B"):
        touch(tmp_path / f"{name}.mp4"), touch(tmp_path / f"{name}.txt", name)
    assert [clip.caption for clip in find_clips(tmp_path)] == ["B", "a", "c", "d/b"]


def test_quirk_each_file_is_opened_with_a_timeout(tmp_path, monkeypatch):
    clip, timeouts = write_clip(tmp_path / "a.mp4", 9), set()
    open_file = av.open

    def opening(*args, timeout, **options):
        timeouts.add(timeout)
        return open_file(*args, timeout=timeout, **options)

    monkeypatch.setattr(av, "open", opening)
    read_clip(clip, SHAPE, timeout=7)
    assert timeouts == {7}


def write_clip(path, frames, height=48, width=64) -> Path:
    output = path.with_suffix("") if path.suffix == ".png" else path
    write_video(output, make_clip(frames, height, width), 8)
    return output


def test_a_folder_of_frames_is_a_clip(tmp_path):
    write_video(tmp_path / "walk", make_clip(12), 8)
    touch(tmp_path / "walk.txt", "a square moves")
    touch(tmp_path / "still.png"), touch(tmp_path / "still.txt", "a picture")
    clips = find_clips(tmp_path)
    assert [(c.path.name, c.caption) for c in clips] == [
        ("still.png", "a picture"),
        ("walk", "a square moves"),
    ]
    frames = read_clip(tmp_path / "walk", ClipSpec(9, 48, 64, 16, skip=(2, 0)))
    assert (frames == make_clip(12)[2:11]).all()
    assert measure(tmp_path / "walk", 16) == ClipInfo(48, 64, 12)
    with pytest.raises(InvalidInputError, match="12 frames"):
        read_clip(tmp_path / "walk", ClipSpec(17, 48, 64, 8))


def test_a_metadata_file_can_name_a_folder_of_frames(tmp_path):
    write_video(tmp_path / "walk", make_clip(9), 8)
    touch(tmp_path / "metadata.jsonl", '{"file_name": "walk", "text": "x"}\n')
    assert find_clips(tmp_path) == [Clip(tmp_path / "walk", "x")]
    assert content_digest(tmp_path / "walk") != content_digest(tmp_path / "metadata.jsonl")


def test_a_metadata_line_that_is_not_json_is_named(tmp_path):
    touch(tmp_path / "metadata.jsonl", '{"file_name": "a.mp4", "text": "x"}\n\n{oh\n')
    with pytest.raises(InvalidInputError, match=r"line 3 of .*metadata\.jsonl"):
        find_clips(tmp_path)


def test_a_wrong_row_of_a_table_is_named_by_its_line(tmp_path):
    touch(tmp_path / "metadata.csv", "file_name,text\na.mp4,first\n,second\n")
    with pytest.raises(InvalidInputError, match=r"line 3 of .*metadata\.csv"):
        find_clips(tmp_path)


def test_hidden_files_and_adapters_are_ignored(tmp_path):
    for name in ("a.mp4", "._a.mp4", ".trash/b.mp4", "adapters/samples/c.mp4"):
        touch(tmp_path / name)
    touch(tmp_path / "a.txt", "first")
    (tmp_path / "._a.txt").write_bytes(b"\xff\xfe")
    touch(tmp_path / "adapters/adapter_config.json", "{}")
    assert find_clips(tmp_path) == [Clip(tmp_path / "a.mp4", "first")]


def test_a_folder_without_permission_is_one_line(tmp_path, monkeypatch):
    def closed(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(
        InvalidInputError, match=f"{tmp_path.name} can't be read: Permission denied"
    ):
        find_clips(tmp_path)


def test_measuring_gives_the_displayed_size_and_the_sampled_frames(tmp_path):
    assert measure(write_clip(tmp_path / "a.mp4", 12), 8) == ClipInfo(48, 64, 12)
    assert measure(tmp_path / "a.mp4", 4, (2, 2)) == ClipInfo(48, 64, 4)


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (ClipInfo(480, 720, 60), (49, 480, 720)),
        (ClipInfo(480, 720, 30), (17, 480, 720)),
        (ClipInfo(1920, 1080, 60), (49, 720, 480)),
        (ClipInfo(1920, 1080, 20), (17, 480, 720)),
        (ClipInfo(480, 720, 5), (17, 480, 720)),
        (ClipInfo(480, 480, 1), (17, 480, 720)),
    ],
)
def test_a_clip_goes_to_the_nearest_bucket(clip, expected):
    sizes = [(49, 480, 720), (49, 720, 480), (17, 480, 720)]
    for repeat in (False, True):
        chosen = choose_spec(clip, [ClipSpec(*size, 8, repeat_last=repeat) for size in sizes])
        assert (chosen.frames, chosen.height, chosen.width) == expected


def test_a_random_crop_depends_on_the_clip_and_the_seed(tmp_path):
    center, random = ClipOptions((SHAPE,)), ClipOptions((SHAPE,), "random", 1)
    first, second = "a" * 64, "b" * 64
    assert center.position(first) == (0.5, 0.5)
    assert random.position(first) == random.position(first) != random.position(second)
    assert random.position(first) != ClipOptions((SHAPE,), "random", 2).position(first)
    clip = write_clip(tmp_path / "a.mp4", 9)
    whole = read_clip(clip, ClipSpec(9, 48, 64, 8))
    for position, part in (((0, 0), whole[:, :, :32]), ((1, 1), whole[:, :, -32:])):
        assert (read_clip(clip, ClipSpec(9, 48, 32, 8), position) == part).all()


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_a_clip_trimmed_without_reencoding_is_read(tmp_path, suffix):
    whole = numbered(tmp_path / f"whole.{suffix}", 40, 8, "-g", "40", *X264)
    trimmed = tmp_path / f"trimmed.{suffix}"
    command = [FFMPEG, "-v", "error", "-ss", "1", "-i", str(whole), "-c", "copy", str(trimmed)]
    subprocess.run(command, check=True)
    assert numbers(read_clip(trimmed, SHAPE)) == list(range(8, 17))
    assert measure(trimmed, 8).frames == 32


@needs_ffmpeg
def test_a_file_whose_packet_and_frame_times_differ_is_read(tmp_path):
    clip = numbered(tmp_path / "a.avi", 40, 8, "-c:v", "libx264", "-crf", "4", "-bf", "2")
    assert numbers(read_clip(clip, SHAPE)) == list(range(9))


@needs_ffmpeg
def test_pixels_that_are_not_square_are_stretched(tmp_path):
    square, wide = write_clip(tmp_path / "a.mp4", 9), tmp_path / "b.mp4"
    command = [FFMPEG, "-v", "error", "-i", str(square), "-vf", "setsar=2", *X264, str(wide)]
    subprocess.run(command, check=True)
    assert measure(wide, 8) == ClipInfo(48, 128, 9)
    # It is shown twice as wide as stored: the crop is the middle half of the picture.
    seen = read_clip(wide, SHAPE)[0, 40].astype(int)
    expected = read_clip(square, SHAPE)[0, 40].astype(int)[16:48].repeat(2, axis=0)
    assert np.abs(seen - expected).mean() < 4


def test_a_still_picture_is_a_clip_of_one_frame(tmp_path):
    write_video(tmp_path / "a", make_clip(1), 8)
    for path in (tmp_path / "a" / "0001.png", tmp_path / "a"):
        assert str(measure(path, 8)) == str(ClipInfo(48, 64, 1))


def test_blank_lines_of_paired_files_are_ignored(tmp_path):
    for name in "ab":
        touch(tmp_path / f"{name}.mp4")
    touch(tmp_path / "videos.txt", "a.mp4\n\nb.mp4\n\n")
    touch(tmp_path / "prompts.txt", "one\u2028and more\n\ntwo\n")
    assert [clip.caption for clip in find_clips(tmp_path)] == ["one and more", "two"]


def test_a_listed_clip_may_have_any_extension_but_must_exist(tmp_path):
    touch(tmp_path / "a.mpg")
    touch(tmp_path / "metadata.jsonl", '{"file_name": "a.mpg", "text": "x"}\n')
    assert len(find_clips(tmp_path)) == 1
    touch(tmp_path / "metadata.jsonl", '{"file_name": "wlak", "text": "x"}\n')
    with pytest.raises(InvalidInputError, match="wlak"):
        find_clips(tmp_path)


def test_noisy_pictures_are_encoded_one_by_one_in_the_mode_that_memory_allows(
    tmp_path, monkeypatch
):
    pipe = CogVideoXPipeline.from_pretrained("demo-i2v")
    pipe.machine = Machine("cpu", "", 2**20)
    pictures, encode = [], AutoencoderKLCogVideoX.encode

    def noted(self, pixels, tiling):
        assert tiling == "tiled"
        if pixels.shape[1] == 1:
            pictures.append(pixels)
        return encode(self, pixels, tiling)

    monkeypatch.setattr(AutoencoderKLCogVideoX, "encode", noted)
    clip = Clip(write_clip(tmp_path / "a.mp4", 9), "a square")
    options, cache = ClipOptions((SHAPE,)), Cache(tmp_path / "cache")
    ((sample,), _) = prepare(pipe, {"name": "demo-i2v"}, [clip], options, cache)
    assert [len(picture) for picture in pictures] == [1] * IMAGE_DRAWS
    monkeypatch.undo()
    expected = pipe.vae.encode(mx.concatenate(pictures), "tiled")
    posterior = sample.image_posteriors()
    assert mx.allclose(posterior.mean, expected.mean, atol=1e-4)
    assert posterior.logvar.shape == expected.logvar.shape


def grays(folder: Path, names) -> list[int]:
    """Writes a picture of another gray for each name, and returns the grays as they are read."""
    made = folder.with_name(f"{folder.name}-made")
    clip = np.repeat(np.arange(9, dtype=np.uint8) * 10, 16 * 16 * 3).reshape(9, 16, 16, 3)
    write_video(made, clip, 8)
    folder.mkdir()
    for file, name in zip(sorted(made.iterdir()), names, strict=True):
        shutil.copy(file, folder / name)
    return [round(frame.mean() / 10) for frame in read_clip(folder, ClipSpec(9, 16, 16, 8))]


def test_numbered_pictures_are_read_by_number(tmp_path):
    assert grays(tmp_path / "walk", [f"{i}.png" for i in range(4, 13)]) == list(range(9))
    assert grays(tmp_path / "run", [f"f{i}.png" for i in range(95, 104)]) == list(range(9))
    assert grays(tmp_path / "padded", [f"f{i:04}.png" for i in range(95, 104)]) == list(range(9))


def test_hidden_files_are_no_frames(tmp_path):
    folder = tmp_path / "walk"
    assert grays(folder, [f"{i}.png" for i in range(9)]) == list(range(9))
    touch(folder / "._0.png", "no picture")
    assert len(read_clip(folder, ClipSpec(9, 16, 16, 8))) == 9


@pytest.mark.parametrize("skip", [(0, 60), (48, 0), (30, 30)])
def test_a_clip_of_which_all_is_skipped_is_left_out(tmp_path, skip):
    write_video(tmp_path / "a.mp4", make_clip(48), 16)
    assert measure(tmp_path / "a.mp4", 8, skip).frames == 0
    with pytest.raises(InvalidInputError, match="0 frames"):
        read_clip(tmp_path / "a.mp4", ClipSpec(1, 48, 64, 8, skip))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file_name,text\na.mp4,a red circle, moving right\n", "line 2 .* 3 fields .* header 2"),
        ("file_name,text\na.mp4\n", "line 2 .* 1 fields"),
        ('file_name,text\na.mp4,"one\nb.mp4,two\n', "row in line 2 .*unexpected end of data"),
    ],
)
def test_a_row_that_does_not_fit_its_header_is_named(tmp_path, table, message):
    touch(tmp_path / "metadata.csv", table), touch(tmp_path / "a.mp4"), touch(tmp_path / "b.mp4")
    with pytest.raises(InvalidInputError, match=message):
        find_clips(tmp_path)


def test_blanks_around_fields_of_a_table_count_for_nothing(tmp_path):
    touch(tmp_path / "metadata.csv", 'file_name, text\n\na.mp4, "a circle, moving"\n')
    assert find_clips(tmp_path.parent / touch(tmp_path / "a.mp4").parent.name) == [
        Clip(tmp_path / "a.mp4", "a circle, moving")
    ]


@pytest.mark.parametrize("caption", [["one", "two"], {"en": "x"}, 5])
def test_a_caption_that_is_no_text_is_named_by_its_line(tmp_path, caption):
    rows = [{"file": "a.mp4", "text": "first"}, {"file": "b.mp4", "text": caption}]
    touch(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(InvalidInputError, match=r"line 2 .* strings"):
        find_clips(tmp_path)


def test_a_circle_of_links_lists_each_clip_once(tmp_path):
    touch(tmp_path / "sub/a.mp4"), touch(tmp_path / "sub/a.txt", "first")
    (tmp_path / "sub/up").symlink_to("..")
    (tmp_path / "again").symlink_to("sub")
    assert [clip.caption for clip in find_clips(tmp_path)] == ["first"]


@pytest.mark.parametrize("adapter", [".", "adapters"])
def test_samples_of_the_training_itself_are_no_clips(tmp_path, adapter):
    touch(tmp_path / "a.mp4"), touch(tmp_path / "a.txt", "first")
    touch(tmp_path / adapter / "samples/0000002-0.mp4")
    assert len(find_clips(tmp_path, tmp_path / adapter)) == 1


def test_each_part_of_a_clip_is_a_sample_of_its_own(tmp_path, monkeypatch):
    pipe = CogVideoXPipeline.from_pretrained("demo")
    read, encode = [], pipe.encode_video
    monkeypatch.setattr(
        pipe, "encode_video", lambda *given: read.append(given[0]) or encode(*given)
    )
    frames = np.repeat(np.arange(24, dtype=np.uint8) * 10, 48 * 64 * 3).reshape(24, 48, 64, 3)
    write_video(tmp_path / "a", frames, 8)
    parts = [
        Clip(tmp_path / "a", "x"),
        Clip(tmp_path / "a", "x", 0.5),
        Clip(tmp_path / "a", "x", 1, 3),
    ]
    samples, _ = prepare(pipe, {}, parts, ClipOptions((SHAPE,)), Cache(tmp_path / "cache"))
    assert [round(clip[0].mean() / 10) for clip in read] == [0, 4, 8]
    assert len({sample.latents for sample in samples}) == 3
    assert [(sample.spec.start, sample.spec.end) for sample in samples] == [
        (0, None),
        (0.5, None),
        (1, 3),
    ]
    assert ClipOptions((SHAPE,)).measure(parts[2]).frames == 16
