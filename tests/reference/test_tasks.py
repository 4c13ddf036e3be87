"""Image to video and video to video equal diffusers, from one folder and the same noise.

Over ten steps the largest measured error on pixels in [0, 1] is 3e-5.
"""

import diffusers
import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from clips import make_clip
from diffusers.pipelines.cogvideo import pipeline_cogvideox_video2video
from support import OFFICIAL_SCHEDULER_CONFIG, relative_error
from torch_reference import (
    NEGATIVE,
    PROMPT,
    STEPS,
    TEXT_LENGTH,
    Noise,
    as_diffusers_reads,
    frames_first,
    ours,
    random,
)

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.diffusion.conditioning import with_leading

TOLERANCE = 1e-3
SAMPLERS = {
    "ddim": diffusers.CogVideoXDDIMScheduler,
    "dpm": diffusers.CogVideoXDPMScheduler,
}


def texts(folder) -> dict[str, torch.Tensor]:
    """Returns the embeddings of the prompts as arguments of diffusers' pipelines."""
    tokenizer = CogVideoXPipeline.from_pretrained(folder).tokenizer
    encoder = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder")
    with torch.no_grad():
        positive, negative = (
            encoder(torch.tensor(np.array(tokenizer([text], max_length=TEXT_LENGTH))))[0]
            for text in (PROMPT, NEGATIVE)
        )
    return {"prompt_embeds": positive, "negative_prompt_embeds": negative}


def reference(kind, folder, sampler):
    load = {"torch_dtype": torch.float32}
    pipe = kind(
        tokenizer=None,
        text_encoder=None,
        vae=diffusers.AutoencoderKLCogVideoX.from_pretrained(folder / "vae", **load),
        transformer=diffusers.CogVideoXTransformer3DModel.from_pretrained(
            folder / "transformer", **load
        ),
        scheduler=SAMPLERS[sampler].from_config(OFFICIAL_SCHEDULER_CONFIG),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("dynamic", [False, True], ids=["constant", "wave"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
@pytest.mark.parametrize(
    ("variant", "height", "width"),
    [("5b-i2v", 64, 96), ("1.5-5b-i2v", 64, 96), ("1.5-5b-i2v", 96, 64)],
    ids=["1.0", "1.5", "1.5 portrait"],
)
def test_image_to_video_equals_diffusers(
    folders,
    monkeypatch,
    posterior_noise,
    variant,
    height,
    width,
    sampler,
    dynamic,
):
    folder = folders(variant)
    shape = (1, 6 if variant.startswith("1.5") else 5, 16, height // 8, width // 8)
    latents, noise = random(*shape), Noise(shape)
    posterior_noise(random(1, 16, 1, height // 8, width // 8, seed=7))
    image = make_clip(1, height, width)[0]

    pipe = reference(diffusers.CogVideoXImageToVideoPipeline, folder, sampler)
    if sampler == "dpm":
        noise.for_diffusers(monkeypatch, pipe.scheduler)
    expected = pipe(
        as_diffusers_reads(image)[None],
        **texts(folder),
        num_frames=17,
        height=height,
        width=width,
        num_inference_steps=STEPS,
        latents=latents,
        use_dynamic_cfg=dynamic,
        max_sequence_length=TEXT_LENGTH,
        output_type="np",
    ).frames[0]
    video = CogVideoXPipeline.from_pretrained(folder)(
        PROMPT,
        NEGATIVE,
        image=image,
        image_latent_scale="diffusers",
        num_frames=17,
        height=height,
        width=width,
        num_inference_steps=STEPS,
        dynamic_cfg=dynamic,
        scheduler=noise.for_ours() if sampler == "dpm" else "ddim",
        latents=ours(frames_first(latents)),
        output_type="np",
    ).frames[0]
    assert video.shape == (17, height, width, 3)
    assert relative_error(video, expected) < TOLERANCE


def test_the_bundled_i2v_demo_makes_the_same_video_in_diffusers(tmp_path, posterior_noise):
    """diffusers needs a copy that includes the files shared with the other demo."""
    folder = tmp_path / "demo-i2v"
    assert convert(["--hf-path", "demo-i2v", "--mlx-path", str(folder), "--quiet"]) == 0
    pipe = diffusers.CogVideoXImageToVideoPipeline.from_pretrained(
        folder, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
    image, latents = make_clip(1, 96, 96)[0], random(1, 5, 16, 12, 12)
    posterior_noise(random(1, 16, 1, 12, 12, seed=7))
    expected = pipe(
        as_diffusers_reads(image)[None],
        PROMPT,
        num_frames=17,
        height=96,
        width=96,
        num_inference_steps=STEPS,
        latents=latents,
        max_sequence_length=pipe.transformer.config.max_text_seq_length,
        output_type="np",
    ).frames[0]
    video = CogVideoXPipeline.from_pretrained("demo-i2v", mx.float32)(
        PROMPT,
        image=image,
        num_inference_steps=STEPS,
        guidance_scale=6,  # diffusers' default
        scheduler="ddim",
        latents=ours(frames_first(latents)),
        output_type="np",
    ).frames[0]
    assert relative_error(video, expected) < TOLERANCE


@pytest.mark.parametrize("strength", [0.35, 0.8, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_video_to_video_equals_diffusers(
    folders,
    monkeypatch,
    posterior_noise,
    variant,
    sampler,
    strength,
):
    folder = folders(variant)
    shape = (1, 5, 16, 8, 12)
    latents, noise = random(*shape), Noise(shape)
    posterior_noise(random(1, 16, 5, 8, 12, seed=7))
    clip = make_clip(17, 64, 96)

    pipe = reference(diffusers.CogVideoXVideoToVideoPipeline, folder, sampler)
    monkeypatch.setattr(pipeline_cogvideox_video2video, "randn_tensor", lambda *_, **__: latents)
    if sampler == "dpm":
        noise.for_diffusers(monkeypatch, pipe.scheduler)
    expected = pipe(
        as_diffusers_reads(clip)[None],
        **texts(folder),
        height=64,
        width=96,
        strength=strength,
        num_inference_steps=STEPS,
        use_dynamic_cfg=True,
        max_sequence_length=TEXT_LENGTH,
        output_type="np",
    ).frames[0]
    video = CogVideoXPipeline.from_pretrained(folder)(
        PROMPT,
        NEGATIVE,
        video=clip,
        strength=strength,
        num_frames=17,
        height=64,
        width=96,
        num_inference_steps=STEPS,
        dynamic_cfg=True,
        scheduler=noise.for_ours() if sampler == "dpm" else "ddim",
        latents=ours(frames_first(latents)),
        output_type="np",
    ).frames[0]
    assert relative_error(video, expected) < TOLERANCE


def test_1_5_pads_a_video_that_diffusers_refuses(folders, monkeypatch, posterior_noise):
    """17 frames are 5 latent frames, which is no whole number of temporal patches. From the same
    padded and noisy latents, diffusers denoises to the same result."""
    folder = folders("1.5-5b")
    posterior_noise(random(1, 16, 5, 8, 12, seed=7))
    clip, noise = make_clip(17, 64, 96), random(1, 6, 16, 8, 12)
    pipe = CogVideoXPipeline.from_pretrained(folder)
    arguments = {"num_inference_steps": STEPS, "height": 64, "width": 96, "strength": 0.6}
    latents = pipe(
        PROMPT,
        NEGATIVE,
        video=clip,
        num_frames=17,
        scheduler="ddim",
        dynamic_cfg=False,
        latents=ours(frames_first(noise)),
        output_type="latent",
        **arguments,
    ).frames

    theirs = reference(diffusers.CogVideoXVideoToVideoPipeline, folder, "ddim")
    clean = pipe.encode_video(clip, 17).sample() * pipe.configs["vae"].scaling_factor
    clean = torch.tensor(np.array(with_leading(clean, 1))).permute(0, 1, 4, 2, 3)
    theirs.scheduler.set_timesteps(STEPS)
    first = theirs.scheduler.timesteps[STEPS - int(STEPS * 0.6)]
    noisy = theirs.scheduler.add_noise(clean, noise, first[None])
    monkeypatch.setattr(theirs, "prepare_latents", lambda *_, **__: noisy)
    expected = theirs(
        [np.zeros((64, 96, 3))] * 21,  # as many frames as six latent ones make
        **texts(folder),
        max_sequence_length=TEXT_LENGTH,
        output_type="latent",
        **arguments,
    ).frames
    assert relative_error(latents, frames_first(expected).numpy()) < 1e-4
