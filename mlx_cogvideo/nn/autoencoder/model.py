"""AutoencoderKLCogVideoX: encodes and decodes clips in the official chunks."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..backend import disable_winograd
from ..config import AutoencoderConfig
from .coders import Decoder3D, Encoder3D
from .row_strips import ConvCache
from .tiles import Coder, Tiles

logger = logging.getLogger(__name__)

ENCODE_CHUNK = 8
DECODE_CHUNK = 2

TILINGS = ("none", "exact", "tiled")
"""The modes in which a frame is computed; see `AutoencoderKLCogVideoX`."""

OLD_TILINGS = {"seamless": "exact"}
"""Old names of modes."""

STRIP_ELEMENTS = 4_000_000
"""Elements of a strip in one frame: enough to keep a GPU busy, few beside a large video's frame."""

TILE_STRIP_ELEMENTS = 3 * STRIP_ELEMENTS
"""Elements of a strip within a tile, which is small beside a frame."""


def tiling_name(name: str) -> str:
    """The mode among `TILINGS` that `name` stands for, which may be an old name.

    Raises:
        ValueError: there is no such mode.
    """
    name = OLD_TILINGS.get(name, name)
    if name not in TILINGS:
        raise ValueError(f"tiling must be {', '.join(TILINGS)}; got {name!r}")
    return name


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents ``[batch, frames, height, width, channels]``, unscaled."""

    mean: mx.array
    logvar: mx.array

    def sample(self, key: mx.array | None = None) -> mx.array:
        noise = mx.random.normal(self.mean.shape, key=key).astype(self.mean.dtype)
        return self.mean + mx.exp(0.5 * self.logvar) * noise


class AutoencoderKLCogVideoX(nn.Module):
    """The VAE that all variants share.

    A clip is encoded in chunks of 8 frames and decoded in chunks of 2 latent frames; the first
    chunk also takes the remainder. The chunks are part of the model: group statistics are computed
    per chunk, so that other chunks give other numbers (or, decoding, another number of frames).

    A frame is computed in one of three modes (`tiling`):

    - ``"none"``: whole. Memory: two or three maps of the widest layer, some gigabytes, and the
      frames that the causal convolutions remember.
    - ``"exact"``: in strips of rows, with the same result. Memory: one such map, a few strips, and
      the same remembered frames. The old name is ``"seamless"``.
    - ``"tiled"``: in overlapping tiles, computed independently and blended where they meet. Memory:
      that of one tile, whatever the size of the frame. The result differs, because each tile has
      group statistics of its own.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        disable_winograd()
        self.config = config
        self.encoder = Encoder3D(config)
        self.decoder = Decoder3D(config)

    def encode(
        self,
        pixels: mx.array,
        tiling: str = "none",
        tile_size: tuple[int, int] | None = None,
        tile_overlap: tuple[float, float] | None = None,
    ) -> Posterior:
        """Pixels to the posterior of their latents.

        Args:
            pixels: ``[B, F, H, W, 3]`` in [-1, 1], or uint8; height and width divisible by 8.
                8N+1 frames give 2N+1 latent frames.
            tiling: ``"none"``, ``"exact"`` or ``"tiled"``; see the class.
            tile_size: height and width in pixels; None is half the model's native size.
            tile_overlap: share of a tile's height and width that the next tile also covers; None
                is about a sixth and a fifth.

        Raises:
            ValueError: the size can't be encoded, the mode is unknown, or the tiles don't fit.
        """
        ratio = self.config.spatial_compression_ratio
        height, width = pixels.shape[2:4]
        if height % ratio or width % ratio:
            raise ValueError(
                f"height and width must be multiples of {ratio}; got {height} and {width}"
            )
        tiles = self._tiles(tiling, tile_size, tile_overlap)
        if tiles is not None and not tiles.cover(height // ratio, width // ratio):
            return self.posterior(mx.concatenate(list(self.encode_tiles(pixels, tiles)), axis=2))
        return self.posterior(self._encode_whole(pixels, tiling))

    def decode(
        self,
        latents: mx.array,
        tiling: str = "none",
        tile_size: tuple[int, int] | None = None,
        tile_overlap: tuple[float, float] | None = None,
    ) -> mx.array:
        """Latents to pixels ``[B, F, H, W, 3]`` in about [-1, 1].

        Args:
            latents: ``[B, f, h, w, c]``, unscaled. An odd number f of latent frames gives 4(f-1)+1
                frames, an even one 4f.
            tiling, tile_size, tile_overlap: as in ``encode``.

        Raises:
            ValueError: the mode is unknown, the tiles don't fit, or without tiles a frame is too
                large for MLX.
        """
        tiles = self._tiles(tiling, tile_size, tile_overlap)
        if tiles is not None and not tiles.cover(*latents.shape[2:4]):
            return mx.concatenate(list(self.decode_tiles(latents, tiles)), axis=2)
        return self._decode_whole(latents, tiling)

    def encode_chunks(
        self, chunks: Iterable[mx.array], tiling: str | None = None
    ) -> Iterator[mx.array]:
        """Encodes a clip chunk by chunk, holding one chunk at a time.

        Args:
            chunks: pixels as in ``encode``, cut as by ``in_chunks``.
            tiling: ``"none"`` or ``"exact"``. With None the moments are lazy, as gradients need
                them, and memory is unbounded.

        Yields:
            Moments ``[B, f, h, w, 2c]`` of each chunk, for ``posterior``.
        """
        return _run(self.encoder, chunks, self.config.spatial_compression_ratio, tiling)

    def decode_chunks(self, latents: mx.array, tiling: str | None = None) -> Iterator[mx.array]:
        """Yields the pixels chunk by chunk; arguments as in ``decode`` and ``encode_chunks``."""
        return _run(self.decoder, in_chunks(latents, DECODE_CHUNK), 1, tiling)

    def encode_tiles(self, pixels: mx.array | np.ndarray, tiles: Tiles) -> Iterator[mx.array]:
        """Yields the moments of whole rows of tiles, ``[B, f, rows, w, 2c]``, top to bottom.

        Args:
            pixels: as in ``encode``; a NumPy array is moved to the device tile by tile.
        """
        return tiles.run(partial(self._encode_whole, tiling="tiled"), pixels, tiles.ratio, 1)

    def decode_tiles(
        self, latents: mx.array, tiles: Tiles, deal: Callable[[Coder], Coder] = lambda code: code
    ) -> Iterator[mx.array]:
        """Yields the pixels of whole rows of tiles, ``[B, F, rows, W, 3]``, top to bottom.

        Args:
            deal: takes `decode_tile`, and returns what gets the pixels of tile after tile where
                other processes decode some of them.
        """
        return tiles.run(deal(self.decode_tile), latents, 1, tiles.ratio)

    def decode_tile(self, latents: mx.array) -> mx.array:
        """Decodes one of ``Tiles.parts``."""
        return self._decode_whole(latents, "tiled")

    def _encode_whole(self, pixels: mx.array, tiling: str) -> mx.array:
        ratio = self.config.spatial_compression_ratio
        return _one_by_one(self.encoder, mx.array(pixels), ENCODE_CHUNK, ratio, tiling)

    def _decode_whole(self, latents: mx.array, tiling: str) -> mx.array:
        return _one_by_one(self.decoder, latents, DECODE_CHUNK, 1, tiling)

    def _tiles(
        self,
        tiling: str,
        tile_size: tuple[int, int] | None,
        tile_overlap: tuple[float, float] | None,
    ) -> Tiles | None:
        mode = tiling_name(tiling)
        if mode != "tiled" and (tile_size is not None or tile_overlap is not None):
            raise ValueError(f"tiling={tiling!r} has no tiles: leave out their size and overlap")
        tiles = Tiles.choose(self.config, tile_size, tile_overlap)
        return tiles if mode == "tiled" else None

    def enable_tiling(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing, as a script for diffusers may call it: frames are decoded in parts."""
        logger.warning("enable_tiling() has nothing to do here: see tiling of a pipeline's call")

    def enable_slicing(self) -> None:
        """Does nothing, as a script for diffusers may call it: videos are decoded one by one."""
        logger.warning("enable_slicing() has nothing to do here: videos are decoded one by one")

    @staticmethod
    def posterior(moments: mx.array) -> Posterior:
        mean, logvar = mx.split(moments, 2, axis=-1)
        return Posterior(mean, mx.clip(logvar, -30.0, 20.0))


def _run(
    coder: nn.Module, chunks: Iterable[mx.array], ratio: int, tiling: str | None
) -> Iterator[mx.array]:
    """Yields what `coder` makes of each chunk; `ratio` is the rows of a chunk per latent row."""
    mode = None if tiling is None else tiling_name(tiling)
    elements = {"exact": STRIP_ELEMENTS, "tiled": TILE_STRIP_ELEMENTS}.get(mode)
    cache = None
    for chunk in chunks:
        if cache is None:
            rows = chunk.shape[2] // ratio
            cache = ConvCache(rows, evaluate=mode is not None, strip_elements=elements)
        yield cache.flush(coder(chunk, cache))


def _one_by_one(coder: nn.Module, batch: mx.array, size: int, ratio: int, tiling: str) -> mx.array:
    """Codes the clips of a batch one after another, as fast as together and in less memory."""
    clips = []
    for clip in mx.split(batch, len(batch)):
        chunks = _run(coder, in_chunks(clip, size), ratio, tiling)
        clips.append(mx.concatenate(list(chunks), axis=1))
    return mx.concatenate(clips)


def in_chunks(clip: mx.array, size: int) -> Iterator[mx.array]:
    """Yields the chunks of a clip ``[B, F, ...]``, as ``chunk_plan`` lays them."""
    for chunk in chunk_plan(clip.shape[1], size):
        yield clip[:, chunk]


def chunk_plan(frames: int, size: int) -> list[slice]:
    """Chunks of `size` frames; the first also takes the remainder."""
    first = min(size + frames % size, frames)
    return [slice(0, first), *(slice(i, i + size) for i in range(first, frames, size))]


def largest_decode_tensor(config: AutoencoderConfig, shape: tuple[int, ...]) -> int:
    """Elements of the largest array in decoding latents of `shape` ``(B, f, h, w, c)``.

    It is the input of the first convolution at full size: a whole first chunk and the two frames
    before it, with the channels of the level below.
    """
    batch, frames, height, width = shape[:4]
    first = chunk_plan(frames, DECODE_CHUNK)[0].stop
    ratio = config.temporal_compression_ratio
    decoded = ratio * first - (ratio - 1) * (first % 2)
    area = height * width * config.spatial_compression_ratio**2
    return batch * (decoded + 2) * area * max(config.block_out_channels[:2])
