"""Stochastic rounding of float32 to 16 bits.

A value between two neighbours becomes the upper one with the probability of its distance from the
lower one. Updates that are smaller than half the distance of two weights then count on average;
rounding to nearest would lose all of them.

The random bits are a hash of a value's place, the step and the tensor's number. Nothing is stored,
and a resumed training gives the same weights.
"""

import mlx.core as mx

from ..nn.fusion import fused

# Odd constants whose multiples spread over all 32 bits. The last two, with their shifts, are from
# Ellis and Wellons, "Hash Prospector", https://github.com/skeeto/hash-prospector.
SPREAD, FIRST, SECOND = 0x9E3779B9, 0x7FEB352D, 0x846CA68B

INFINITY = 0x7F800000
"""The bits of float32's infinity; those of NaN are larger."""

SMALLEST_NORMAL = 2.0**-14
"""float16's smallest normal number. The numbers below it are 2**-24 apart, as those above are."""


def round_stochastically(x: mx.array, dtype: mx.Dtype, seed: mx.array) -> mx.array:
    """Rounds float32 to bfloat16 or float16, to one of the two neighbours of each value.

    Values that `dtype` holds exactly stay as they are, as do infinity and NaN. A value between the
    largest finite one and the next power of two becomes either of them, and the power is infinity:
    in float16, 65504 and 65536.

    Args:
        x: of up to 2**31 elements.
        dtype: float32 returns `x`.
        seed: with a value's place it gives the same random bits on each call and device.
    """
    if dtype == mx.float32:
        return x
    flat = x.reshape(-1, x.shape[-1] if x.ndim else 1)
    rounded = _bfloat16 if dtype == mx.bfloat16 else _float16
    return rounded(flat, seed).reshape(x.shape)


def _bfloat16(x: mx.array, seed: mx.array) -> mx.array:
    return _upper_half(x.view(mx.uint32), seed).view(mx.bfloat16)


def _float16(x: mx.array, seed: mx.array) -> mx.array:
    bits = _above_subnormal(x).view(mx.uint32)
    return _from_above_subnormal(_without_13_bits(bits, seed).view(mx.float32), x)


@fused
def _upper_half(bits: mx.array, seed: mx.array) -> mx.array:
    return ((bits + _random_bits(bits, seed, 16)) >> 16).astype(mx.uint16)


@fused
def _without_13_bits(bits: mx.array, seed: mx.array) -> mx.array:
    return (bits + _random_bits(bits, seed, 13)) & _word(-(2**13))


@fused
def _above_subnormal(x: mx.array) -> mx.array:
    return x + _offset(x)


@fused
def _from_above_subnormal(rounded: mx.array, x: mx.array) -> mx.array:
    return (rounded - _offset(x)).astype(mx.float16)


def _offset(x: mx.array) -> mx.array:
    """Moves float16's subnormal numbers to normal ones that are as far apart."""
    offset = mx.where(x < 0, -SMALLEST_NORMAL, SMALLEST_NORMAL)
    return mx.where(mx.abs(x) < SMALLEST_NORMAL, offset, 0)


def _random_bits(bits: mx.array, seed: mx.array, count: int) -> mx.array:
    """Random numbers of `count` bits for the values ``[rows, columns]`` with these bits.

    They are 0 for infinity and NaN, whose bits must not overflow.
    """
    # MLX fuses chains of up to 11 operations. This chain, and the rounding after it, is as long:
    # another operation would write all random words to memory.
    rows, columns = bits.shape
    row = mx.arange(rows, dtype=mx.uint32)[:, None] * _word(SPREAD * columns) + seed
    x = row + mx.arange(columns, dtype=mx.uint32) * _word(SPREAD)
    x = (x ^ (x >> 16)) * _word(FIRST)
    is_finite = (bits & _word(INFINITY)) < _word(INFINITY)
    x = (x ^ (x >> 15)) * mx.where(is_finite, _word(SECOND), _word(0))
    return x >> (32 - count)


def seed(step: int, number: int) -> mx.array:
    """The seed of the random bits of a tensor in a step, uint32 ``[]``."""
    return _word(_hash(_hash(step) + number))


def _hash(x: int) -> int:
    """`_random_bits` of one number, and all 32 of them."""
    x = (SPREAD * x + SPREAD) % 2**32
    x = (x ^ (x >> 16)) * FIRST % 2**32
    x = (x ^ (x >> 15)) * SECOND % 2**32
    return x ^ (x >> 16)


def _word(x: int) -> mx.array:
    return mx.array(x % 2**32, mx.uint32)
