"""Layers of the VAE. They take and return a chunk of frames in strips of rows."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from math import gcd, prod

import mlx.core as mx
import mlx.nn as nn

from ..backend import kernels
from ..fusion import fused
from .row_strips import ConvCache, RowStrips, check_size, with_halo

GROUP_NORM_EPS = 1e-6


class CausalConv3d(nn.Module):
    """3x3x3 convolution that sees the current frame and the two before it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__()
        self.history = kernel_size - 1
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size)

    def __call__(
        self, strips: Iterable[mx.array], cache: ConvCache, residual: RowStrips | None = None
    ) -> Iterator[mx.array]:
        """Yields the strips of the result, each added to its strip of `residual`."""
        longer = (
            cache.prepend((id(self), i), strip, self.history) for i, strip in enumerate(strips)
        )
        for i, (strip, padding) in enumerate(with_halo(longer, cache)):
            x, weight = _padded(check_size(strip)), _padded(self.conv.weight)
            convolve = partial(mx.conv3d, padding=(0, padding, 1))
            y = _in_kernels(convolve, x, weight, axis=1, history=self.history)
            y = y + self.conv.bias if residual is None else _sum(residual[i], y, self.conv.bias)
            yield cache.push(check_size(y))


@fused
def _sum(a, b, c):
    return a + b + c


def _in_kernels(
    convolve: Callable[[mx.array, mx.array], mx.array],
    x: mx.array,
    weight: mx.array,
    *,
    axis: int,
    history: int = 0,
) -> mx.array:
    """``convolve(x, weight)``, some frames at a time where a kernel would take too long on a Mac.

    Args:
        axis: the axis of the frames.
        history: number of earlier frames that the convolution sees for each frame.
    """
    frames = x.shape[axis] - history
    count = kernels(2 * weight.size * x.size // x.shape[-1])
    if count == 1:
        return convolve(x, weight)
    groups = min(count, frames)
    # Also some output channels at a time if one frame is still too much, in fast multiples of 16.
    outputs = len(weight)
    divisors = (n for n in range(1, outputs + 1) if outputs % (16 * n) == 0)
    shares = next((n for n in divisors if n * groups >= count), max(1, outputs // 16))
    weights = mx.split(weight, shares) if outputs % 16 == 0 else [weight]
    parts = []
    for i in range(groups):
        first, end = (k * frames // groups for k in (i, i + 1))
        some = x[:, first : end + history] if axis else x[first : end + history]
        parts.append(mx.concatenate([convolve(some, w) for w in weights], axis=-1))
    return mx.concatenate(parts, axis=axis)


def _padded(x: mx.array) -> mx.array:
    """Pads the channels with zeros to a multiple of 16, which MLX's fast convolutions need."""
    missing = -x.shape[-1] % 16
    return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


class PointwiseConv3d(nn.Conv3d):
    """1x1x1 convolution, computed as a matrix product."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=1)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.addmm(self.bias, x, self.weight.reshape(self.weight.shape[0], -1).T)


class GroupNorm(nn.Module):
    """Group normalization over all frames, rows and columns of the chunk it is given.

    The statistics belong to the chunk: the official chunk plan is part of the model's numbers.
    """

    def __init__(self, groups: int, channels: int):
        super().__init__()
        self.groups = groups
        self.weight = mx.ones(channels)
        self.bias = mx.zeros(channels)

    def affine(self, strips: RowStrips, cache: ConvCache) -> tuple[mx.array, mx.array]:
        """Scale and shift, ``[batch, 1, 1, 1, channels]`` in float32, that normalize the chunk."""
        # Squares of differences from roughly the mean lose little to rounding. A row from the
        # middle gives that mean; rows at the edge have other values.
        middle = strips[len(strips) // 2]
        about = middle[:, 0, middle.shape[2] // 2].astype(mx.float32).mean(1)
        sums = [_sums_of_powers(strip, about, cache) for strip in strips]
        share = mx.array(1 / sum(prod(strip.shape[1:4]) for strip in strips))
        first, second = (sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True))
        return _affine(first, second, share, about, self.weight, self.bias, self.groups)

    def __call__(
        self, strips: RowStrips, latents: mx.array | None, cache: ConvCache
    ) -> Iterator[mx.array]:
        """Normalizes and applies SiLU, which follows every norm of this model."""
        scale, shift = self.affine(strips, cache)
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
        self, strips: RowStrips, latents: mx.array, cache: ConvCache
    ) -> Iterator[mx.array]:
        """Normalizes a map, modulates it by latents ``[B, F, h, w, c]``, and applies SiLU."""
        scale, shift = self.norm_layer.affine(strips, cache)
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
    # A few parts of x are added elementwise first, so that no copy of x in float32 is made.
    parts = mx.split(x, gcd(x.shape[1], 4), axis=1)
    about = about[:, None, None]
    return [
        cache.push(add(about, *parts).sum((1, 2)), x.size // 4)
        for add in (_differences, _squared_differences)
    ]


@fused
def _differences(about, *parts):
    return sum(x.astype(mx.float32) - about for x in parts)


@fused
def _squared_differences(about, *parts):
    return sum(mx.square(x.astype(mx.float32) - about) for x in parts)


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


def repeat_frames(x: mx.array, frames: int) -> mx.array:
    """Resizes in time to `frames` frames, by nearest neighbour.

    The first frame of an odd number stands for itself alone and is not repeated.
    """
    if frames == x.shape[1]:
        return x
    if frames % 2 == 0:
        return mx.repeat(x, frames // x.shape[1], axis=1)
    rest = x[:, 1:]
    return mx.concatenate([x[:, :1], mx.repeat(rest, (frames - 1) // rest.shape[1], axis=1)], 1)


class ResnetBlock3D(nn.Module):
    """Two normalized causal convolutions and a shortcut.

    The norms are `SpatialNorm3D`, as in the decoder, if `latent_channels` is given, else
    `GroupNorm`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, latent_channels: int | None = None
    ):
        super().__init__()
        self.norm1 = make_norm(groups, in_channels, latent_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = make_norm(groups, out_channels, latent_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        if in_channels != out_channels:
            self.conv_shortcut = PointwiseConv3d(in_channels, out_channels)

    def __call__(self, x: RowStrips, latents: mx.array | None, cache: ConvCache) -> RowStrips:
        """Replaces the strips of the list `x` one by one, so that each can be freed. Returns it."""
        hidden = []
        for i, y in enumerate(self.conv1(self.norm1(x, latents, cache), cache)):
            hidden.append(y)
            if "conv_shortcut" in self:
                x[i] = cache.push(self.conv_shortcut(x[i]))
        for i, y in enumerate(self.conv2(self.norm2(hidden, latents, cache), cache, residual=x)):
            x[i], hidden[i] = y, None
        return x


def make_norm(groups: int, channels: int, latent_channels: int | None) -> nn.Module:
    if latent_channels is None:
        return GroupNorm(groups, channels)
    return SpatialNorm3D(groups, channels, latent_channels)


class Downsample3D(nn.Module):
    """Halves height and width, and the number of frames if `compress_time` is set."""

    def __init__(self, channels: int, compress_time: bool):
        super().__init__()
        self.compress_time = compress_time
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def __call__(self, x: RowStrips, cache: ConvCache) -> RowStrips:
        averaged = map(_average_pairs, x) if self.compress_time else x
        weight, outputs = self.conv.weight, []
        for strip, padding in with_halo(averaged, cache, above=0):
            frames = mx.pad(strip.flatten(0, 1), [(0, 0), (0, padding), (0, 1), (0, 0)])
            y = _in_kernels(partial(mx.conv2d, stride=2), check_size(frames), weight, axis=0)
            y = y + self.conv.bias
            outputs.append(cache.push(y.reshape(*strip.shape[:2], *y.shape[1:])))
        return cache.cut(outputs)


def _average_pairs(x: mx.array) -> mx.array:
    """Averages pairs of frames; the first frame of an odd number stays alone."""
    if x.shape[1] == 1:
        return x
    alone = x.shape[1] % 2
    pairs = x[:, alone:].reshape(x.shape[0], -1, 2, *x.shape[2:]).mean(2)
    return mx.concatenate([x[:, :alone], pairs], axis=1) if alone else pairs


class Upsample3D(nn.Module):
    """Doubles height and width, and the number of frames if `compress_time` is set."""

    def __init__(self, channels: int, compress_time: bool):
        super().__init__()
        self.compress_time = compress_time
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def __call__(self, x: RowStrips, cache: ConvCache) -> RowStrips:
        outputs = []
        parts = cache.cut(x, growth=4)
        # Popped, so that each strip can be freed once it is enlarged.
        enlarged = (self._enlarge(parts.pop(0)) for _ in range(len(parts)))
        for strip, padding in with_halo(enlarged, cache):
            frames = check_size(strip.flatten(0, 1))
            convolve = partial(mx.conv2d, padding=(padding, 1))
            y = _in_kernels(convolve, frames, self.conv.weight, axis=0) + self.conv.bias
            outputs.append(cache.push(y.reshape(*strip.shape[:2], *y.shape[1:])))
        return outputs

    def _enlarge(self, x: mx.array) -> mx.array:
        if self.compress_time:
            x = repeat_frames(x, 2 * x.shape[1] - x.shape[1] % 2)
        batch, frames, height, width, channels = x.shape
        x = x.reshape(batch, frames, height, 1, width, 1, channels)
        x = mx.broadcast_to(x, (batch, frames, height, 2, width, 2, channels))
        return x.reshape(batch, frames, 2 * height, 2 * width, channels)
