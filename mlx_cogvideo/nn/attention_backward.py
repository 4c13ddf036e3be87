"""The gradients of attention, in bounded memory."""

from collections.abc import Callable, Iterator

import mlx.core as mx

from .attention import attention
from .backend import backend, on_gpu
from .eval_schedule import EvalSchedule
from .fusion import fused

SCORES_AT_A_TIME = 2**26
"""Scores that a bounded backward computes at a time: in 16 bits such a table takes 128 MB."""

BACKWARD_PRODUCTS = 5
"""Products of queries by keys that the gradients of attention take."""

QUERY_MULTIPLE = 128
"""CUDA's own backward takes a multiple of this many queries."""


def attention_gradients(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cotangent_of: Callable[[mx.array], mx.array],
    schedule: EvalSchedule,
) -> tuple[mx.array, mx.array, mx.array]:
    """The gradients of ``attention(queries, keys, values)``, in bounded memory.

    MLX's own backward (see `has_own_backward`) computes scores in blocks on Metal, and in 16 bits
    on CUDA; there its result is left lazy, and nothing is evaluated. Elsewhere it would hold the
    tables of all scores, so that some heads and queries are computed at a time here.

    Args:
        cotangent_of: makes the gradient of the output from the output, once. The forward pass of
            attention then runs once for both.
        schedule: the evaluation schedule that the output is part of.
    """
    if not has_own_backward(queries.dtype):
        output = schedule.hold(attention(queries, keys, values))
        return _gradients_in_parts(queries, keys, values, output, cotangent_of(output))
    tokens = queries.shape[2]
    if backend() == "cuda":
        # A query whose cotangent is zero adds nothing to the gradients of keys and values.
        queries = mx.pad(queries, [(0, 0), (0, 0), (0, -tokens % QUERY_MULTIPLE), (0, 0)])

    def weighted(*arrays: mx.array) -> mx.array:
        output = attention(*arrays, products=BACKWARD_PRODUCTS)[:, :, :tokens]
        # The sum itself is never computed: only its gradient is.
        return (output * mx.stop_gradient(cotangent_of(mx.stop_gradient(output)))).sum()

    of_queries, *others = mx.grad(weighted, argnums=(0, 1, 2))(queries, keys, values)
    return of_queries[:, :, :tokens], *others


def has_own_backward(dtype: mx.Dtype) -> bool:
    """Whether MLX has a fused backward on this device."""
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
            # The sum over keys of weights · (g vᵀ) equals the sum over features of g · output.
            mean = (g * output[:, group, part]).sum(-1, keepdims=True)
            scores = _weighted(weights, g @ v.swapaxes(2, 3), mean)
            k_gradient = schedule.hold(k_gradient + (scores.swapaxes(2, 3) @ q))
            rows.append(schedule.push(scale * (scores @ k), scores.size))
        # The sums over parts are float32, for this group of heads only.
        group_gradients = mx.concatenate(rows, axis=2), k_gradient, v_gradient
        for found, gradient in zip(gradients, group_gradients, strict=True):
            found.append(schedule.hold(gradient.astype(queries.dtype)))
    joined = []
    for found in gradients:
        joined.append(schedule.flush(mx.concatenate(found, axis=1)))
        found.clear()
    return tuple(joined)


@fused
def _weighted(weights, products, mean):
    return weights * (products - mean)


def _parts(shape: tuple[int, ...], keys: int) -> Iterator[tuple[slice, list[slice]]]:
    """Groups of heads, each with the parts of its queries, of `SCORES_AT_A_TIME` scores at most."""
    batch, heads, tokens, _ = shape
    per_head = batch * tokens * keys
    group = max(1, min(heads, SCORES_AT_A_TIME // per_head))
    size = tokens
    if group == 1:
        size = max(1, min(tokens, SCORES_AT_A_TIME // (batch * keys)))
    for first in range(0, heads, group):
        yield slice(first, first + group), [slice(i, i + size) for i in range(0, tokens, size)]
