"""AdaLN-zero (arXiv:2212.09748) over a joint sequence of text and video tokens."""

import mlx.core as mx
import mlx.nn as nn

from .eval_schedule import LAZY, EvalSchedule
from .fusion import fused
from .norms import Modulation, layer_norm, modulate, modulated_norm


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
        self,
        x: mx.array,
        is_text: mx.array,
        modulation: Modulation,
        schedule: EvalSchedule = LAZY,
    ) -> mx.array:
        """``[batch, tokens, dim] -> [batch, tokens, dim]``; `is_text` is ``[tokens, 1]``."""
        norm = self.norm
        return modulated_norm(x, norm.weight, norm.bias, norm.eps, is_text, modulation, schedule)


class AdaLayerNorm(nn.Module):
    """The final modulated norm. Its linear layer makes **shift, then scale**."""

    def __init__(self, time_dim: int, dim: int, eps: float):
        super().__init__()
        self.linear = nn.Linear(time_dim, 2 * dim)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def __call__(self, x: mx.array, temb: mx.array) -> mx.array:
        """``[batch, tokens, dim], [batch, time_dim] -> [batch, tokens, dim]``."""
        shift, scale = mx.split(self.linear(silu(temb))[:, None], 2, axis=-1)
        weight, bias = modulate(self.norm.weight, self.norm.bias, shift, scale)
        return layer_norm(x, weight, bias, self.norm.eps)


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
