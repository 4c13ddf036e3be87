"""Low-rank adaptation of linear layers (arXiv:2106.09685)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from .quantization import QuantizedLinear


class LowRank(nn.Module):
    """The addition of an adapter to a layer: ``scale · B A x``."""

    def __init__(self, a: mx.array, b: mx.array, scale: float):
        """`a` is ``[rank, inputs]``, `b` ``[outputs, rank]``; any dtype, float32 to train them."""
        super().__init__()
        self.lora_A = a
        self.lora_B = b
        self.scale = scale

    def __call__(self, x: mx.array, permutation: mx.array | None = None) -> mx.array:
        """``[..., inputs] -> [..., outputs]`` in the dtype of `x`, with its outputs permuted."""
        a, b = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
        b = b if permutation is None else b[permutation]
        return (self.scale * (x @ a.T)) @ b.T

    def product(self) -> mx.array:
        """The addition as a matrix ``[outputs, inputs]`` in float32."""
        return self.scale * (self.lora_B.astype(mx.float32) @ self.lora_A.astype(mx.float32))


class LoRALinear(nn.Module):
    """A frozen linear layer, packed or not, and the additions of adapters."""

    def __init__(self, linear: nn.Linear | QuantizedLinear):
        super().__init__()
        self.linear = linear.freeze()
        self.adapters: list[LowRank] = []

    def __call__(self, x: mx.array, permutation: mx.array | None = None) -> mx.array:
        y = self.linear(x) if permutation is None else permute_rows(self.linear, x, permutation)
        for adapter in self.adapters:
            y = y + adapter(x, permutation)
        return y


def add_adapter(module: nn.Module, layers: Mapping[str, LowRank]) -> None:
    """Adds an adapter to linear layers of `module`, by their paths.

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
    module.update_modules(tree_unflatten(wrapped))


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
            products = (adapter.product() for adapter in layer.adapters)
            weight = sum(products, start=linear.weight.astype(mx.float32))
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
