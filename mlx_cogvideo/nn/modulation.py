"""The transformer's layer norms, and AdaLN-zero (arXiv:2212.09748) over text and video tokens.

This is the only place that chooses between MLX's own operations and a kernel of the device. The
kernels have no gradient: they are used within a schedule that evaluates. A lazy graph, whose
gradients may be taken, uses MLX's operations.

In 16 bits a modulated norm rounds twice, no more often than PyTorch's with its modulation. Given a
weight and a bias, ``mx.fast.layer_norm`` rounds up to three times by itself, on every device: the
normalized features, the product and the sum. Here it only normalizes. One elementwise pass does the
rest in float32, with a weight and a bias into which the modulation is folded; nothing as large as
the tokens is stored in float32 on a GPU.
"""

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from . import cuda
from .eval_schedule import LAZY, EvalSchedule
from .fusion import fused
from .positions import Rotation, rotate


class Modulation(NamedTuple):
    """Six vectors of AdaLN-zero, ``[batch, 1, dim]`` each, and all of them side by side."""

    vectors: mx.array
    shift: mx.array
    scale: mx.array
    gate: mx.array
    text_shift: mx.array
    text_scale: mx.array
    text_gate: mx.array

    @property
    def gates(self) -> tuple[mx.array, mx.array]:
        """The gates of video rows and of text rows, for `gated_residual`."""
        return self.gate, self.text_gate


class CogVideoXLayerNormZero(nn.Module):
    """Normalizes the joint sequence and modulates text and video rows by different amounts.

    One linear layer makes six vectors from the time embedding, in this order: shift, scale and
    gate of the video rows, shift, scale and gate of the text rows.
    """

    def __init__(self, time_dim: int, dim: int, eps: float):
        super().__init__()
        self.linear = nn.Linear(time_dim, 6 * dim)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def modulation(self, temb: mx.array) -> Modulation:
        """The six vectors for a time embedding ``[batch, time_dim]``."""
        vectors = self.linear(silu(temb))[:, None]
        return Modulation(vectors, *mx.split(vectors, 6, axis=-1))

    def __call__(
        self, x: mx.array, is_text: mx.array, modulation: Modulation, schedule: EvalSchedule = LAZY
    ) -> mx.array:
        """``[batch, tokens, dim] -> [batch, tokens, dim]``; `is_text` is ``[tokens, 1]``."""
        weight, bias, eps = self.norm.weight, self.norm.bias, self.norm.eps
        if schedule.evaluate and x.shape[-1] % cuda.FEATURES == 0 and cuda.available():
            return cuda.modulated_norm(x, weight, bias, eps, is_text, modulation.vectors)
        video = _modulate(weight, bias, modulation.shift, modulation.scale)
        text = _modulate(weight, bias, modulation.text_shift, modulation.text_scale)
        return _scale_rows(mx.fast.layer_norm(x, None, None, eps), is_text, *video, *text)


class AdaLayerNorm(nn.Module):
    """The final modulated norm. Its linear layer makes **shift, then scale**."""

    def __init__(self, time_dim: int, dim: int, eps: float):
        super().__init__()
        self.linear = nn.Linear(time_dim, 2 * dim)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def __call__(self, x: mx.array, temb: mx.array) -> mx.array:
        """``[batch, tokens, dim], [batch, time_dim] -> [batch, tokens, dim]``."""
        shift, scale = mx.split(self.linear(silu(temb))[:, None], 2, axis=-1)
        weight, bias = _modulate(self.norm.weight, self.norm.bias, shift, scale)
        return layer_norm(x, weight, bias, self.norm.eps)


def layer_norm(x: mx.array, weight: mx.array, bias: mx.array, eps: float) -> mx.array:
    """Layer norm over the last axis, in the dtype of `x`, whatever that of `weight` and `bias`."""
    return _scale(mx.fast.layer_norm(x, None, None, eps), weight, bias)


def norm_heads(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    eps: float,
    rotation: Rotation,
    schedule: EvalSchedule = LAZY,
) -> mx.array:
    """Layer norm of each head, followed by its rotation if there is one.

    Args:
        x: ``[batch, tokens, heads, head_dim]``; permuted by `half_split` if there is a rotation.
        weight, bias: ``[head_dim]``, permuted likewise.
    """
    if schedule.evaluate and x.shape[-1] == cuda.HEAD_DIM and cuda.available():
        return cuda.norm_heads(x, weight, bias, eps, rotation)
    x = mx.fast.layer_norm(x, weight, bias, eps)
    return x if rotation is None else rotate(x, *rotation)


@fused
def _modulate(weight, bias, shift, scale):
    """The weight and bias, in float32, of ``norm(x) · (1 + scale) + shift``."""
    factor = 1 + scale.astype(mx.float32)
    return weight * factor, bias * factor + shift


@fused
def _scale(x, weight, bias):
    return (x.astype(mx.float32) * weight + bias).astype(x.dtype)


@fused
def _scale_rows(x, is_text, weight, bias, text_weight, text_bias):
    # Choosing per row is one pass over x; computing text and video apart and joining takes three.
    weight = mx.where(is_text, text_weight, weight)
    bias = mx.where(is_text, text_bias, bias)
    return (x.astype(mx.float32) * weight + bias).astype(x.dtype)


@fused
def gated_residual(x, update, is_text, gate, text_gate):
    """``x + gate · update``, with the text rows' own gate; computed in float32, rounded once."""
    gate = mx.where(is_text, text_gate, gate)
    return (x + gate.astype(mx.float32) * update).astype(x.dtype)


@fused
def silu(x):
    """``x · sigmoid(x)``, computed in float32 and rounded once."""
    wide = x.astype(mx.float32)
    return (wide * mx.sigmoid(wide)).astype(x.dtype)
