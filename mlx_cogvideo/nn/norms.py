"""The transformer's layer norms, by MLX's own operations or by a kernel of the device.

This is the only place that chooses between them. The kernels have no gradient: they are used within
a schedule that evaluates. A lazy graph, whose gradients may be taken, uses MLX's operations.

In 16 bits a modulated norm rounds twice, no more often than PyTorch's with its modulation. Given a
weight and a bias, ``mx.fast.layer_norm`` rounds up to three times by itself, on every device: the
normalized features, the product and the sum. Here it only normalizes. One elementwise pass does the
rest in float32, with a weight and a bias into which the modulation is folded; nothing as large as
the tokens is stored in float32 on a GPU.
"""

from typing import NamedTuple

import mlx.core as mx

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


def layer_norm(x: mx.array, weight: mx.array, bias: mx.array, eps: float) -> mx.array:
    """Layer norm over the last axis, in the dtype of `x`, whatever that of `weight` and `bias`."""
    return _scale(mx.fast.layer_norm(x, None, None, eps), weight, bias)


def modulated_norm(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    eps: float,
    is_text: mx.array,
    modulation: Modulation,
    schedule: EvalSchedule = LAZY,
) -> mx.array:
    """Layer norm over the last axis, scaled and shifted by other amounts in text rows.

    Args:
        x: ``[batch, tokens, dim]``.
        is_text: ``[tokens, 1]``, True for text rows.
        schedule: the evaluation schedule that the norm is part of.
    """
    if schedule.evaluate and x.shape[-1] % cuda.FEATURES == 0 and cuda.available():
        return cuda.modulated_norm(x, weight, bias, eps, is_text, modulation.vectors)
    video = modulate(weight, bias, modulation.shift, modulation.scale)
    text = modulate(weight, bias, modulation.text_shift, modulation.text_scale)
    return _scale_rows(mx.fast.layer_norm(x, None, None, eps), is_text, *video, *text)


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
        schedule: the evaluation schedule that the norm is part of.
    """
    if schedule.evaluate and x.shape[-1] == cuda.HEAD_DIM and cuda.available():
        return cuda.norm_heads(x, weight, bias, eps, rotation)
    x = mx.fast.layer_norm(x, weight, bias, eps)
    return x if rotation is None else rotate(x, *rotation)


@fused
def modulate(weight, bias, shift, scale):
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
