"""Layers of the VAE equal the plain formulas that they compute in fewer passes."""

import re

import mlx.core as mx
import numpy as np
import pytest
from support import relative_error

from mlx_cogvideo.nn.autoencoder import norms
from mlx_cogvideo.nn.autoencoder.layers import Upsample3D
from mlx_cogvideo.nn.autoencoder.norms import GroupNorm, SpatialNorm3D
from mlx_cogvideo.nn.autoencoder.row_strips import ConvCache


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def upsampler(channels: int, compress_time: bool) -> Upsample3D:
    layer = Upsample3D(channels, compress_time)
    layer.conv.weight = normal(*layer.conv.weight.shape, seed=1) / (9 * channels) ** 0.5
    layer.conv.bias = normal(channels, seed=2)
    return layer


def repeated_and_convolved(x: mx.array, weight: mx.array, bias: mx.array, compress_time: bool):
    """What diffusers computes: pixels and frames are repeated, then convolved."""
    frames = list(range(x.shape[1]))
    if compress_time:
        alone = len(frames) % 2
        frames = frames[:alone] + [i for i in frames[alone:] for _ in range(2)]
    x = mx.repeat(mx.repeat(x[:, mx.array(frames)], 2, axis=2), 2, axis=3)
    y = mx.conv2d(x.flatten(0, 1), weight, padding=1) + bias
    return y.reshape(*x.shape[:2], *y.shape[1:])


def strips_of(x: mx.array, edges: list[int]) -> list[mx.array]:
    return mx.split(x, edges, axis=2)


@pytest.mark.parametrize("compress_time", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (6, 4)], ids=str)
def test_upsampling_repeats_and_convolves(compress_time, frames, size):
    layer, x = upsampler(16, compress_time), normal(2, frames, *size, 16)
    expected = repeated_and_convolved(x, layer.conv.weight, layer.conv.bias, compress_time)
    (made,) = layer([x], ConvCache(size[0]))
    assert made.shape == expected.shape
    assert relative_error(made, expected) < 2e-6


@pytest.mark.parametrize("compress_time", [False, True])
@pytest.mark.parametrize("edges", [[1], [2, 3], [1, 2, 3, 4, 5, 6]], ids=str)
def test_upsampling_in_strips_repeats_and_convolves(compress_time, edges):
    layer, x = upsampler(16, compress_time), normal(1, 3, 7, 5, 16)
    expected = repeated_and_convolved(x, layer.conv.weight, layer.conv.bias, compress_time)
    # Few enough elements for as many strips as rows.
    made = layer(strips_of(x, edges), ConvCache(7, strip_elements=1))
    assert len(made) == 7 and all(strip.shape[2] == 2 for strip in made)
    assert relative_error(mx.concatenate(made, axis=2), expected) < 2e-6


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_upsampling_in_16_bits_loses_little_more_than_repeating_and_convolving(dtype):
    layer, x = upsampler(64, False), normal(1, 2, 12, 12, 64).astype(dtype)
    layer.set_dtype(dtype)
    weights = layer.conv.weight, layer.conv.bias
    exact = repeated_and_convolved(*(a.astype(mx.float32) for a in (x, *weights)), False)
    plain = relative_rms(repeated_and_convolved(x, *weights, False), exact)
    (made,) = layer([x], ConvCache(12))
    assert made.dtype == dtype
    # Sums of weights are rounded once more. Measured 1.15 times the error.
    assert relative_rms(made, exact) < 1.25 * plain


def relative_rms(x: mx.array, expected: mx.array) -> float:
    x, expected = (np.array(a.astype(mx.float32), np.float64) for a in (x, expected))
    return np.sqrt(np.square(x - expected).mean() / np.square(expected).mean())


@pytest.mark.parametrize("compress_time", [False, True])
def test_gradients_of_upsampling_are_those_of_repeating_and_convolving(compress_time):
    layer, x = upsampler(8, compress_time), normal(1, 3, 3, 4, 8)
    (made,) = layer([x], ConvCache(3))
    towards = normal(*made.shape, seed=3)

    def through_layer(x, weight, bias):
        layer.conv.weight, layer.conv.bias = weight, bias
        return (layer([x], ConvCache(3))[0] * towards).sum()

    def through_formula(*arrays):
        return (repeated_and_convolved(*arrays, compress_time) * towards).sum()

    arrays = x, layer.conv.weight, layer.conv.bias
    made, expected = (mx.grad(f, (0, 1, 2))(*arrays) for f in (through_layer, through_formula))
    for a, b in zip(made, expected, strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("edges", [[], [2, 4]], ids=["whole", "strips"])
@pytest.mark.parametrize("latents", [None, normal(1, 3, 3, 2, 4, seed=5)], ids=["plain", "spatial"])
def test_a_norm_adds_a_bias_before(latents, edges):
    x, bias = normal(1, 3, 6, 4, 8), 10 * normal(8, seed=1)
    norm = GroupNorm(2, 8) if latents is None else SpatialNorm3D(2, 8, 4)
    (norm if latents is None else norm.norm_layer).weight = normal(8, seed=2)
    expected = list(norm(strips_of(x + bias, edges), latents, ConvCache(3)))
    made = list(norm(strips_of(x, edges), latents, ConvCache(3), bias))
    for a, b in zip(made, expected, strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("parts", [1, 4, 8])
def test_one_fused_kernel_makes_both_sums_of_a_map(parts, tmp_path):
    about = mx.zeros((1, 1, 1, 16))
    maps = [mx.zeros((1, 2, 3, 16), mx.bfloat16) for _ in range(parts)]
    mx.eval(about, maps)
    sums = mx.compile(norms._powers.__wrapped__)(about, *maps)
    mx.export_to_dot(str(tmp_path / "graph.dot"), *sums)
    operations = re.findall(r'label ="(\w+)"', (tmp_path / "graph.dot").read_text())
    assert len(operations) == 1 and operations[0].startswith("Compiled")
