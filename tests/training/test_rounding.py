"""Stochastic rounding: right on average, repeatable, and exact where 16 bits are enough."""

import mlx.core as mx
import numpy as np
import pytest
from support import needs_compiler

from mlx_cogvideo.nn import fusion
from mlx_cogvideo.training.rounding import round_stochastically, seed

TYPES = pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])


def rounded(x: mx.array, dtype: mx.Dtype, step: int = 0, number: int = 0) -> np.ndarray:
    result = round_stochastically(x, dtype, seed(step, number))
    assert result.dtype == dtype and result.shape == x.shape
    return np.array(result.astype(mx.float32))


def units(x: np.ndarray, dtype: mx.Dtype) -> np.ndarray:
    """The distance of the two neighbours of each value."""
    bits, smallest = (7, 2.0**-133) if dtype == mx.bfloat16 else (10, 2.0**-24)
    return np.maximum(2.0 ** (np.frexp(x)[1] - 1 - bits), smallest)


# The smallest scale makes subnormal numbers of float16.
@TYPES
@pytest.mark.parametrize("scale", [1, 0.02, 1e-6])
def test_the_mean_error_is_0_and_each_value_becomes_a_neighbour(dtype, scale):
    x = scale * mx.random.normal((400, 300), key=mx.random.key(1))
    error = (rounded(x, dtype) - np.array(x)) / units(np.array(x), dtype)
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(error.size)
    assert (np.abs(error) < 1).all()
    # A value is rounded away from its nearest neighbour with this probability on average.
    assert (np.abs(error) > 0.5).mean() == pytest.approx(0.25, abs=0.01)


@TYPES
def test_small_updates_add_up(dtype):
    weight = mx.full((1000,), 0.02).astype(dtype)
    first = weight.astype(mx.float32).mean().item()
    nearest = weight
    for step in range(2000):
        weight = round_stochastically(weight.astype(mx.float32) + 1e-6, dtype, seed(step, 0))
        nearest = (nearest.astype(mx.float32) + 1e-6).astype(dtype)
        mx.eval(weight, nearest)
    assert nearest.astype(mx.float32).mean().item() == first
    assert weight.astype(mx.float32).mean().item() - first == pytest.approx(0.002, rel=0.02)


@TYPES
def test_values_of_16_bits_stay(dtype):
    bits = mx.arange(2**16).astype(mx.uint16)
    x = bits.view(dtype).astype(mx.float32)
    assert np.array_equal(rounded(x, dtype), np.array(x), equal_nan=True)
    full = mx.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], mx.uint32).view(mx.float32)
    assert np.isnan(rounded(full, dtype)).all()


def test_only_values_above_the_largest_become_infinite():
    x = mx.full((4000,), 65528.0)  # three quarters of the way from 65504 to 65536
    assert np.isinf(rounded(x, mx.float16)).mean() == pytest.approx(0.75, abs=0.03)
    below = 65504 - mx.random.uniform(shape=(4000,), high=100, key=mx.random.key(0))
    assert np.isfinite(rounded(below, mx.float16)).all()


@TYPES
def test_steps_and_tensors_have_their_own_random_bits(dtype):
    unit = 2.0**-7 if dtype == mx.bfloat16 else 2.0**-10
    x = mx.full((300, 400), 1 + unit / 2)
    up = {at: rounded(x, dtype, *at) > 1 for at in [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0)]}
    assert (up[0, 0] == (rounded(x, dtype) > 1)).all()
    for at, each in up.items():
        assert each.mean() == pytest.approx(0.5, abs=0.006)  # four standard errors
        assert at == (0, 0) or (each == up[0, 0]).mean() == pytest.approx(0.5, abs=0.006)
    rows = up[0, 0].reshape(300, 400)
    for shift, axis in ((1, 0), (1, 1), (7, 1), (64, 1)):
        assert (np.roll(rows, shift, axis) == rows).mean() == pytest.approx(0.5, abs=0.006)


@needs_compiler
@TYPES
def test_compiled_rounding_has_the_same_bits(monkeypatch, dtype):
    x = mx.random.normal((37, 53), key=mx.random.key(2))
    expected = rounded(x, dtype, 3, 5)
    monkeypatch.setattr(fusion, "on_gpu", lambda: True)
    assert (rounded(x, dtype, 3, 5) == expected).all()
