"""``lora.py --windows`` and ``--show-clips``: which part of a clip is learned, made visible."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import errors, run, warnings
from trainers import sample_numbers, write_samples
from trainings import lora, read_log

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH, model_identity
from mlx_cogvideo.training.batches import Batches
from mlx_cogvideo.training.clips import Clip
from mlx_cogvideo.training.latent_cache import Cache
from mlx_cogvideo.training.prepare import READING, ClipOptions
from mlx_cogvideo.training.settings import TrainingSettings
from mlx_cogvideo.video import ClipSpec, content_digest, read_record, read_video, write_video

LEVELS = 6
"""Difference of the gray levels of neighbouring frames."""


def write_clip(folder: Path, name: str, frames: int, fps: float = 8) -> Path:
    """Writes a clip whose frames tell their numbers by their gray level."""
    folder.mkdir(exist_ok=True)
    levels = (LEVELS * np.arange(frames)).astype(np.uint8)
    clip = np.broadcast_to(levels[:, None, None, None], (frames, 32, 48, 3))
    write_video(folder / f"{name}.mp4", clip, fps)
    (folder / f"{name}.txt").write_text(f"it gets lighter, take {name}")
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = write_clip(tmp_path_factory.mktemp("clips"), "long", 40)
    return write_clip(folder, "short", 10)


def learned(clips: Path, name: str = "long", frames: int = 9, **options) -> list[list[int]]:
    """The numbers of the frames that are learned of a clip, window by window."""
    fps, skip = options.pop("fps", 8), options.pop("skip", (0, 0))
    options = ClipOptions((ClipSpec(frames, 32, 48, fps, skip),), **options)
    clip = Clip(clips / f"{name}.mp4", "")
    read = [options.read(clip, spec) for spec in options.specs_of(clip)]
    return [(part.mean((1, 2, 3)) / LEVELS).round().astype(int).tolist() for part in read]


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ({}, [0]),
        ({"windows": 3}, [0, 16, 31]),
        ({"windows": 99}, [0, 8, 16, 23, 31]),
        ({"windows": 3, "skip": (3, 3)}, [3, 15, 28]),
        ({"windows": 2, "frames": 33}, [0, 7]),
        ({"windows": 2, "fps": 4}, [0, 22]),
        ({"windows": 2, "name": "short"}, [0, 1]),
    ],
    ids=str,
)
def test_windows_are_spread_over_a_clip(clips, options, starts):
    found = learned(clips, **options)
    assert [frames[0] for frames in found] == starts
    each = 8 // options.get("fps", 8)
    assert all(np.diff(frames).tolist() == [each] * (len(frames) - 1) for frames in found)


def test_random_windows_are_the_same_in_every_run_and_others_for_another_seed(clips):
    options = {"windows": 4, "places": "random"}
    first = [frames[0] for frames in learned(clips, **options)]
    assert first == [frames[0] for frames in learned(clips, **options)]
    assert first != [frames[0] for frames in learned(clips, **options, seed=1)]
    assert first == sorted({*first}) and len(first) == 4 and max(first) <= 31


@pytest.mark.parametrize("rate", [12, 23.976, 30])
def test_the_last_window_fits_at_any_frame_rate(tmp_path, rate):
    for frames in (36, 37, 38, 41):
        write_clip(tmp_path, f"{frames}", frames, rate)
        assert len(learned(tmp_path, f"{frames}", windows=2)) == 2


def test_windows_lie_in_the_part_of_a_clip_that_is_learned(clips):
    options = ClipOptions((ClipSpec(9, 32, 48, 8),), windows=3)
    starts = [each.start for each in options.specs_of(Clip(clips / "long.mp4", "", 1, 4))]
    assert starts == [1, 2, 1 + 15 / 8]


def test_windows_of_one_shape_share_a_batch(tmp_path):
    pipe, samples = CogVideoXPipeline.from_pretrained("demo"), write_samples(tmp_path, 4)
    samples = [replace(s, spec=replace(s.spec, start=i)) for i, s in enumerate(samples)]
    settings = TrainingSettings(batch_size=4, caption_dropout=0)
    batch = Batches(pipe, samples, samples[0].text, settings).draw(0)
    assert sorted(sample_numbers(batch)) == [0, 1, 2, 3]


def test_what_is_shown_has_its_caption_and_is_near_to_what_was_read(clips, tmp_path, capsys):
    assert lora(clips, tmp_path / "new", "--show-clips", 1, "--windows", 2) == 0
    files = sorted((tmp_path / "new" / "samples" / "clips").iterdir())
    assert [file.name for file in files] == ["000-long.mp4", "001-long.mp4"]
    assert capsys.readouterr().out.split() == [str(file) for file in files]
    record = read_record(files[1])
    assert record["caption"] == "it gets lighter, take long" and record["start"] == 31 / 8
    frames = read_video(files[1])[0].astype(int)
    assert frames.shape == (9, 32, 96, 3)
    assert np.abs(frames[:, :, :48] - frames[:, :, 48:]).mean() < 12
    assert not (tmp_path / "new" / "log.jsonl").exists()
    assert run("--replay", files[1]) == 2 and errors(capsys.readouterr().err)


def test_a_clip_that_cant_be_shown_is_left_out(clips, tmp_path, capsys):
    data = write_clip(tmp_path / "data", "good", 9)
    (data / "bad.mp4").write_bytes(b"")
    assert lora(data, tmp_path / "new", "--show-clips", 9) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("000-good.mp4\n") and "bad.mp4" in warnings(captured.err)[0]
    assert lora(data, tmp_path / "other", "--show-clips", 1) == 0
    assert capsys.readouterr().out.endswith("000-good.mp4\n")
    (data / "good.mp4").write_bytes(b"")
    assert lora(data, tmp_path / "third", "--show-clips", 1) == 1


def test_each_window_is_a_sample_and_the_first_one_is_that_of_a_training_without_windows(
    clips, tmp_path, capsys
):
    assert lora(clips, tmp_path / "new", "--windows", 3, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3 windows of 9 frames of 48x32 of its 40 of 48x32" in lines[0]
    cache, identity = Cache(tmp_path / "cache"), model_identity("demo", DEMO_PATH)["sha256"]
    options = ["--cache", cache.folder, "--windows", 3, "--iters", 2, "--batch-size", 4]
    assert lora(clips, tmp_path / "new", *options) == 0
    assert len(read_log(tmp_path / "new")) == 2
    # An empty caption, two captions, three windows of the long clip and two of the short one.
    assert len(list(cache.folder.glob("*.safetensors"))) == 3 + 3 + 2
    shape = {"frames": 9, "height": 32, "width": 48, "fps": 8, "skip": (0, 0), "fit": "crop"}
    about = {
        "clip": content_digest(clips / "long.mp4"),
        "reading": READING,
        "vae": identity["vae"],
        "shape": {**shape, "repeat_last": False},
        "position": (0.5, 0.5),
        "dtype": "float32",
    }
    assert cache.path(about).is_file()
    assert lora(clips, tmp_path / "new", *options, "--resume", "--windows", 2) == 2
    assert "the clips differ" in errors(capsys.readouterr().err)[0]
