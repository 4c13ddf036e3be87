"""Attention in parts: its gradients, and on a Mac the heads and the queries."""

import mlx.core as mx
import pytest
from support import relative_error

from mlx_cogvideo.nn import attention as attention_module
from mlx_cogvideo.nn import attention_backward, eval_schedule
from mlx_cogvideo.nn.attention import attention
from mlx_cogvideo.nn.attention_backward import attention_gradients
from mlx_cogvideo.nn.eval_schedule import EvalSchedule


def inputs(tokens=37, heads=5):
    keys = mx.random.split(mx.random.key(0), 4)
    return [mx.random.normal((2, heads, tokens, 16), key=key) for key in keys]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("at_a_time", [2**26, 2 * 2 * 37 * 37, 2 * 37 * 10, 1], ids=str)
def test_gradients_in_parts_are_those_of_the_whole(monkeypatch, at_a_time, own):
    monkeypatch.setattr(attention_backward, "SCORES_AT_A_TIME", at_a_time)
    *arguments, cotangent = inputs()
    (output,), expected = mx.vjp(lambda *a: [attention(*a)], arguments, [cotangent])
    monkeypatch.setattr(attention_backward, "has_own_backward", lambda dtype: own)
    outputs = []
    gradients = attention_gradients(
        *arguments, lambda output: outputs.append(output) or cotangent, EvalSchedule()
    )
    assert len(outputs) == 1 and relative_error(outputs[0], output) < 1e-6
    for a, b in zip(gradients, expected, strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize(
    ("at_a_time", "shapes"),
    [
        (1e12, [(6, 37)]),
        (7e5, [(3, 37)] * 2),
        (2.5e5, [(1, 37)] * 6),
        (9e4, [(1, 18), (1, 19)] * 6),
        (1, [(1, 1)] * 6 * 37),
    ],
    ids=str,
)
def test_heads_then_queries_are_divided_where_they_would_take_too_long_at_once(
    monkeypatch, at_a_time, shapes
):
    queries, keys, values, _ = inputs(heads=6)
    expected = attention(queries, keys, values)
    made, compute = [], mx.fast.scaled_dot_product_attention
    monkeypatch.setattr(
        mx.fast,
        "scaled_dot_product_attention",
        lambda q, *rest, **how: made.append(q.shape[1:3]) or compute(q, *rest, **how),
    )
    monkeypatch.setattr(attention_module, "kernel_operations", lambda: at_a_time)
    mixed = attention(queries, keys, values)
    assert mixed.shape == expected.shape and relative_error(mixed, expected) < 1e-6
    assert made == shapes


def peak(monkeypatch, tokens, heads, at_a_time) -> int:
    monkeypatch.setattr(attention_backward, "SCORES_AT_A_TIME", at_a_time)
    monkeypatch.setattr(eval_schedule, "PUSH_ELEMENTS", at_a_time)
    *arguments, cotangent = inputs(tokens, heads)
    before = []

    def cotangent_of(output: mx.array) -> mx.array:
        mx.eval(arguments, cotangent, output)  # the CPU's attention takes more memory
        before.append(mx.get_active_memory())
        mx.reset_peak_memory()
        return cotangent

    attention_gradients(*arguments, cotangent_of, EvalSchedule())
    return mx.get_peak_memory() - before[0]


def test_the_memory_of_gradients_doesnt_grow_with_the_number_of_parts(monkeypatch):
    few, many = (peak(monkeypatch, 512, heads, 2 * 64 * 512) for heads in (2, 8))
    # Only the arrays themselves grow: one of 8 heads has 1 MiB, one of 2 heads a quarter of that.
    assert many - few < 12 * 2**20
    assert many < peak(monkeypatch, 512, 8, 2**30) / 3
