"""Adapters on disk: reads the formats of many tools, writes that of diffusers and PEFT.

An adapter is a safetensors file with a few tensors for each layer (see ``adapter_names``), or a
checkpoint of the SAT code that contains such matrices. Its scale is alpha / rank. kohya and
VideoX-Fun keep alpha in a tensor for each layer, diffusers and finetrainers in the file's metadata,
PEFT in ``adapter_config.json`` beside it, and the first of these counts; in SAT it is 1. Where no
alpha is given, it equals the rank, as in diffusers.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError, ModelNotFoundError
from ..files import check_is_file, file_digest
from ..nn.low_rank import Addition, DoRA, LowRank
from .adapter_layers import check_kind, check_layers, check_magnitudes, layer_rank, make_layer
from .adapter_names import PREFIX, AdapterNames, sat_part
from .adapter_scales import alpha_scale, check_scale, configured_scales
from .components import FLOATING, listed
from .json_files import read_config, write_config
from .resolve import expanded, fetch_file, hub_id
from .sat import sat_file
from .tensor_files import open_arrays, read_header, read_metadata, save_arrays
from .torch_file import TorchFile, tensors_in

logger = logging.getLogger(__name__)

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
OWN_FILES = (DIFFUSERS_FILE, PEFT_FILE)
NOT_CHECKED = "%s isn't in the local cache: a dry run can't check this adapter"
ADAPTER_FILES = (*OWN_FILES, CONFIG_FILE)

METADATA_KEY = "lora_adapter_metadata"
FINETRAINERS_KEY = "lora_config"
PEFT_PREFIX = "base_model.model."

SAT_ALPHA = 1
"""Alpha of every adapter that the SAT code trains."""

_BLOCK = re.compile(r"transformer_blocks\.\d+\.")
_HUB_FILE = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)/(?P<file>[\w./ -]+\.safetensors)")


@dataclass(frozen=True)
class Adapter:
    """An adapter whose header has been checked against a network.

    Attributes:
        source: the name that the user gave.
        file: the file with its tensors.
        names: names of the tensors of each layer, by their part in it.
        scales: alpha / rank of each layer.
        use_rslora: whether that is alpha / sqrt(rank) instead.
    """

    source: str
    file: Path
    names: dict[str, dict[str, str]]
    scales: dict[str, float]
    use_rslora: bool = False

    def identity(self, scale: float) -> dict[str, Any]:
        """What identifies the adapter on any machine; for a record."""
        return {"source": self.source, "scale": scale, "sha256": file_digest(self.file)}

    def load(self, scale: float = 1.0) -> dict[str, Addition]:
        """Reads the tensors; `scale` multiplies the adapter's own scale.

        Raises:
            InvalidInputError: `scale` isn't a finite number.
            CheckpointError: a tensor contains NaN or infinity.
        """
        check_scale(scale)
        _, read = _tensors(self.file)
        layers = {
            layer: make_layer({p: read(n) for p, n in names.items()}, scale * self.scales[layer])
            for layer, names in self.names.items()
        }
        finite = [mx.isfinite(x).all() for layer in layers.values() for x in layer.arrays()]
        if not mx.stack(finite).all().item():
            raise CheckpointError(f"{self.file} has NaN or infinity in it: it can't be used")
        return layers


def holds_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, or at least one of an adapter's files."""
    return any((folder / name).is_file() for name in ADAPTER_FILES)


def open_adapter(
    source: str | Path, layers: Mapping[str, tuple[int, int]], *, download: bool = True
) -> Adapter:
    """Finds an adapter and checks that it fits a network; reads its header only.

    Args:
        source: a file, a folder that holds one, a hub id, or a hub id followed by a file name.
        layers: outputs and inputs of the network's linear layers by path.
        download: False takes an adapter of the hub only from the local cache.

    Raises:
        ModelNotFoundError: there is no such adapter.
        CheckpointError: it is damaged, for another network, or of an unknown kind.
    """
    file = _find(source, download)
    shapes, read = _tensors(file)
    config = _config(file)
    found = _layer_tensors(file, shapes, layers, config.get("peft_type"))
    check_layers(file, found, layers)
    if config.get("use_dora"):
        check_magnitudes(file, found)
    ranks = {
        layer: layer_rank(file, layer, {p: shapes[n] for p, n in names.items()}, layers[layer])
        for layer, names in found.items()
    }
    own = {
        layer: alpha_scale(layer, ranks[layer], _number(file, name, read(name)))
        for layer, names in found.items()
        if (name := names.get("alpha")) is not None
    }
    others = {layer: rank for layer, rank in ranks.items() if layer not in own}
    if not config and any(name.startswith(PEFT_PREFIX) for name in shapes):
        logger.warning(
            "%s: its alpha isn't known, and the rank is taken; PEFT keeps it in %s beside %s",
            *(file, CONFIG_FILE, PEFT_FILE),
        )
    scales = configured_scales(config, others, SAT_ALPHA if _is_pickle(file) else None) | own
    tensors = {
        layer: {part: name for part, name in names.items() if part != "alpha"}
        for layer, names in found.items()
    }
    return Adapter(str(source), file, tensors, scales, bool(config.get("use_rslora")))


def _layer_tensors(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    layers: Mapping[str, tuple[int, int]],
    kind: str | None,
) -> dict[str, dict[str, str]]:
    """The names of each layer's tensors, by their part in it.

    Raises:
        CheckpointError: the adapter is of another kind, or a tensor has an unknown name.
    """
    find = sat_part if _is_pickle(file) else AdapterNames(layers).part
    found: dict[str, dict[str, str]] = {}
    unknown = []
    for name in shapes:
        place = find(name)
        if place is not None:
            layer, part = place
            names = found.setdefault(layer, {})
            if (other := names.setdefault(part, name)) != name:
                raise CheckpointError(f"{file} has {other} and {name}, of which one can be used")
        elif find is not sat_part:  # a SAT checkpoint may hold the network itself, too
            unknown.append(name)
    check_kind(file, kind, unknown)
    return found


def _tensors(file: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], mx.array]]:
    """The shapes of a file's tensors, and a function that reads one of them."""
    if _is_pickle(file):
        stored = tensors_in(TorchFile(file).contents)
        return {name: t.shape for name, t in stored.items()}, lambda name: stored[name].read()
    header = read_header(file)
    # A stored alpha, which is one number, may be an integer.
    if strange := [n for n, i in header.items() if i.dtype not in FLOATING and i.size > 1]:
        raise CheckpointError(
            f"{file} has {strange[0]} as {header[strange[0]].dtype}: only {', '.join(FLOATING)} "
            "can be used"
        )
    return {name: info.shape for name, info in header.items()}, open_arrays(file)


def _is_pickle(file: Path) -> bool:
    return file.suffix == ".pt"


def _number(file: Path, name: str, array: mx.array) -> float:
    if array.size != 1:
        raise CheckpointError(f"{name} of {file} should be one number; it is {list(array.shape)}")
    return array.item()


def save_adapter(
    folder: Path,
    layers: Mapping[str, LowRank],
    *,
    rank: int,
    alpha: float,
    use_rslora: bool = False,
    base_model: str | None = None,
    targets: Sequence[str] | None = None,
    others: Sequence[dict[str, Any]] = (),
) -> None:
    """Writes an adapter that diffusers' ``load_lora_weights`` and PEFT's ``from_pretrained`` open.

    Both have the same effect. Each looks for a file of its own, with its own names in it.

    Args:
        folder: an existing folder.
        alpha: all layers are scaled by alpha / rank.
        use_rslora: they are scaled by alpha / sqrt(rank) instead.
        base_model: name of the model that it was trained on.
        targets: ends of the names of the layers; None takes their names within a block.
        others: identities of the adapters that the base model had when this one was trained.
    """
    if targets is None:
        targets = sorted({layer_in_block(layer) for layer in layers})
    config = {"r": rank, "lora_alpha": alpha, "target_modules": [*targets], "bias": "none"}
    config["use_rslora"] = use_rslora
    config["use_dora"] = any(isinstance(layer, DoRA) for layer in layers.values())
    metadata = {f"{PREFIX}{name}": value for name, value in config.items()}
    about = {"format": "pt", METADATA_KEY: json.dumps(metadata)}
    save_arrays(folder / DIFFUSERS_FILE, _named(layers, PREFIX), about)
    save_arrays(folder / PEFT_FILE, _named(layers, PEFT_PREFIX), about)
    about = {"peft_type": "LORA", "base_model_name_or_path": base_model, **config}
    # PEFT ignores a field that it doesn't know, with a warning.
    write_config(folder / CONFIG_FILE, about | ({"base_adapters": [*others]} if others else {}))


def _named(layers: Mapping[str, LowRank], prefix: str) -> dict[str, mx.array]:
    tensors = {}
    for layer, addition in layers.items():
        tensors[f"{prefix}{layer}.lora_A.weight"] = addition.lora_A
        tensors[f"{prefix}{layer}.lora_B.weight"] = addition.lora_B
        if isinstance(addition, DoRA):
            tensors[f"{prefix}{layer}.lora_magnitude_vector"] = addition.lora_magnitude_vector
    return tensors


def layer_in_block(layer: str) -> str:
    """The name of a layer within its block, such as ``attn1.to_q``."""
    return _BLOCK.sub("", layer)


def _find(source: str | Path, download: bool) -> Path:
    path = expanded(source)
    if not str(source).strip():
        raise ModelNotFoundError("an adapter's name is empty: give a file, a folder or a hub id")
    if path.exists() and not path.is_dir():
        check_is_file(path)
        return path
    return _in_folder(path) if path.is_dir() else _on_hub(source, download)


def _in_folder(path: Path) -> Path:
    for name in OWN_FILES:
        if (path / name).is_file():
            return path / name
    if (checkpoint := sat_file(path)) is not None:
        return checkpoint
    others = sorted(path.glob("*.safetensors"))
    if len(others) == 1:
        return others[0]
    but = f" but {listed([file.name for file in others])}: name one" if others else ""
    raise ModelNotFoundError(f"{path} holds neither {DIFFUSERS_FILE} nor {PEFT_FILE}{but}")


def _on_hub(source: str | Path, download: bool) -> Path:
    if (inside := _HUB_FILE.fullmatch(str(source))) is not None:
        try:
            return fetch_file(inside["repo"], (inside["file"],), (CONFIG_FILE,), download)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(f"there is no file {source} here, and {error}") from None
    try:
        repo = hub_id(source)
    except ModelNotFoundError:
        repo = None
    if repo is None:
        raise ModelNotFoundError(f"no adapter {str(source)!r}: give a file, a folder or a hub id")
    return fetch_file(repo, OWN_FILES, (CONFIG_FILE,), download)


def _config(file: Path) -> dict[str, Any]:
    """The PEFT configuration of an adapter, from its metadata or from the file beside it.

    The file beside it counts only under the names that diffusers and PEFT give: others may lie in
    the folder of another adapter.
    """
    metadata = {} if _is_pickle(file) else read_metadata(file)
    key = METADATA_KEY if METADATA_KEY in metadata else FINETRAINERS_KEY
    if key in metadata:
        try:
            stored = json.loads(metadata[key])
            config = {name.removeprefix(PREFIX): value for name, value in stored.items()}
        except (ValueError, AttributeError, RecursionError):
            raise CheckpointError(f"the metadata of {file}, {key}, isn't JSON") from None
    elif file.name in OWN_FILES and (beside := file.with_name(CONFIG_FILE)).is_file():
        config = read_config(beside)
    else:
        config = {}
    return config
