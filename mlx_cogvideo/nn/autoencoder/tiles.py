"""Frames in overlapping tiles, coded independently and blended, as diffusers does it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Self

import mlx.core as mx

from ..config import AutoencoderConfig

DEFAULT_OVERLAP = (1 / 6, 1 / 5)


Coder = Callable[[mx.array], mx.array]
"""Encodes or decodes all frames of a tile."""


@dataclass(frozen=True)
class Tiles:
    """Size and overlap of tiles, ``(height, width)`` each, in latent pixels.

    Attributes:
        ratio: height and width of a latent pixel, in pixels.
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
        """The tiles of this size and overlap, by default diffusers' own.

        Args:
            tile_size: height and width in pixels, multiples of 8; None is half the model's native
                size.
            tile_overlap: share of a tile's height and width that the next tile also covers; None is
                a sixth and a fifth, rounded up to whole latent pixels.

        Raises:
            ValueError: the tiles don't fit; the message has the nearest ones that do.
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
        if tile_overlap is None:
            overlap = tuple(
                min(ceil(side * share - 1e-6), side - 1)
                for side, share in zip(latent, shares, strict=True)
            )
        else:
            sides = zip(("height", "width"), latent, shares, strict=True)
            overlap = tuple(_overlap(ratio, *side) for side in sides)
        return cls(latent, overlap, ratio)

    def cover(self, height: int, width: int) -> bool:
        """Whether one tile is enough for latents of this size."""
        return height <= self.size[0] and width <= self.size[1]

    @property
    def _stride(self) -> tuple[int, int]:
        """Latent pixels from one tile to the next."""
        (height, width), (y, x) = self.size, self.overlap
        return height - y, width - x

    def _corners(self, x: mx.array, scale: int) -> tuple[range, range]:
        """Tops and left sides of the tiles."""
        down, right = self._stride
        return range(0, x.shape[2], scale * down), range(0, x.shape[3], scale * right)

    def parts(self, x: mx.array, scale: int) -> Iterator[mx.array]:
        """Yields the tiles of `x` row by row, before they are coded.

        Args:
            x: ``[B, F, H, W, C]``, pixels or latents.
            scale: height and width of a latent pixel in pixels of `x`.
        """
        height, width = (scale * side for side in self.size)
        tops, lefts = self._corners(x, scale)
        for top in tops:
            for left in lefts:
                yield x[:, :, top : top + height, left : left + width]

    def run(self, code: Coder, x: mx.array, scale_in: int, scale_out: int) -> Iterator[mx.array]:
        """Codes tile after tile and blends them where they overlap.

        Args:
            code: encodes or decodes all frames of a tile.
            x: ``[B, F, H, W, C]``, pixels or latents.
            scale_in: height and width of a latent pixel in pixels of `x`.
            scale_out: the same in pixels of the output of `code`.

        Yields:
            Rows of the output from top to bottom, over the whole width and all frames.
        """
        rows, columns = (scale_out * side for side in self._stride)
        overlap = [scale_out * side for side in self.overlap]
        parts, above = self.parts(x, scale_in), list[mx.array]()
        tops, lefts = self._corners(x, scale_in)
        for top in tops:
            bottoms, finished, right = [], [], None
            for i in range(len(lefts)):
                tile = code(next(parts))
                # Neighbours have been blended themselves before a tile is blended with them.
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


def _overlap(ratio: int, name: str, side: int, share: float) -> int:
    """The overlap in latent pixels for a share of a tile's side, which is the height or width.

    `side` is in latent pixels of `ratio` pixels each.
    """
    if not 0 <= share < 1:
        raise ValueError(
            f"tile_overlap must be from 0 to below 1 of a tile's {name}; got {share:g}"
        )
    whole = min(round(side * share), side - 1)
    if abs(side * share - whole) > 1e-6:  # the output would have another size
        raise ValueError(
            f"a tile's overlap must be a multiple of {ratio} pixels; {share:g} of a {name} of "
            f"{side * ratio} isn't: {whole}/{side} is the nearest"
        )
    return whole


def _end(x: mx.array, count: int, axis: int) -> mx.array:
    """A copy of the last `count` rows or columns, or of all if there are fewer."""
    start = max(x.shape[axis] - count, 0)
    return mx.contiguous(mx.split(x, [start], axis)[1])


def _blend(before: mx.array, x: mx.array, overlap: int, axis: int) -> mx.array:
    """`x` with its first rows or columns blended from the last ones of `before`."""
    overlap = min(before.shape[axis], x.shape[axis], overlap)
    if overlap == 0:
        return x
    start, rest = mx.split(x, [overlap], axis)
    shape = [1] * x.ndim
    shape[axis] = overlap
    weight = (mx.arange(overlap) / overlap).reshape(shape)
    start = _end(before, overlap, axis) * (1 - weight) + start * weight
    return mx.concatenate([start.astype(x.dtype), rest], axis)
