"""Compares the GPU kernels of official models, in their widths, with float32 on the CPU.

The bundled demo is too narrow for some of them: MLX chooses other kernels for convolutions of 128
channels and more, and only long attention is divided.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from ..nn.attention import attention
from ..nn.autoencoder.convolutions import CausalConv3d
from ..nn.autoencoder.layers import Upsample3D
from ..nn.autoencoder.row_strips import ConvCache
from ..nn.backend import disable_winograd, on_gpu

FRAMES, SIDE = 5, 48
HEADS, TOKENS, HEAD_DIM = 48, 9000, 64
SAMPLED = 64
"""Number of queries per head that are compared, with all keys."""

SAMPLED_ROWS = 18
"""Number of rows that are compared, from the top of a convolution's last frame.

They are three of Winograd's tiles, including the edge."""

LIMITS = {"float32": 90.0, "float16": 55.0, "bfloat16": 40.0}
"""Smallest signal-to-noise ratios in dB that pass.

An NVIDIA H200 reaches at least 114, 70 and 52. Convolutions through Metal's Winograd kernels would
reach 42 in float16 and 25 in bfloat16."""


@dataclass(frozen=True)
class Kernel:
    """The precision of a kernel: its signal-to-noise ratio in dB, and the smallest that passes."""

    stage: str
    dtype: str
    snr_db: float
    limit_db: float

    @property
    def right(self) -> bool:
        return self.snr_db >= self.limit_db  # False for NaN


def check_kernels(dtypes: dict[str, mx.Dtype]) -> Iterator[Kernel]:
    """Compares convolutions and attention in each dtype; yields nothing without a GPU.

    Needs 2 GiB, and less than a minute besides the compilation of kernels on first use.
    """
    if not on_gpu():
        return
    for name, dtype in dtypes.items():
        yield from check_convolutions(name, dtype)
        yield _attention(name, dtype)


def check_convolutions(name: str, dtype: mx.Dtype) -> Iterator[Kernel]:
    """Compares convolutions in the widths of the official VAE, as its layers compute them."""
    disable_winograd()
    for inputs, outputs in ((128, 128), (256, 128)):
        layer = _random(CausalConv3d(inputs, outputs), dtype)
        x = _normal((1, FRAMES, SIDE, SIDE, inputs), dtype, 2)
        (made,) = layer([x], ConvCache(SIDE))
        stage = f"convolution {inputs} -> {outputs}, 3-D"
        made = made[:, -1:, :SAMPLED_ROWS]
        yield _compared(stage, name, made, lambda x=x, layer=layer: _causal(x, layer))
    layer = _random(Upsample3D(256, compress_time=False), dtype)
    x = _normal((1, FRAMES, SIDE, SIDE, 256), dtype, 2)
    (made,) = layer([x], ConvCache(SIDE))
    made = made[:, -1:, :SAMPLED_ROWS]
    yield _compared("convolution 256 -> 256, 2-D", name, made, lambda: _enlarged(x, layer))


def _attention(name: str, dtype: mx.Dtype) -> Kernel:
    q, k, v = (_normal((1, HEADS, TOKENS, HEAD_DIM), dtype, seed) for seed in range(3))
    # Rows from all over: when the work is divided, a single part may be wrong.
    rows = mx.arange(SAMPLED) * (TOKENS - 1) // (SAMPLED - 1)
    made = attention(q, k, v)[:, :, rows]

    def expected() -> mx.array:
        queries, keys, values = (a.astype(mx.float32) for a in (q[:, :, rows], k, v))
        scores = queries @ keys.swapaxes(2, 3) / math.sqrt(HEAD_DIM)
        return mx.softmax(scores, axis=-1, precise=True) @ values

    return _compared(f"attention, {HEADS} heads, {TOKENS} tokens", name, made, expected)


def _compared(stage: str, dtype: str, made: mx.array, expected: Callable[[], mx.array]) -> Kernel:
    """Compares `made` with `expected`, which is computed on the CPU in float32."""
    mx.eval(made)
    with mx.stream(mx.cpu):
        wanted = expected()
        noise = mx.square(made.astype(mx.float32) - wanted).mean()
        ratio = (mx.square(wanted).mean() / mx.maximum(noise, 1e-30)).item()
    return Kernel(stage, dtype, round(10 * math.log10(ratio), 1), LIMITS[dtype])


def _causal(x: mx.array, layer: CausalConv3d) -> mx.array:
    """The layer's output for the first rows of the last frame, which depend on earlier frames."""
    x = x[:, -1 - layer.history :, : SAMPLED_ROWS + 1]
    return _taps(x.astype(mx.float32), layer.conv.weight, layer.conv.bias)


def _enlarged(x: mx.array, layer: Upsample3D) -> mx.array:
    x = x[:, -1:, : SAMPLED_ROWS // 2 + 1]
    x = mx.repeat(mx.repeat(x, 2, axis=2), 2, axis=3)[:, :, : SAMPLED_ROWS + 1]
    return _taps(x.astype(mx.float32), layer.conv.weight[:, None], layer.conv.bias)


def _taps(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """A convolution as a sum of matrix products, one for each of its taps.

    Args:
        x: ``[1, frames, height, width, inputs]``. It is padded with zeros above, left and right;
            its last row only contributes to the one before it.
        weight: ``[outputs, depth, 3, 3, inputs]``.
    """
    weight, (depth, rows, columns) = weight.astype(mx.float32), weight.shape[1:4]
    x = mx.pad(x, [(0, 0), (0, 0), (1, 0), (1, 1), (0, 0)])
    frames, height, width = x.shape[1] - depth + 1, x.shape[2] - 2, x.shape[3] - 2
    total = bias.astype(mx.float32)
    for t in range(depth):
        for i in range(rows):
            for j in range(columns):
                part = x[:, t : t + frames, i : i + height, j : j + width]
                total = total + part @ weight[:, t, i, j].T
                mx.eval(total)
    return total


def _random(layer, dtype: mx.Dtype):
    """The layer with random weights that preserve the scale of its input."""
    shape = layer.conv.weight.shape
    fan_in = math.prod(shape[1:])
    layer.conv.weight = (_normal(shape, mx.float32, 0) / fan_in**0.5).astype(dtype)
    layer.conv.bias = _normal(shape[:1], dtype, 1)
    return layer


def _normal(shape: tuple[int, ...], dtype: mx.Dtype, seed: int) -> mx.array:
    """Random numbers that are the same for every device: they are computed on the CPU."""
    with mx.stream(mx.cpu):
        x = mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)
        mx.eval(x)
    return x
