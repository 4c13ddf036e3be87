"""The VAE equals diffusers' AutoencoderKLCogVideoX, whole clips in the official chunks."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from support import relative_error
from torch_reference import (
    TOLERANCE,
    channels_first,
    load_config,
    make_vae,
    ours,
    random,
)

from mlx_cogvideo.checkpoints import load_component
from mlx_cogvideo.nn.autoencoder import AutoencoderConfig, AutoencoderKLCogVideoX


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "vae"
    reference = make_vae()
    reference.save_pretrained(folder)
    config = AutoencoderConfig.from_dict(load_config(folder))
    return reference, load_component(AutoencoderKLCogVideoX(config), folder)


@pytest.mark.parametrize("frames", [1, 9, 17, 49, 12])
def test_encoding_equals_diffusers(models, frames):
    reference, vae = models
    pixels = random(1, 3, frames, 32, 48).clamp(-1, 1)
    with torch.no_grad():
        expected = reference.encode(pixels).latent_dist
    posterior = vae.encode(ours(channels_first(pixels)))
    assert relative_error(posterior.mean, channels_first(expected.mean)) < TOLERANCE
    assert relative_error(posterior.logvar, channels_first(expected.logvar)) < TOLERANCE


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 6, 13, 21])
def test_decoding_equals_diffusers(models, frames):
    reference, vae = models
    latents = random(1, 16, frames, 6, 4)
    with torch.no_grad():
        expected = reference.decode(latents).sample
    result = vae.decode(ours(channels_first(latents)))
    assert relative_error(result, channels_first(expected)) < TOLERANCE


def test_batches_are_decoded_as_one_by_one(models):
    _, vae = models
    latents = ours(channels_first(random(2, 16, 5, 4, 6)))
    alone = mx.concatenate([vae.decode(latents[:1]), vae.decode(latents[1:])])
    assert relative_error(vae.decode(latents), alone) < TOLERANCE


def test_a_posterior_sample_is_mean_plus_deviation_times_noise(models):
    reference, vae = models
    pixels = random(1, 3, 9, 32, 32).clamp(-1, 1)
    key = mx.random.key(3)
    sample = vae.encode(ours(channels_first(pixels))).sample(key)
    with torch.no_grad():
        expected = reference.encode(pixels).latent_dist
    noise = torch.tensor(np.array(mx.random.normal(sample.shape, key=key)))
    expected = channels_first(expected.mean) + channels_first(expected.std) * noise
    assert relative_error(sample, expected) < TOLERANCE


def test_the_log_variance_is_clamped(models):
    _, vae = models
    posterior = vae.posterior(mx.array([[[[[0.0, 1.0, -99.0, 99.0]]]]]))
    assert posterior.logvar.flatten().tolist() == [-30.0, 20.0]


def test_a_clip_leaves_nothing_behind_for_the_next(models):
    _, vae = models
    first, second = (ours(channels_first(random(1, 16, 5, 4, 6, seed=s))) for s in (1, 2))
    before = vae.decode(second)
    vae.decode(first)
    assert mx.array_equal(vae.decode(second), before)


def test_chunks_of_a_lazy_pass_equal_the_evaluated_ones(models):
    _, vae = models
    latents = ours(channels_first(random(1, 16, 5, 4, 6)))
    lazy = mx.concatenate(list(vae.decode_chunks(latents)), axis=1)
    assert mx.allclose(lazy, vae.decode(latents), atol=1e-5)
