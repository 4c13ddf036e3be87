"""Estimates of the memory that a run needs, and what follows from them."""

import mlx.core as mx
import numpy as np
import pytest
from adapters import RANK, make_adapter

from mlx_cogvideo import CogVideoXPipeline, InvalidInputError, device
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.checkpoints.model_configurations import official_model
from mlx_cogvideo.checkpoints.variants import VARIANTS
from mlx_cogvideo.device import Machine
from mlx_cogvideo.nn import eval_schedule
from mlx_cogvideo.nn.autoencoder import model as autoencoder_module
from mlx_cogvideo.pipeline import estimates as memory
from mlx_cogvideo.pipeline.recording import Meter
from mlx_cogvideo.pipeline.resolver import model_geometry
from mlx_cogvideo.pipeline.vae_stage import Tiling
from mlx_cogvideo.training import estimates as training_estimates
from mlx_cogvideo.training.settings import TrainingSettings


@pytest.fixture(scope="module")
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained(DEMO_PATH)


@pytest.mark.parametrize(
    "size",
    [
        {},
        {"num_frames": 9, "height": 64, "width": 128},
        {"num_frames": 33, "guidance_scale": 1.0},
        {"sequential_guidance": True},
        {"cache": "first-block"},
    ],
    ids=["the model's own", "small", "long, no guidance", "sequential guidance", "step cache"],
)
def test_the_estimate_is_close_to_what_a_run_takes(pipe, size):
    if mx.default_device().type != mx.DeviceType.cpu:
        pytest.skip("the demo is too small for the allocators of GPUs, which round up")
    request = pipe.request("a red circle", num_inference_steps=2, seed=1, **size)
    record = {"timings": {}, "peak_memory": {}}
    pipe(**request.settings(), on_progress=Meter(record))
    needs = memory.estimate_memory(pipe, request)
    for stage in ("denoise", "decode"):
        ratio = needs[stage] / record["peak_memory"][stage]
        assert 0.95 < ratio < 1.2, f"{stage}: {ratio:.2f}"


def test_the_estimate_of_a_step_cache_covers_all_passes(pipe):
    def need(**options):
        return memory.denoising_memory(pipe, pipe.geometry(), 2, **options)

    tokens = 2 * 212 * 192 * 4
    assert need(cache="teacache") - need() == tokens
    assert need(cache="first-block", passes=2) - need(passes=2) == 2 * tokens


def test_extrapolated_steps_need_four_arrays_of_latents(pipe):
    def need(batch=2, **options):
        return memory.denoising_memory(pipe, pipe.geometry(), batch, **options)

    latents = 5 * 12 * 12 * 16 * 4
    assert need(cache="latents") - need() == 4 * latents
    assert need(cache="guidance") - need() == 2 * latents
    assert need(1, cache="latents") - need(1) == 2 * latents


def test_the_estimate_covers_adapters(tmp_path):
    pipe = CogVideoXPipeline.from_pretrained("demo")
    before = memory.estimate_memory(pipe, pipe.request("a"))["denoise"]
    folder = make_adapter(tmp_path / "adapter", targets=("attn1.to_q",))
    for _ in range(2):
        pipe.load_lora(folder)
    added = memory.estimate_memory(pipe, pipe.request("a"))["denoise"] - before
    assert added == 2 * 5 * 2 * RANK * 192 * 4  # adapters, blocks, A and B
    pipe.unload_lora()
    assert memory.estimate_memory(pipe, pipe.request("a"))["denoise"] == before


def test_an_output_of_latents_needs_no_decoder(pipe):
    assert set(memory.estimate_memory(pipe, pipe.request("a"), decode=False)) == {
        "encode",
        "denoise",
    }


def test_finished_stages_are_not_estimated(pipe):
    needs = memory.estimate_memory(pipe, pipe.request("a"), done=("encode", "denoise"))
    assert set(needs) == {"decode"}


def test_an_image_is_estimated_as_one_frame():
    if mx.default_device().type != mx.DeviceType.cpu:
        pytest.skip("the demo is too small for the allocators of GPUs, which round up")
    pipe = CogVideoXPipeline.from_pretrained("demo-i2v")
    request = pipe.request("a", image=np.zeros((96, 96, 3), np.uint8), tiling="exact")
    mx.reset_peak_memory()
    pipe.condition(request)
    ratio = memory.estimate_memory(pipe, request)["source"] / mx.get_peak_memory()
    assert 0.95 < ratio < 1.2, f"{ratio:.2f}"


def test_the_estimate_of_a_tiled_source_follows_the_tile_size(pipe):
    clip = np.zeros((9, 192, 192, 3), np.uint8)
    size = {"num_frames": 9, "height": 192, "width": 192}
    small, large = (
        memory.estimate_memory(pipe, pipe.request("a", video=clip, tile_size=(side, side), **size))
        for side in (48, 96)
    )
    assert 3 * small["source"] < large["source"]


@pytest.mark.parametrize("size", [{}, {"height": 128, "width": 176}], ids=["own", "large"])
def test_each_tiling_mode_is_estimated(pipe, size, monkeypatch):
    if mx.default_device().type != mx.DeviceType.cpu:
        pytest.skip("the demo is too small for the allocators of GPUs, which round up")
    for module in (memory, autoencoder_module):
        monkeypatch.setattr(module, "STRIP_ELEMENTS", 2**17)
        monkeypatch.setattr(module, "TILE_STRIP_ELEMENTS", 2**17)
    monkeypatch.setattr(eval_schedule, "PUSH_ELEMENTS", 2**18)
    for tiling in ({"tiling": "none"}, {"tiling": "exact"}, {"tile_size": (48, 48)}):
        request = pipe.request("a red circle", num_frames=9, seed=1, **size, **tiling)
        latents = mx.random.normal(request.geometry.latent_shape, key=mx.random.key(1))
        mx.eval(latents)
        mx.reset_peak_memory()
        list(pipe.decode(request, latents))
        ratio = memory.estimate_memory(pipe, request)["decode"] / mx.get_peak_memory()
        assert 0.7 < ratio < 2.5, f"{tiling}: {ratio:.2f}"


@pytest.mark.parametrize(
    ("available", "mode"), [(2**40, "none"), (250e6, "exact"), (10e6, "tiled")]
)
def test_the_tiling_mode_follows_the_memory_of_the_machine(pipe, monkeypatch, available, mode):
    monkeypatch.setattr(pipe, "machine", Machine("cpu", "", int(available)))
    monkeypatch.setattr(memory, "STRIP_ELEMENTS", 2**14)
    assert pipe.request("a", height=192, width=192).decoding.mode == mode
    assert pipe.request("a", height=192, width=192, tiling="none").decoding.mode == "none"
    assert pipe.request("a", tile_size=(48, 48)).decoding.mode == "tiled"


def test_whole_frames_are_decoded_only_where_another_stage_needs_more_memory(pipe, monkeypatch):
    whole = memory.vae_memory(pipe, Tiling("none"), 12, 12)
    for limit, mode in ((whole, "none"), (whole - 1, "exact")):
        monkeypatch.setattr(memory, "WHOLE_FRAMES", limit)
        assert pipe.weight_bytes("transformer") < limit
        assert pipe.request("a").decoding.mode == mode


def test_the_passes_of_guidance_run_one_by_one_where_memory_is_short(pipe, monkeypatch):
    needs = memory.denoising_memory(pipe, pipe.geometry(), batch=2)
    for available, sequential in ((needs, False), (needs - 1, True)):
        monkeypatch.setattr(pipe, "machine", Machine("cpu", "", available))
        assert pipe.request("a").sequential_guidance is sequential
        assert pipe.request("a", sequential_guidance=False).sequential_guidance is False
        assert pipe.request("a", guidance_scale=1).sequential_guidance is False


def test_a_memory_limit_replaces_the_memory_of_the_machine():
    pipe = CogVideoXPipeline.from_pretrained("demo")
    whole = max(memory.estimate_memory(pipe, pipe.request("a")).values())
    pipe.memory_limit = whole // 2
    request = pipe.request("a")
    assert request.decoding.mode != "none"
    memory.check_memory_limit(pipe, request)
    pipe.memory_limit = 2**20
    with pytest.raises(InvalidInputError, match="limit is 1 MiB"):
        memory.check_memory_limit(pipe, pipe.request("a"))


def test_prompt_embeddings_need_no_text_encoder(monkeypatch):
    pipe = CogVideoXPipeline.from_pretrained("demo")
    monkeypatch.setattr(memory, "text_memory", lambda pipe: 2**60)
    pipe.memory_limit = 2**40
    embeds = mx.zeros((1, 32, 64))
    options = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 1}
    options |= {"prompt_embeds": embeds, "output_type": "latent"}
    pipe(negative_prompt_embeds=embeds, **options)
    pipe(uncond="zero", **options)
    with pytest.raises(InvalidInputError, match="encode"):
        pipe(**options)


def test_memory_advice_names_a_setting_that_helps(monkeypatch):
    pipe = CogVideoXPipeline.from_pretrained("demo")
    monkeypatch.setattr(pipe, "machine", Machine("cpu", "", 2**20))

    def advice(stage, **options):
        return memory.memory_advice(pipe, pipe.request("a", **options), stage)

    assert "text encoder in 4 bits" in advice("encode")
    assert "--sequential-guidance" in advice("denoise", sequential_guidance=False)
    assert "transformer in 4 bits" in advice("denoise")
    assert "--tiling tiled" in advice("decode", tiling="exact")
    monkeypatch.setattr(pipe, "is_packed", lambda name: True)
    assert advice("encode") == advice("denoise")
    assert "no setting" in advice("encode")
    monkeypatch.setattr(pipe, "machine", Machine("cpu", "", 2**24))
    assert "a smaller size" in advice("decode")
    assert "a smaller size" in advice("denoise", guidance_scale=1)


def test_training_on_metal_needs_larger_score_tables_for_larger_batches(pipe, monkeypatch):
    geometry = pipe.geometry(num_frames=49, height=192, width=192)
    monkeypatch.setattr(training_estimates, "SCORES_AT_A_TIME", 2**10)
    monkeypatch.setattr(training_estimates, "WIDE_ELEMENTS", 2**10)

    settings = TrainingSettings(batch_size=8)

    def need(metal):
        monkeypatch.setattr(pipe, "machine", Machine("metal" if metal else "cuda", "", 2**40))
        return training_estimates.estimate_training_memory(pipe, geometry, settings)["train"]

    tables = 3 * 8 * 3 * 1024**2 - 20 * 2**10
    assert need(True) - need(False) == tables * pipe.dtype.size


SMALL, OWN = (17, 256, 384), (49, 480, 720)
RANK_128, ALL = {"rank": 128, "alpha": 64}, {"fine_tune_type": "full"}


@pytest.mark.parametrize(
    "alias, settings, size, gibibytes",
    [
        ("5b", RANK_128, SMALL, 13.95),
        ("5b", RANK_128, OWN, 18.60),
        ("5b", ALL, SMALL, 12.40),
        ("5b", ALL, OWN, 18.63),
        ("5b", ALL | {"optimizer": "adamw_8bit"}, SMALL, 24.57),
        ("5b", ALL | {"optimizer": "adamw"}, SMALL, 54.44),
        ("2b", ALL | {"optimizer": "adamw_8bit"}, SMALL, 8.04),
    ],
)
def test_trainings_of_official_models_are_estimated_as_measured(alias, settings, size, gibibytes):
    """The measurements are those of docs/benchmarks.md."""
    model = official_model(next(variant for variant in VARIANTS if variant.alias == alias))
    model.machine = Machine("cuda", "", 2**37)
    settings = TrainingSettings(**settings)
    needs = training_estimates.estimate_training_memory(
        model, model_geometry(model, *size), settings
    )
    assert needs["train"] / 2**30 == pytest.approx(gibibytes, rel=0.1)


def test_frames_too_large_for_one_array_are_cut_even_with_plenty_of_memory(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "machine", Machine("cpu", "", 2**60))
    assert pipe.request("a", height=4096, width=4096).decoding.mode == "exact"


def test_the_memory_of_this_machine_is_known():
    assert 2**28 < device.available_memory() <= device.machine_memory() < 2**45
