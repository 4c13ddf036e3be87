"""The VAE's convolutions in space and time. They take and return strips of rows."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from ..backend import kernels
from ..fusion import fused
from .row_strips import ConvCache, RowStrips, check_size, with_halo


class CausalConv3d(nn.Module):
    """3x3x3 convolution that sees the current frame and the two before it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__()
        self.history = kernel_size - 1
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size)

    def __call__(
        self,
        strips: Iterable[mx.array],
        cache: ConvCache,
        residual: RowStrips | None = None,
        biased: bool = True,
    ) -> Iterator[mx.array]:
        """Yields the strips of the result, each added to its strip of `residual`.

        Args:
            biased: add the bias, also if there is no residual. A norm that follows can add it for
                free.
        """
        longer = (
            cache.prepend((id(self), i), strip, self.history) for i, strip in enumerate(strips)
        )
        for i, (strip, padding) in enumerate(with_halo(longer, cache)):
            x, weight = _padded(check_size(strip)), _padded(self.conv.weight)
            convolve = partial(mx.conv3d, padding=(0, padding, 1))
            y = convolve_in_kernels(convolve, x, weight, axis=1, history=self.history)
            if residual is not None:
                y = add(residual[i], y, self.conv.bias)
            elif biased:
                y = add(y, self.conv.bias)
            yield cache.push(check_size(y))


@fused
def add(first, *others):
    """The sum of arrays, from left to right."""
    return sum(others, first)


def convolve_in_kernels(
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
