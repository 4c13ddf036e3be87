"""Adapters of single layers."""

import mlx.core as mx
import mlx.nn as nn
from support import relative_error

from mlx_cogvideo.nn.low_rank import Kronecker, LoRALinear, LowRank, with_magnitudes

X = mx.random.normal((5, 12), key=mx.random.key(0))


def adapted(linear: nn.Linear, addition) -> LoRALinear:
    layer = LoRALinear(linear)
    layer.adapters.append(addition)
    return layer


def test_new_magnitudes_change_no_bit():
    linear = nn.Linear(12, 20)
    low = LowRank(mx.random.normal((3, 12)), mx.zeros((20, 3)), 2.0)
    assert mx.array_equal(adapted(linear, with_magnitudes(low, linear))(X), linear(X))
    # Nor do they beside an adapter that the layer has.
    layer = adapted(linear, LowRank(low.lora_A, mx.random.normal((20, 3)), 2.0))
    before = layer(X)
    layer.adapters.append(with_magnitudes(low, layer))
    assert mx.array_equal(layer(X), before)


def test_a_row_of_zeros_has_no_nan():
    linear = nn.Linear(12, 20)
    linear.weight[3] = 0
    low = LowRank(mx.random.normal((3, 12)), mx.zeros((20, 3)), 1.0)
    layer = adapted(linear, with_magnitudes(low, linear))
    loss, gradients = nn.value_and_grad(layer, lambda x: mx.square(layer(x)).sum())(X)
    arrays = [loss, *gradients["adapters"][0].values()]
    assert mx.stack([mx.isfinite(array).all() for array in arrays]).all()


def test_both_orders_of_lokr_give_its_product():
    for first, second in (((4, 3), (5, 4)), ((2, 6), (10, 2)), ((10, 2), (2, 6))):
        addition = Kronecker([mx.random.normal(first)], [mx.random.normal(second)], 0.5)
        linear = nn.Linear(12, 20)
        expected = linear(X) + X @ addition.product().T
        assert relative_error(adapted(linear, addition)(X), expected) < 1e-5
