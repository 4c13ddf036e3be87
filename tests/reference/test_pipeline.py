"""A whole text-to-video run equals diffusers', from the same folder and the same noise.

Over ten steps the largest measured error on pixels in [0, 1] is 4e-5.
"""

import diffusers
import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from adapters import make_adapter
from support import OFFICIAL_SCHEDULER_CONFIG, relative_error
from torch_reference import NEGATIVE, PROMPT, STEPS, TEXT_LENGTH, Noise, frames_first, ours, random

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH

TOLERANCE = 1e-3


def run_diffusers(
    folder, scheduler, latents, tokenizer=None, text_length=TEXT_LENGTH, lora=None, **arguments
):
    """Returns the frames of diffusers' own pipeline, ``[F, H, W, 3]`` in [0, 1]."""
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.T5EncoderModel.from_pretrained(
            folder / "text_encoder", dtype=torch.float32
        ),
        vae=diffusers.AutoencoderKLCogVideoX.from_pretrained(
            folder / "vae", torch_dtype=torch.float32
        ),
        transformer=diffusers.CogVideoXTransformer3DModel.from_pretrained(
            folder / "transformer", torch_dtype=torch.float32
        ),
        scheduler=scheduler,
    )
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(lora)
    return pipe(
        num_inference_steps=STEPS,
        latents=latents,
        max_sequence_length=text_length,
        output_type="np",
        **arguments,
    ).frames[0]


@pytest.mark.parametrize("dynamic", [False, True], ids=["constant", "wave"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
@pytest.mark.parametrize("variant", ["2b", "5b", "1.5-5b"])
def test_a_run_equals_diffusers(folders, monkeypatch, variant, sampler, dynamic):
    folder = folders(variant)
    # 17 frames are 5 latent frames; CogVideoX 1.5 puts a sixth in front and drops it.
    shape = (1, 6 if variant == "1.5-5b" else 5, 16, 8, 12)
    latents, noise = random(*shape), Noise(shape)
    tokenizer = CogVideoXPipeline.from_pretrained(folder).tokenizer
    encoder = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder")
    with torch.no_grad():
        embeds, negative = (
            encoder(torch.tensor(np.array(tokenizer([text], max_length=TEXT_LENGTH))))[0]
            for text in (PROMPT, NEGATIVE)
        )
    reference = {
        "ddim": diffusers.CogVideoXDDIMScheduler,
        "dpm": diffusers.CogVideoXDPMScheduler,
    }[sampler].from_config(OFFICIAL_SCHEDULER_CONFIG)
    if sampler == "dpm":
        noise.for_diffusers(monkeypatch, reference)
    expected = run_diffusers(
        folder,
        reference,
        latents,
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        num_frames=17,
        height=64,
        width=96,
        use_dynamic_cfg=dynamic,
    )
    video = CogVideoXPipeline.from_pretrained(folder)(
        PROMPT,
        NEGATIVE,
        num_frames=17,
        height=64,
        width=96,
        num_inference_steps=STEPS,
        dynamic_cfg=dynamic,
        scheduler=noise.for_ours() if sampler == "dpm" else "ddim",
        latents=ours(frames_first(latents)),
        output_type="np",
    ).frames[0]
    assert video.shape == (17, 64, 96, 3)
    assert relative_error(video, expected) < TOLERANCE


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_the_bundled_demo_makes_the_same_video_in_diffusers(monkeypatch, sampler):
    """Both loaders read the whole folder, tokenizer and scheduler config included."""
    pipe = diffusers.CogVideoXPipeline.from_pretrained(DEMO_PATH, torch_dtype=torch.float32)
    shape = (1, 5, 16, 12, 12)
    latents, noise = random(*shape), Noise(shape)
    reference = {
        "ddim": diffusers.CogVideoXDDIMScheduler,
        "dpm": diffusers.CogVideoXDPMScheduler,
    }[sampler].from_config(pipe.scheduler.config)
    if sampler == "dpm":
        noise.for_diffusers(monkeypatch, reference)
    expected = run_diffusers(
        DEMO_PATH,
        reference,
        latents,
        tokenizer=pipe.tokenizer,
        text_length=pipe.transformer.config.max_text_seq_length,
        prompt=PROMPT,
        num_frames=17,
        height=96,
        width=96,
    )
    video = CogVideoXPipeline.from_pretrained(DEMO_PATH, dtype=mx.float32)(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=6,  # diffusers' default
        scheduler=noise.for_ours() if sampler == "dpm" else "ddim",
        latents=ours(frames_first(latents)),
        output_type="np",
    ).frames[0]
    assert relative_error(video, expected) < TOLERANCE


def test_an_adapter_makes_the_same_video_in_diffusers_at_its_default_scale(tmp_path):
    adapter = make_adapter(tmp_path / "adapter")
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH, dtype=mx.float32)
    latents = random(1, 5, 16, 12, 12)
    scheduler = diffusers.CogVideoXDDIMScheduler.from_config(pipe.scheduler_config)
    arguments = {
        "tokenizer": diffusers.CogVideoXPipeline.from_pretrained(DEMO_PATH).tokenizer,
        "text_length": pipe.configs["transformer"].max_text_seq_length,
        "prompt": PROMPT,
        "num_frames": 17,
        "height": 96,
        "width": 96,
    }
    expected = run_diffusers(DEMO_PATH, scheduler, latents, lora=adapter, **arguments)
    plain = run_diffusers(DEMO_PATH, scheduler, latents, **arguments)
    pipe.load_lora(adapter)
    video = pipe(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=6,
        scheduler="ddim",
        latents=ours(frames_first(latents)),
        output_type="np",
    ).frames[0]
    assert relative_error(video, expected) < TOLERANCE
    assert relative_error(plain, expected) > 0.1
