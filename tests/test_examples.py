"""The scripts in ``examples`` run, here with fewer and smaller frames and fewer steps."""

import runpy
from pathlib import Path

import pytest

from mlx_cogvideo.video import read_video

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {
    "num_frames=17": "num_frames=9, height=48, width=48",
    '"num_frames": 17': '"num_frames": 9, "height": 48, "width": 48',
    "num_inference_steps=10": "num_inference_steps=2",
    '"num_inference_steps": 10': '"num_inference_steps": 2',
    "--iters 20": "--iters 1 --frames 9 --height 48 --width 48",
}
MADE = {
    "text_to_video": ["text_to_video.mp4"],
    "image_to_video": ["image_to_video.mp4"],
    "many_videos": ["0.mp4", "1.mp4"],
    "fine_tune": ["fine_tuned.mp4"],
}


def test_each_example_is_tried_and_short():
    scripts = {path.stem: path for path in EXAMPLES.glob("*.py")}
    assert set(scripts) == set(MADE)
    assert all(len(path.read_text().splitlines()) < 20 for path in scripts.values())


@pytest.mark.parametrize("name", MADE)
def test_an_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = (EXAMPLES / f"{name}.py").read_text()
    for usual, small in SMALL.items():
        code = code.replace(usual, small)
    script = tmp_path / f"{name}.py"
    script.write_text(code)
    (tmp_path / "triangle.png").symlink_to(EXAMPLES / "triangle.png")
    runpy.run_path(str(script), run_name="__main__")
    for made in MADE[name]:
        frames, _ = read_video(tmp_path / made)
        assert frames.shape == (9, 48, 48, 3)
    assert (name == "fine_tune") == (tmp_path / "adapters").is_dir()
    assert (name == "many_videos") == (tmp_path / "preview.gif").is_file()
