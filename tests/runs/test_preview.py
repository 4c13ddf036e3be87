"""Previews: rough pictures of the video during a run."""

import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from commands import ctrl_c_in_step, errors, generate, run

from mlx_cogvideo import CogVideoXPipeline, InvalidInputError
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.checkpoints.variants import VARIANTS
from mlx_cogvideo.runs.preview import Preview
from mlx_cogvideo.video import read_video, write_video


@pytest.fixture
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained("demo")


def test_a_preview_shows_the_content_of_the_latents(pipe):
    clip = np.full((17, 96, 96, 3), 250, np.uint8)
    for frame in range(17):
        clip[frame, 32:64, 8 + 2 * frame : 40 + 2 * frame] = (220, 35, 40)
    latents = pipe.encode_video(clip, 17).mean * pipe.configs["vae"].scaling_factor
    frames = Preview(pipe).frames(latents)
    assert frames.shape == (5, 132, 132, 3) and frames.dtype == np.uint8
    cells = frames[:, ::11, ::11].astype(int)
    for i, left in enumerate((8, 16, 24, 32, 40)):
        middle = cells[i, 5, (left + 16) // 8]
        assert middle[0] > middle[1] + 60, "the square is red"
        assert cells[i, 1, 1].min() > 180, "the background is bright"


def test_the_official_map_fills_the_range_of_colours(pipe, monkeypatch, tmp_path):
    monkeypatch.setattr(pipe, "folder", tmp_path)
    with pytest.raises(InvalidInputError, match="latent_rgb"):
        Preview(pipe)
    monkeypatch.setattr(pipe, "variant", VARIANTS[1])
    frames = Preview(pipe).frames(mx.random.normal((1, 3, 60, 90, 16), key=mx.random.key(0)))
    assert frames.shape == (3, 180, 270, 3)
    assert frames.min() == 0 and frames.max() == 255 and 60 < frames.mean() < 195


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"factors": [[1, 2, 3]], "bias": [1, 2, 3]}'], ids=str
)
def test_a_wrong_map_is_one_line_before_the_run(tmp_path, monkeypatch, capsys, text):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DEMO_PATH, tmp_path / "mlx_model")
    (tmp_path / "mlx_model" / "latent_rgb.json").write_text(text)
    assert generate("video.mp4", "--preview-every", 1) == 2
    (line,) = errors(capsys.readouterr().err)
    assert "latent_rgb.json" in line and "16 rows of 3 numbers" in line


def test_a_preview_does_not_overwrite_another_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "video.mp4.preview.gif"
    write_video(mine, np.zeros((2, 16, 16, 3), np.uint8), 8)
    before = mine.read_bytes()
    assert generate("video.mp4", "--preview-every", 1) == 1
    (line,) = errors(capsys.readouterr().err)
    assert "video.mp4.preview.gif exists" in line
    assert generate("video.mp4") == 0
    assert mine.read_bytes() == before


def test_a_resumed_run_removes_its_preview(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ctrl_c_in_step(1):
        assert generate("video.mp4", "--preview-every", 1) == 130
    assert Path("video.mp4.preview.gif").exists()
    assert run("--resume", "video.mp4.resume", "--output", "other.mp4") == 0
    assert [path.name for path in Path().iterdir()] == ["other.mp4"]


def test_a_kill_right_after_the_end_leaves_no_preview_for_ever(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ctrl_c_in_step(1):
        assert generate("video.mp4", "--preview-every", 1) == 130
    left = Path("video.mp4.preview.gif").read_bytes()
    assert generate("video.mp4", "--resume") == 0
    Path("video.mp4.preview.gif").write_bytes(left)
    assert generate("video.mp4", "--resume") == 0
    assert [path.name for path in Path().iterdir()] == ["video.mp4"]


def test_a_preview_is_removed_when_the_video_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    write = Preview.write

    def noted(self, path, latents):
        write(self, path, latents)
        seen.append((path.name, len(read_video(path)[0])))

    monkeypatch.setattr(Preview, "write", noted)
    assert generate("video.mp4", "--steps", 4, "--preview-every", 2) == 0
    assert seen == [("video.mp4.preview.gif", 3)] * 2
    assert [path.name for path in Path().iterdir()] == ["video.mp4"]
