"""The VAE's norms, each with the SiLU that follows it. They take and return strips of rows."""

from collections.abc import Iterator
from math import gcd, prod

import mlx.core as mx
import mlx.nn as nn

from ..fusion import fused
from .convolutions import PointwiseConv3d
from .row_strips import ConvCache, RowStrips

GROUP_NORM_EPS = 1e-6

SUMMED_PARTS = 8
"""Most parts of a map that one kernel adds. Each number of parts is a kernel to compile."""


class GroupNorm(nn.Module):
    """Group normalization over all frames, rows and columns of the chunk it is given.

    The statistics belong to the chunk: the official chunk plan is part of the model's numbers.
    """

    def __init__(self, groups: int, channels: int):
        super().__init__()
        self.groups = groups
        self.weight = mx.ones(channels)
        self.bias = mx.zeros(channels)

    def affine(
        self, strips: RowStrips, cache: ConvCache, bias: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Scale and shift, ``[batch, 1, 1, 1, channels]`` in float32, that normalize the chunk.

        Args:
            bias: what the chunk still lacks, per channel. The shift adds it too.
        """
        # Squares of differences from roughly the mean lose little to rounding. A row from the
        # middle gives that mean; rows at the edge have other values.
        middle = strips[len(strips) // 2]
        about = middle[:, 0, middle.shape[2] // 2].astype(mx.float32).mean(1)
        sums = [_sums_of_powers(strip, about, cache) for strip in strips]
        share = mx.array(1 / sum(prod(strip.shape[1:4]) for strip in strips))
        first, second = (sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True))
        if bias is None:
            return _affine(first, second, share, about, self.weight, self.bias, self.groups)
        # The sums are those of the differences, which the bias doesn't change.
        about = about + bias
        scale, shift = _affine(first, second, share, about, self.weight, self.bias, self.groups)
        return scale, shift + scale * bias

    def __call__(
        self,
        strips: RowStrips,
        latents: mx.array | None,
        cache: ConvCache,
        bias: mx.array | None = None,
    ) -> Iterator[mx.array]:
        """Adds `bias`, normalizes, and applies SiLU, which follows every norm of this model."""
        scale, shift = self.affine(strips, cache, bias)
        for strip in strips:
            yield _scale_shift_silu(strip, scale, shift)


class SpatialNorm3D(nn.Module):
    """Group normalization modulated by the latents themselves (arXiv:2209.09002).

    The latents, with as many frames as the map, are resized to it by nearest neighbour. Their 1x1x1
    convolutions commute with resizing, and are computed at the size of the latents.
    """

    def __init__(self, groups: int, channels: int, latent_channels: int):
        super().__init__()
        self.norm_layer = GroupNorm(groups, channels)
        self.conv_y = _Wrapped(PointwiseConv3d(latent_channels, channels))
        self.conv_b = _Wrapped(PointwiseConv3d(latent_channels, channels))

    def __call__(
        self,
        strips: RowStrips,
        latents: mx.array,
        cache: ConvCache,
        bias: mx.array | None = None,
    ) -> Iterator[mx.array]:
        """Normalizes a map, modulates it by latents ``[B, F, h, w, c]``, and applies SiLU.

        Args:
            bias: is added to the map before, per channel.
        """
        scale, shift = self.norm_layer.affine(strips, cache, bias)
        factor, offset = (conv.conv(latents) for conv in (self.conv_y, self.conv_b))
        width = strips[0].shape[3]
        ratio = width // latents.shape[3]
        top = 0
        for strip in strips:
            part = slice(top, top + strip.shape[2] // ratio)
            top = part.stop
            # Nearest neighbour as broadcasting: each latent pixel meets its block of pixels.
            blocks = strip.reshape(
                *strip.shape[:2], -1, ratio, width // ratio, ratio, strip.shape[-1]
            )
            y = _scale_shift_silu(
                blocks,
                *(
                    a[:, :, :, None, :, None]
                    for a in _modulated(scale, shift, factor[:, :, part], offset[:, :, part])
                ),
            )
            yield y.reshape(strip.shape)


class _Wrapped(nn.Module):
    """Holds a convolution as ``conv``, as in the official parameter names."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv


def _sums_of_powers(x: mx.array, about: mx.array, cache: ConvCache) -> list[mx.array]:
    """Sums of each channel's differences from `about`, and of their squares: ``[batch, C]``."""
    x = x.flatten(1, 2)
    # Parts of x are added elementwise first, so that no copy of x in float32 is made.
    parts = mx.split(x, gcd(x.shape[1], SUMMED_PARTS), axis=1)
    sums = [a.sum((1, 2)) for a in _powers(about[:, None, None], *parts)]
    return cache.push_all(sums, 2 * x.size // len(parts))


@fused
def _powers(about, *parts):
    differences = [x.astype(mx.float32) - about for x in parts]
    first, second = _total(differences), _total([mx.square(d) for d in differences])
    # The zero makes one sum depend on the other, so that MLX fuses both and reads x once.
    return first, second + 0 * first


def _total(terms):
    """The sum of terms pair by pair: a long chain isn't fused into one kernel."""
    if len(terms) == 1:
        return terms[0]
    half = len(terms) // 2
    return _total(terms[:half]) + _total(terms[half:])


@fused
def _affine(first, second, share, about, weight, bias, groups):
    differences, squares, about = (
        a.reshape(len(a), groups, -1) for a in (first * share, second * share, about)
    )
    variances = squares - differences * differences
    means = about + differences
    mean = means.mean(-1, keepdims=True)
    variance = (variances + mx.square(means - mean)).mean(-1, keepdims=True)
    variance = mx.maximum(variance, 0)
    scale = weight.reshape(groups, -1) * mx.rsqrt(variance + GROUP_NORM_EPS)
    shift = bias.reshape(groups, -1) - mean * scale
    return tuple(a.reshape(len(about), 1, 1, 1, -1) for a in (scale, shift))


@fused
def _modulated(scale, shift, factor, offset):
    return scale * factor, shift * factor + offset


@fused
def _scale_shift_silu(x, scale, shift):
    y = x * scale + shift
    return (y * mx.sigmoid(y)).astype(x.dtype)


def make_norm(groups: int, channels: int, latent_channels: int | None) -> nn.Module:
    if latent_channels is None:
        return GroupNorm(groups, channels)
    return SpatialNorm3D(groups, channels, latent_channels)
