"""The VAE equals diffusers' AutoencoderKLCogVideoX: whole frames, strips of rows, and tiles."""

import diffusers
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
from mlx_cogvideo.nn import eval_schedule
from mlx_cogvideo.nn.autoencoder import AutoencoderConfig, AutoencoderKLCogVideoX, Tiles
from mlx_cogvideo.nn.autoencoder import model as autoencoder_module


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


@pytest.fixture
def many_strips(monkeypatch):
    """Small strips and pieces, so that small frames are cut and evaluated as large ones are."""
    monkeypatch.setattr(autoencoder_module, "STRIP_ELEMENTS", 3000)
    monkeypatch.setattr(autoencoder_module, "TILE_STRIP_ELEMENTS", 5000)
    monkeypatch.setattr(eval_schedule, "PUSH_ELEMENTS", 20_000)


CLIPS = [(1, 1), (5, 1), (9, 1), (13, 1), (17, 1), (49, 1), (9, 2), (17, 2)]
"""Frames of a clip, and the number of clips."""


@pytest.mark.parametrize(("frames", "batch"), CLIPS)
@pytest.mark.parametrize("size", [(6, 4), (7, 5)], ids=str)
def test_exact_decoding_equals_diffusers_untiled(models, many_strips, frames, batch, size):
    reference, vae = models
    latents = random(batch, 16, (frames - 1) // 4 + 1, *size)
    with torch.no_grad():
        expected = reference.decode(latents).sample
    result = vae.decode(ours(channels_first(latents)), tiling="exact")
    assert relative_error(result, channels_first(expected)) < TOLERANCE


@pytest.mark.parametrize(("frames", "batch"), CLIPS)
@pytest.mark.parametrize("size", [(48, 32), (56, 40)], ids=str)
def test_exact_encoding_equals_diffusers_untiled(models, many_strips, frames, batch, size):
    reference, vae = models
    pixels = random(batch, 3, frames, *size).clamp(-1, 1)
    with torch.no_grad():
        expected = reference.encode(pixels).latent_dist
    posterior = vae.encode(ours(channels_first(pixels)), tiling="exact")
    assert relative_error(posterior.mean, channels_first(expected.mean)) < TOLERANCE
    assert relative_error(posterior.logvar, channels_first(expected.logvar)) < TOLERANCE


@pytest.fixture
def tiled(models):
    """Sets tiles in diffusers, and returns the arguments for the same tiles in ours."""
    reference, vae = models

    def lay(size, overlap):
        reference.enable_tiling(*size)
        # Its own method treats an overlap of 0 as not given.
        reference.tile_overlap_factor_height, reference.tile_overlap_factor_width = overlap
        return {"tiling": "tiled", "tile_size": size, "tile_overlap": overlap}

    yield reference, vae, lay
    reference.disable_tiling()


TILES = [
    ((32, 24), (1 / 4, 1 / 3)),
    ((24, 32), (2 / 3, 1 / 2)),
    ((32, 16), (0.0, 1 / 2)),
]
"""Size in pixels, and overlap."""


@pytest.mark.parametrize(("frames", "batch"), CLIPS)
def test_tiled_decoding_equals_diffusers_tiled(tiled, many_strips, frames, batch):
    reference, vae, lay = tiled
    tiles = lay(*TILES[0])
    latents = random(batch, 16, (frames - 1) // 4 + 1, 7, 6)
    with torch.no_grad():
        expected = reference.decode(latents).sample
    result = vae.decode(ours(channels_first(latents)), **tiles)
    assert relative_error(result, channels_first(expected)) < TOLERANCE


@pytest.mark.parametrize(("frames", "batch"), CLIPS)
def test_tiled_encoding_equals_diffusers_tiled(tiled, many_strips, frames, batch):
    reference, vae, lay = tiled
    tiles = lay(*TILES[0])
    pixels = random(batch, 3, frames, 56, 48).clamp(-1, 1)
    with torch.no_grad():
        expected = reference.encode(pixels).latent_dist
    posterior = vae.encode(ours(channels_first(pixels)), **tiles)
    assert relative_error(posterior.mean, channels_first(expected.mean)) < TOLERANCE
    assert relative_error(posterior.logvar, channels_first(expected.logvar)) < TOLERANCE


@pytest.mark.parametrize("layout", TILES, ids=str)
@pytest.mark.parametrize("size", [(8, 6), (7, 5), (4, 9), (10, 3), (3, 3)], ids=str)
def test_tiles_of_any_size_are_laid_and_blended_as_diffusers_does(tiled, layout, size):
    reference, vae, lay = tiled
    tiles = lay(*layout)
    latents = random(1, 16, 3, *size)
    with torch.no_grad():
        expected = reference.decode(latents).sample
    result = vae.decode(ours(channels_first(latents)), **tiles)
    assert relative_error(result, channels_first(expected)) < TOLERANCE


def test_the_official_tiles_are_diffusers_defaults():
    with torch.device("meta"):
        official = diffusers.AutoencoderKLCogVideoX(sample_height=480, sample_width=720)
    tiles = Tiles.choose(AutoencoderConfig())
    assert tiles.size == (official.tile_latent_min_height, official.tile_latent_min_width)
    shares = official.tile_overlap_factor_height, official.tile_overlap_factor_width
    assert tiles.overlap == tuple(round(s * f) for s, f in zip(tiles.size, shares, strict=True))
