"""The kernels that official models use on a GPU, in their widths, against float32 on the CPU.

The bundled demo is too narrow for some of them: MLX chooses other ones for convolutions of 128
channels and more, and attention is divided only where it is long.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from ..nn.attention import attention
from ..nn.autoencoder.layers import CausalConv3d, Upsample3D
from ..nn.autoencoder.row_strips import ConvCache
from ..nn.backend import disable_winograd, on_gpu

FRAMES, SIDE = 5, 48
HEADS, TOKENS, HEAD_DIM = 48, 9000, 64
SAMPLED = 64
"""Queries of each head that are compared, with all keys."""

SAMPLED_ROWS = 18
"""Of the last frame of a convolution, from the top: three of Winograd's tiles, with the edge."""

LIMITS = {"float32": 90.0, "float16": 55.0, "bfloat16": 40.0}
"""Least signal-to-noise ratios in dB. An NVIDIA H200 has 114, 70 and 52 at least; convolutions
through Metal's Winograd kernels would have 42 in float16 and 25 in bfloat16."""


@dataclass(frozen=True)
class Kernel:
    """How exact a kernel is: its signal-to-noise ratio in dB, and the least that it may be."""

    stage: str
    dtype: str
    snr_db: float
    limit_db: float

    @property
    def right(self) -> bool:
        return self.snr_db >= self.limit_db  # not so if it is NaN


def check_kernels(dtypes: dict[str, mx.Dtype]) -> Iterator[Kernel]:
    """Compares convolutions and attention, in each dtype. Nothing where there is no GPU.

    Takes 2 GiB, and less than a minute beside what the GPU compiles at first use.

    Args:
        dtypes: by their names.
    """
    if not on_gpu():
        return
    for name, dtype in dtypes.items():
        yield from check_convolutions(name, dtype)
        yield _attention(name, dtype)


def check_convolutions(name: str, dtype: mx.Dtype) -> Iterator[Kernel]:
    """The VAE's convolutions in widths of the official one, as its layers compute them."""
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
    # From all parts: what divides the work may be wrong in one of them.
    rows = mx.arange(SAMPLED) * (TOKENS - 1) // (SAMPLED - 1)
    made = attention(q, k, v)[:, :, rows]

    def expected() -> mx.array:
        queries, keys, values = (a.astype(mx.float32) for a in (q[:, :, rows], k, v))
        scores = queries @ keys.swapaxes(2, 3) / math.sqrt(HEAD_DIM)
        return mx.softmax(scores, axis=-1, precise=True) @ values

    return _compared(f"attention, {HEADS} heads, {TOKENS} tokens", name, made, expected)


def _compared(stage: str, dtype: str, made: mx.array, expected: Callable[[], mx.array]) -> Kernel:
    """Evaluates both; `expected` on the CPU, in float32."""
    mx.eval(made)
    with mx.stream(mx.cpu):
        wanted = expected()
        noise = mx.square(made.astype(mx.float32) - wanted).mean()
        ratio = (mx.square(wanted).mean() / mx.maximum(noise, 1e-30)).item()
    return Kernel(stage, dtype, round(10 * math.log10(ratio), 1), LIMITS[dtype])


def _causal(x: mx.array, layer: CausalConv3d) -> mx.array:
    """What the layer makes of the last frame's first rows: it sees the frames before it."""
    x = x[:, -1 - layer.history :, : SAMPLED_ROWS + 1]
    return _taps(x.astype(mx.float32), layer.conv.weight, layer.conv.bias)


def _enlarged(x: mx.array, layer: Upsample3D) -> mx.array:
    x = x[:, -1:, : SAMPLED_ROWS // 2 + 1]
    x = mx.repeat(mx.repeat(x, 2, axis=2), 2, axis=3)[:, :, : SAMPLED_ROWS + 1]
    return _taps(x.astype(mx.float32), layer.conv.weight[:, None], layer.conv.bias)


def _taps(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """A convolution as the sum of a product for each of its taps, which needs no kernel of its own.

    Args:
        x: ``[1, frames, height, width, inputs]``. Zeros are added to it above, left and right, and
            the last row is only seen by the one before it.
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
    """The layer with weights that keep the size of what goes through."""
    shape = layer.conv.weight.shape
    fan_in = math.prod(shape[1:])
    layer.conv.weight = (_normal(shape, mx.float32, 0) / fan_in**0.5).astype(dtype)
    layer.conv.bias = _normal(shape[:1], dtype, 1)
    return layer


def _normal(shape: tuple[int, ...], dtype: mx.Dtype, seed: int) -> mx.array:
    """The same numbers on every device, computed on the CPU."""
    with mx.stream(mx.cpu):
        x = mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)
        mx.eval(x)
    return x
