"""Quantizes the weights of a model while they are read, to the numbers of a converted folder."""

import logging
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.nn as nn

from ..errors import InvalidInputError, alternatives
from ..nn.quantization import MODES, Quantization, standard_packings
from .components import NO_PACKINGS, stored_quantization
from .networks import NETWORKS
from .tensor_files import TensorInfo

logger = logging.getLogger(__name__)

BITS, (GROUP_SIZE, *_) = MODES["affine"]
"""Bits that weights can be quantized to, and how many of them share a scale."""

BITS_IN_WORDS = alternatives(BITS)


def find_quantization(bits: Any) -> Quantization | None:
    """What the converter's ``-q BITS`` requests; None stays None.

    Raises:
        InvalidInputError: weights can't be quantized to these bits.
    """
    if bits is None:
        return None
    try:
        number = operator.index(bits)
    except TypeError:
        number = 0
    if number not in BITS:
        raise InvalidInputError(f"quantize must be {BITS_IN_WORDS}; got {bits!r}")
    return Quantization(number, GROUP_SIZE)


class LoadPlan:
    """What becomes of the tensors in a model's files when they are loaded.

    Attributes:
        in_files: the tensors of each network by name, from the headers of its files.
        packings: for each network, the layers that are quantized while they are read, by path.
        tensors: the tensors of each network by name, as they are loaded.
    """

    def __init__(
        self,
        networks: Mapping[str, tuple[Any, Path]],
        in_files: Mapping[str, Mapping[str, TensorInfo]],
        quantization: Quantization | None = None,
    ):
        """Decides which layers are quantized.

        Args:
            networks: the configuration of each network, and the folder of its files.
            in_files: the tensors of each network by name, from the headers of its files.
            quantization: for the layers of the converter's standard recipe; None changes nothing.

        Raises:
            CheckpointError: a ``config.json`` doesn't say how layers are quantized.
            InvalidInputError: a network is quantized to other bits already, or no layer can be
                quantized.
        """
        self.in_files = in_files
        self._requested = quantization
        self.packings = dict.fromkeys(networks, NO_PACKINGS)
        if quantization is not None:
            for name, (config, folder) in networks.items():
                module = NETWORKS[name][0](config)
                self.packings[name] = _packings(module, folder, self.in_files[name], quantization)
            self._check_effect(quantization)
        self.tensors = {
            name: _as_loaded(stored, self.packings[name]) for name, stored in self.in_files.items()
        }

    @property
    def bits(self) -> int | None:
        """Bits to which weights are quantized while they are read; None quantizes none."""
        packs = self._requested is not None and any(self.packings.values())
        return self._requested.bits if packs else None

    @property
    def bytes_to_quantize(self) -> int:
        """Bytes in the files of the networks that have layers to quantize."""
        packed = (self.in_files[name] for name, layers in self.packings.items() if layers)
        return sum(tensor.bytes for tensors in packed for tensor in tensors.values())

    def _check_effect(self, quantization: Quantization) -> None:
        """Warns where the model has these bits already.

        Raises:
            InvalidInputError: it isn't quantized, and no layer divides into groups.
        """
        if self.bits is not None:
            return
        if not any(
            name.endswith(".scales") for stored in self.in_files.values() for name in stored
        ):
            raise no_layer_fits(quantization)
        logger.warning(
            "quantize has no effect: the model is quantized to %d bits already", quantization.bits
        )


def no_layer_fits(quantization: Quantization) -> InvalidInputError:
    """The error where groups divide the width of no layer."""
    return InvalidInputError(
        f"no layer can be quantized with groups of {quantization.group_size}: their widths don't "
        "divide by it"
    )


def _packings(
    module: nn.Module, folder: Path, stored: Mapping[str, TensorInfo], requested: Quantization
) -> Mapping[str, Quantization]:
    """The layers of a new network that are quantized: none where they have these bits already."""
    before = stored_quantization(folder, stored)
    if not before:
        return standard_packings(module, requested)
    bits = min(how.bits for how in before.values())
    if bits != requested.bits:
        raise InvalidInputError(
            f"{folder} is quantized to {bits} bits already and can't be quantized to "
            f"{requested.bits}: leave out quantize, or use the model that it was made from"
        )
    return NO_PACKINGS


def _as_loaded(
    stored: Mapping[str, TensorInfo], packings: Mapping[str, Quantization]
) -> dict[str, TensorInfo]:
    """The tensors of a network by name, after some of its layers are quantized."""
    tensors: dict[str, TensorInfo] = {}
    for name, info in stored.items():
        layer = name.removesuffix(".weight")
        if layer in packings:
            tensors |= packed_tensors(layer, info.shape, info.dtype, packings[layer])
        else:
            tensors[name] = info
    return tensors


def packed_tensors(
    layer: str, shape: tuple[int, ...], dtype: str, how: Quantization
) -> dict[str, TensorInfo]:
    """The tensors of a layer's packed weight by name.

    Args:
        shape: ``[outputs, inputs]``.
        dtype: type of the weight before.
    """
    types = {"weight": "U32", "scales": dtype if how.has_biases else "U8", "biases": dtype}
    shapes = how.packed_shapes(*shape)
    return {f"{layer}.{part}": TensorInfo(types[part], shapes[part]) for part in shapes}
