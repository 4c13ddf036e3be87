"""Scaled dot-product attention, the one place where every caller computes it."""

from collections.abc import Iterator
from math import ceil

import mlx.core as mx

from .backend import backend, kernel_operations, on_gpu
from .eval_schedule import EvalSchedule
from .fusion import fused

SCORES_AT_A_TIME = 2**26
"""Of a bounded backward: a table of scores in 16 bits then takes 128 MB."""

PRODUCTS, BACKWARD_PRODUCTS = 2, 5
"""Of queries by keys, that attention takes, and that its gradients take."""

QUERIES_TOGETHER = 128
"""Of which CUDA's own backward takes a multiple."""


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

    On a Mac some heads, and some queries, are computed at a time, so that no kernel takes too long.

    Args:
        queries, keys, values: ``[batch, heads, tokens, head_dim]``; any strides whose last is 1.
        scale: ``head_dim ** -0.5`` by default.
        bias: added to the scores, broadcast to ``[batch, heads, tokens, tokens]``. None keeps the
            fused kernels' memory linear in the number of tokens.
        products: that a kernel computes: `BACKWARD_PRODUCTS` where gradients will be taken.

    Returns:
        ``[batch, heads, tokens, head_dim]``, in the dtype of `queries`.
    """
    if scale is None:
        scale = queries.shape[-1] ** -0.5
    groups = stretches = 1
    if bias is None:
        operations = 2 * products * queries.size * keys.shape[2]
        groups, stretches = _division(operations, queries.shape)
    if groups == stretches == 1:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=bias)
    # Joined where the heads of a token lie side by side, as the caller wants them in the end.
    parts = (mx.split(x, groups, axis=1) for x in (queries, keys, values))
    edges = [i * queries.shape[2] // stretches for i in range(1, stretches)]
    mixed = []
    for q, k, v in zip(*parts, strict=True):
        rows = [
            mx.fast.scaled_dot_product_attention(some, k, v, scale=scale).swapaxes(1, 2)
            for some in mx.split(q, edges, axis=2)
        ]
        mixed.append(mx.concatenate(rows, axis=1))
    return mx.concatenate(mixed, axis=2).swapaxes(1, 2)


def _division(operations: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Into how many equal groups of heads that much is divided, and where a head is too much still,
    into how many stretches of its queries."""
    _, heads, tokens, _ = shape
    wanted = operations / kernel_operations()
    groups = next(n for n in range(1, heads + 1) if heads % n == 0 and (n >= wanted or n == heads))
    return groups, max(1, min(tokens, ceil(wanted / groups)))


def attention_gradients(
    queries: mx.array, keys: mx.array, values: mx.array, output: mx.array, cotangent: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """The gradients of ``attention(queries, keys, values)``, in bounded memory.

    MLX's backward keeps to blocks of scores on Metal, and in 16 bits on CUDA, and is left lazy.
    Elsewhere it holds the tables of all scores; some heads and queries are computed at a time.

    Args:
        output: what it gave.
        cotangent: the gradient of `output`.
    """
    if not _has_own_backward(queries.dtype):
        return _gradients_in_parts(queries, keys, values, output, cotangent)
    tokens = queries.shape[2]
    if backend() == "cuda":
        # Queries whose output has no gradient add nothing to those of keys and values.
        more = [(0, 0), (0, 0), (0, -tokens % QUERIES_TOGETHER), (0, 0)]
        queries, cotangent = mx.pad(queries, more), mx.pad(cotangent, more)
    arrays = [queries, keys, values]
    _, (of_queries, *others) = mx.vjp(
        lambda *arrays: [attention(*arrays, products=BACKWARD_PRODUCTS)], arrays, [cotangent]
    )
    return of_queries[:, :, :tokens], *others


def _has_own_backward(dtype: mx.Dtype) -> bool:
    """Whether MLX's backward is fused here."""
    return backend() == "metal" or (on_gpu() and dtype.size == 2)


def _gradients_in_parts(
    queries: mx.array, keys: mx.array, values: mx.array, output: mx.array, cotangent: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    scale, schedule = queries.shape[-1] ** -0.5, EvalSchedule()
    gradients: tuple[list[mx.array], ...] = ([], [], [])
    for group, parts in _parts(queries.shape, keys.shape[2]):
        k, v = keys[:, group], values[:, group]
        k_gradient, v_gradient = (mx.zeros(x.shape, mx.float32) for x in (k, v))
        rows = []
        for part in parts:
            q, g = scale * queries[:, group, part], cotangent[:, group, part]
            weights = mx.softmax(q @ k.swapaxes(2, 3), axis=-1, precise=True)
            v_gradient = schedule.hold(v_gradient + (weights.swapaxes(2, 3) @ g))
            # The sum over keys of weights · (g vᵀ) is that over features of g · output.
            mean = (g * output[:, group, part]).sum(-1, keepdims=True)
            scores = _weighted(weights, g @ v.swapaxes(2, 3), mean)
            k_gradient = schedule.hold(k_gradient + (scores.swapaxes(2, 3) @ q))
            rows.append(schedule.push(scale * (scores @ k), scores.size))
        # Sums are in float32, of these heads only.
        of_group = mx.concatenate(rows, axis=2), k_gradient, v_gradient
        for found, gradient in zip(gradients, of_group, strict=True):
            found.append(schedule.hold(gradient.astype(queries.dtype)))
    made = []
    for found in gradients:
        made.append(schedule.flush(mx.concatenate(found, axis=1)))
        found.clear()
    return tuple(made)


@fused
def _weighted(weights, products, mean):
    return weights * (products - mean)


def _parts(shape: tuple[int, ...], keys: int) -> Iterator[tuple[slice, list[slice]]]:
    """Groups of heads, and for each the stretches of queries, with no more scores at a time."""
    batch, heads, tokens, _ = shape
    per_head = batch * tokens * keys
    group = max(1, min(heads, SCORES_AT_A_TIME // per_head))
    stretch = tokens
    if group == 1:
        stretch = max(1, min(tokens, SCORES_AT_A_TIME // (batch * keys)))
    for first in range(0, heads, group):
        yield (
            slice(first, first + group),
            [slice(i, i + stretch) for i in range(0, tokens, stretch)],
        )


def split_heads(x: mx.array, heads: int) -> mx.array:
    """``[batch, tokens, heads·head_dim] -> [batch, heads, tokens, head_dim]``, as a view."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def merge_heads(x: mx.array) -> mx.array:
    """``[batch, heads, tokens, head_dim] -> [batch, tokens, heads·head_dim]``."""
    return x.transpose(0, 2, 1, 3).flatten(2)
