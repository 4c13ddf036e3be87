"""GELU by its tanh formula, and its gradient, each in one pass over memory on a GPU."""

import math

import mlx.core as mx

from .fusion import fused
from .portions import LAZY, Portions

# (1 + tanh u) / 2 is sigmoid(2u), which costs less and loses nothing where tanh nears -1. 2u is
# SCALE · (x + CUBIC · x³).
SCALE = math.sqrt(8 / math.pi)
CUBIC = 0.044715


def gelu_tanh(x: mx.array, work: Portions = LAZY) -> mx.array:
    """``x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2``, computed in float32 (arXiv:1606.08415)."""
    # A function with a gradient of its own holds `x`, where the result takes its memory otherwise.
    return _gelu(x) if work.evaluate else _with_gradient(x)


@fused
def _gelu(x):
    wide = x.astype(mx.float32)
    return (wide * mx.sigmoid(wide * (SCALE + SCALE * CUBIC * wide * wide))).astype(x.dtype)


@fused
def _gradient(x, cotangent):
    wide = x.astype(mx.float32)
    square = wide * wide
    share = mx.sigmoid(wide * (SCALE + SCALE * CUBIC * square))
    slope = SCALE + 3 * SCALE * CUBIC * square
    gradient = share + wide * share * (1 - share) * slope
    return (gradient * cotangent.astype(mx.float32)).astype(x.dtype)


@mx.custom_function
def _with_gradient(x):
    return _gelu(x)


@_with_gradient.vjp
def _vjp(x, cotangent, _):
    return _gradient(x, cotangent)
