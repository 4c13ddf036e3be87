"""Scaled dot-product attention, the one place where every caller computes it."""

import mlx.core as mx


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float | None = None,
    bias: mx.array | None = None,
) -> mx.array:
    """softmax(scale · q kᵀ + bias) v.

    Args:
        queries, keys, values: ``[batch, heads, tokens, head_dim]``; any strides whose last is 1.
        scale: ``head_dim ** -0.5`` by default.
        bias: added to the scores, broadcast to ``[batch, heads, tokens, tokens]``. None keeps the
            fused kernels' memory linear in the number of tokens.

    Returns:
        ``[batch, heads, tokens, head_dim]``, in the dtype of `queries`.
    """
    if scale is None:
        scale = queries.shape[-1] ** -0.5
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=bias)


def split_heads(x: mx.array, heads: int) -> mx.array:
    """``[batch, tokens, heads·head_dim] -> [batch, heads, tokens, head_dim]``, as a view."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def merge_heads(x: mx.array) -> mx.array:
    """``[batch, heads, tokens, head_dim] -> [batch, tokens, heads·head_dim]``."""
    return x.transpose(0, 2, 1, 3).flatten(2)
