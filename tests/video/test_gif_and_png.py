"""GIFs and folders of PNG frames: their contents, and what a folder may replace."""

import av
import numpy as np
import pytest
from clips import RECORD, make_clip, psnr

from mlx_cogvideo.errors import InvalidInputError, OutputError
from mlx_cogvideo.video import (
    GifWriter,
    check_output_path,
    open_writer,
    read_record,
    read_video,
    write_video,
)


def read_frames(folder):
    files = sorted(folder.iterdir())
    return [file.name for file in files], np.concatenate([read_video(file)[0] for file in files])


# GIFs.


@pytest.fixture
def gif(tmp_path):
    return tmp_path / "clip.gif"


@pytest.mark.parametrize("height, width", [(48, 64), (47, 63)])
def test_a_gif_keeps_number_size_and_nearly_the_colours_of_frames(gif, height, width):
    clip = make_clip(9, height, width)
    write_video(gif, clip, 8, record=RECORD)
    frames, _ = read_video(gif)
    assert frames.shape == clip.shape
    assert all(psnr(a, b) > 30 for a, b in zip(frames, clip, strict=True))


@pytest.mark.parametrize("color", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 30, 90)])
def test_a_flat_colour_comes_back_from_a_gif_within_two_levels(gif, color):
    write_video(gif, np.full((3, 32, 32, 3), color, np.uint8), 8)
    assert np.abs(read_video(gif)[0].astype(int) - color).max() <= 2


def test_each_frame_of_a_gif_has_its_own_palette(gif):
    clip = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    write_video(gif, clip, 8)
    error = np.abs(read_video(gif)[0].astype(int) - clip)
    assert error.mean() < 1, "256 colours for all of them would be 17 levels off"


def test_equal_frames_are_all_in_the_gif(gif):
    write_video(gif, np.repeat(make_clip(1), 5, axis=0), 8)
    assert len(read_video(gif)[0]) == 5


def test_eight_frames_a_second_last_twelve_and_thirteen_hundredths_alternately(gif):
    write_video(gif, make_clip(9), 8)
    with av.open(str(gif)) as container:
        times = [frame.pts * frame.time_base * 100 for frame in container.decode(video=0)]
    assert times == [0, 13, 25, 38, 50, 63, 75, 88, 100]
    assert read_video(gif)[1] == 8


def test_a_gif_loops_forever(gif):
    write_video(gif, make_clip(2), 8)
    assert b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00" in gif.read_bytes()


def test_a_frame_rate_that_gif_players_lack_is_refused_before_any_frame(gif):
    GifWriter(gif, 50)
    with pytest.raises(InvalidInputError, match="50 frames a second at most; got 60"):
        GifWriter(gif, 60)


def test_a_gif_grows_on_the_disk_and_not_in_memory(gif):
    random = np.random.default_rng(0)
    with GifWriter(gif, 8) as writer:
        for i in range(20):
            writer.write(random.integers(0, 256, (240, 320, 3), np.uint8))
            # A frame has over 70 KB. The muxer holds one of them, and the file's buffer 256 KB.
            (part,) = gif.parent.glob(".clip.gif.*.part")
            assert part.stat().st_size > 70_000 * (i - 5)


# Folders of frames.


@pytest.mark.parametrize("height, width", [(48, 64), (47, 63)])
def test_frames_in_a_folder_are_exact(tmp_path, height, width):
    clip = make_clip(11, height, width)
    write_video(tmp_path / "clip", clip, 8, record=RECORD)
    names, frames = read_frames(tmp_path / "clip")
    assert names == [f"{i:04d}.png" for i in range(1, 12)]
    assert (frames == clip).all()


def test_every_frame_of_a_folder_has_the_record(tmp_path):
    write_video(tmp_path / "clip", make_clip(3), 8, record=RECORD)
    assert [read_record(file) for file in (tmp_path / "clip").iterdir()] == [RECORD] * 3


def test_a_folder_of_frames_is_replaced_as_a_whole(tmp_path):
    write_video(tmp_path / "clip", make_clip(9), 8)
    with pytest.raises(OutputError, match="clip exists"):
        write_video(tmp_path / "clip", make_clip(2), 8)
    write_video(tmp_path / "clip", make_clip(2), 8, overwrite=True)
    assert read_frames(tmp_path / "clip")[0] == ["0001.png", "0002.png"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("other", ["notes.txt", "cover.png", "0001.png.txt", ".hidden"])
def test_a_folder_with_anything_else_in_it_is_never_replaced(tmp_path, other):
    write_video(tmp_path / "clip", make_clip(1), 8)
    (tmp_path / "clip" / other).touch()
    with pytest.raises(OutputError, match="more than numbered PNG frames"):
        check_output_path(tmp_path / "clip", overwrite=True)
    assert len(list((tmp_path / "clip").iterdir())) == 2


def test_a_file_that_appears_in_the_folder_meanwhile_is_kept_and_so_are_the_frames(tmp_path):
    write_video(tmp_path / "clip", make_clip(1), 8)
    with (
        pytest.raises(OutputError, match=r"notes\.txt.*finished output is .*\.clip\..*\.part"),
        open_writer(tmp_path / "clip", 8, overwrite=True) as writer,
    ):
        writer.write(make_clip(2))
        (tmp_path / "clip" / "notes.txt").touch()
    assert len(list((tmp_path / "clip").iterdir())) == 2
    (part,) = tmp_path.glob(".clip.*.part")
    assert len(list(part.iterdir())) == 2


def test_a_link_to_a_folder_of_frames_is_not_replaced(tmp_path):
    write_video(tmp_path / "clip", make_clip(1), 8)
    (tmp_path / "link").symlink_to("clip")
    with pytest.raises(OutputError, match="no plain folder"):
        check_output_path(tmp_path / "link", overwrite=True)
