"""AutoencoderKLCogVideoX: whole clips, in the official chunks."""

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from .coders import AutoencoderConfig, Decoder3D, Encoder3D
from .layers import TemporalCache

ENCODE_CHUNK = 8
DECODE_CHUNK = 2


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian over latents, ``[batch, frames, height, width, channels]``, unscaled."""

    mean: mx.array
    logvar: mx.array

    def sample(self, key: mx.array | None = None) -> mx.array:
        noise = mx.random.normal(self.mean.shape, key=key).astype(self.mean.dtype)
        return self.mean + mx.exp(0.5 * self.logvar) * noise


class AutoencoderKLCogVideoX(nn.Module):
    """The VAE that all variants share.

    A clip passes in chunks of 8 frames, or 2 latents on the way back, the remainder in the first.
    The chunks are part of the model: group statistics are taken per chunk, and another plan gives
    other numbers (or, decoding, another number of frames).
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder3D(config)
        self.decoder = Decoder3D(config)

    def encode(self, pixels: mx.array) -> Posterior:
        """``[B, F, H, W, 3]`` in [-1, 1], height and width divisible by 8, to the posterior.

        8N+1 frames give 2N+1 latent frames. One chunk is computed and freed at a time.
        """
        chunks = list(self.encode_chunks(pixels, evaluate=True))
        return self.posterior(mx.concatenate(chunks, axis=1))

    def decode(self, latents: mx.array) -> mx.array:
        """``[B, f, h, w, c]``, unscaled, to pixels ``[B, F, H, W, 3]`` in about [-1, 1].

        An odd number f of latent frames gives 4(f-1)+1 frames, an even one 4f. One chunk is
        computed and freed at a time.
        """
        return mx.concatenate(list(self.decode_chunks(latents, evaluate=True)), axis=1)

    def encode_chunks(self, pixels: mx.array, evaluate: bool = False) -> Iterator[mx.array]:
        """Yields the moments ``[B, f, h, w, 2c]`` chunk by chunk.

        Without `evaluate` they are lazy, as gradients need them, and nothing bounds the memory.
        """
        return _in_chunks(self.encoder, pixels, ENCODE_CHUNK, evaluate)

    def decode_chunks(self, latents: mx.array, evaluate: bool = False) -> Iterator[mx.array]:
        """Yields the pixels ``[B, F, H, W, 3]`` chunk by chunk; `evaluate` as in encode_chunks."""
        return _in_chunks(self.decoder, latents, DECODE_CHUNK, evaluate)

    @staticmethod
    def posterior(moments: mx.array) -> Posterior:
        mean, logvar = mx.split(moments, 2, axis=-1)
        return Posterior(mean, mx.clip(logvar, -30.0, 20.0))


def _in_chunks(coder: nn.Module, x: mx.array, size: int, evaluate: bool) -> Iterator[mx.array]:
    cache = TemporalCache()
    for chunk in chunk_plan(x.shape[1], size):
        output = coder(x[:, chunk], cache)
        if evaluate:
            mx.eval(output, cache.arrays)
        yield output


def chunk_plan(frames: int, size: int) -> list[slice]:
    """Chunks of `size` frames; the first also takes the remainder."""
    first = size + frames % size
    return [slice(0, first), *(slice(i, i + size) for i in range(first, frames, size))]


def largest_decode_tensor(config: AutoencoderConfig, shape: tuple[int, ...]) -> int:
    """Elements of the largest array that decoding latents of `shape` ``(B, f, h, w, c)`` makes.

    It is the input of the first convolution at full size: a whole first chunk, the two frames
    before it, and the channels of the level below.
    """
    batch, frames, height, width = shape[:4]
    first = len(range(frames)[chunk_plan(frames, DECODE_CHUNK)[0]])
    ratio = config.temporal_compression_ratio
    decoded = ratio * first - (ratio - 1) * (first % 2)
    area = height * width * config.spatial_compression_ratio**2
    return batch * (decoded + 2) * area * max(config.block_out_channels[:2])
