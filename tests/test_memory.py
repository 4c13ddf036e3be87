"""How much memory is foretold, there, and kept resident."""

import mlx.core as mx
import pytest

from mlx_cogvideo import CogVideoXPipeline, memory
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.record import Meter


@pytest.fixture(scope="module")
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained(DEMO_PATH)


@pytest.mark.parametrize(
    "size",
    [
        {},
        {"num_frames": 9, "height": 64, "width": 128},
        {"num_frames": 33, "guidance_scale": 1.0},
    ],
    ids=["the model's own", "small", "long, without guidance"],
)
def test_the_forecast_is_near_what_a_run_takes(pipe, size):
    if mx.default_device().type != mx.DeviceType.cpu:
        pytest.skip("the demo is too small for the allocators of GPUs, which round up")
    request = pipe.request("a red circle", num_inference_steps=1, seed=1, **size)
    record = {"timings": {}, "peak_memory": {}}
    pipe(**request.settings(), on_progress=Meter(record))
    needs = memory.forecast(pipe, request)
    for stage in ("denoise", "decode"):
        ratio = needs[stage] / record["peak_memory"][stage]
        assert 0.7 < ratio < 2.5, f"{stage}: {ratio:.2f}"


def test_latents_need_no_decoder(pipe):
    assert set(memory.forecast(pipe, pipe.request("a"), decode=False)) == {"encode", "denoise"}


def test_there_is_some_memory():
    assert 2**28 < memory.available_memory() < 2**45


@pytest.mark.parametrize(
    ("metal", "version", "limits"),
    [
        (True, "15.1", [123]),
        (True, "26.0", [123]),
        (True, "14.7.1", []),
        (True, "", []),
        (False, "", []),
    ],
)
def test_memory_is_wired_only_where_the_system_knows_of_it(monkeypatch, metal, version, limits):
    set_to = []
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 123})
    monkeypatch.setattr(mx, "set_wired_limit", set_to.append)
    monkeypatch.setattr(memory.platform, "mac_ver", lambda: (version, ("", "", ""), ""))
    memory.keep_resident()
    assert set_to == limits
