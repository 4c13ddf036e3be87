"""AdaLN-zero (arXiv:2212.09748) over a joint sequence of text and video tokens.

In 16 bits a norm here rounds twice, no more often than PyTorch's with its modulation. Given a
weight and a bias, ``mx.fast.layer_norm`` rounds up to three times by itself, on every device: the
normalized features, the product and the sum. Here it only normalizes. One elementwise pass does the
rest in float32, with a weight and a bias into which the modulation is folded; nothing as large as
the tokens is stored in float32 on a GPU.
"""

import mlx.core as mx
import mlx.nn as nn

from . import cuda
from .eval_schedule import LAZY, EvalSchedule
from .fusion import fused


class CogVideoXLayerNormZero(nn.Module):
    """Normalizes the joint sequence and modulates text and video rows by different amounts.

    One linear layer makes six vectors from the time embedding, in this order: shift, scale and
    gate of the video rows, shift, scale and gate of the text rows.
    """

    def __init__(self, time_dim: int, dim: int, eps: float):
        super().__init__()
        self.linear = nn.Linear(time_dim, 6 * dim)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def __call__(
        self, x: mx.array, temb: mx.array, is_text: mx.array, schedule: EvalSchedule = LAZY
    ) -> tuple[mx.array, tuple[mx.array, mx.array]]:
        """
        Args:
            x: ``[batch, tokens, dim]``, text rows first.
            temb: ``[batch, time_dim]``.
            is_text: ``[tokens, 1]``, True for text rows.
            schedule: what it is part of.

        Returns:
            The modulated sequence, and the gates ``(video, text)`` for `gated_residual`.
        """
        vectors = self.linear(silu(temb))[:, None]
        shift, scale, gate, text_shift, text_scale, text_gate = mx.split(vectors, 6, axis=-1)
        weight, bias, eps = self.norm.weight, self.norm.bias, self.norm.eps
        if schedule.evaluate and x.shape[-1] % cuda.FEATURES == 0 and cuda.available():
            x = cuda.modulated_norm(x, weight, bias, eps, is_text, vectors)
        else:
            video = _modulate(weight, bias, shift, scale)
            text = _modulate(weight, bias, text_shift, text_scale)
            x = _scale_rows(mx.fast.layer_norm(x, None, None, eps), is_text, *video, *text)
        return x, (gate, text_gate)


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
    # Choosing per row is one pass over x; treating the halves apart and joining them takes three.
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
