"""Written mp4s: their contents, how they are read again, and that failures leave nothing."""

from fractions import Fraction

import av
import numpy as np
import pytest
from clips import RECORD, make_clip, psnr

from mlx_cogvideo.errors import InvalidInputError, OutputError
from mlx_cogvideo.video import VideoWriter, check_output_path, read_record, read_video, write_video


@pytest.fixture
def path(tmp_path):
    return tmp_path / "clip.mp4"


def test_frames_come_back_in_number_size_order_and_nearly_in_value(path):
    clip = make_clip(17)
    write_video(path, clip, 8)
    frames, _ = read_video(path)
    assert frames.dtype == np.uint8
    assert frames.shape == clip.shape
    assert all(psnr(a, b) > 30 for a, b in zip(frames, clip, strict=True))


@pytest.mark.parametrize("color", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 30, 90)])
def test_a_flat_colour_comes_back_within_two_levels(path, color):
    write_video(path, np.full((3, 32, 32, 3), color, np.uint8), 8)
    assert np.abs(read_video(path)[0].astype(int) - color).max() <= 2


def test_pure_red_is_stored_by_bt709_and_not_by_bt601(path):
    write_video(path, np.full((1, 32, 32, 3), (255, 0, 0), np.uint8), 8)
    with av.open(str(path)) as container:
        planes = next(container.decode(video=0)).to_ndarray()
    luma = planes[:32].astype(int)
    assert np.abs(luma - 63).max() <= 1, "BT.709 has 16 + 219 * 0.2126; BT.601 would have 81"


@pytest.mark.parametrize(
    "fps", [8, 16, 7, 12.5, Fraction(24000, 1001), np.float64(29.97), 0.02, 1000]
)
def test_the_frame_rate_is_exact(path, fps):
    write_video(path, make_clip(), fps)
    _, read = read_video(path)
    assert read == Fraction(fps).limit_denominator(1001)
    with av.open(str(path)) as container:
        times = [Fraction(f.pts) * f.time_base for f in container.decode(video=0)]
    for i, time in enumerate(times):
        assert abs(time - i / read) < Fraction(1, 10_000)


def test_the_stream_is_what_every_player_opens(path):
    write_video(path, make_clip(), 8)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert context.name == "h264"
        assert context.pix_fmt == "yuv420p"
        tags = context.color_primaries, context.color_trc, context.colorspace, context.color_range
        assert tags == (1, 1, 1, 1), "BT.709 three times, and limited range"


def test_the_index_is_in_front_of_the_pictures(path):
    write_video(path, make_clip(), 8)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_the_record_comes_back_and_players_find_it_as_the_comment(path):
    write_video(path, make_clip(), 8, record=RECORD)
    assert read_record(path) == RECORD
    with av.open(str(path)) as container:
        assert "“a cat” says" in container.metadata["comment"]
    assert list(path.parent.iterdir()) == [path]


def test_the_record_may_be_set_after_the_last_frame(path):
    with VideoWriter(path, 8) as writer:
        writer.write(make_clip())
        writer.record = RECORD
    assert read_record(path) == RECORD


@pytest.mark.parametrize("fps", [8, 12.5, Fraction(24000, 1001)])
def test_the_record_changes_nothing_else(path, fps):
    plain = path.with_name("plain.mp4")
    write_video(plain, make_clip(17), fps)
    write_video(path, make_clip(17), fps, record=RECORD)
    assert describe(path) == describe(plain)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def describe(path):
    """The stream and packets of a file, byte for byte."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        rates = stream.average_rate, stream.base_rate, stream.time_base
        colors = (
            context.color_primaries,
            context.color_trc,
            context.colorspace,
            context.color_range,
        )
        packets = [(p.pts, p.dts, p.duration, p.is_keyframe, bytes(p)) for p in container.demux()]
        sizes = stream.frames, stream.duration, context.pix_fmt, context.width, context.height
        return rates, colors, sizes, container.duration, packets


def test_frames_may_come_one_by_one_and_in_batches(path):
    clip = make_clip()
    with VideoWriter(path, 8) as writer:
        writer.write(clip[0])
        writer.write(clip[1:4])
        writer.write(clip[4:])
    frames, _ = read_video(path)
    assert all(psnr(a, b) > 30 for a, b in zip(frames, clip, strict=True))


def test_a_generator_of_frames_is_written_as_it_comes(path):
    clip = make_clip()
    write_video(path, (frame for frame in clip), 8)
    frames, _ = read_video(path)
    assert all(psnr(a, b) > 30 for a, b in zip(frames, clip, strict=True))


def test_the_file_appears_when_the_last_frame_is_in(path):
    with VideoWriter(path, 8) as writer:
        writer.write(make_clip())
        assert not path.exists()
    assert path.exists()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_no_file_behind(path, error):
    with pytest.raises(error), VideoWriter(path, 8) as writer:
        writer.write(make_clip())
        assert list(path.parent.glob(".clip.mp4.*.part"))
        raise error
    assert list(path.parent.iterdir()) == []


def test_an_exception_leaves_the_older_file_alone(path):
    path.write_bytes(b"older")
    with pytest.raises(RuntimeError), VideoWriter(path, 8, overwrite=True) as writer:
        writer.write(make_clip())
        raise RuntimeError
    assert path.read_bytes() == b"older"


def test_an_existing_file_is_kept_without_overwrite(path):
    path.write_bytes(b"older")
    with pytest.raises(OutputError, match=r"clip\.mp4 exists"):
        write_video(path, make_clip(), 8)
    assert path.read_bytes() == b"older"
    write_video(path, make_clip(), 8, overwrite=True)
    assert len(read_video(path)[0]) == 9


def test_a_file_that_appears_meanwhile_is_kept_and_so_is_the_video(path):
    with pytest.raises(OutputError, match="appeared meanwhile"), VideoWriter(path, 8) as writer:
        writer.write(make_clip())
        path.write_bytes(b"newer")
    assert path.read_bytes() == b"newer"
    (finished,) = (p for p in path.parent.iterdir() if p != path)
    assert len(read_video(finished)[0]) == 9


def test_a_missing_folder_is_refused_before_any_frame(tmp_path):
    with pytest.raises(OutputError, match="doesn't exist"):
        VideoWriter(tmp_path / "nowhere" / "clip.mp4", 8)


def test_a_folder_that_cannot_be_written_to_is_refused(path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OutputError, match="can't be written to"):
        check_output_path(path)


def test_a_good_path_is_returned_and_nothing_is_created(path):
    assert check_output_path(str(path)) == path
    assert not path.exists()


@pytest.mark.parametrize("height, width", [(47, 64), (48, 63), (47, 63)])
def test_the_last_row_or_column_of_an_odd_size_is_repeated_with_one_warning(
    path, caplog, height, width
):
    clip = make_clip(height=height, width=width)
    write_video(path, clip, 8)
    frames, _ = read_video(path)
    assert frames.shape == (9, 48, 64, 3)
    assert psnr(frames[:, :height, :width], clip) > 30
    assert np.abs(frames[:, -1].astype(int) - frames[:, -2]).mean() < 12
    (warning,) = caplog.messages
    assert f"make {height}x{width} 48x64" in warning


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((2, 32, 32, 4), np.uint8),
        np.zeros((1, 2, 32, 32, 3), np.uint8),
        np.zeros((2, 0, 32, 3), np.uint8),
    ],
)
def test_frames_that_are_no_rgb_bytes_are_refused(path, frames):
    with pytest.raises(InvalidInputError, match=r"uint8 \[F, H, W, 3\]"), VideoWriter(path, 8) as w:
        w.write(frames)


def test_frames_of_two_sizes_are_refused(path):
    with pytest.raises(InvalidInputError, match="one size"), VideoWriter(path, 8) as writer:
        writer.write(make_clip())
        writer.write(make_clip(width=96))
    assert list(path.parent.iterdir()) == []


def test_a_video_without_frames_is_refused(path):
    with pytest.raises(InvalidInputError, match="at least one frame"):
        write_video(path, [], 8)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -8, 1e9, 1e-9, float("nan"), float("inf"), None, "fast"])
def test_an_impossible_frame_rate_is_refused(path, fps):
    with pytest.raises(InvalidInputError, match="positive number"):
        VideoWriter(path, fps)


def test_the_file_has_the_permissions_of_any_new_file(path, tmp_path):
    (tmp_path / "plain").touch()
    write_video(path, make_clip(), 8)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_reading_a_file_that_is_no_video_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="doesn't exist"):
        read_video(tmp_path / "nothing.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InvalidInputError, match="can't be read as a video"):
        read_video(tmp_path / "text.mp4")
