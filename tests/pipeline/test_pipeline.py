"""What a run of the pipeline promises, on the bundled demo at a small size and few steps."""

import logging

import mlx.core as mx
import numpy as np
import pytest
from support import relative_error

from mlx_cogvideo import CogVideoXPipeline, GenerationError, InvalidInputError, generate_video
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.diffusion.denoising import velocities
from mlx_cogvideo.diffusion.schedulers import CogVideoXDPMScheduler
from mlx_cogvideo.nn import eval_schedule
from mlx_cogvideo.nn import transformer as transformer_module
from mlx_cogvideo.nn.eval_schedule import EvalSchedule
from mlx_cogvideo.video import read_video

PROMPT = "a red circle moves right on a white background"
SMALL = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 2}


@pytest.fixture
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained(DEMO_PATH)


def test_the_transformer_in_portions_is_the_lazy_one(pipe, monkeypatch):
    """Small portions and few rows of the wide layer at a time, as large videos have them."""
    x = mx.random.normal((2, 3, 6, 6, 16), key=mx.random.key(0))
    text, times = mx.random.normal((2, 32, 64), key=mx.random.key(1)), mx.array([700, 300])
    expected = pipe.transformer(x, text, times)
    monkeypatch.setattr(eval_schedule, "PUSH_ELEMENTS", 5_000)
    monkeypatch.setattr(transformer_module, "FEED_FORWARD_ELEMENTS", 4 * 192 * 20)
    for passes in (1, 2):
        made = velocities(pipe.transformer, x, text, times, passes)
        assert relative_error(made, expected) < 1e-5
    for ahead in (0, 3):
        schedule = EvalSchedule(prefetch=ahead)
        made = schedule.flush(pipe.transformer(x, text, times, schedule=schedule))
        assert relative_error(made, expected) < 1e-5


def test_in_portions_the_transformer_holds_less(pipe, monkeypatch):
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
    video = pipe(PROMPT, seed=1, **SMALL)
    assert video.dtype == np.uint8
    assert video.shape == (9, 32, 48, 3)


def test_float_frames_round_to_the_uint8_ones(pipe):
    exact = pipe(PROMPT, seed=1, output_type="float", **SMALL)
    assert exact.dtype == np.float32
    assert 0 <= exact.min() < exact.max() <= 1
    rounded = pipe(PROMPT, seed=1, **SMALL)
    assert np.abs(exact * 255 - rounded).max() <= 0.5 + 1e-4


def test_latents_come_out_in_float32(pipe):
    latents = pipe(PROMPT, seed=1, output_type="latent", **SMALL)
    assert latents.dtype == mx.float32
    assert latents.shape == (1, 3, 4, 6, 16)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
def test_a_seed_repeats_a_video_and_another_makes_another(pipe, scheduler):
    first, again, other = (
        pipe(PROMPT, seed=seed, scheduler=scheduler, output_type="latent", **SMALL)
        for seed in (1, 1, 2)
    )
    assert mx.array_equal(first, again)
    assert not mx.allclose(first, other, atol=0.1)


def test_without_a_seed_each_video_is_another(pipe):
    first, second = (pipe(PROMPT, output_type="latent", **SMALL) for _ in range(2))
    assert not mx.allclose(first, second, atol=0.1)


def test_embeddings_stand_in_for_prompts(pipe):
    by_text = pipe(PROMPT, "a blue square", seed=1, output_type="latent", **SMALL)
    by_embeds = pipe(
        prompt_embeds=pipe.encode_prompt(PROMPT),
        negative_prompt_embeds=pipe.encode_prompt("a blue square"),
        seed=1,
        output_type="latent",
        **SMALL,
    )
    assert mx.array_equal(by_text, by_embeds)


def test_the_negative_prompt_and_the_guidance_matter(pipe):
    plain, negative, strong = (
        pipe(PROMPT, text, guidance_scale=scale, seed=1, output_type="latent", **SMALL)
        for text, scale in (("", 3), ("a blue square", 3), ("", 9))
    )
    assert not mx.allclose(plain, negative, atol=1e-3)
    assert not mx.allclose(plain, strong, atol=1e-3)


def test_guidance_of_one_runs_without_the_unconditional_pass(pipe):
    batches = []
    transformer = pipe.transformer
    call = type(transformer).__call__

    def recording(self, latents, *rest, **options):
        batches.append(len(latents))
        return call(self, latents, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(transformer), "__call__", recording)
        pipe(PROMPT, guidance_scale=1.0, output_type="latent", **SMALL)
        pipe(PROMPT, guidance_scale=1.5, output_type="latent", **SMALL)
    assert batches == [1, 1, 2, 2]


def test_each_stage_frees_its_network_before_the_next_loads(pipe):
    held = []

    def look(stage, done, total):
        held.append((stage, done == total, set(pipe._networks)))

    pipe(PROMPT, on_progress=look, **SMALL)
    while_denoising = [names for stage, _, names in held if stage == "denoise"]
    while_decoding = [names for stage, done, names in held if stage == "decode" and done]
    assert while_denoising == [set(), {"transformer"}, {"transformer"}]
    assert while_decoding == [{"vae"}]
    assert not pipe._networks


def test_a_freed_network_loads_again(pipe):
    pipe(PROMPT, **SMALL)
    assert pipe.vae.decode(mx.zeros((1, 1, 2, 2, 16))).shape == (1, 1, 16, 16, 3)


def test_progress_is_reported_for_every_stage_to_its_end(pipe):
    reports = []
    pipe(PROMPT, on_progress=lambda *report: reports.append(report), **SMALL)
    assert [r for r in reports if r[0] == "denoise"] == [("denoise", i, 2) for i in range(3)]
    last = {stage: (done, total) for stage, done, total in reports}
    assert last == {"encode": (1, 1), "denoise": (2, 2), "decode": (9, 9)}


def test_a_callback_sees_every_step_and_can_end_the_run(pipe):
    steps = []

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
    assert not pipe._networks


def test_a_scheduler_object_is_used_as_it_is(pipe):
    scheduler = CogVideoXDPMScheduler.from_config(pipe.scheduler_config, key=mx.random.key(9))
    latents = mx.random.normal((1, 3, 4, 6, 16), key=mx.random.key(0))
    shared = {"latents": latents, "output_type": "latent", **SMALL, "num_inference_steps": 4}
    by_object = [pipe(PROMPT, scheduler=scheduler, seed=s, **shared) for s in (1, 2)]
    by_name = pipe(PROMPT, scheduler="dpm", seed=1, **shared)
    assert mx.array_equal(*by_object)
    assert not mx.allclose(by_object[0], by_name, atol=1e-3)


def test_a_long_prompt_warns_of_what_is_lost_and_makes_the_video(pipe, caplog):
    long = PROMPT + ", very slowly" * 40 + " and then the sun goes down"
    with caplog.at_level(logging.WARNING):
        logging.getLogger("mlx_cogvideo").propagate = True
        video = pipe(long, **SMALL)
    assert len(video) == 9
    assert "cut at 32 tokens" in caplog.text
    assert "and then the sun goes down" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 48}, r"8N\+1"),
        ({"height": 100}, "multiple of 16"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"scheduler": "euler"}, "ddim or dpm"),
        ({"dynamic_cfg": "linear"}, "constant, wave, cosine"),
        ({"output_type": "pil"}, "np, float or latent"),
        ({"tiling": "rows"}, "auto, none, seamless, tiled"),
        ({"tile_size": (20, 32)}, "multiples of 8; got 20 and 32: 16 and 32 are the nearest"),
        ({"tile_overlap": (0.5, 0.3)}, "0.3 of a width of 48 isn't: 2/6 is the nearest"),
        ({"tile_overlap": (1.5, 0.5)}, "from 0 to below 1 of a tile's height; got 1.5"),
        ({"tile_size": (8, 8), "tiling": "none"}, "'none' has no tiles"),
        ({"latents": mx.zeros((1, 3, 4, 4, 16))}, r"\(1, 3, 4, 6, 16\)"),
        ({"prompt": None}, "give a prompt"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_refused_before_any_weight_is_read(pipe, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        pipe(**{"prompt": PROMPT, **SMALL, **arguments})
    assert not pipe._networks


def test_nan_in_the_denoising_is_an_error_at_once(pipe):
    pipe.transformer.proj_out.bias = mx.full(64, float("nan"))
    with pytest.raises(GenerationError, match="step 1 gave NaN"):
        pipe(PROMPT, **SMALL)


def test_latents_that_are_nan_are_an_error_before_decoding(pipe):
    request = pipe.request(PROMPT, **SMALL)
    with pytest.raises(GenerationError, match="the latents have NaN or infinity"):
        next(pipe.decode(request, mx.full(request.geometry.latent_shape, float("nan"))))


@pytest.mark.parametrize("tiling", ["none", "seamless", "tiled"])
def test_pixels_that_are_nan_are_an_error(pipe, tiling):
    pipe.vae.decoder.conv_out.conv.bias = mx.full(3, float("nan"))
    with pytest.raises(GenerationError, match="decoding gave NaN"):
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
