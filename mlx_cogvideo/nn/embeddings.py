"""What becomes of the transformer's inputs: patches and text as tokens, timesteps as vectors."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .config import TransformerConfig
from .modulation import silu
from .positions import sincos_table


class CogVideoXPatchEmbed(nn.Module):
    """Turns latents and text into one sequence of tokens, text first."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        channels, p, p_t = config.in_channels, config.patch_size, config.patch_size_t
        if p_t is None:
            self.proj = nn.Conv2d(channels, config.dim, p, stride=p, bias=config.patch_bias)
        else:
            # CogVideoX 1.5 sets patch_bias to false and has a bias all the same.
            self.proj = nn.Linear(channels * p_t * p * p, config.dim)
        self.text_proj = nn.Linear(config.text_embed_dim, config.dim)
        if config.use_learned_positional_embeddings:
            patches = config.native_latent_frames
            patches *= (config.sample_height // p) * (config.sample_width // p)
            self.pos_embedding = mx.zeros((1, config.max_text_seq_length + patches, config.dim))

    def __call__(self, latents: mx.array, text: mx.array, grid: tuple[int, int, int]) -> mx.array:
        """``[B, f, h, w, c], [B, L, text_dim] -> [B, L + patches, dim]``."""
        config = self.config
        text = self.text_proj(text)
        video = self._embed_patches(latents, grid)
        if config.use_learned_positional_embeddings:
            joint = mx.concatenate([text, video], axis=1)
            return joint + self._learned_positions(text.shape[1], latents.shape).astype(joint.dtype)
        if not config.use_rotary_positional_embeddings:
            scales = config.spatial_interpolation_scale, config.temporal_interpolation_scale
            video = video + sincos_table(grid, config.dim, *scales).astype(video.dtype)
        return mx.concatenate([text, video], axis=1)

    def _embed_patches(self, latents: mx.array, grid: tuple[int, int, int]) -> mx.array:
        batch, (frames, rows, columns) = latents.shape[0], grid
        p, p_t = self.config.patch_size, self.config.patch_size_t
        if p_t is None:
            tokens = self.proj(latents.flatten(0, 1))
        else:
            patches = latents.reshape(batch, frames, p_t, rows, p, columns, p, -1)
            # (channel, frame, row, column) inside a patch, as the weights expect.
            tokens = self.proj(patches.transpose(0, 1, 3, 5, 7, 2, 4, 6).flatten(4))
        return tokens.reshape(batch, frames * rows * columns, -1)

    def _learned_positions(self, text_length: int, shape: tuple[int, ...]) -> mx.array:
        """The learned table, which covers text rows too; fewer frames use its beginning."""
        config, (frames, height, width) = self.config, shape[1:4]
        native = config.native_latent_frames, config.sample_height, config.sample_width
        if (height, width) != native[1:] or frames > native[0]:
            raise ValueError(
                f"this model's learned positions hold up to {native} latents (f, h, w); "
                f"got {(frames, height, width)}"
            )
        if text_length != config.max_text_seq_length:
            raise ValueError(
                f"this model's learned positions expect {config.max_text_seq_length} text tokens; "
                f"got {text_length}"
            )
        patches = frames * (height // config.patch_size) * (width // config.patch_size)
        return self.pos_embedding[:, : text_length + patches]


def unpatchify(x: mx.array, config: TransformerConfig, grid: tuple[int, int, int]) -> mx.array:
    """``[B, patches, features] -> [B, f, h, w, c]`` for a grid of patches.

    The features of a patch are ordered (channel, frame, row, column).
    """
    (frames, rows, columns), (p_t, p, _) = grid, config.patch
    x = x.reshape(x.shape[0], frames, rows, columns, -1, p_t, p, p)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(x.shape[0], frames * p_t, rows * p, columns * p, -1)


class TimestepEmbedding(nn.Module):
    """Two linear layers over a sinusoid of the timestep."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(silu(self.linear_1(x)))


def sinusoid(values: mx.array, dim: int, config: TransformerConfig) -> mx.array:
    """``[batch] -> [batch, dim]`` in float32: cosines, then sines (``flip_sin_to_cos``)."""
    half = dim // 2
    # The exponent is rounded to float32 as torch rounds it: at timestep 999 one unit in the last
    # place of a frequency turns the phase by 6e-5.
    exponents = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32)
    exponents = exponents / np.float32(half - config.freq_shift)
    frequencies = mx.array(np.exp(exponents.astype(np.float64)).astype(np.float32))
    angles = values.astype(mx.float32)[:, None] * frequencies
    parts = [mx.sin(angles), mx.cos(angles)]
    return mx.concatenate(parts[::-1] if config.flip_sin_to_cos else parts, axis=-1)
