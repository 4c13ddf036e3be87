"""Emulates MLX's Metal convolutions on the CPU and prints what Winograd's algorithm costs.

    python tools/checks/winograd.py

On Metal, MLX computes most 3x3 convolutions of the VAE with Winograd's algorithm F(6x6, 3x3) and
stores its intermediate tensors in the dtype of the input, which in 16 bits costs much accuracy. The
environment variable ``MLX_CONV_WINOGRAD=0`` selects the direct kernels. Check this again when an
MLX release changes ``winograd_*`` in mlx/backend/metal/kernels/conv.metal or the selection in
mlx/backend/metal/conv.cpp: matrices, rounding and selection below follow MLX 846d176 (August 2026).

Three comparisons of Winograd with the direct kernels:

1. One convolution, beside the errors that ml-explore/mlx#4242 reports from Macs: 4 images of 64x64,
   352 channels, padding 1. Standard-normal inputs and weights give errors of that size. The largest
   error depends on the seed; the root mean square does not. In float32 the emulation loses less,
   because its matrix products add in blocks; added one after another, they lose 0.0076. On a Mac,
   the table also has the errors of the Mac itself.
2. The bundled demo's VAE decoding 17 frames of 96x96. It has too few channels for Metal to choose
   Winograd; here all of its 3x3 convolutions use it.
3. A decoder of the official width with random weights, for one latent frame of 12x16. Convolutions
   use Winograd where they would at 480x720.

The errors of 2 and 3 are differences from float32.
"""

import argparse
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))

from captions import Combination
from world import render, to_uint8, world_scene

from mlx_cogvideo.checkpoints import DEMO_PATH, load_component, read_config
from mlx_cogvideo.checkpoints.networks import make_network
from mlx_cogvideo.nn.autoencoder import AutoencoderConfig
from mlx_cogvideo.nn.autoencoder.coders import Decoder3D
from mlx_cogvideo.nn.autoencoder.row_strips import ConvCache

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}

PUBLISHED = {
    ("bfloat16", "Winograd"): 42.6,
    ("bfloat16", "direct"): 0.985,
    ("float16", "Winograd"): 5.14,
    ("float16", "direct"): 0.14,
    ("float32", "Winograd"): 0.00693,
    ("float32", "direct"): 0.00085,
}
"""Largest errors in ml-explore/mlx#4242, those in float32 without TF32."""

PUBLISHED_SHAPE = (4, 64, 64, 352)

TILE = 6  # rows and columns of the result that a tile of 8x8 inputs gives

INPUT_TRANSFORM = [
    [1, 0, -5.25, 0, 5.25, 0, -1, 0],
    [0, 1, 1, -4.25, -4.25, 1, 1, 0],
    [0, -1, 1, 4.25, -4.25, -1, 1, 0],
    [0, 0.5, 0.25, -2.5, -1.25, 2, 1, 0],
    [0, -0.5, 0.25, 2.5, -1.25, -2, 1, 0],
    [0, 2, 4, -2.5, -5, 0.5, 1, 0],
    [0, -2, 4, 2.5, -5, -0.5, 1, 0],
    [0, -1, 0, 5.25, 0, -5.25, 0, 1],
]
"""The matrix B^T of the algorithm (arXiv:1509.09308), for the points 0, 1, -1, 2, -2, 1/2, -1/2."""

WEIGHT_TRANSFORM = [
    [1, 0, 0],
    [-2 / 9, -2 / 9, -2 / 9],
    [-2 / 9, 2 / 9, -2 / 9],
    [1 / 90, 1 / 45, 2 / 45],
    [1 / 90, -1 / 45, 2 / 45],
    [32 / 45, 16 / 45, 8 / 45],
    [32 / 45, -16 / 45, 8 / 45],
    [0, 0, 1],
]
"""The matrix G."""

OUTPUT_TRANSFORM = [
    [1, 1, 1, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 1 / 2, -1 / 2, 0],
    [0, 1, 1, 4, 4, 1 / 4, 1 / 4, 0],
    [0, 1, -1, 8, -8, 1 / 8, -1 / 8, 0],
    [0, 1, 1, 16, 16, 1 / 16, 1 / 16, 0],
    [0, 1, -1, 32, -32, 1 / 32, -1 / 32, 1],
]
"""The matrix A^T."""

Pair = int | tuple[int, ...]
Rule = Callable[[tuple[int, ...], tuple[int, ...], Pair], bool]
"""Decides if a 2-D convolution uses Winograd, by the shapes of input and weight, and the stride."""

# Looked up once, because `emulated` replaces them.
_conv2d, _conv3d = mx.conv2d, mx.conv3d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--seeds", type=int, default=5, help="inputs of the single convolution (default: 5)")
    add("--quick", action="store_true", help="skip the decoder of the official width")
    args = parser.parse_args()

    mx.set_default_device(mx.cpu)
    print_one_convolution(args.seeds)
    print_demo()
    if not args.quick:
        print_official_width()


def print_one_convolution(seeds: int) -> None:
    methods = {"Winograd": winograd_conv2d, "direct": partial(direct_conv2d, padding=1)}
    if mx.metal.is_available():
        methods["Winograd, this Mac"] = partial(metal_conv2d, winograd=True)
        methods["direct, this Mac"] = partial(metal_conv2d, winograd=False)
    largest, relative = defaultdict(list), defaultdict(list)
    for seed in range(seeds):
        inputs = published_case(seed)
        for dtype in DTYPES:
            x, weight = (a.astype(DTYPES[dtype]) for a in inputs)
            expected = exact_conv2d(x, weight)
            for method, convolve in methods.items():
                errors = np.array(convolve(x, weight).astype(mx.float32)) - expected
                largest[dtype, method].append(np.abs(errors).max())
                relative[dtype, method].append(errors.std() / expected.std())
    print(f"1. One convolution of 352 channels, {seeds} seeds")
    print(f"{'':30}{'largest error':>20}{'mlx#4242':>12}{'rms / std of result':>22}")
    for (dtype, method), errors in largest.items():
        span = f"{min(errors):.3g} to {max(errors):.3g}"
        published = PUBLISHED.get((dtype, method), "")
        rms = f"{np.mean(relative[dtype, method]):.2g}"
        print(f"{dtype:10}{method:20}{span:>20}{published:>12}{rms:>22}", flush=True)


def print_demo() -> None:
    folder = DEMO_PATH / "vae"
    vae = make_network("vae", read_config(folder / "config.json"))
    vae = load_component(vae, folder, mx.float32)
    scene = world_scene(np.random.default_rng(0), [Combination("red", "circle", "right", "white")])
    clip = mx.array(to_uint8(render(scene)))
    latents = vae.encode(clip).mean
    print("\n2. The demo's VAE, decoding 17 frames of 96x96")
    print_decoders(vae, vae.decode, latents, every_3x3, "PSNR", peak=2)


def print_official_width() -> None:
    config = AutoencoderConfig()
    mx.random.seed(0)
    decoder = Decoder3D(config)
    decoder.update(tree_map(random_weight, decoder.parameters()))
    latents = mx.random.normal((1, 1, 12, 16, config.latent_channels))

    def decode(latents: mx.array) -> mx.array:
        cache = ConvCache(latents.shape[2], evaluate=True)
        return cache.flush(decoder(latents, cache))

    print("\n3. A decoder of the official width, one latent frame of 12x16")
    print_decoders(decoder, decode, latents, partial(winograd_applies, any_size=True), "SNR")


def print_decoders(
    module: nn.Module,
    decode: Callable[[mx.array], mx.array],
    latents: mx.array,
    applies: Rule,
    measure: str,
    peak: float | None = None,
) -> None:
    """Prints how far decoding in 16 bits is from float32.

    Args:
        module: the network that `decode` uses, in float32.
        peak: range of the pixels, which the decibels are relative to. None takes the standard
            deviation of the result instead.
    """
    parameters = module.parameters()
    expected = decode(latents)
    scale = peak or mx.std(expected).item()
    print(f"{'':30}{measure:>10}{'largest error':>16}{'Winograd calls':>17}")
    for dtype in ("bfloat16", "float16"):
        module.update(parameters)
        module.set_dtype(DTYPES[dtype])
        for method, rule in (("Winograd", applies), ("direct", nowhere)):
            with emulated(rule) as calls:
                errors = decode(latents).astype(mx.float32) - expected
            decibels = -10 * math.log10(mx.square(errors / scale).mean().item())
            largest = mx.abs(errors).max().item()
            row = f"{decibels:7.1f} dB{largest:16.4f}{calls['winograd']:17}"
            print(f"{dtype:10}{method:20}{row}", flush=True)


def random_weight(weight: mx.array) -> mx.array:
    """Random values that keep the size of activations; a norm's scale or a bias stays as it is."""
    if weight.ndim == 1:
        return weight
    return mx.random.normal(weight.shape, scale=math.prod(weight.shape[1:]) ** -0.5)


def metal_conv2d(x: mx.array, weight: mx.array, winograd: bool) -> mx.array:
    """Computes a convolution with padding 1 on this Mac's GPU."""
    with mock.patch.dict(os.environ, MLX_CONV_WINOGRAD=str(int(winograd))):
        y = _conv2d(x, weight, padding=1, stream=mx.gpu)
        mx.eval(y)  # MLX reads the variable during the computation
    return y


def winograd_applies(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Pair = 1,
    *,
    any_size: bool = False,
) -> bool:
    """Whether MLX chooses Winograd on Metal for a 2-D convolution with dilation and groups 1.

    MLX also requires memory for the intermediate tensors, which is assumed here.

    Args:
        x_shape: ``[N, H, W, C]``, before padding.
        weight_shape: ``[O, kH, kW, C]``.
        any_size: ignore the lower limit on N·H·W, so that small maps behave like large ones.
    """
    batch, height, width, channels = x_shape
    outputs = weight_shape[0]
    return (
        every_3x3(x_shape, weight_shape, stride)
        and channels % 32 == 0
        and outputs % 32 == 0
        and channels + outputs >= 256
        and (any_size or batch * height * width >= 4096)
    )


def every_3x3(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], stride: Pair = 1) -> bool:
    """Chooses Winograd for every convolution that it can compute."""
    return tuple(weight_shape[1:3]) == (3, 3) and _pair(stride) == (1, 1)


def nowhere(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], stride: Pair = 1) -> bool:
    """Never chooses Winograd, as with ``MLX_CONV_WINOGRAD=0``."""
    return False


def winograd_conv2d(x: mx.array, weight: mx.array, padding: Pair = 1) -> mx.array:
    """Computes a 3x3 convolution as Metal's Winograd kernels do, with stride 1.

    Transforms and sums over channels are in float32. The transformed weight, the transformed input,
    the sums and the result are rounded to the dtype of `x`.

    Args:
        x: ``[N, H, W, C]``.
        weight: ``[O, 3, 3, C]``.
    """
    dtype = x.dtype

    def rounded(a: mx.array) -> mx.array:
        return a.astype(dtype).astype(mx.float32)

    batch, height, width, channels = x.shape
    outputs = weight.shape[0]
    above, left = _pair(padding)
    out_height, out_width = height + 2 * above - 2, width + 2 * left - 2
    rows, columns = math.ceil(out_height / TILE), math.ceil(out_width / TILE)
    tiles = batch * rows * columns
    with mx.stream(mx.cpu):
        b, g, a = map(mx.array, (INPUT_TRANSFORM, WEIGHT_TRANSFORM, OUTPUT_TRANSFORM))

        u = g @ weight.astype(mx.float32).reshape(outputs, 3, -1)
        u = g @ u.reshape(outputs * 8, 3, channels)
        u = rounded(u).reshape(outputs, 64, channels).transpose(1, 2, 0)

        below = TILE * rows + 2 - height - above
        right = TILE * columns + 2 - width - left
        x = mx.pad(x.astype(mx.float32), [(0, 0), (above, below), (left, right), (0, 0)])
        row, column = x.shape[2] * channels, channels
        d = mx.as_strided(
            x,
            (batch, rows, columns, 8, 8, channels),
            (x.shape[1] * row, TILE * row, TILE * column, row, column, 1),
        )
        v = b @ d.reshape(tiles, 8, -1)
        v = b @ v.reshape(tiles * 8, 8, channels)
        v = rounded(v).reshape(tiles, 64, channels).transpose(1, 0, 2)

        m = rounded(v @ u).transpose(1, 0, 2)
        y = a @ m.reshape(tiles * 8, 8, outputs)
        y = a @ y.reshape(tiles, 8, -1)
        y = y.reshape(batch, rows, columns, TILE, TILE, outputs).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, rows * TILE, columns * TILE, outputs)
        return y[:, :out_height, :out_width].astype(dtype)


def direct_conv2d(x: mx.array, weight: mx.array, *args, **kwargs) -> mx.array:
    """Computes ``mx.conv2d`` as Metal's direct kernels do: summed in float32 and rounded once."""
    return _rounded_once(_conv2d, x, weight, *args, **kwargs)


def winograd_conv3d(
    x: mx.array,
    weight: mx.array,
    padding: tuple[int, int, int] = (0, 1, 1),
    applies: Rule = winograd_applies,
) -> mx.array:
    """Computes a causal convolution as Metal does: a 2-D convolution per frame of the kernel.

    The results are added in the dtype of `x`.

    Args:
        x: ``[1, F, H, W, C]``.
        weight: ``[O, kF, kH, kW, C]``.
        padding: for frames (must be 0), rows and columns.
        applies: chooses Winograd for the 2-D convolutions, or the direct kernels.
    """
    if len(x) != 1 or padding[0]:
        raise ValueError("only one clip without padding in time is emulated")
    frames = x.shape[1] - weight.shape[1] + 1

    def convolve(x: mx.array, weight: mx.array) -> mx.array:
        chosen = applies(x.shape, weight.shape, 1)
        return (winograd_conv2d if chosen else direct_conv2d)(x, weight, padding=padding[1:])

    with mx.stream(mx.cpu):
        parts = [convolve(x[0, i : i + frames], weight[:, i]) for i in range(weight.shape[1])]
        return sum(parts[1:], parts[0])[None]


@contextmanager
def emulated(
    applies: Rule = winograd_applies, *, everywhere: bool = False
) -> Iterator[Counter[str]]:
    """Replaces ``mx.conv2d`` and ``mx.conv3d`` with what Metal would compute.

    Args:
        applies: chooses the convolutions that use Winograd; with `nowhere`, all are direct.
        everywhere: use Winograd for every 3x3 convolution of stride 1 instead.

    Yields:
        The number of 2-D convolutions so far under "winograd" and "direct".
    """
    calls: Counter[str] = Counter()
    rule = every_3x3 if everywhere else applies

    def counted(*shapes) -> bool:
        chosen = rule(*shapes)
        calls["winograd" if chosen else "direct"] += 1
        return chosen

    def conv2d(x, weight, stride=1, padding=0, dilation=1, groups=1, *, stream=None):
        plain = _pair(dilation) == (1, 1) and groups == 1
        if plain and counted(x.shape, weight.shape, stride):
            return winograd_conv2d(x, weight, padding)
        return direct_conv2d(x, weight, stride, padding, dilation, groups)

    def conv3d(x, weight, stride=1, padding=0, dilation=1, groups=1, *, stream=None):
        padding = (padding,) * 3 if isinstance(padding, int) else tuple(padding)
        plain = stride in (1, (1, 1, 1)) and dilation in (1, (1, 1, 1)) and groups == 1
        if plain and len(x) == 1 and padding[0] == 0:
            return winograd_conv3d(x, weight, padding, counted)
        return _rounded_once(_conv3d, x, weight, stride, padding, dilation, groups)

    with mock.patch.multiple(mx, conv2d=conv2d, conv3d=conv3d):
        yield calls


def _rounded_once(convolve: Callable, x: mx.array, weight: mx.array, *args, **kwargs) -> mx.array:
    with mx.stream(mx.cpu):
        y = convolve(x.astype(mx.float32), weight.astype(mx.float32), *args, **kwargs)
        return y.astype(x.dtype)


def _pair(value: Pair) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def published_case(seed: int = 0) -> tuple[mx.array, mx.array]:
    """Makes input and weight in float32, of the size in ml-explore/mlx#4242."""
    channels = PUBLISHED_SHAPE[-1]
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(PUBLISHED_SHAPE, np.float32)
    return mx.array(x), mx.array(rng.standard_normal((channels, 3, 3, channels), np.float32))


def exact_conv2d(x: mx.array, weight: mx.array) -> np.ndarray:
    """Computes a 3x3 convolution with padding 1 in float64."""
    x, weight = (np.array(a.astype(mx.float32)).astype(np.float64) for a in (x, weight))
    batch, height, width, channels = x.shape
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    y = np.zeros((batch * height * width, len(weight)))
    for i in range(3):
        for j in range(3):
            part = padded[:, i : i + height, j : j + width]
            y += part.reshape(-1, channels) @ weight[:, i, j].T
    return y.reshape(batch, height, width, -1)


if __name__ == "__main__":
    main()
