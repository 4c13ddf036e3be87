"""diffusers opens a folder that recommends settings, and saves it again."""

import json

import diffusers

from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.checkpoints.compatibility import read_configurations
from mlx_cogvideo.checkpoints.recommended import KEY


def test_diffusers_opens_and_saves_a_folder_that_recommends_settings(tmp_path, caplog):
    assert KEY in json.loads((DEMO_PATH / "model_index.json").read_text())
    diffusers.utils.logging.enable_propagation()
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(DEMO_PATH)
    finally:
        diffusers.utils.logging.disable_propagation()
    assert type(pipe) is diffusers.CogVideoXPipeline
    assert KEY not in caplog.text
    pipe.save_pretrained(tmp_path)
    assert read_configurations(tmp_path)["recommended"] == {}
