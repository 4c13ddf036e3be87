"""LoRA adapters on disk, as diffusers and PEFT write them.

An adapter is a safetensors file with ``lora_A`` and ``lora_B`` for each layer. Its scale is
alpha / rank. diffusers keeps alpha in the file's metadata, PEFT in ``adapter_config.json`` beside
it; where neither is, diffusers takes alpha for equal to the rank, and so do we.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError, ModelNotFoundError
from ..nn.lora import LowRank
from .components import read_config, write_config
from .identity import file_digest
from .resolve import fetch_file, hub_id
from .safetensors_header import read_header, read_metadata

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"

METADATA_KEY = "lora_adapter_metadata"
PREFIX = "transformer."

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?:transformer\.)?(?P<layer>.+)"
    r"\.lora_(?P<half>[AB])(?:\.default)?\.weight"
)
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
        """Reads the tensors; `scale` comes on top of the adapter's own."""
        tensors = mx.load(str(self.file))
        return {
            layer: LowRank(*(tensors[name] for name in names), scale * self.scales[layer])
            for layer, names in self.names.items()
        }


def open_adapter(source: str | Path, layers: Mapping[str, tuple[int, int]]) -> Adapter:
    """Finds an adapter and checks that it fits; reads its header only.

    Args:
        source: a file, a folder with one, or a hub id.
        layers: outputs and inputs of the network's linear layers by path.

    Raises:
        ModelNotFoundError: there is none.
        CheckpointError: it is damaged, for another network, or of a kind that isn't known.
    """
    file = _find(source)
    pairs: dict[str, dict[str, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    unknown = []
    for name, info in read_header(file).items():
        match = _KEY.fullmatch(name)
        if match is None:
            unknown.append(name)
            continue
        pairs.setdefault(match["layer"], {})[match["half"]] = name
        shapes[name] = info.shape
    if unknown:
        raise CheckpointError(
            f"{file} has tensors that aren't LoRA as diffusers or PEFT write it: {_listed(unknown)}"
        )
    if not pairs:
        raise CheckpointError(f"{file} has no tensors")
    if missing := [layer for layer, halves in pairs.items() if len(halves) < 2]:
        raise CheckpointError(f"{file} has only one half of {_listed(missing)}")
    if strange := [layer for layer in pairs if layer not in layers]:
        raise CheckpointError(
            f"{file} is for another model: this one has no linear layers {_listed(strange)}"
        )
    names = {layer: (halves["A"], halves["B"]) for layer, halves in pairs.items()}
    for layer, (a, b) in names.items():
        outputs, inputs = layers[layer]
        rank = shapes[a][0]
        if shapes[a] != (rank, inputs) or shapes[b] != (outputs, rank) or rank == 0:
            raise CheckpointError(
                f"{file} is for another model: {layer} has {inputs} inputs and {outputs} outputs "
                f"here, and A {list(shapes[a])} and B {list(shapes[b])} don't fit"
            )
    config = _config(file)
    ranks = {layer: shapes[a][0] for layer, (a, _) in names.items()}
    scales = {layer: _scale(config, layer, rank) for layer, rank in ranks.items()}
    return Adapter(str(source), file, names, scales)


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
    final = folder / DIFFUSERS_FILE
    partial = final.with_name(f"{final.stem}.partial.safetensors")
    mx.save_safetensors(str(partial), tensors, {"format": "pt", METADATA_KEY: json.dumps(metadata)})
    partial.replace(final)
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
        others = sorted(path.glob("*.safetensors"))
        if len(others) == 1:
            return others[0]
        listed = f" but {_listed([o.name for o in others])}: name one" if others else ""
        raise ModelNotFoundError(f"{path} holds neither {DIFFUSERS_FILE} nor {PEFT_FILE}{listed}")
    try:
        repo = hub_id(source)
    except ModelNotFoundError:
        repo = None
    if repo is None:
        raise ModelNotFoundError(f"no adapter {str(source)!r}: give a file, a folder or a hub id")
    return fetch_file(repo, (DIFFUSERS_FILE, PEFT_FILE), also=(CONFIG_FILE,))


def _config(file: Path) -> dict[str, Any]:
    """PEFT's settings of an adapter, from its metadata or from the file beside it."""
    told = read_metadata(file).get(METADATA_KEY)
    if told is not None:
        try:
            config = {name.removeprefix(PREFIX): v for name, v in json.loads(told).items()}
        except (ValueError, AttributeError):
            raise CheckpointError(f"the metadata of {file}, {METADATA_KEY}, isn't JSON") from None
    elif (beside := file.with_name(CONFIG_FILE)).is_file():
        config = read_config(beside)
    else:
        config = {}
    if config.get("use_dora"):
        raise CheckpointError(f"{file} is a DoRA adapter: only LoRA can be used")
    return config


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """As peft works it out: patterns of layers first, then what holds for all."""
    alpha = _by_pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha", rank))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, float] | None, layer: str, default: float) -> float:
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(?:.*\.)?{pattern.removeprefix(PREFIX)}", layer):
            return value
    return default


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more
