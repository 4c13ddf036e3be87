"""Layers of the VAE. They take and return a chunk of frames in strips of rows."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from .convolutions import CausalConv3d, PointwiseConv3d, add, convolve_in_kernels
from .norms import make_norm
from .row_strips import ConvCache, RowStrips, check_size, with_halo


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
        normalized = self.norm1(x, latents, cache)
        for i, y in enumerate(self.conv1(normalized, cache, biased=False)):
            hidden.append(y)
            if "conv_shortcut" in self:
                x[i] = cache.push(self.conv_shortcut(x[i]))
        normalized = self.norm2(hidden, latents, cache, self.conv1.conv.bias)
        for i, y in enumerate(self.conv2(normalized, cache, residual=x)):
            x[i], hidden[i] = y, None
        return x


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
            convolve = partial(mx.conv2d, stride=2)
            y = convolve_in_kernels(convolve, check_size(frames), weight, axis=0)
            y = add(y, self.conv.bias)
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
    """Doubles height and width, and the number of frames if `compress_time` is set.

    It repeats pixels, and convolves. A 3x3 window of repeated pixels holds only 2x2 different ones,
    so that four convolutions of 2x2 taps, one for each of the pixels that replace one, do the same
    with 4/9 of the operations. They see the frames before they are repeated.
    """

    def __init__(self, channels: int, compress_time: bool):
        super().__init__()
        self.compress_time = compress_time
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def __call__(self, x: RowStrips, cache: ConvCache) -> RowStrips:
        weight, outputs = _weights_of_pixels(self.conv.weight), []
        parts = cache.cut(x, growth=4)
        # Popped, so that each strip can be freed once it is enlarged.
        popped = (parts.pop(0) for _ in range(len(parts)))
        for strip, padding in with_halo(popped, cache):
            convolve = partial(mx.conv2d, padding=(padding, 1))
            windows = convolve_in_kernels(convolve, strip.flatten(0, 1), weight, axis=0)
            windows = check_size(windows).reshape(*strip.shape[:2], *windows.shape[1:])
            outputs.append(cache.push(self._enlarged(windows)))
        return outputs

    def _enlarged(self, windows: mx.array) -> mx.array:
        """Lays out the four pixels of each window ``[B, F, h + 1, w + 1, 4C]``, and adds the bias.

        A window holds rows i - 1 and i, and makes rows 2i - 1 and 2i; columns likewise. What the
        windows at the edges make outside the map is left out.
        """
        batch, frames, rows, columns, width = windows.shape
        height, width, channels = rows - 1, columns - 1, width // 4
        # Steps to the next window in a row, to the next row of windows, and to the next frame.
        right = 4 * channels
        down = columns * right
        ahead = rows * down
        # Pixels 2i and 2i + 1 are in windows i and i + 1.
        pixels = mx.as_strided(
            windows,
            (batch, frames, height, 2, width, 2, channels),
            (frames * ahead, ahead, down, down + 2 * channels, right, right + channels, 1),
        )
        once = frames % 2 if self.compress_time else frames
        parts = []
        for part, times in zip(mx.split(pixels, [once], axis=1), (1, 2), strict=True):
            if part.shape[1]:
                shape = (batch, part.shape[1], times, *part.shape[2:])
                y = add(mx.broadcast_to(part[:, :, None], shape), self.conv.bias)
                parts.append(y.reshape(batch, -1, 2 * height, 2 * width, channels))
        return mx.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _weights_of_pixels(weight: mx.array) -> mx.array:
    """The weights ``[4C, 2, 2, C]`` of four pixels, from those of a 3x3 window of repeated pixels.

    Weights of the same pixel are added. The pixels are the upper left, upper right, lower left and
    lower right one.
    """
    rows = _pairs_of_taps(weight.astype(mx.float32), axis=1)
    pixels = [pixel for row in rows for pixel in _pairs_of_taps(row, axis=2)]
    return mx.concatenate(pixels).astype(weight.dtype)


def _pairs_of_taps(taps: mx.array, axis: int) -> list[mx.array]:
    """The taps of either pixel that replaces one along an axis of three taps."""
    first, middle, last = mx.split(taps, 3, axis)
    pairs = (first, middle + last), (first + middle, last)
    return [mx.concatenate(pair, axis) for pair in pairs]
