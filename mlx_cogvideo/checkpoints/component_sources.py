"""The source of a conversion: a model folder or SAT files, with the same names of tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError
from ..nn.quantization import Quantization
from .components import (
    check_component,
    check_tensors,
    open_tensors,
    stored_quantization,
)
from .json_files import read_config
from .networks import make_network
from .official import official_config, official_tensors
from .resolve import Base, component_folder
from .sat import SatTensor, open_sat
from .sat_configs import text_encoder_config, transformer_config, vae_config
from .tensor_files import TensorInfo
from .variants import Variant


@dataclass(frozen=True)
class ComponentSource:
    """A network as it is stored.

    Attributes:
        config: the contents of its ``config.json``.
        stored: its tensors by their official names.
        open: opens the files. Returns a function that takes a tensor out by its name, once; it is
            read only then. None without files.
        quantized: its quantized layers.
    """

    config: dict[str, Any]
    stored: dict[str, TensorInfo]
    open: Callable[[], Callable[[str], mx.array]] | None
    quantized: dict[str, Quantization] = field(default_factory=dict)


def folder_source(
    folder: Path, name: str, base: Base | None = None, stand_in: Variant | None = None
) -> ComponentSource:
    """The source of a component in a model folder.

    Args:
        base: the model that gives the components which the folder lacks.
        stand_in: an official model that isn't downloaded: what neither of them has is as there.

    Raises:
        CheckpointError: the component is missing, damaged or not what its configuration says.
    """
    source = component_folder(folder, name, base)
    if stand_in is not None and not source.is_dir():
        return ComponentSource(
            official_config(stand_in, name), official_tensors(stand_in, name), None
        )
    config = read_config(source / "config.json")
    stored = check_component(make_network(name, config), source)
    quantized = stored_quantization(source, stored)
    return ComponentSource(config, stored, partial(open_tensors, stored), quantized)


def sat_sources(path: Path) -> dict[str, ComponentSource]:
    """The components that a SAT checkpoint holds.

    Raises:
        CheckpointError: a file is missing, damaged or of an unknown kind.
    """
    try:
        checkpoint = open_sat(path)
        networks = checkpoint.networks
        transformer = transformer_config(networks["transformer"], checkpoint.rotary)
        configs = {"transformer": transformer}
        if "vae" in networks:
            configs["vae"] = vae_config(networks["vae"], transformer)
        if "text_encoder" in networks:
            configs["text_encoder"] = text_encoder_config(networks["text_encoder"])
    except KeyError as error:
        raise CheckpointError(f"{path} is incomplete: it lacks {error.args[0]}") from None
    except (IndexError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} has tensors of unknown shapes or names: {error}") from None
    return {name: _sat_source(path, name, configs[name], networks[name]) for name in networks}


def _sat_source(
    path: Path, name: str, config: dict[str, Any], tensors: Mapping[str, SatTensor]
) -> ComponentSource:
    stored = {tensor: lazy.info for tensor, lazy in tensors.items()}
    check_tensors(make_network(name, config), path, stored)

    def take(tensor: str) -> mx.array:
        return tensors[tensor].read()

    return ComponentSource(config, stored, lambda: take)
