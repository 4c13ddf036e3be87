"""Frames in overlapping tiles, coded apart from each other and blended, as diffusers does it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Self

import mlx.core as mx

from .coders import AutoencoderConfig

DEFAULT_OVERLAP = (1 / 6, 1 / 5)


@dataclass(frozen=True)
class Tiles:
    """Size and overlap of tiles, ``(height, width)`` each, in latent pixels.

    Attributes:
        ratio: pixels to a latent pixel, each way.
    """

    size: tuple[int, int]
    overlap: tuple[int, int]
    ratio: int

    @classmethod
    def choose(
        cls,
        config: AutoencoderConfig,
        tile_size: tuple[int, int] | None = None,
        tile_overlap: tuple[float, float] | None = None,
    ) -> Self:
        """The tiles that are asked for, else diffusers' own.

        Args:
            tile_size: height and width in pixels, multiples of 8; None is half the model's native
                size.
            tile_overlap: share of a tile's height and width that the next one covers, too; None
                is a sixth and a fifth, rounded up to whole latent pixels.

        Raises:
            ValueError: tiles that can't be laid: the message has some that can.
        """
        ratio = config.spatial_compression_ratio
        native = config.sample_height, config.sample_width
        size = tile_size or tuple(ratio * max(side // 2 // ratio, 2) for side in native)
        shares = tile_overlap or DEFAULT_OVERLAP
        for name, pair in (("tile_size", size), ("tile_overlap", shares)):
            if not isinstance(pair, Sequence) or len(pair) != 2:
                raise ValueError(f"{name} is a pair, for height and width; got {pair}")
        if any(side < ratio or side % ratio for side in size):
            nearest = [ratio * max(1, round(side / ratio)) for side in size]
            raise ValueError(
                f"tile_size must be multiples of {ratio}; got {size[0]} and {size[1]}: "
                f"{nearest[0]} and {nearest[1]} are the nearest"
            )
        latent = tuple(side // ratio for side in size)
        overlap = []
        for name, side, share in zip(("height", "width"), latent, shares, strict=True):
            if not 0 <= share < 1:
                raise ValueError(
                    f"tile_overlap must be from 0 to below 1 of a tile's {name}; got {share:g}"
                )
            whole = min(round(side * share), side - 1)
            if tile_overlap is None:
                whole = min(ceil(side * share - 1e-6), side - 1)
            elif abs(side * share - whole) > 1e-6:
                # Anything else would make an output of another size.
                raise ValueError(
                    f"a tile's overlap must be a multiple of {ratio} pixels; {share:g} of a "
                    f"{name} of {side * ratio} isn't: {whole}/{side} is the nearest"
                )
            overlap.append(whole)
        return cls(latent, tuple(overlap), ratio)

    def cover(self, height: int, width: int) -> bool:
        """Whether one tile is enough for latents of this size."""
        return height <= self.size[0] and width <= self.size[1]

    def run(
        self, code: Callable[[mx.array], mx.array], x: mx.array, scale_in: int, scale_out: int
    ) -> Iterator[mx.array]:
        """Codes tile after tile and blends them where they overlap.

        Args:
            code: what makes of a tile all of its frames.
            x: ``[B, F, H, W, C]``, pixels or latents.
            scale_in: pixels of `x` to a latent pixel.
            scale_out: the same of what `code` makes.

        Yields:
            Rows of what comes of `x` from top to bottom, of the whole width and all frames.
        """
        height, width = (scale_in * side for side in self.size)
        stride = [side - overlap for side, overlap in zip(self.size, self.overlap, strict=True)]
        rows, columns = (scale_out * side for side in stride)
        overlap = [scale_out * side for side in self.overlap]
        above: list[mx.array] = []
        for top in range(0, x.shape[2], scale_in * stride[0]):
            bottoms, finished, right = [], [], None
            for i, left in enumerate(range(0, x.shape[3], scale_in * stride[1])):
                tile = code(x[:, :, top : top + height, left : left + width])
                # A neighbour is what it has become by being blended itself.
                if top:
                    tile = _blend(above[i], tile, overlap[0], axis=2)
                if right is not None:
                    tile = _blend(right, tile, overlap[1], axis=3)
                bottoms.append(_end(tile, overlap[0], axis=2))
                right = _end(tile, overlap[1], axis=3)
                finished.append(mx.contiguous(tile[:, :, :rows, :columns]))
                mx.eval(bottoms[-1], right, finished[-1])
            above = bottoms
            yield mx.concatenate(finished, axis=3)


def _end(x: mx.array, count: int, axis: int) -> mx.array:
    """A copy of the last `count` rows or columns, as far as there are so many."""
    start = max(x.shape[axis] - count, 0)
    return mx.contiguous(mx.split(x, [start], axis)[1])


def _blend(before: mx.array, x: mx.array, overlap: int, axis: int) -> mx.array:
    """`x` that begins as `before` ends, and turns into itself over the overlap."""
    overlap = min(before.shape[axis], x.shape[axis], overlap)
    if overlap == 0:
        return x
    start, rest = mx.split(x, [overlap], axis)
    shape = [1] * x.ndim
    shape[axis] = overlap
    weight = (mx.arange(overlap) / overlap).reshape(shape)
    start = _end(before, overlap, axis) * (1 - weight) + start * weight
    return mx.concatenate([start.astype(x.dtype), rest], axis)
