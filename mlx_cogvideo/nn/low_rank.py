"""Adapters of linear layers: LoRA (arXiv:2106.09685), DoRA and LoKr."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from .fusion import fused
from .quantization import QuantizedLinear

NORM_ELEMENTS = 2**23
"""Elements of a weight, in float32, whose norms are computed at a time."""
SMALLEST_NORM = 1e-30
"""Replaces the norm of a row of zeros, by which nothing can be divided."""

Linear = nn.Linear | QuantizedLinear


class Addition(nn.Module):
    """What an adapter adds to a linear layer.

    Attributes:
        scale: weight of the addition.
    """

    scale: float

    def added(self, x: mx.array, permutation: mx.array | None = None) -> mx.array:
        """``[..., inputs] -> [..., outputs]`` in the dtype of `x`, with its outputs permuted."""
        raise NotImplementedError

    def product(self) -> mx.array:
        """The addition as a matrix ``[outputs, inputs]`` in float32."""
        raise NotImplementedError

    def __call__(
        self, y: mx.array, x: mx.array, linear: Linear, permutation: mx.array | None = None
    ) -> mx.array:
        """Adapts outputs of a layer.

        Args:
            y: ``[..., outputs]`` of the layer and of the adapters before this one, permuted.
            x: ``[..., inputs]``.
            linear: the layer without adapters.
        """
        return y + self.added(x, permutation)

    def fuse(self, weight: mx.array, base: mx.array) -> mx.array:
        """The weight of a layer with this adapter, in float32.

        Args:
            weight: ``[outputs, inputs]`` in float32, with the adapters before this one.
            base: the same without adapters.
        """
        return weight + self.product()

    def arrays(self) -> list[mx.array]:
        """Its parameters."""
        return [array for _, array in tree_flatten(self.parameters())]


class LowRank(Addition):
    """The addition of LoRA: ``scale · B A x``."""

    def __init__(self, a: mx.array, b: mx.array, scale: float):
        """`a` is ``[rank, inputs]``, `b` ``[outputs, rank]``; any dtype, float32 to train them."""
        super().__init__()
        self.lora_A = a
        self.lora_B = b
        self.scale = scale

    def added(self, x: mx.array, permutation: mx.array | None = None) -> mx.array:
        a, b = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
        b = b if permutation is None else b[permutation]
        return (self.scale * (x @ a.T)) @ b.T

    def product(self) -> mx.array:
        return self._rows_of_product(slice(None))

    def _rows_of_product(self, rows: slice) -> mx.array:
        return self.scale * (self.lora_B[rows].astype(mx.float32) @ self.lora_A.astype(mx.float32))


class DoRA(LowRank):
    """LoRA that also sets the norm of each row of the weight (arXiv:2402.09353).

    The weight becomes ``magnitude · (W + scale · B A) / ‖W + scale · B A‖``. As in PEFT, the norms
    have no gradient, and a scale below 1 leaves the magnitudes as they are. Adapters before this
    one don't count in the norms, and what they add is multiplied by magnitude / norm, too.
    """

    def __init__(self, a: mx.array, b: mx.array, magnitude: mx.array, scale: float):
        """`magnitude` is ``[outputs]``, `a` and `b` are those of `LowRank`."""
        super().__init__(a, b, scale)
        self.lora_magnitude_vector = magnitude
        self._constant_norms: mx.array | None = None

    def norms(self, weight: mx.array | Linear) -> mx.array:
        """The norms ``[outputs]`` of the rows of W + scale · B A, in float32.

        The work is that of passing `rank` tokens through the layer, and memory holds
        `NORM_ELEMENTS` of the weight at a time.

        Args:
            weight: W, or the layer that has it.
        """
        outputs, inputs = len(self.lora_B), self.lora_A.shape[1]
        count = max(1, NORM_ELEMENTS // inputs)
        parts = [slice(first, first + count) for first in range(0, outputs, count)]
        sums = [_rows_of_weight(weight, rows) + self._rows_of_product(rows) for rows in parts]
        return mx.concatenate([mx.linalg.norm(rows, axis=1) for rows in sums])

    def keep_norms(self, linear: Linear) -> None:
        """Computes the norms once, for an adapter that doesn't change any more."""
        self._constant_norms = self.norms(linear)
        mx.eval(self._constant_norms)

    def __call__(
        self, y: mx.array, x: mx.array, linear: Linear, permutation: mx.array | None = None
    ) -> mx.array:
        norms = self._constant_norms
        if norms is None:
            norms = mx.stop_gradient(self.norms(linear))
        # Rounded to 16 bits, the difference from 1 loses less than the quotient.
        vectors = [(self._quotient(norms) - 1).astype(y.dtype)]
        if "bias" in linear:
            vectors.append(linear.bias)
        if permutation is not None:
            vectors = [vector[permutation] for vector in vectors]
        return _grown(super().__call__(y, x, linear, permutation), *vectors)

    def fuse(self, weight: mx.array, base: mx.array) -> mx.array:
        return self._quotient(self.norms(base))[:, None] * super().fuse(weight, base)

    def _quotient(self, norms: mx.array) -> mx.array:
        return self.lora_magnitude_vector.astype(mx.float32) / mx.maximum(norms, SMALLEST_NORM)


@fused
def _grown(y: mx.array, growth: mx.array, bias: mx.array | float = 0) -> mx.array:
    """``(1 + growth) · y`` for the outputs `y` of a layer, whose bias stays as it is."""
    return y + growth * (y - bias)


def _rows_of_weight(weight: mx.array | Linear, rows: slice) -> mx.array:
    if isinstance(weight, QuantizedLinear):
        return weight.unpacked(mx.float32, rows)
    weight = weight.weight if isinstance(weight, nn.Linear) else weight
    return weight[rows].astype(mx.float32)


class Kronecker(Addition):
    """The addition of LoKr: ``scale · (w1 ⊗ w2) x`` (arXiv:2309.14859)."""

    def __init__(self, w1: Sequence[mx.array], w2: Sequence[mx.array], scale: float):
        """`w1` and `w2` are a matrix each, or the two factors of one."""
        super().__init__()
        self.lokr_w1, self.lokr_w2 = list(w1), list(w2)
        self.scale = scale

    def added(self, x: mx.array, permutation: mx.array | None = None) -> mx.array:
        w1, w2 = ([m.astype(x.dtype) for m in each] for each in (self.lokr_w1, self.lokr_w2))
        first, second = w1[-1].shape[1], w2[-1].shape[1]
        table = x.reshape(*x.shape[:-1], first, second)  # (w1 ⊗ w2) x is w1 · table · w2ᵀ
        # The order that needs less memory: it may be much, if w1 is wide and w2 is high.
        if first * len(w2[0]) <= second * len(w1[0]):
            table = _columns_times(_rows_times(table, w2), w1)
        else:
            table = _rows_times(_columns_times(table, w1), w2)
        y = self.scale * table.flatten(-2)
        return y if permutation is None else y[..., permutation]

    def product(self) -> mx.array:
        w1, w2 = (
            reduce(mx.matmul, [matrix.astype(mx.float32) for matrix in each])
            for each in (self.lokr_w1, self.lokr_w2)
        )
        return self.scale * mx.kron(w1, w2)


def _rows_times(table: mx.array, factors: Sequence[mx.array]) -> mx.array:
    """Multiplies each row of a table with a matrix, given as its factors."""
    return reduce(lambda rows, factor: rows @ factor.T, reversed(factors), table)


def _columns_times(table: mx.array, factors: Sequence[mx.array]) -> mx.array:
    return _rows_times(table.swapaxes(-1, -2), factors).swapaxes(-1, -2)


class LoRALinear(nn.Module):
    """A frozen linear layer, packed or not, and the adapters that change it, in their order."""

    def __init__(self, linear: Linear):
        super().__init__()
        self.linear = linear.freeze()
        self.adapters: list[Addition] = []

    def __call__(self, x: mx.array, permutation: mx.array | None = None) -> mx.array:
        y = self.linear(x) if permutation is None else permute_rows(self.linear, x, permutation)
        for adapter in self.adapters:
            y = adapter(y, x, self.linear, permutation)
        return y


def with_magnitudes(low: LowRank, layer: Linear | LoRALinear) -> DoRA:
    """DoRA with the effect that LoRA has on a layer: its magnitudes are the norms at present."""
    dora = DoRA(low.lora_A, low.lora_B, mx.zeros(len(low.lora_B)), low.scale)
    dora.lora_magnitude_vector = dora.norms(
        layer.linear if isinstance(layer, LoRALinear) else layer
    )
    return dora


def add_adapter(
    module: nn.Module, layers: Mapping[str, Addition], *, constant: bool = False
) -> None:
    """Adds an adapter to linear layers of `module`, by their paths.

    Args:
        constant: whether the adapter won't change. What depends on it alone is computed once, here.

    Raises:
        KeyError: `module` has no linear layer at a path in `layers`.
    """
    modules = dict(module.named_modules())
    wrapped = {}
    for path, addition in layers.items():
        layer = modules.get(path)
        if isinstance(layer, nn.Linear | QuantizedLinear):
            layer = wrapped[path] = LoRALinear(layer)
        elif not isinstance(layer, LoRALinear):
            raise KeyError(f"no linear layer {path}")
        layer.adapters.append(addition)
        if constant and isinstance(addition, DoRA):
            addition.keep_norms(layer.linear)
    module.update_modules(tree_unflatten(wrapped))


def fused_weight(weight: mx.array, additions: Sequence[Addition]) -> mx.array:
    """The weight of a layer with its adapters, in float32; without any, `weight` itself."""
    if not additions:
        return weight
    base = weight.astype(mx.float32)
    return reduce(lambda fused, addition: addition.fuse(fused, base), additions, base)


def permute_rows(layer: nn.Module, x: mx.array, permutation: mx.array) -> mx.array:
    """``layer(x)[..., permutation]`` of a linear layer, packed or not, with adapters or without.

    The rows of the weight are permuted instead: there are few of them compared with `x`.
    """
    if not isinstance(layer, nn.Linear):
        return layer(x, permutation)
    weight = layer.weight[permutation].T
    return mx.addmm(layer.bias[permutation], x, weight) if "bias" in layer else x @ weight


def fuse_adapters(module: nn.Module) -> None:
    """Adds all adapters of `module` to the weights of their layers, and removes them.

    Layers that are packed keep theirs. The sums are rounded to the types of the weights. Memory: a
    layer in float32, one at a time.
    """
    fused = {}
    for path, layer in module.named_modules():
        if isinstance(layer, LoRALinear) and isinstance(layer.linear, nn.Linear):
            linear = fused[path] = layer.linear
            weight = fused_weight(linear.weight, layer.adapters)
            linear.weight = weight.astype(linear.weight.dtype)
            mx.eval(linear.weight)
    module.update_modules(tree_unflatten(fused))


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """Switches off the adapters of `module` that are trained within its block.

    Frozen ones stay: they belong to the model that the training starts from.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, LoRALinear)]
    adapters = [layer.adapters for layer in layers]
    for layer in layers:
        layer.adapters = [one for one in layer.adapters if not one.trainable_parameters()]
    try:
        yield
    finally:
        for layer, own in zip(layers, adapters, strict=True):
            layer.adapters = own
