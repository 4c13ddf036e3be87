"""One component of a model folder: its ``config.json`` and its safetensors files.

Parameters have their official names, so that loading only moves channels last. Names and shapes are
checked in the files' headers before any weight is read.
"""

import json
import logging
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import CheckpointError, InvalidInputError
from ..nn.quantization import Quantization, linear_layers, quantize_layers
from .tensor_files import TensorInfo, read_header, save_arrays

COMPONENT_STEMS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""File stem of each component that has weights."""

DTYPES = {name: getattr(mx, name) for name in ("float16", "bfloat16", "float32")}
"""The dtypes that a model can have, by name."""

Dtype = mx.Dtype | str
"""A dtype that a model is given: one of `DTYPES`, its name, or the same one of PyTorch or NumPy."""

FLOATING = ("F32", "F16", "BF16")
"""Types of weights in the spelling of safetensors."""

PACKED = (*FLOATING, "U32", "U8")
"""Types of the parts of quantized weights."""

REDUNDANT = {"encoder.embed_tokens.weight"}
"""Copies of other tensors in some checkpoints: T5's tied token embedding."""

logger = logging.getLogger(__name__)


def find_dtype(given: Any) -> mx.Dtype | None:
    """One of `DTYPES`, given as such, by its name, or as that of PyTorch or NumPy; None stays None.

    Raises:
        InvalidInputError: a model can't have this dtype.
    """
    if given is None:
        return None
    name = getattr(given, "name", None) or getattr(given, "__name__", None) or str(given)
    found = DTYPES.get(str(name).rpartition(".")[2])
    if found is None:
        raise InvalidInputError(f"dtype must be one of {', '.join(DTYPES)}; got {given!r}")
    return found


def read_config(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a model folder.

    Raises:
        CheckpointError: the file is missing or isn't a JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: the model folder is incomplete") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} should hold a JSON object")
    return config


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Writes a JSON file of a model folder."""
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_component(module: nn.Module, folder: Path) -> dict[str, TensorInfo]:
    """Checks that the files of `folder` hold exactly the parameters of `module`.

    Reads headers only. `module` may be new: MLX allocates nothing before evaluation. Its linear
    layers are replaced by quantized ones where the folder's ``config.json`` says so.

    Returns:
        The file, type and shape of each parameter.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing, unexpected or of
            another shape; the message names the first few.
    """
    stored: dict[str, TensorInfo] = {}
    for file in component_files(folder):
        stored.update(read_header(file))
    for name in REDUNDANT & stored.keys():
        del stored[name]
    _quantize_as_stored(module, folder, stored)
    check_tensors(module, folder, stored)
    return stored


def check_tensors(module: nn.Module, folder: Path, stored: Mapping[str, TensorInfo]) -> None:
    """Raises CheckpointError, about `folder`, unless `stored` are the parameters of `module`."""
    wanted = {n: upstream_shape(p.shape) for n, p in tree_flatten(module.parameters())}
    _refuse(folder, "missing tensors", wanted.keys() - stored.keys())
    _refuse(folder, "unexpected tensors", stored.keys() - wanted.keys())
    _refuse(
        folder,
        "tensors of another shape",
        {
            f"{name} {list(stored[name].shape)} instead of {list(shape)}"
            for name, shape in wanted.items()
            if stored[name].shape != shape
        },
    )
    _refuse(
        folder,
        "tensors of a type that can't be used",
        {
            f"{name} {info.dtype}"
            for name, info in stored.items()
            if info.dtype not in (PACKED if _is_packed(name, stored) else FLOATING)
        },
    )


def _is_packed(name: str, stored: Mapping[str, TensorInfo]) -> bool:
    layer, _, part = name.rpartition(".")
    return part in ("weight", "scales", "biases") and f"{layer}.scales" in stored


def load_component(module: nn.Module, folder: Path, dtype: mx.Dtype | None = None) -> nn.Module:
    """Loads the weights of `folder` into `module` and returns it, evaluated.

    Memory: the weights in `dtype` and, temporarily, one tensor as stored.

    Args:
        module: a network made from the folder's configuration.
        dtype: of the parameters; None keeps the stored one.

    Raises:
        CheckpointError: as `check_component`.
    """
    stored = check_component(module, folder)
    tensors: dict[str, mx.array] = {}
    for file in {info.file for info in stored.values()}:
        tensors.update(mx.load(str(file)))
    weights = []
    for name in stored:
        weight = tensors.pop(name)
        if weight.ndim >= 4:
            weight = mx.contiguous(mx.moveaxis(weight, 1, -1))
        if dtype is not None and mx.issubdtype(weight.dtype, mx.floating):
            weight = weight.astype(dtype)
        weights.append((name, weight))
    tensors.clear()
    module.load_weights(weights)
    for _, weight in weights:
        mx.eval(weight)
    module.eval()
    return module


def stored_quantization(folder: Path, stored: Mapping[str, TensorInfo]) -> dict[str, Quantization]:
    """The quantized layers of a component, by path.

    Args:
        stored: the component's tensors by name; a layer with ``scales`` is a quantized one.

    Raises:
        CheckpointError: ``config.json`` doesn't say how they are quantized.
    """
    layers = [name.removesuffix(".scales") for name in stored if name.endswith(".scales")]
    config = read_config(folder / "config.json").get("quantization", {}) if layers else {}
    try:
        return {
            layer: Quantization(**(config[layer] if layer in config else _default(config)))
            for layer in layers
        }
    except (TypeError, KeyError):
        raise CheckpointError(
            f"{folder}/config.json doesn't say how its layers are quantized: convert it again"
        ) from None


def _default(config: Mapping[str, Any]) -> dict[str, Any]:
    """The quantization of the layers that the configuration doesn't list."""
    return {name: config[name] for name in ("bits", "group_size", "mode")}


def _quantize_as_stored(module: nn.Module, folder: Path, stored: Mapping[str, TensorInfo]) -> None:
    layers = stored_quantization(folder, stored)
    if not layers:
        return
    _refuse(
        folder,
        "quantized layers that this network lacks",
        layers.keys() - linear_layers(module).keys(),
    )
    try:
        quantize_layers(module, layers)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def save_component(
    folder: Path, module: nn.Module, config: dict[str, Any], dtype: mx.Dtype | None = None
) -> None:
    """Writes `module` and its configuration as a component folder in the official layout.

    Args:
        folder: ``.../transformer``, ``.../vae`` or ``.../text_encoder``; created if missing.
        config: the contents of ``config.json``.
        dtype: of the stored tensors; None keeps the module's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, weight in tree_flatten(module.parameters()):
        weight = mx.moveaxis(weight, -1, 1) if weight.ndim >= 4 else weight
        tensors[name] = mx.contiguous(weight if dtype is None else weight.astype(dtype))
    name = f"{COMPONENT_STEMS[folder.name]}.safetensors"
    save_arrays(folder / name, tensors, {"format": "pt"})
    write_config(folder / "config.json", config)


def component_files(folder: Path) -> list[Path]:
    """The safetensors files of a component: the shards that its index names, else the single one.

    As in diffusers, an index has priority if all of its shards are there. A single file beside them
    is ignored with a warning.

    Raises:
        CheckpointError: a file is missing.
    """
    stem = COMPONENT_STEMS[folder.name]
    single = folder / f"{stem}.safetensors"
    index = folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        shards = []
        with suppress(CheckpointError):
            shards = _shards(index) if index.is_file() else []
        if shards and shards != [single]:
            _warn_of_a_single_file(single, index)
        return shards or [single]
    if not index.is_file():
        raise CheckpointError(f"{folder} holds neither {single.name} nor {index.name}")
    return _shards(index)


def _shards(index: Path) -> list[Path]:
    """The files that an index names.

    Raises:
        CheckpointError: it names none, or one that isn't there.
    """
    named = read_config(index).get("weight_map")
    if not isinstance(named, dict) or not all(map(_is_file_name, named.values())):
        raise CheckpointError(f"{index} should hold a weight_map of tensors' names to files'")
    shards = sorted(set(named.values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing or not shards:
        raise CheckpointError(f"{index.parent} lacks {', '.join(missing) or 'its shards'}")
    return [index.parent / name for name in shards]


def _is_file_name(name: Any) -> bool:
    """Whether it can be the name of a file beside an index."""
    return isinstance(name, str) and Path(name).name == name and len(os.fsencode(name)) < 256


@cache
def _warn_of_a_single_file(single: Path, index: Path) -> None:
    logger.warning(
        "%s isn't used: %s names other files, which are all there; remove one of the two",
        single,
        index.name,
    )


def upstream_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The stored shape of a parameter: convolutions have input channels second there, last here."""
    return (shape[0], shape[-1], *shape[1:-1]) if len(shape) >= 4 else tuple(shape)


def _refuse(folder: Path, what: str, names: Collection[str]) -> None:
    if names:
        raise CheckpointError(f"{folder} has {what}: {listed(names)}")


def listed(names: Collection[str], shown: int = 3) -> str:
    """The first few names, for a message."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(sorted(names)[:shown]) + more
