"""The demo's autoencoder: its size, its loss and its batches."""

from collections.abc import Generator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from captions import combinations
from learner import Losses
from world import SIZE, UNSEEN_SHAPES, render, wild_scene, world_scene

from mlx_cogvideo.nn.autoencoder import (
    ENCODE_CHUNK,
    AutoencoderConfig,
    AutoencoderKLCogVideoX,
    in_chunks,
)

CONFIG = {
    "_class_name": "AutoencoderKLCogVideoX",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["CogVideoXDownBlock3D"] * 4,
    "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "block_out_channels": [16, 32, 32, 48],
    "latent_channels": 16,
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_eps": 1e-6,
    "norm_num_groups": 8,
    "temporal_compression_ratio": 4,
    "sample_height": SIZE,
    "sample_width": SIZE,
    "scaling_factor": 1.0,  # measured once it is trained
    "force_upcast": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
PEAK_RATE, HOLD = 2e-3, 0.4
DECODER_RATE, DECODER_HOLD = 1.5e-3, 0.3
WILD_SHARE = 0.5
SHORT_UNTIL = 0.5  # share of the time with clips of one chunk, which take half as long
KL_WEIGHT = 2e-4
EVENNESS_WEIGHT = 0.02
ABSOLUTE_WEIGHT = 0.3


def make_vae() -> AutoencoderKLCogVideoX:
    """A new autoencoder. The decoder's norms start as plain group norms for any latents."""
    vae = AutoencoderKLCogVideoX(AutoencoderConfig.from_dict(CONFIG))

    def start_plain(name: str, module: nn.Module) -> None:
        if name.endswith(("conv_y", "conv_b")):
            module.conv.weight = module.conv.weight * 0.1
            module.conv.bias = mx.full(
                module.conv.bias.shape, 1.0 if name.endswith("conv_y") else 0.0
            )

    vae.apply_to_modules(start_plain)
    return vae


def objective(
    vae: AutoencoderKLCogVideoX, clips: mx.array, late: mx.array
) -> tuple[mx.array, Losses]:
    """The squared error, plus the absolute error as `late` goes from 0 to 1.

    The loss also pulls the latents' channels towards unit variance and no correlation over the
    batch, because a diffusion model learns weak channels badly.

    Args:
        clips: ``[B, F, H, W, 3]`` in [-1, 1].
    """
    dtype = vae.encoder.conv_in.conv.weight.dtype
    chunks = in_chunks(clips.astype(dtype), ENCODE_CHUNK)
    moments = mx.concatenate(list(vae.encode_chunks(chunks)), axis=1)
    mean, logvar = mx.split(moments.astype(mx.float32), 2, axis=-1)
    logvar = mx.clip(logvar, -30, 20)
    latents = mean + mx.exp(0.5 * logvar) * mx.random.normal(mean.shape)
    pixels = mx.concatenate(list(vae.decode_chunks(latents.astype(dtype))), axis=1)
    error = pixels.astype(mx.float32) - clips
    squared, absolute = mx.square(error).mean(), mx.abs(error).mean()
    kl = 0.5 * (mx.square(mean) + mx.exp(logvar) - 1 - logvar).mean()
    uneven = unevenness(mean)
    loss = squared + late * ABSOLUTE_WEIGHT * absolute + KL_WEIGHT * kl + EVENNESS_WEIGHT * uneven
    return loss, {"squared": squared, "absolute": absolute, "kl": kl, "uneven": uneven}


def unevenness(latents: mx.array) -> mx.array:
    """The distance of the mean from 0 and of the covariance from the identity, per channel."""
    rows = latents.reshape(-1, latents.shape[-1])
    centre = rows.mean(axis=0)
    covariance = (rows - centre).T @ (rows - centre) / rows.shape[0]
    off = covariance - mx.eye(rows.shape[1])
    return (mx.square(centre).sum() + mx.square(off).sum()) / rows.shape[1]


def batches(rng: np.random.Generator, size: int, crop: int = SIZE) -> Generator:
    """Yields clips of both worlds, with all combinations: an autoencoder reads no captions.

    Args:
        crop: side of a square cut out of each clip at random, in pixels.
    """
    every, wild = combinations(), round(size * WILD_SHARE)
    done = yield
    while True:
        chosen = [every[index] for index in rng.integers(len(every), size=size - wild)]
        clips = mx.concatenate([render(world_scene(rng, chosen)), render(wild_scene(rng, wild))])
        if done < SHORT_UNTIL:
            parts = (slice(0, 9), slice(8, None), slice(None, None, 2))
            clips = clips[:, parts[rng.integers(3)]]
        top, left = rng.integers(SIZE - crop + 1, size=2)
        clips = clips[:, :, top : top + crop, left : left + crop]
        done = yield clips, mx.array(np.clip(4 * done - 1, 0, 1), dtype=mx.float32)


LATENT_NOISE = 0.04  # relative to unit latents; imitates a transformer's small errors


def make_decoder_objective(vae: AutoencoderKLCogVideoX):
    """Makes the loss of the decoder alone, for when others depend on the encoder's latents."""

    def objective(
        decoder: nn.Module, latents: mx.array, clips: mx.array
    ) -> tuple[mx.array, Losses]:
        noisy = latents + LATENT_NOISE * mx.random.normal(latents.shape)
        vae.decoder = decoder
        dtype = decoder.conv_in.conv.weight.dtype
        pixels = mx.concatenate(list(vae.decode_chunks(noisy.astype(dtype))), axis=1)
        error = pixels.astype(mx.float32) - clips
        squared, absolute = mx.square(error).mean(), mx.abs(error).mean()
        return squared + ABSOLUTE_WEIGHT * absolute, {"squared": squared, "absolute": absolute}

    return objective


def decoder_batches(
    rng: np.random.Generator, vae: AutoencoderKLCogVideoX, size: int, crop: int = SIZE
) -> Generator:
    """Yields whole clips and the means of their latents."""
    clips = batches(rng, size, crop)
    next(clips)
    dtype = vae.encoder.conv_in.conv.weight.dtype
    yield
    while True:
        pixels, _ = clips.send(1.0)
        yield encode_batch(vae, pixels.astype(dtype)).astype(mx.float32), pixels


def encode_batch(vae: AutoencoderKLCogVideoX, pixels: mx.array) -> mx.array:
    """Encodes many small clips at once to latent means; ``vae.encode`` takes one at a time."""
    moments = vae.encode_chunks(in_chunks(pixels, ENCODE_CHUNK))
    return vae.posterior(mx.concatenate(list(moments), axis=1)).mean


def psnr(vae: AutoencoderKLCogVideoX, clips: mx.array) -> float:
    """PSNR in dB of pixels in [0, 1] decoded from the latents' means, averaged over the clips."""
    restored = vae.decode(vae.encode(clips).mean)
    error = mx.square((mx.clip(restored, -1, 1) - clips).astype(mx.float32) / 2).mean((1, 2, 3, 4))
    return (-10 * mx.log10(error)).mean().item()


def measure_psnr(vae: AutoencoderKLCogVideoX, count: int = 8, seed: int = 1000) -> dict[str, float]:
    """PSNR on the small world, the wild one, and figures that no training clip shows."""
    every, rng = combinations(), np.random.default_rng(seed)
    chosen = [every[index] for index in rng.integers(len(every), size=count)]
    dtype = vae.encoder.conv_in.conv.weight.dtype
    scenes = {"world": world_scene(rng, chosen), "wild": wild_scene(rng, count)}
    for name, outline in UNSEEN_SHAPES.items():
        scenes[name] = world_scene(rng, chosen, [outline] * count)
    return {name: psnr(vae, render(scene).astype(dtype)) for name, scene in scenes.items()}


def latent_spread(latents: mx.array) -> tuple[float, mx.array]:
    """Standard deviation of all latents together, and of each channel."""
    rows = latents.astype(mx.float32).reshape(-1, latents.shape[-1])
    return mx.sqrt(mx.square(rows).mean()).item(), mx.std(rows, axis=0)
