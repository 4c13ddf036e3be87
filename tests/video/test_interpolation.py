"""Frames between those of a video, which are computed while it is written."""

from fractions import Fraction

import av
import numpy as np
import pytest
from commands import PROMPT, ctrl_c_in_step, errors, generate, run, warnings

from mlx_cogvideo import InvalidInputError, generate_video
from mlx_cogvideo.video import open_writer, read_record, read_video, write_video
from mlx_cogvideo.video.interpolation import MotionInterpolator


def moving_clip(frames: int, speed: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A soft pattern that moves left by `speed` pixels a frame, uint8 [F, H, W, 3]."""
    cells = -(-height // 8), -(-(width + frames * speed) // 8)
    wide = np.random.default_rng(0).integers(0, 256, (*cells, 3)).astype(float)
    wide = wide.repeat(8, 0).repeat(8, 1)
    for axis in (0, 1, 0, 1):
        wide = sum(np.roll(wide, shift, axis) for shift in (-2, -1, 0, 1, 2)) / 5
    clip = [wide[:height, i * speed : i * speed + width] for i in range(frames)]
    return np.round(clip).astype(np.uint8)


def interpolated(frames: np.ndarray, factor: int) -> np.ndarray:
    between = MotionInterpolator(factor)
    made = [each for frame in frames for each in between.add(frame)]
    return np.stack([*made, *between.end()])


def times_in(path) -> list[Fraction]:
    """The time of each frame of a file in seconds."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("frames", [1, 2, 3, 9])
def test_the_given_frames_come_out_unchanged_with_others_between_them(frames, factor):
    clip = moving_clip(frames, 4)
    made = interpolated(clip, factor)
    assert len(made) == (frames - 1) * factor + 1
    assert (made[::factor] == clip).all()


@pytest.mark.parametrize("factor", [2, 3])
def test_the_frames_between_show_the_motion(factor):
    true = moving_clip(4 * factor + 1, 12 // factor, 128, 192).astype(float)
    made = interpolated(true[::factor].astype(np.uint8), factor).astype(float)
    middle = np.s_[:, 32:-32, 32:-32]  # the motion of what enters the picture can't be known
    for i in range(1, factor):
        share = i / factor
        blend = true[:-factor:factor] * (1 - share) + true[factor::factor] * share
        wrong, of_blend = (
            np.abs(frames - true[i::factor])[middle].mean() for frames in (made[i::factor], blend)
        )
        assert wrong < 0.3 * of_blend


def test_nothing_is_moved_across_a_cut():
    dark = moving_clip(4, 2) // 4
    made = interpolated(np.concatenate([dark, 255 - dark]), 2).astype(int)
    assert np.abs(made[7] - made[6]).max() <= 2


def test_frames_come_while_others_are_still_to_be_given():
    clip, between = moving_clip(9, 4), MotionInterpolator(2)
    ready = [len(list(between.add(frame))) for frame in clip]
    assert ready == [0, 0, 3, *[2] * 6]
    assert len(list(between.end())) == 2


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a"])
def test_every_form_of_output_has_the_frames_at_their_times(tmp_path, name):
    clip = moving_clip(5, 4)
    with open_writer(tmp_path / name, 8, interpolate=2) as writer:
        writer.write(clip[:2])
        writer.write(clip[2])
        writer.write(clip[3:])
    if name == "a":
        frames = np.stack([read_video(file)[0][0] for file in sorted((tmp_path / name).iterdir())])
        assert len(frames) == 9 and (frames[::2] == clip).all()
        return
    tick = Fraction(1, 100) if name == "a.gif" else 0  # gif counts hundredths of a second
    times = times_in(tmp_path / name)
    assert len(times) == 9
    assert all(abs(time - Fraction(i, 16)) <= tick for i, time in enumerate(times))
    assert read_video(tmp_path / name)[1] == pytest.approx(16, rel=0.05 if tick else 0)


def test_broken_rates_stay_exact(tmp_path):
    write_video(tmp_path / "a.mp4", moving_clip(3, 4), Fraction(24000, 1001), interpolate=3)
    assert times_in(tmp_path / "a.mp4")[:2] == [0, Fraction(1001, 72000)]


def test_a_gif_refuses_more_frames_than_it_can_show(tmp_path):
    open_writer(tmp_path / "a.gif", 25, interpolate=2)
    with pytest.raises(InvalidInputError, match="50 frames a second at most; got 60"):
        open_writer(tmp_path / "a.gif", 30, interpolate=2)


@pytest.mark.parametrize("factor", [0, 4, 2.5, "2"])
def test_other_factors_are_refused(tmp_path, factor):
    with pytest.raises(InvalidInputError, match="interpolate must be 1, 2 or 3"):
        open_writer(tmp_path / "a.mp4", 8, interpolate=factor)


def test_frames_too_small_for_a_search_are_refused_before_the_run(tmp_path, capsys):
    with pytest.raises(InvalidInputError, match="at least 32 pixels"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 24, 64, 3), np.uint8), 8, interpolate=2)
    assert list(tmp_path.iterdir()) == []
    assert generate(tmp_path / "b.mp4", "--height", 16, "--interpolate", 2) == 2
    assert "interpolate needs frames of at least 32" in errors(capsys.readouterr().err)[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_command_writes_and_records_it_and_a_replay_repeats_it(folder, capsys):
    assert generate("video.mp4", "--interpolate", 2) == 0
    assert "48x32, 8 a second, interpolated to 16" in capsys.readouterr().err
    frames, fps = read_video("video.mp4")
    assert (len(frames), fps) == (17, 16)
    settings = read_record("video.mp4")["settings"]
    assert (settings["fps"], settings["interpolate"], settings["num_frames"]) == (8, 2, 9)
    assert run("--replay", "video.mp4", "--output", "again.mp4") == 0
    assert (read_video("again.mp4")[0] == frames).all()
    assert run("--replay", "video.mp4", "--interpolate", 1, "--output", "plain.mp4") == 0
    assert len(read_video("plain.mp4")[0]) == 9
    assert "interpolate" not in read_record("plain.mp4")["settings"]


@pytest.mark.parametrize(
    "options, frames", [((), 17), (("--interpolate", "3"), 25), (("--interpolate", "1"), 9)]
)
def test_a_resumed_run_keeps_it_unless_it_is_changed(folder, options, frames):
    with ctrl_c_in_step(1):
        assert generate("video.mp4", "--interpolate", 2) == 130
    assert run("--resume", "video.mp4", *options) == 0
    assert len(read_video("video.mp4")[0]) == frames
    assert generate("whole.mp4", "--interpolate", (frames - 1) // 8) == 0
    assert (read_video("whole.mp4")[0] == read_video("video.mp4")[0]).all()


def test_latents_and_single_frames_are_reported(folder, capsys):
    assert generate("a.safetensors", "--interpolate", 2) == 0
    (line,) = warnings(capsys.readouterr().err)
    assert "interpolate has no effect: latents aren't frames yet" in line
    assert generate("a.mp4", "--frames", 1, "--interpolate", 2) == 0
    assert "the video has one frame" in capsys.readouterr().err
    assert len(read_video("a.mp4")[0]) == 1


def test_windows_are_interpolated_as_one_video(folder):
    assert generate("a.mp4", "--extend", 1, "--overlap", 1, "--interpolate", 2) == 0
    assert len(read_video("a.mp4")[0]) == 33


def test_the_call_of_python_writes_it_and_returns_the_frames_of_the_model(folder):
    size = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 1, "seed": 1}
    frames = generate_video(PROMPT, output_path="a.mp4", interpolate=2, **size)
    assert len(frames) == 9 and len(read_video("a.mp4")[0]) == 17
    assert read_record("a.mp4")["settings"]["interpolate"] == 2
