"""A model whose configurations are known: the memory of its weights, its recommended settings."""

import json
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..device import Machine, this_machine
from ..distributed import Processes
from ..nn.backend import on_gpu
from ..nn.quantization import Quantization, quantize_layers, standard_packings
from .compatibility import check_networks
from .components import FLOATING, Dtype, find_dtype, upstream_shape
from .networks import NETWORKS, make_network
from .official import official_config
from .tensor_files import DTYPES, NAMES, TensorInfo
from .variants import Variant, match_variant


class ModelConfigurations:
    """A model whose configurations are known and whose weights need not be here.

    Attributes:
        configs: the configuration of each network by its name.
        variant: the official variant that the transformer's configuration matches, or None.
        recommended: values for settings of a video that aren't given, by name: the folder's, and
            for other settings the variant's.
        dtype: of the weights and activations.
        machine: the machine that memory is estimated for; by default this one.
        memory_limit: bytes that the estimated memory of a run may reach; None sets no limit beside
            the machine's. An estimate is accurate to a few per cent.
        processes: those that share a run.
    """

    def __init__(
        self,
        contents: Mapping[str, Mapping[str, Any]],
        dtype: Dtype | None = None,
        quantization: Quantization | None = None,
    ):
        """Makes a model of configurations, such as those that `read_configurations` returns.

        Args:
            contents: the ``config.json`` of each network, and the folder's ``recommended``.
            dtype: of the weights and activations; None takes the stored one, or float32 on the
                CPU, where 16-bit is slow.
            quantization: what the converter is asked for, with its standard recipe; None leaves
                all layers unquantized.

        Raises:
            CheckpointError: a field is impossible, or the networks don't fit each other.
        """
        self.configs = check_networks(contents)
        self.variant = match_variant(self.configs["transformer"])
        of_variant = {} if self.variant is None else self.variant.recommended
        self.recommended: Mapping[str, Any] = {**of_variant, **contents.get("recommended", {})}
        self.machine: Machine = this_machine()
        self.memory_limit: int | None = None
        self.processes = Processes()
        self._contents, self._quantization = contents, quantization
        self.dtype = find_dtype(dtype) or _default_dtype(self.stored["transformer"])

    @cached_property
    def stored(self) -> Mapping[str, Mapping[str, TensorInfo]]:
        """The tensors of each network by name, as the converter would store them."""
        return {
            name: _converted_tensors(name, json.dumps(self._contents[name]), self._quantization)
            for name in NETWORKS
        }

    def weight_bytes(self, name: str) -> int:
        """Memory that a network's weights take when it is loaded."""
        return self._weight_bytes[name]

    @cached_property
    def _weight_bytes(self) -> Mapping[str, int]:  # a batch asks for each of its videos
        return {
            name: sum(
                tensor.size * self.dtype.size if tensor.dtype in FLOATING else tensor.bytes
                for tensor in tensors.values()
            )
            for name, tensors in self.stored.items()
        }

    def is_packed(self, name: str) -> bool:
        """Whether weights of a network are quantized."""
        return any(tensor.dtype == "U32" for tensor in self.stored[name].values())

    @property
    def takes_image(self) -> bool:
        """Whether it is an image-to-video model."""
        return self.configs["transformer"].takes_image

    @property
    def dtype_name(self) -> str:
        """``"float16"``, ``"bfloat16"`` or ``"float32"``."""
        return str(self.dtype).split(".")[-1]

    @property
    def fps(self) -> int:
        """Frames per second the model was trained at."""
        return self.variant.fps if self.variant else 8


def official_model(
    variant: Variant, quantization: Quantization | None = None
) -> ModelConfigurations:
    """The configurations of an official model, in 16 bits or quantized by the converter."""
    contents = {name: official_config(variant, name) for name in NETWORKS}
    return ModelConfigurations(contents, mx.bfloat16, quantization)


@lru_cache(maxsize=64)  # one model is estimated for many machines
def _converted_tensors(
    name: str, config: str, quantization: Quantization | None
) -> dict[str, TensorInfo]:
    """The tensors that the converter makes of a network with this text in its ``config.json``."""
    network = make_network(name, json.loads(config))
    if quantization is not None:
        quantize_layers(network, standard_packings(network, quantization))
    return {
        path: TensorInfo(NAMES[tensor.dtype], upstream_shape(tensor.shape))
        for path, tensor in tree_flatten(network.parameters())
    }


def _default_dtype(stored: Mapping[str, TensorInfo]) -> mx.Dtype:
    if not on_gpu():
        return mx.float32
    # The large tensors decide: some checkpoints keep a few small ones in float32.
    floating = (tensor for tensor in stored.values() if tensor.dtype in FLOATING)
    return DTYPES[max(floating, key=lambda tensor: tensor.size).dtype]
