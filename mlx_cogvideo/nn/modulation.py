"""AdaLN-zero (arXiv:2212.09748) over a joint sequence of text and video tokens."""

import mlx.core as mx
import mlx.nn as nn

from . import cuda
from .fusion import fused
from .portions import LAZY, Portions


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
        self, x: mx.array, temb: mx.array, is_text: mx.array, work: Portions = LAZY
    ) -> tuple[mx.array, tuple[mx.array, mx.array]]:
        """
        Args:
            x: ``[batch, tokens, dim]``, text rows first.
            temb: ``[batch, time_dim]``.
            is_text: ``[tokens, 1]``, True for text rows.
            work: what it is part of.

        Returns:
            The modulated sequence, and the gates ``(video, text)`` for `gated_residual`.
        """
        vectors = self.linear(nn.silu(temb))[:, None]
        shift, scale, gate, text_shift, text_scale, text_gate = mx.split(vectors, 6, axis=-1)
        if work.evaluate and x.shape[-1] % cuda.FEATURES == 0 and cuda.available():
            weight, bias = self.norm.weight, self.norm.bias
            x = cuda.modulated_norm(x, weight, bias, self.norm.eps, is_text, vectors)
        else:
            x = _modulate(self.norm(x), is_text, shift, scale, text_shift, text_scale)
        return x, (gate, text_gate)


class AdaLayerNorm(nn.Module):
    """The final modulated norm. Its linear layer makes **shift, then scale**."""

    def __init__(self, time_dim: int, dim: int, eps: float):
        super().__init__()
        self.linear = nn.Linear(time_dim, 2 * dim)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def __call__(self, x: mx.array, temb: mx.array) -> mx.array:
        """``[batch, tokens, dim], [batch, time_dim] -> [batch, tokens, dim]``."""
        shift, scale = mx.split(self.linear(nn.silu(temb))[:, None], 2, axis=-1)
        return self.norm(x) * (1 + scale) + shift


@fused
def _modulate(x, is_text, shift, scale, text_shift, text_scale):
    # Choosing per row is one pass over x; treating the halves apart and joining them takes three.
    scale = mx.where(is_text, text_scale, scale)
    shift = mx.where(is_text, text_shift, shift)
    return x * (1 + scale) + shift


@fused
def gated_residual(x, update, is_text, gate, text_gate):
    """``x + gate · update``, with the text rows' own gate."""
    return x + mx.where(is_text, text_gate, gate) * update
