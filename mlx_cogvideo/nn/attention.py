"""Scaled dot-product attention. Every network uses this function."""

from math import ceil

import mlx.core as mx

from .backend import kernel_operations

PRODUCTS = 2
"""Products of queries by keys that attention takes."""


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float | None = None,
    bias: mx.array | None = None,
    products: int = PRODUCTS,
) -> mx.array:
    """softmax(scale · q kᵀ + bias) v.

    On a Mac some heads and queries are computed at a time, so that no kernel takes too long.

    Args:
        queries, keys, values: ``[batch, heads, tokens, head_dim]``; any strides whose last is 1.
        scale: ``head_dim ** -0.5`` by default.
        bias: added to the scores, broadcast to ``[batch, heads, tokens, tokens]``. None keeps the
            fused kernels' memory linear in the number of tokens.
        products: products of queries by keys that one kernel computes, more if gradients will be
            taken.

    Returns:
        ``[batch, heads, tokens, head_dim]``, in the dtype of `queries`.
    """
    if scale is None:
        scale = queries.shape[-1] ** -0.5
    head_groups = query_parts = 1
    if bias is None:
        operations = 2 * products * queries.size * keys.shape[2]
        head_groups, query_parts = _division(operations, queries.shape)
    if head_groups == query_parts == 1:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=bias)
    # Joined on the axis behind the tokens: the callers merge the heads of a token next.
    groups = (mx.split(x, head_groups, axis=1) for x in (queries, keys, values))
    edges = [i * queries.shape[2] // query_parts for i in range(1, query_parts)]
    mixed = []
    for q, k, v in zip(*groups, strict=True):
        rows = [
            mx.fast.scaled_dot_product_attention(some, k, v, scale=scale).swapaxes(1, 2)
            for some in mx.split(q, edges, axis=2)
        ]
        mixed.append(mx.concatenate(rows, axis=1))
    return mx.concatenate(mixed, axis=2).swapaxes(1, 2)


def _division(operations: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """The number of equal groups of heads, and of parts of a head's queries.

    Queries are divided if a single head still takes more operations than a kernel may.
    """
    _, heads, tokens, _ = shape
    wanted = operations / kernel_operations()
    groups = next(n for n in range(1, heads + 1) if heads % n == 0 and (n >= wanted or n == heads))
    return groups, max(1, min(tokens, ceil(wanted / groups)))


def split_heads(x: mx.array, heads: int) -> mx.array:
    """``[batch, tokens, heads·head_dim] -> [batch, heads, tokens, head_dim]``, as a view."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def merge_heads(x: mx.array) -> mx.array:
    """``[batch, heads, tokens, head_dim] -> [batch, tokens, heads·head_dim]``."""
    return x.transpose(0, 2, 1, 3).flatten(2)
