"""LoRA adapters on disk: read as many tools write them, written as diffusers and PEFT do.

An adapter is a safetensors file with two matrices for each layer (see ``adapter_names``), or a
checkpoint of the SAT code with them inside. Its scale is alpha / rank. diffusers and finetrainers
keep alpha in the file's metadata, PEFT in ``adapter_config.json`` beside it, kohya and VideoX-Fun
in a tensor for each layer; in SAT it is 1. Where none is, diffusers takes alpha for equal to the
rank, and so do we.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError, ModelNotFoundError
from ..files import file_digest
from ..nn.low_rank import LowRank
from .adapter_names import AdapterNames, sat_part
from .arrays import save_arrays
from .components import FLOATING, read_config, write_config
from .resolve import fetch_file, hub_id
from .safetensors_header import read_header, read_metadata
from .sat import sat_file
from .torch_file import TorchFile, tensors_in

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
ADAPTER_FILES = (DIFFUSERS_FILE, PEFT_FILE, CONFIG_FILE)

METADATA_KEY = "lora_adapter_metadata"
FINETRAINERS_KEY = "lora_config"
PREFIX = "transformer."

SAT_ALPHA = 1  # of all that is trained there
_HUB_FILE = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)/(?P<file>[\w./ -]+\.safetensors)")
_SHOWN = 3


@dataclass(frozen=True)
class Adapter:
    """An adapter whose header has been checked against a network.

    Attributes:
        source: what the user calls it.
        file: where its tensors are.
        names: of the tensors A and B of each layer.
        scales: alpha / rank of each layer.
    """

    source: str
    file: Path
    names: dict[str, tuple[str, str]]
    scales: dict[str, float]

    def identity(self, scale: float) -> dict[str, Any]:
        """What it is, beyond where it lies on this disk; for a record."""
        return {"source": self.source, "scale": scale, "sha256": file_digest(self.file)}

    def load(self, scale: float = 1.0) -> dict[str, LowRank]:
        """Reads the tensors; `scale` comes on top of the adapter's own.

        Raises:
            CheckpointError: there is NaN or infinity among them.
        """
        _, read = _tensors(self.file)
        layers = {
            layer: LowRank(*map(read, names), scale * self.scales[layer])
            for layer, names in self.names.items()
        }
        finite = [mx.isfinite(x).all() for low in layers.values() for x in (low.lora_A, low.lora_B)]
        if not mx.stack(finite).all().item():
            raise CheckpointError(f"{self.file} has NaN or infinity in it: it can't be used")
        return layers


def holds_adapter(folder: Path) -> bool:
    """Whether a folder has one in it, or a file of one."""
    return any((folder / name).is_file() for name in ADAPTER_FILES)


def open_adapter(source: str | Path, layers: Mapping[str, tuple[int, int]]) -> Adapter:
    """Finds an adapter and checks that it fits; reads its header only.

    Args:
        source: a file, a folder with one, a hub id, or one with a file behind it.
        layers: outputs and inputs of the network's linear layers by path.

    Raises:
        ModelNotFoundError: there is none.
        CheckpointError: it is damaged, for another network, or of a kind that isn't known.
    """
    file = _find(source)
    shapes, read = _tensors(file)
    config = _config(file)
    parts, unknown = _parts(file, shapes, layers)
    if any("lora_magnitude_vector" in name or "dora_scale" in name for name in unknown):
        raise CheckpointError(f"{file} is a DoRA adapter: only LoRA can be used")
    if unknown:
        raise CheckpointError(
            f"{file} has tensors that aren't LoRA of a known kind: {_listed(unknown)}"
        )
    if not parts:
        raise CheckpointError(f"{file} has no adapter")
    if any(layer.startswith("lora_te_") for layer in parts):
        raise CheckpointError(
            f"{file} adapts the text encoder, too, which can't be done here: only the transformer"
        )
    if strange := [layer for layer in parts if layer not in layers]:
        raise CheckpointError(
            f"{file} is for another model: this one has no linear layers {_listed(strange)}"
        )
    if missing := [layer for layer, names in parts.items() if not {"A", "B"} <= names.keys()]:
        raise CheckpointError(f"{file} has only one half of {_listed(missing)}")
    scales = {}
    for layer, names in parts.items():
        outputs, inputs = layers[layer]
        a, b = shapes[names["A"]], shapes[names["B"]]
        rank = a[0] if a else 0
        if a != (rank, inputs) or b != (outputs, rank) or rank == 0:
            raise CheckpointError(
                f"{file} is for another model: {layer} has {inputs} inputs and {outputs} outputs "
                f"here, and A {list(a)} and B {list(b)} don't fit"
            )
        alpha = rank
        if "alpha" in names:
            alpha = _number(file, names["alpha"], read(names["alpha"]))
        elif _is_pickle(file):
            alpha = SAT_ALPHA
        scales[layer] = _scale(config, layer, rank, alpha)
    names = {layer: (names["A"], names["B"]) for layer, names in parts.items()}
    return Adapter(str(source), file, names, scales)


def _parts(
    file: Path, shapes: Mapping[str, tuple[int, ...]], layers: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The names of each layer's tensors by what they are, and those that are nothing known."""
    find = sat_part if _is_pickle(file) else AdapterNames(layers).part
    parts: dict[str, dict[str, str]] = {}
    unknown = []
    for name in shapes:
        found = find(name)
        if found is not None:
            layer, what = found
            parts.setdefault(layer, {})[what] = name
        elif find is not sat_part:  # in those the network itself may be there, too
            unknown.append(name)
    return parts, unknown


def _tensors(file: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], mx.array]]:
    """Shapes of a file's tensors, and what reads one of them."""
    if _is_pickle(file):
        stored = tensors_in(TorchFile(file).contents)
        return {name: t.shape for name, t in stored.items()}, lambda name: stored[name].read()
    header = read_header(file)
    # An alpha of its own may be a whole number.
    if strange := [n for n, i in header.items() if i.dtype not in FLOATING and i.size > 1]:
        raise CheckpointError(
            f"{file} has {strange[0]} as {header[strange[0]].dtype}: only {', '.join(FLOATING)} "
            "can be used"
        )
    arrays = mx.load(str(file), format="safetensors")
    return {name: info.shape for name, info in header.items()}, arrays.__getitem__


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
    base_model: str | None = None,
) -> None:
    """Writes an adapter that diffusers' ``load_lora_weights`` and PEFT open with the same effect.

    Args:
        folder: which is there.
        alpha: all layers are scaled by alpha / rank.
        base_model: what it was trained on.
    """
    tensors = {}
    for layer, addition in layers.items():
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = addition.lora_A
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = addition.lora_B
    blocks = re.compile(r"transformer_blocks\.\d+\.")
    targets = sorted({blocks.sub("", layer) for layer in layers})
    config = {"r": rank, "lora_alpha": alpha, "target_modules": targets, "bias": "none"}
    metadata = {f"{PREFIX}{name}": value for name, value in config.items()}
    about = {"format": "pt", METADATA_KEY: json.dumps(metadata)}
    save_arrays(folder / DIFFUSERS_FILE, tensors, about)
    write_config(
        folder / CONFIG_FILE,
        {"peft_type": "LORA", "base_model_name_or_path": base_model, **config},
    )


def _find(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in (DIFFUSERS_FILE, PEFT_FILE):
            if (path / name).is_file():
                return path / name
        if (checkpoint := sat_file(path)) is not None:
            return checkpoint
        others = sorted(path.glob("*.safetensors"))
        if len(others) == 1:
            return others[0]
        listed = f" but {_listed([o.name for o in others])}: name one" if others else ""
        raise ModelNotFoundError(f"{path} holds neither {DIFFUSERS_FILE} nor {PEFT_FILE}{listed}")
    if (inside := _HUB_FILE.fullmatch(str(source))) is not None:
        return fetch_file(inside["repo"], (inside["file"],), also=(CONFIG_FILE,))
    try:
        repo = hub_id(source)
    except ModelNotFoundError:
        repo = None
    if repo is None:
        raise ModelNotFoundError(f"no adapter {str(source)!r}: give a file, a folder or a hub id")
    return fetch_file(repo, (DIFFUSERS_FILE, PEFT_FILE), also=(CONFIG_FILE,))


def _config(file: Path) -> dict[str, Any]:
    """PEFT's settings of an adapter, from its metadata or from the file beside it."""
    metadata = {} if _is_pickle(file) else read_metadata(file)
    key = METADATA_KEY if METADATA_KEY in metadata else FINETRAINERS_KEY
    if key in metadata:
        try:
            told = json.loads(metadata[key])
            config = {name.removeprefix(PREFIX): v for name, v in told.items()}
        except (ValueError, AttributeError):
            raise CheckpointError(f"the metadata of {file}, {key}, isn't JSON") from None
    elif (beside := file.with_name(CONFIG_FILE)).is_file():
        config = read_config(beside)
    else:
        config = {}
    if config.get("use_dora"):
        raise CheckpointError(f"{file} is a DoRA adapter: only LoRA can be used")
    return config


def _scale(config: Mapping[str, Any], layer: str, rank: int, alpha: float) -> float:
    """As peft works it out: patterns of layers first, then what holds for all, then `alpha`."""
    told = config.get("lora_alpha")
    alpha = _by_pattern(config.get("alpha_pattern"), layer, alpha if told is None else told)
    if not isinstance(alpha, int | float) or not isfinite(alpha):
        raise CheckpointError(f"alpha of {layer} is {alpha!r}: it should be a number")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, float] | None, layer: str, default: float) -> float:
    try:
        for pattern, value in (patterns or {}).items():
            if re.fullmatch(rf"(?:.*\.)?(?:{pattern.removeprefix(PREFIX)})", layer):
                return value
    except (AttributeError, re.error):
        raise CheckpointError(f"alpha_pattern is {patterns!r}: it can't be understood") from None
    return default


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more
