"""The pipeline on the bundled demo, at a small size and few steps."""

import logging

import mlx.core as mx
import numpy as np
import pytest
from support import relative_error, watch_networks

from mlx_cogvideo import CogVideoXPipeline, GenerationError, InvalidInputError, generate_video
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.diffusion.denoising import velocities
from mlx_cogvideo.diffusion.schedulers import CogVideoXDPMScheduler
from mlx_cogvideo.nn import eval_schedule
from mlx_cogvideo.nn import transformer as transformer_module
from mlx_cogvideo.nn.autoencoder import AutoencoderKLCogVideoX
from mlx_cogvideo.nn.eval_schedule import EvalSchedule
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel
from mlx_cogvideo.video import read_video

PROMPT = "a red circle moves right on a white background"
SMALL = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 2}


@pytest.fixture
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained(DEMO_PATH)


def test_a_scheduled_transformer_equals_the_lazy_one(pipe, monkeypatch):
    """It evaluates small parts and few rows of the wide layer at a time, as with large videos."""
    x = mx.random.normal((2, 3, 6, 6, 16), key=mx.random.key(0))
    text, times = mx.random.normal((2, 32, 64), key=mx.random.key(1)), mx.array([700, 300])
    expected = pipe.transformer(x, text, times)
    monkeypatch.setattr(eval_schedule, "PUSH_ELEMENTS", 5_000)
    monkeypatch.setattr(transformer_module, "FEED_FORWARD_ELEMENTS", 4 * 192 * 20)
    for passes in (1, 2):
        velocity = velocities(pipe.transformer, x, text, times, passes)
        assert relative_error(velocity, expected) < 1e-5
    for prefetch in (0, 3):
        schedule = EvalSchedule(prefetch=prefetch)
        velocity = schedule.flush(pipe.transformer(x, text, times, schedule=schedule))
        assert relative_error(velocity, expected) < 1e-5


def test_a_scheduled_transformer_needs_less_memory(pipe, monkeypatch):
    x, text = mx.random.normal((2, 5, 24, 24, 16)), mx.random.normal((2, 32, 64))
    mx.eval(pipe.transformer.parameters(), x, text)
    peaks = []
    for elements in (2**40, 2**16):
        monkeypatch.setattr(eval_schedule, "PUSH_ELEMENTS", elements)
        monkeypatch.setattr(transformer_module, "FEED_FORWARD_ELEMENTS", elements)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(velocities(pipe.transformer, x, text, mx.array([700, 700])))
        peaks.append(mx.get_peak_memory() - before)
    assert peaks[1] < 0.9 * peaks[0]


def test_a_video_is_uint8_frames_of_the_size_asked_for(pipe):
    video = np.asarray(pipe(PROMPT, seed=1, **SMALL))
    assert video.dtype == np.uint8
    assert video.shape == (9, 32, 48, 3)


def test_float_frames_round_to_the_uint8_ones(pipe):
    exact = pipe(PROMPT, seed=1, output_type="np", **SMALL).frames[0]
    assert exact.dtype == np.float32
    assert 0 <= exact.min() < exact.max() <= 1
    rounded = np.asarray(pipe(PROMPT, seed=1, **SMALL))
    assert np.abs(exact * 255 - rounded).max() <= 0.5 + 1e-4


def test_latents_are_returned_in_float32(pipe):
    latents = pipe(PROMPT, seed=1, output_type="latent", **SMALL).frames
    assert latents.dtype == mx.float32
    assert latents.shape == (1, 3, 4, 6, 16)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
def test_a_seed_repeats_a_video_and_another_makes_another(pipe, scheduler):
    first, again, other = (
        pipe(PROMPT, seed=seed, scheduler=scheduler, output_type="latent", **SMALL).frames
        for seed in (1, 1, 2)
    )
    assert mx.array_equal(first, again)
    assert not mx.allclose(first, other, atol=0.1)


def test_without_a_seed_each_video_is_different(pipe):
    first, second = (pipe(PROMPT, output_type="latent", **SMALL).frames for _ in range(2))
    assert not mx.allclose(first, second, atol=0.1)


def test_embeddings_can_replace_prompts(pipe):
    by_text = pipe(PROMPT, "a blue square", seed=1, output_type="latent", **SMALL).frames
    by_embeds = pipe(
        prompt_embeds=pipe.encode_prompt(PROMPT),
        negative_prompt_embeds=pipe.encode_prompt("a blue square"),
        seed=1,
        output_type="latent",
        **SMALL,
    ).frames
    assert mx.array_equal(by_text, by_embeds)


def test_the_negative_prompt_and_the_guidance_matter(pipe):
    plain, negative, strong = (
        pipe(PROMPT, text, guidance_scale=scale, seed=1, output_type="latent", **SMALL).frames
        for text, scale in (("", 3), ("a blue square", 3), ("", 9))
    )
    assert not mx.allclose(plain, negative, atol=1e-3)
    assert not mx.allclose(plain, strong, atol=1e-3)


def test_guidance_of_one_runs_without_the_unconditional_pass(pipe, monkeypatch):
    batches = []
    call = CogVideoXTransformer3DModel.__call__

    def recording(self, latents, *rest, **options):
        batches.append(len(latents))
        return call(self, latents, *rest, **options)

    monkeypatch.setattr(CogVideoXTransformer3DModel, "__call__", recording)
    pipe(PROMPT, guidance_scale=1.0, output_type="latent", **SMALL)
    pipe(PROMPT, guidance_scale=1.5, output_type="latent", **SMALL)
    assert batches == [1, 1, 2, 2]


def test_one_network_at_a_time_is_in_memory(pipe, monkeypatch):
    in_memory = watch_networks(monkeypatch)
    seen = {"encode": set(), "denoise": set(), "decode": set()}
    pipe(PROMPT, on_progress=lambda stage, *_: seen[stage].update(in_memory()), **SMALL)
    assert seen["denoise"] == {CogVideoXTransformer3DModel}
    assert seen["decode"] == {AutoencoderKLCogVideoX}
    assert in_memory() == set()


def test_a_freed_network_loads_again(pipe):
    pipe(PROMPT, **SMALL)
    assert pipe.vae.decode(mx.zeros((1, 1, 2, 2, 16))).shape == (1, 1, 16, 16, 3)


def test_progress_is_reported_for_every_stage_to_its_end(pipe):
    reports = []
    pipe(PROMPT, on_progress=lambda *report: reports.append(report), **SMALL)
    assert [r for r in reports if r[0] == "denoise"] == [("denoise", i, 2) for i in range(3)]
    last = {stage: (done, total) for stage, done, total in reports}
    assert last == {"encode": (1, 1), "denoise": (2, 2), "decode": (9, 9)}


def test_a_callback_sees_every_step_and_can_end_the_run(pipe, monkeypatch):
    in_memory, steps = watch_networks(monkeypatch), []

    def stop_after_two(step, timestep, latents):
        steps.append((step, timestep, latents.shape))
        return step < 1

    pipe(
        PROMPT,
        callback_on_step_end=stop_after_two,
        output_type="latent",
        **{**SMALL, "num_inference_steps": 4},
    )
    assert steps == [(0, 999, (1, 3, 4, 6, 16)), (1, 749, (1, 3, 4, 6, 16))]
    assert in_memory() == set()


def test_a_scheduler_object_is_used_unchanged(pipe):
    scheduler = CogVideoXDPMScheduler.from_config(pipe.scheduler_config, key=mx.random.key(9))
    latents = mx.random.normal((1, 3, 4, 6, 16), key=mx.random.key(0))
    shared = {"latents": latents, "output_type": "latent", **SMALL, "num_inference_steps": 4}
    by_object = [pipe(PROMPT, scheduler=scheduler, seed=s, **shared).frames for s in (1, 2)]
    by_name = pipe(PROMPT, scheduler="dpm", seed=1, **shared).frames
    assert mx.array_equal(*by_object)
    assert not mx.allclose(by_object[0], by_name, atol=1e-3)


def test_a_long_prompt_is_cut_with_a_warning(pipe, caplog):
    long = PROMPT + ", very slowly" * 20 + " and then the sun goes down"
    with caplog.at_level(logging.WARNING):
        logging.getLogger("mlx_cogvideo").propagate = True
        video = np.asarray(pipe(long, **SMALL))
    assert len(video) == 9
    assert "cut at 32 tokens" in caplog.text
    assert "and then the sun goes down" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 48}, r"8N\+1"),
        ({"height": 100}, "multiple of 16"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"scheduler": "euler"}, "one of ddim, dpm, dpm\\+\\+"),
        ({"dynamic_cfg": "linear"}, "constant, wave, cosine"),
        ({"output_type": "float"}, "np .*, pil .*, uint8 .*, latent"),
        ({"tiling": "rows"}, "auto, none, exact, tiled"),
        ({"tile_size": (20, 32)}, "multiples of 8; got 20 and 32.* 16 and 32"),
        ({"tile_overlap": (0.5, 0.3)}, "0.3 of a width of 48 .*2/6"),
        ({"tile_overlap": (1.5, 0.5)}, "from 0 to below 1 .*1.5"),
        ({"tile_size": (8, 8), "tiling": "none"}, "'none' has no tiles"),
        ({"latents": mx.zeros((1, 3, 4, 4, 16))}, r"\(1, 3, 4, 6, 16\)"),
        ({"prompt": None}, "prompt"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_refused_before_any_weight_is_read(
    pipe, monkeypatch, arguments, message
):
    monkeypatch.setattr(mx, "load", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(InvalidInputError, match=message):
        pipe(**{"prompt": PROMPT, **SMALL, **arguments})


def test_nan_in_a_denoising_step_is_an_error_at_once(pipe):
    pipe.transformer.proj_out.bias = mx.full(64, float("nan"))
    with pytest.raises(GenerationError, match=r"step 1 .*NaN .*in float32: the weights .* bad"):
        pipe(PROMPT, **SMALL)


def test_nan_latents_are_an_error_before_decoding(pipe):
    request = pipe.request(PROMPT, **SMALL)
    with pytest.raises(GenerationError, match=r"latents .*NaN.* in float32: the model's weights"):
        next(pipe.decode(request, mx.full(request.geometry.latent_shape, float("nan"))))


@pytest.mark.parametrize("tiling", ["none", "seamless", "tiled"])
def test_nan_pixels_are_an_error(pipe, tiling):
    pipe.vae.decoder.conv_out.conv.bias = mx.full(3, float("nan"))
    with pytest.raises(GenerationError, match=r"decoding .*NaN .*in float32: .* weights are bad"):
        pipe(PROMPT, **SMALL, tiling=tiling)


def test_a_constant_picture_is_an_error(pipe):
    convolution = pipe.vae.decoder.conv_out.conv
    convolution.weight = mx.zeros_like(convolution.weight)
    with pytest.raises(GenerationError, match="constant colour"):
        pipe(PROMPT, **SMALL)


def test_an_array_over_two_to_the_31_elements_is_refused_before_the_run(pipe):
    with pytest.raises(InvalidInputError, match=r"2\*\*31"):
        pipe(PROMPT, **{**SMALL, "height": 4096, "width": 4096}, tiling="none")


def test_generate_video_writes_the_file_and_returns_its_frames(tmp_path):
    path = tmp_path / "clip.mp4"
    frames = generate_video(
        PROMPT,
        model="demo",
        num_frames=9,
        height=32,
        width=48,
        num_inference_steps=2,
        seed=1,
        output_path=path,
    )
    written, fps = read_video(path)
    assert written.shape == frames.shape == (9, 32, 48, 3)
    assert fps == 8


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (mx.float16, "in float16: try --dtype bfloat16 or float32"),
        (mx.bfloat16, "in bfloat16: try --dtype float32"),
    ],
    ids=str,
)
def test_nan_in_16_bits_is_an_error_that_advises_a_wider_dtype(dtype, advice):
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH, dtype)
    pipe.transformer.proj_out.bias = mx.full(64, float("nan"))
    with pytest.raises(GenerationError, match=f"step 1 gave NaN or infinity {advice}"):
        pipe(PROMPT, **SMALL)
