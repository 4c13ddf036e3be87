"""Quantization: which layers are packed, in how many bits, and the packed linear layer."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

MODES = {
    "affine": ((2, 3, 4, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}
"""Bits and group sizes of each of MLX's modes; the first group size is the default."""

KINDS = {
    "attention": r"transformer_blocks\.\d+\.attn1\.(to_[qkv]|to_out\.0)",
    "feed-forward": r"transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)",
    "AdaLN": r"transformer_blocks\.\d+\.norm[12]\.linear|norm_out\.linear",
    "T5 attention": r"encoder\.block\.\d+\.layer\.0\.SelfAttention\.[qkvo]",
    "T5 feed-forward": r"encoder\.block\.\d+\.layer\.1\.DenseReluDense\.wi_[01]",
    "T5 wo": r"encoder\.block\.\d+\.layer\.1\.DenseReluDense\.wo",
}
"""The layers that can be quantized, by patterns of their paths. All others stay in 16 bits or more:
embeddings, norms, the embedding of patches, time and ofs, proj_out, and the VAE."""

SENSITIVE = ("AdaLN", "T5 wo")
"""Kinds with at least 8 bits: errors of AdaLN reach every token, and wo has the largest inputs."""

# Most rows that are multiplied with the packed weight. From benchmarks/quantized_linear.py: on an
# H100 both methods take the same time at 16 to 230 rows with 4 bits. On the CPU the packed product
# is never faster. CUDA compiles its packed products of many rows at first use
# (ml-explore/mlx#3576), which takes longer than all of T5.
PACKED_ROWS = {mx.DeviceType.gpu: 16, mx.DeviceType.cpu: 0}


@dataclass(frozen=True)
class Quantization:
    """How a weight is packed: groups of `group_size` inputs share a scale."""

    bits: int
    group_size: int
    mode: str = "affine"

    @property
    def is_known(self) -> bool:
        """Whether MLX has this mode with these bits and groups."""
        all_bits, all_sizes = MODES.get(str(self.mode), ((), ()))
        numbers = type(self.bits) is int and type(self.group_size) is int
        return numbers and self.bits in all_bits and self.group_size in all_sizes

    def fits(self, inputs: int) -> bool:
        """Whether a row of this length divides into groups, and into words of 32 bits."""
        return inputs % self.group_size == 0 and inputs * self.bits % 32 == 0

    @property
    def has_biases(self) -> bool:
        return self.mode == "affine"

    def arguments(self) -> dict[str, int | str]:
        """The arguments for MLX's functions, which are also the fields in ``config.json``."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def packed_shapes(self, outputs: int, inputs: int) -> dict[str, tuple[int, int]]:
        """The parameters of a packed weight, and their shapes."""
        groups = (outputs, inputs // self.group_size)
        shapes = {"weight": (outputs, inputs * self.bits // 32), "scales": groups}
        return shapes | ({"biases": groups} if self.has_biases else {})

    def pack(self, weight: mx.array) -> dict[str, mx.array]:
        """Packs a weight ``[outputs, inputs]``; its scales have the weight's dtype, or are uint8.

        Returns:
            The parameters of the packed weight, as in `packed_shapes`.
        """
        parts = self.packed_shapes(*weight.shape)
        return dict(zip(parts, mx.quantize(weight, **self.arguments()), strict=True))


RECIPES = ("standard", "uniform", "mixed")
"""Which layers have 8 bits if fewer are requested: the kinds in `SENSITIVE`, none, or also values,
``ff.net.2`` and the first and last eighth of the blocks."""


def layer_kind(path: str) -> str | None:
    """A key of `KINDS`, or None for a layer that isn't quantized."""
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, path)), None)


def packings(paths: Iterable[str], requested: Quantization, recipe: str) -> dict[str, Quantization]:
    """The quantization by one of `RECIPES` of each layer of a network that can be packed."""
    kinds = {path: kind for path in paths if (kind := layer_kind(path))}
    eight_bits = Quantization(8, requested.group_size if requested.mode == "affine" else 32)
    precise = set()
    if recipe != "uniform" and requested.bits < 8:
        precise |= {path for path, kind in kinds.items() if kind in SENSITIVE}
    if recipe == "mixed":
        precise |= _delicate(kinds)
    return {path: eight_bits if path in precise else requested for path in kinds}


def _delicate(paths: Collection[str]) -> set[str]:
    """The values, ``ff.net.2``, and all layers in the first and last eighth of the blocks."""
    numbers = {path: int(found[1]) for path in paths if (found := re.search(r"\.(\d+)\.", path))}
    blocks = len(set(numbers.values()))
    edge = max(1, blocks // 8)
    at_an_end = {path for path, number in numbers.items() if not edge <= number < blocks - edge}
    return at_an_end | {p for p in paths if p.endswith((".to_v", ".ff.net.2", ".SelfAttention.v"))}


def standard_packings(module: nn.Module, requested: Quantization) -> dict[str, Quantization]:
    """The standard recipe for a network's layers whose width divides into groups, by path."""
    layers = linear_layers(module)
    wanted = packings(layers, requested, "standard")
    return {path: how for path, how in wanted.items() if how.fits(layers[path][1])}


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is packed.

    Few rows are multiplied with the packed weight. Many rows are multiplied with an unpacked copy,
    which is as large as the layer and lives as long as the product. The layer is frozen: gradients
    flow to the input only.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, quantization: Quantization):
        super().__init__()
        self.quantization = quantization
        scales = mx.float32 if quantization.has_biases else mx.uint8
        for name, shape in quantization.packed_shapes(outputs, inputs).items():
            self[name] = mx.zeros(shape, mx.uint32 if name == "weight" else scales)
        if bias:
            self.bias = mx.zeros(outputs)
        self.freeze()

    def unfreeze(self, *args, **kwargs) -> None:
        """Does nothing: a packed weight has no gradient."""

    def __call__(self, x: mx.array, permutation: mx.array | None = None) -> mx.array:
        """``[..., inputs] -> [..., outputs]``, with its outputs permuted."""
        how = self.quantization.arguments()
        arrays = [self.get(name) for name in ("weight", "scales", "biases", "bias")]
        if permutation is not None:
            arrays = [array if array is None else array[permutation] for array in arrays]
        *packed, bias = arrays
        if x.size // x.shape[-1] <= PACKED_ROWS[mx.default_device().type]:
            y = mx.quantized_matmul(x, *packed, transpose=True, **how)
        else:
            # Without this dependency a lazy graph could unpack all layers at once.
            # The gradient is stopped: the weight is no function of x, and most modes have none.
            packed[0] = mx.stop_gradient(mx.depends(packed[:1], [x])[0])
            weight = mx.dequantize(*packed, **how).astype(x.dtype).T
            return x @ weight if bias is None else mx.addmm(bias, x, weight)
        return y if bias is None else y + bias

    def unpacked(self, dtype: mx.Dtype, rows: slice = slice(None)) -> mx.array:
        """The weight ``[outputs, inputs]``, or some of its rows."""
        arrays = [self.get(name) for name in ("weight", "scales", "biases")]
        packed = [array if array is None else array[rows] for array in arrays]
        return mx.dequantize(*packed, **self.quantization.arguments()).astype(dtype)


def quantize_layers(module: nn.Module, layers: Mapping[str, Quantization]) -> None:
    """Replaces linear layers by `QuantizedLinear` layers, still without values.

    Raises:
        KeyError: there is no linear layer at a path.
        ValueError: a layer's width doesn't divide into groups.
    """
    shapes = linear_layers(module)
    for path, quantization in layers.items():
        _, inputs = shapes[path]
        if not quantization.fits(inputs):
            raise ValueError(f"{path} has {inputs} inputs: {quantization} doesn't fit")

    def replace(path: str, layer: nn.Module) -> nn.Module:
        if path not in layers:
            return layer
        outputs, inputs = shapes[path]
        return QuantizedLinear(inputs, outputs, "bias" in layer, layers[path])

    leaves = module.leaf_modules()
    module.update_modules(tree_map_with_path(replace, leaves, is_leaf=nn.Module.is_module))


def linear_layers(module: nn.Module) -> dict[str, tuple[int, int]]:
    """The numbers of outputs and inputs of every linear layer, by its path."""
    return {
        path: tuple(layer.weight.shape)
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }
