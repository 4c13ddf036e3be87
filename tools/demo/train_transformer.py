"""The demo's transformer: its size, its loss, and batches from a bank of encoded clips."""

from collections.abc import Generator

import mlx.core as mx
import numpy as np
from captions import MAX_LENGTH, Combination, caption
from learner import Losses
from mlx.utils import tree_map
from train_vae import encode_batch
from world import FRAMES, SIZE, render, world_scene

from mlx_cogvideo.checkpoints.tokenizer import T5Tokenizer
from mlx_cogvideo.diffusion.schedulers import CogVideoXDDIMScheduler
from mlx_cogvideo.nn.autoencoder import AutoencoderKLCogVideoX
from mlx_cogvideo.nn.t5 import T5EncoderModel
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel, TransformerConfig

CONFIG = {
    "_class_name": "CogVideoXTransformer3DModel",
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "time_embed_dim": 64,
    "text_embed_dim": 64,
    "num_layers": 5,
    "dropout": 0.0,
    "attention_bias": True,
    "sample_width": SIZE // 8,
    "sample_height": SIZE // 8,
    "sample_frames": FRAMES,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": MAX_LENGTH,
    "activation_fn": "gelu-approximate",
    "timestep_activation_fn": "silu",
    "norm_elementwise_affine": True,
    "norm_eps": 1e-5,
    "spatial_interpolation_scale": 1.0,
    "temporal_interpolation_scale": 1.0,
    "use_rotary_positional_embeddings": False,
    "use_learned_positional_embeddings": False,
}
SCHEDULER_CONFIG = {
    "_class_name": "CogVideoXDDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
}
PEAK_RATE, HOLD = 1e-3, 0.65
EMPTY_SHARE = 0.1  # of the captions, for classifier-free guidance
WORDINGS = 24  # captions for each combination


def make_transformer() -> CogVideoXTransformer3DModel:
    """A new transformer. Every block starts as the identity (AdaLN-zero), and the output at 0."""
    transformer = CogVideoXTransformer3DModel(TransformerConfig.from_dict(CONFIG))
    norms = [
        norm for block in transformer.transformer_blocks for norm in (block.norm1, block.norm2)
    ]
    zeroed = [norm.linear for norm in (*norms, transformer.norm_out)] + [transformer.proj_out]
    for linear in zeroed:
        linear.update(tree_map(mx.zeros_like, linear.parameters()))
    return transformer


def make_objective():
    """Makes the loss: the mean squared error of the velocity, with more of the noisy timesteps.

    The noisy timesteps decide what the clip shows. So half of the timesteps are drawn evenly from
    0 to 999, and half with a density that grows linearly.
    """
    scheduler = CogVideoXDDIMScheduler.from_config(SCHEDULER_CONFIG)

    def objective(
        transformer: CogVideoXTransformer3DModel,
        latents: mx.array,
        text: mx.array,
        images: mx.array | None = None,
    ) -> tuple[mx.array, Losses]:
        """The loss for scaled latents ``[B, f, h, w, c]`` and text rows ``[B, L, D]``.

        For image to video, `images` are the latents of pictures, shaped like `latents`.
        """
        dtype = transformer.proj_out.weight.dtype
        count = latents.shape[0]
        even = mx.random.uniform(shape=(count,))
        leaning = mx.sqrt(mx.random.uniform(shape=(count,)))
        timestep = mx.where(mx.arange(count) % 2 == 0, even, leaning) * 1000
        timestep = mx.minimum(timestep.astype(mx.int32), 999)

        latents = latents.astype(mx.float32)
        noise = mx.random.normal(latents.shape)
        noisy = _with_images(scheduler.add_noise(latents, noise, timestep), images)
        velocity = transformer(noisy.astype(dtype), text.astype(dtype), timestep)
        velocity = velocity.astype(mx.float32)
        error = mx.square(velocity - scheduler.get_velocity(latents, noise, timestep)).mean(
            (1, 2, 3, 4)
        )
        high = timestep >= 800
        noisiest = mx.where(high, error, 0).sum() / mx.maximum(high.sum(), 1)
        return error.mean(), {"velocity": error.mean(), "noisiest": noisiest}

    return objective


def _with_images(latents: mx.array, images: mx.array | None) -> mx.array:
    return latents if images is None else mx.concatenate([latents, images], axis=-1)


def encode_clips(
    vae: AutoencoderKLCogVideoX, combinations: list[Combination], rng: np.random.Generator
) -> mx.array:
    """Encodes a new clip of each combination: unscaled latent means ``[N, f, h, w, c]``."""
    dtype = vae.encoder.conv_in.conv.weight.dtype
    return encode_batch(vae, render(world_scene(rng, combinations)).astype(dtype))


def encode_captions(
    encoder: T5EncoderModel, tokenizer: T5Tokenizer, texts: list[str], at_once: int = 1024
) -> mx.array:
    """Encodes captions to text rows ``[N, L, D]``."""
    ids = tokenizer(texts, max_length=MAX_LENGTH)
    rows = [encoder(ids[start : start + at_once]) for start in range(0, len(texts), at_once)]
    return mx.concatenate(rows)


def batches(
    rng: np.random.Generator, latents: mx.array, owners: np.ndarray, texts: mx.array, size: int
) -> Generator:
    """Yields clips with one of their captions, or sometimes with the empty one.

    Args:
        latents: the bank, scaled.
        owners: the number of the combination of each clip in the bank.
        texts: the empty caption's rows, then those of `WORDINGS` captions for each combination.
    """
    yield
    while True:
        chosen = rng.integers(len(owners), size=size)
        wording = 1 + owners[chosen] * WORDINGS + rng.integers(WORDINGS, size=size)
        wording = np.where(rng.random(size) < EMPTY_SHARE, 0, wording)
        yield latents[mx.array(chosen)], texts[mx.array(wording)]


def wordings(combinations: list[Combination], rng: np.random.Generator) -> list[str]:
    """The empty caption, then `WORDINGS` captions of each combination."""
    return [""] + [
        caption(combination, rng) for combination in combinations for _ in range(WORDINGS)
    ]


def sample(
    transformer: CogVideoXTransformer3DModel,
    text: mx.array,
    empty: mx.array,
    steps: int = 25,
    guidance: float = 4.0,
    seed: int = 0,
    images: mx.array | None = None,
) -> mx.array:
    """Makes scaled latents for a batch of captions at once, with DDIM.

    Args:
        text: ``[N, L, D]``; `empty`: ``[1, L, D]``.
        images: for image to video, the latents of pictures, shaped like the result.
    """
    scheduler = make_scheduler(steps)
    side = CONFIG["sample_height"]
    shape = (len(text), (FRAMES - 1) // 4 + 1, side, side, CONFIG["in_channels"])
    noise = mx.random.normal(shape, key=mx.random.key(seed))
    return denoise(transformer, scheduler, noise, text, empty, guidance, images=images)


def make_scheduler(steps: int) -> CogVideoXDDIMScheduler:
    """DDIM with so many steps."""
    scheduler = CogVideoXDDIMScheduler.from_config(SCHEDULER_CONFIG)
    scheduler.set_timesteps(steps)
    return scheduler


def denoise(
    transformer: CogVideoXTransformer3DModel,
    scheduler: CogVideoXDDIMScheduler,
    latents: mx.array,
    text: mx.array,
    empty: mx.array,
    guidance: float,
    *,
    first: int = 0,
    images: mx.array | None = None,
) -> mx.array:
    """Takes the sampler's steps from number `first` to the last; see `sample`.

    Args:
        latents: scaled, with the noise of step `first`.
    """
    dtype, count = transformer.proj_out.weight.dtype, len(text)
    rows = mx.concatenate([mx.repeat(empty, count, axis=0), text]).astype(dtype)
    for t in scheduler.timesteps[first:]:
        given = _with_images(latents, images)
        both = mx.concatenate([given, given]).astype(dtype)
        velocity = transformer(both, rows, mx.full(2 * count, int(t))).astype(mx.float32)
        without, given = mx.split(velocity, 2)
        latents, _ = scheduler.step(without + guidance * (given - without), t, latents)
        mx.eval(latents)
    return latents
