"""The record of a run: what it holds, and how two records are compared."""

import json

import mlx.core as mx
import pytest

from mlx_cogvideo import CogVideoXPipeline, __version__
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.errors import InvalidInputError
from mlx_cogvideo.pipeline.recording import Meter, make_record
from mlx_cogvideo.pipeline.resolver import resolve
from mlx_cogvideo.runs.record import (
    model_differences,
    model_title,
    setting_differences,
    version_differences,
)
from mlx_cogvideo.runs.settings import video_settings

ARGUMENTS = {
    "prompt": "a red circle",
    "num_frames": 9,
    "height": 32,
    "width": 48,
    "num_inference_steps": 3,
    "guidance_range": [1, 3],
    "seed": 2**62,
    "tile_size": [16, 32],
}


@pytest.fixture(scope="module")
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained(DEMO_PATH)


def record(pipe, model=None, **changes):
    request = pipe.request(**{**ARGUMENTS, **changes})
    return make_record(pipe, request, model or {"name": "demo"}, fps=8)


def test_a_record_holds_all_settings_of_a_request_and_restores_it(pipe):
    made = json.loads(json.dumps(record(pipe)))
    resolved = pipe.request(**ARGUMENTS)
    of_the_run = {"lora": [], "dtype": "float32", "compile": True, "fps": 8.0}
    assert made["settings"] == {**resolved.to_dict(), **of_the_run}
    assert made["settings"].items() >= ARGUMENTS.items()
    assert resolve(pipe, video_settings(made["settings"])) == resolved
    assert made["mlx_cogvideo"] == __version__
    assert made["versions"]["mlx"] == mx.__version__


def test_a_record_holds_the_defaults_of_the_model(pipe):
    made = make_record(pipe, pipe.request("a"), {}, fps=8)["settings"]
    chosen = {name: made[name] for name in ("num_frames", "scheduler", "dynamic_cfg")}
    assert chosen == {"num_frames": 17, "scheduler": "ddim", "dynamic_cfg": "constant"}
    assert isinstance(made["seed"], int)


def test_settings_of_another_version_are_refused_by_name(pipe):
    with pytest.raises(InvalidInputError, match="zoom"):
        video_settings({**ARGUMENTS, "zoom": 2})


def test_each_setting_that_differs_is_named(pipe):
    then, now = record(pipe), record(pipe, num_inference_steps=4, seed=1, prompt="a cat")
    assert setting_differences(then, now, but=("seed",)) == [
        "prompt was 'a red circle' and is now 'a cat'",
        "num_inference_steps was 3 and is now 4",
    ]
    assert setting_differences(then, then) == []


def test_models_differ_by_content_and_not_by_location(pipe):
    then = record(pipe, {"name": "a", "sha256": {"vae": "1" * 64, "transformer": "2" * 64}})
    moved = record(pipe, {"name": "b", "sha256": {"vae": "1" * 64, "transformer": "2" * 64}})
    other = record(pipe, {"name": "a", "sha256": {"vae": "1" * 64, "transformer": "3" * 64}})
    assert model_differences(then, moved) == []
    assert model_differences(then, other) == [
        "the model's transformer was 222222222222 and is now 333333333333 (sha256)"
    ]


def test_models_of_the_hub_differ_by_their_revision(pipe):
    then, now = (record(pipe, {"name": "a/b", "revision": c * 40}) for c in "cd")
    assert model_differences(then, then) == []
    assert model_differences(then, now) == [
        "the model was a/b at revision cccccccccccc and is now a/b at revision dddddddddddd"
    ]
    assert model_title({"name": "demo", "sha256": {}}) == "demo"


def test_versions_that_compute_differently_are_named(pipe):
    then, now = record(pipe), record(pipe)
    assert version_differences(then, now) == []
    then["versions"]["mlx"], then["versions"]["python"] = "0.1", "3.0"
    assert version_differences(then, now) == [f"mlx was 0.1 and is now {mx.__version__}"]


def test_a_meter_adds_to_earlier_timings_and_forwards_progress():
    made = {"timings": {"denoise": 100.0}, "peak_memory": {"denoise": 1}}
    reports = []
    meter = Meter(made, lambda *report: reports.append(report))
    meter("denoise", 3, 4)
    held = mx.random.normal((1_000_000,))
    mx.eval(held)
    meter("denoise", 4, 4)
    meter("decode", 0, 1)
    assert 100 < made["timings"]["denoise"] < 200
    assert made["timings"]["decode"] < 100
    assert made["peak_memory"]["denoise"] >= held.nbytes
    assert reports == [("denoise", 3, 4), ("denoise", 4, 4), ("decode", 0, 1)]
