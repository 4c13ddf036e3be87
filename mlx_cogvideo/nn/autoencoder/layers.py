"""Layers of the VAE. All arrays are ``[batch, frames, height, width, channels]``."""

import mlx.core as mx
import mlx.nn as nn

from ..fusion import fused

GROUP_NORM_EPS = 1e-6


class TemporalCache:
    """What the causal convolutions carry from one chunk of frames to the next.

    One cache serves one pass over one clip: make it before the first chunk and hand it to each.
    """

    def __init__(self):
        self._frames: dict[int, mx.array] = {}

    def prepend(self, convolution: nn.Module, x: mx.array, count: int) -> mx.array:
        """`x` with the `count` frames before it; remembers its last ones for the next chunk.

        Before the first chunk there is nothing, and its first frame is repeated.
        """
        past = self._frames.get(id(convolution))
        if past is None:
            past = mx.repeat(x[:, :1], count, axis=1)
        x = mx.concatenate([past, x], axis=1)
        # Joined from single frames, the memory is a copy: a slice would keep all of x alive.
        self._frames[id(convolution)] = mx.concatenate(mx.split(x[:, -count:], count, axis=1), 1)
        return x

    @property
    def arrays(self) -> list[mx.array]:
        """For ``mx.eval``: a chunk is done when its output and its memory are."""
        return list(self._frames.values())


class CausalConv3d(nn.Module):
    """3x3x3 convolution that sees the current frame and the two before it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__()
        self.history = kernel_size - 1
        padding = (0, kernel_size // 2, kernel_size // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, padding=padding)

    def __call__(self, x: mx.array, cache: TemporalCache) -> mx.array:
        return self.conv(cache.prepend(self, x, self.history))


class PointwiseConv3d(nn.Conv3d):
    """1x1x1 convolution, computed as the matrix product that it is."""

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

    def affine(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Scale and shift, ``[batch, 1, 1, 1, channels]`` in float32, that normalize `x`."""
        # Channel by channel first: a sum over whole positions runs along the memory.
        mean = self._over_groups(x.astype(mx.float32).mean((1, 2, 3), keepdims=True))
        variance = mx.square(x.astype(mx.float32) - mean).mean((1, 2, 3), keepdims=True)
        variance = self._over_groups(variance)
        scale = self.weight.astype(mx.float32) * mx.rsqrt(variance + GROUP_NORM_EPS)
        return scale, self.bias.astype(mx.float32) - mean * scale

    def _over_groups(self, x: mx.array) -> mx.array:
        """Averages the channels of each group, and hands each channel its group's average."""
        grouped = x.reshape(*x.shape[:-1], self.groups, -1)
        return mx.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape).reshape(x.shape)

    def __call__(self, x: mx.array, latents: mx.array | None = None) -> mx.array:
        """Normalizes and applies SiLU, which follows every norm of this model."""
        return _scale_shift_silu(x, *self.affine(x))


class SpatialNorm3D(nn.Module):
    """Group normalization modulated by the latents themselves (arXiv:2209.09002).

    The latents are brought to the size of `x` by nearest neighbour. Their 1x1x1 convolutions
    commute with that and are computed at the size of the latents.
    """

    def __init__(self, groups: int, channels: int, latent_channels: int):
        super().__init__()
        self.norm_layer = GroupNorm(groups, channels)
        self.conv_y = _Wrapped(PointwiseConv3d(latent_channels, channels))
        self.conv_b = _Wrapped(PointwiseConv3d(latent_channels, channels))

    def __call__(self, x: mx.array, latents: mx.array) -> mx.array:
        """``[B, F, H, W, C]`` and ``[B, f, h, w, c]``, followed by SiLU."""
        scale, shift = self.norm_layer.affine(x)
        frames, height, width = x.shape[1:4]
        rows, columns = latents.shape[2:4]
        factor, offset = (
            repeat_frames(conv.conv(latents), frames) for conv in (self.conv_y, self.conv_b)
        )
        # Nearest neighbour as broadcasting: each latent pixel meets its block of pixels of x.
        blocks = x.reshape(len(x), frames, rows, height // rows, columns, width // columns, -1)
        scale, shift, factor, offset = (
            a[:, :, :, None, :, None] for a in (scale, shift, factor, offset)
        )
        return _modulated_silu(blocks, scale, shift, factor, offset).reshape(x.shape)


class _Wrapped(nn.Module):
    """Holds a convolution as ``conv``, where the official parameter names have it."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv


@fused
def _scale_shift_silu(x, scale, shift):
    y = x * scale + shift
    return (y * mx.sigmoid(y)).astype(x.dtype)


@fused
def _modulated_silu(x, scale, shift, factor, offset):
    y = (x * scale + shift) * factor + offset
    return (y * mx.sigmoid(y)).astype(x.dtype)


def repeat_frames(x: mx.array, frames: int) -> mx.array:
    """Nearest neighbour in time to `frames` frames.

    An odd number of frames starts with the frame that stands for itself alone: it is not repeated.
    """
    if frames == x.shape[1]:
        return x
    if frames % 2 == 0:
        return mx.repeat(x, frames // x.shape[1], axis=1)
    rest = x[:, 1:]
    return mx.concatenate([x[:, :1], mx.repeat(rest, (frames - 1) // rest.shape[1], axis=1)], 1)


class ResnetBlock3D(nn.Module):
    """Two normalized causal convolutions and a shortcut.

    With `latent_channels` the norms are the decoder's `SpatialNorm3D`, else `GroupNorm`.
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

    def __call__(self, x: mx.array, latents: mx.array | None, cache: TemporalCache) -> mx.array:
        h = self.conv1(self.norm1(x, latents), cache)
        h = self.conv2(self.norm2(h, latents), cache)
        return h + (self.conv_shortcut(x) if "conv_shortcut" in self else x)


def make_norm(groups: int, channels: int, latent_channels: int | None) -> nn.Module:
    if latent_channels is None:
        return GroupNorm(groups, channels)
    return SpatialNorm3D(groups, channels, latent_channels)


class Downsample3D(nn.Module):
    """Halves height and width, and the frames where `compress_time` is set."""

    def __init__(self, channels: int, compress_time: bool):
        super().__init__()
        self.compress_time = compress_time
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def __call__(self, x: mx.array) -> mx.array:
        if self.compress_time:
            x = self._average_pairs(x)
        batch, frames = x.shape[:2]
        x = mx.pad(x.flatten(0, 1), [(0, 0), (0, 1), (0, 1), (0, 0)])
        return self.conv(x).reshape(batch, frames, x.shape[1] // 2, x.shape[2] // 2, -1)

    def _average_pairs(self, x: mx.array) -> mx.array:
        if x.shape[1] == 1:
            return x
        alone = x.shape[1] % 2
        pairs = x[:, alone:].reshape(x.shape[0], -1, 2, *x.shape[2:]).mean(2)
        return mx.concatenate([x[:, :alone], pairs], axis=1) if alone else pairs


class Upsample3D(nn.Module):
    """Doubles height and width, and the frames where `compress_time` is set."""

    def __init__(self, channels: int, compress_time: bool):
        super().__init__()
        self.compress_time = compress_time
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        if self.compress_time:
            x = repeat_frames(x, 2 * x.shape[1] - x.shape[1] % 2)
        batch, frames, height, width, channels = x.shape
        x = x.reshape(batch * frames, height, 1, width, 1, channels)
        x = mx.broadcast_to(x, (batch * frames, height, 2, width, 2, channels))
        x = self.conv(x.reshape(batch * frames, 2 * height, 2 * width, channels))
        return x.reshape(batch, frames, 2 * height, 2 * width, -1)
