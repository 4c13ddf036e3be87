"""One component of a model folder: its ``config.json`` and its safetensors files.

Parameters have their official names, so that loading only moves channels last. Names and shapes are
checked in the files' headers before any weight is read.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import CheckpointError, InvalidInputError
from ..nn.quantization import Quantization, linear_layers, quantize_layers
from .component_files import COMPONENT_STEMS, component_files
from .json_files import read_config, write_config
from .tensor_files import TensorInfo, open_arrays, read_header, save_arrays

DTYPES = {name: getattr(mx, name) for name in ("float16", "bfloat16", "float32")}
"""The dtypes that a model can have, by name."""

Dtype = mx.Dtype | str
"""A dtype that a model is given: one of `DTYPES`, its name, or the same one of PyTorch or NumPy."""

FLOATING = ("F32", "F16", "BF16")
"""Types of weights in the spelling of safetensors."""

PACKED = (*FLOATING, "U32", "U8")
"""Types of the parts of quantized weights."""

NO_PACKINGS: Mapping[str, Quantization] = MappingProxyType({})
"""The quantization of layers by path, where all stay as they are stored."""

TIED = {"shared.weight": "encoder.embed_tokens.weight"}
"""T5's token embedding, and the name under which some checkpoints store it, too or alone."""


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


def check_component(module: nn.Module, folder: Path) -> dict[str, TensorInfo]:
    """Checks that the files of `folder` hold exactly the parameters of `module`.

    Reads headers only. `module` may be new: MLX allocates nothing before evaluation. Its linear
    layers are replaced by quantized ones where the folder's ``config.json`` says so.

    Returns:
        The file, type and shape of each parameter.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing, unexpected, stored
            twice or of another shape; the message names the first few.
    """
    stored: dict[str, TensorInfo] = {}
    for file in component_files(folder):
        header = read_header(file)
        _refuse(folder, "tensors that two of its files hold", stored.keys() & header.keys())
        stored |= header
    untie(stored)
    _quantize_as_stored(module, folder, stored)
    check_tensors(module, folder, stored)
    return stored


def untie(stored: dict[str, Any]) -> None:
    """Gives tensors that have two names the official one alone."""
    for name, other in TIED.items():
        if other in stored:
            tensor = stored.pop(other)
            stored.setdefault(name, tensor)


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


def load_component(
    module: nn.Module,
    folder: Path,
    dtype: mx.Dtype | None = None,
    packings: Mapping[str, Quantization] = NO_PACKINGS,
) -> nn.Module:
    """Loads the weights of `folder` into `module` and returns it, evaluated.

    Memory: the weights as they are loaded and, temporarily, one tensor as stored.

    Args:
        module: a network made from the folder's configuration.
        dtype: of the parameters; None keeps the stored one.
        packings: linear layers that are quantized as they are read, by path.

    Raises:
        CheckpointError: as `check_component`, or a weight to quantize has NaN or infinity in it.
    """
    stored = check_component(module, folder)
    quantize_layers(module, packings)
    take = open_tensors(stored)
    weights: list[tuple[str, mx.array]] = []
    for name in stored:
        how = packings.get(name.removesuffix(".weight"))
        if how is None:
            parts = {name: _channels_last(take(name))}
        else:
            parts = _packed(folder, name, take(name), how)
        if dtype is not None:
            parts = {part: _cast(array, dtype) for part, array in parts.items()}
        mx.eval(parts)
        weights += parts.items()
        if how is not None:
            mx.clear_cache()  # of the weight as it was stored
    module.load_weights(weights)
    module.eval()
    return module


def _packed(folder: Path, name: str, weight: mx.array, how: Quantization) -> Mapping[str, mx.array]:
    """The parameters of a packed weight by name."""
    if not mx.isfinite(weight).all().item():  # packing would make numbers of it
        raise CheckpointError(f"{folder} has NaN or infinity in {name}: take another copy of it")
    layer = name.removesuffix(".weight")
    return {f"{layer}.{part}": array for part, array in how.pack(weight).items()}


def _channels_last(weight: mx.array) -> mx.array:
    return mx.contiguous(mx.moveaxis(weight, 1, -1)) if weight.ndim >= 4 else weight


def _cast(array: mx.array, dtype: mx.Dtype) -> mx.array:
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array


def open_tensors(stored: Mapping[str, TensorInfo]) -> Callable[[str], mx.array]:
    """Opens the files of a component that `check_component` has checked.

    Returns:
        A function that takes a tensor out by its name, once: see ``open_arrays``.
    """
    files = {file: open_arrays(file) for file in {info.file for info in stored.values()}}

    def take(name: str) -> mx.array:
        take_out = files[stored[name].file]
        try:
            return take_out(name)
        except KeyError:
            return take_out(TIED[name])

    return take


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
        found = {
            layer: Quantization(**(config[layer] if layer in config else _default(config)))
            for layer in layers
        }
    except (TypeError, KeyError):
        found = None
    if found is None or not all(how.is_known for how in found.values()):
        raise CheckpointError(
            f"{folder}/config.json doesn't say how its layers are quantized: convert it again"
        )
    return found


def _default(config: Mapping[str, Any]) -> dict[str, Any]:
    """The quantization of the layers that the configuration doesn't list."""
    return {name: config[name] for name in ("bits", "group_size", "mode")}


def _quantize_as_stored(module: nn.Module, folder: Path, stored: Mapping[str, TensorInfo]) -> None:
    layers = stored_quantization(folder, stored)
    lacking = layers.keys() - linear_layers(module).keys()
    _refuse(folder, "quantized layers that this network lacks", lacking)
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


def upstream_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The stored shape of a parameter: convolutions have input channels second there, last here."""
    return (shape[0], shape[-1], *shape[1:-1]) if len(shape) >= 4 else tuple(shape)


def _refuse(folder: Path, what: str, names: Collection[str]) -> None:
    if names:
        raise CheckpointError(f"{folder} has {what}: {listed(sorted(names))}")


def listed(names: Sequence[Any]) -> str:
    """The first names of a list, and how many more there are, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(str, names[:3])) + more
