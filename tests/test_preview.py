"""Rough pictures on the way."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from commands import generate

from mlx_cogvideo import CogVideoXPipeline, InvalidInputError
from mlx_cogvideo.preview import Preview
from mlx_cogvideo.variants import VARIANTS
from mlx_cogvideo.video import read_video


@pytest.fixture
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained("demo")


def test_a_preview_shows_what_the_latents_stand_for(pipe):
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
        assert cells[i, 1, 1].min() > 180, "what is around it is bright"


def test_the_official_map_is_stretched(pipe, monkeypatch, tmp_path):
    monkeypatch.setattr(pipe, "folder", tmp_path)
    with pytest.raises(InvalidInputError, match="has no latent_rgb"):
        Preview(pipe)
    monkeypatch.setattr(pipe, "variant", VARIANTS[1])
    frames = Preview(pipe).frames(mx.random.normal((1, 3, 60, 90, 16), key=mx.random.key(0)))
    assert frames.shape == (3, 180, 270, 3)
    assert frames.min() == 0 and frames.max() == 255 and 60 < frames.mean() < 195


def test_previews_are_beside_the_output_until_it_is_there(tmp_path, monkeypatch):
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
