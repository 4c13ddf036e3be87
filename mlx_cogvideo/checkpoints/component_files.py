"""Finds the weight files of a component under the names that diffusers and transformers give them.

| saved | files |
|---|---|
| whole | ``STEM.safetensors`` |
| in shards | ``STEM-00001-of-00003.safetensors`` ..., ``STEM.safetensors.index.json`` |
| with ``variant="fp16"`` | ``STEM.fp16.safetensors`` |
| both | ``STEM.fp16-00001-of-00003.safetensors`` ..., ``STEM.safetensors.index.fp16.json`` |
"""

import logging
import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .json_files import read_config

COMPONENT_STEMS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""File stem of each component that has weights."""

_ENDING = re.compile(
    r"(?:\.(?P<variant>[^.]+?))?"
    r"(?:-(?P<number>\d{5})-of-(?P<total>\d{5})(?:\.(?P<formerly>[^.]+))?)?\.safetensors"
)
"""What follows the stem in the name of a file. In older shards the variant comes last."""
_OF_INDEX = re.compile(r"\.safetensors\.index(?:\.(?P<variant>[^.]+))?\.json")
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5", ".onnx")

logger = logging.getLogger(__name__)


def component_files(folder: Path) -> list[Path]:
    """The safetensors files of a component.

    As in diffusers, an index has priority over a single file if all of its shards are there. A
    variant is taken where there is nothing else.

    Raises:
        CheckpointError: a file is missing, or it isn't clear which ones are meant.
    """
    stem = COMPONENT_STEMS[folder.name]
    variants = _variants(folder, stem)
    if not variants:
        raise CheckpointError(_nothing(folder, stem))
    if "" not in variants and len(variants) > 1:
        raise CheckpointError(
            f"{folder} holds several variants, {', '.join(sorted(variants))}: leave only one there"
        )
    variant = "" if "" in variants else variants.pop()
    dotted = f".{variant}" if variant else ""
    single = folder / f"{stem}{dotted}.safetensors"
    index = folder / f"{stem}.safetensors.index{dotted}.json"
    if single.is_file():
        return _beside_index(single, index)
    return _indexed(index) if index.is_file() else _numbered(folder, stem, variant)


def _variants(folder: Path, stem: str) -> set[str]:
    """The variants that a component's files have; "" is none."""
    endings = [name.removeprefix(stem) for name in _names(folder) if name.startswith(stem)]
    found = [m for e in endings for m in (_ENDING.fullmatch(e), _OF_INDEX.fullmatch(e)) if m]
    return {_variant(match) for match in found}


def _variant(match: re.Match) -> str:
    names = match.groupdict()
    return names["variant"] or names.get("formerly") or ""


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _beside_index(single: Path, index: Path) -> list[Path]:
    """The shards of an index where they are all there, else a single file."""
    shards = [single]
    with suppress(CheckpointError):
        shards = _indexed(index) if index.is_file() else shards
    if shards != [single]:
        _warn_of_a_single_file(single, index)
    return shards


def _indexed(index: Path) -> list[Path]:
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


def _numbered(folder: Path, stem: str, variant: str) -> list[Path]:
    """The shards of a component without an index.

    Raises:
        CheckpointError: one is missing, there are those of several savings, or there are none but
            names of what isn't a file.
    """
    found: dict[int, dict[int, Path]] = {}
    for name in _names(folder):
        match = _ENDING.fullmatch(name.removeprefix(stem)) if name.startswith(stem) else None
        if match and match["number"] and _variant(match) == variant:
            found.setdefault(int(match["total"]), {})[int(match["number"])] = folder / name
    if not found:
        raise CheckpointError(f"{folder} holds links to files that are gone: fetch them again")
    (total, shards), *others = found.items()
    if others:
        raise CheckpointError(
            f"{folder} holds shards of several savings and no index: leave only one's there"
        )
    missing = [str(number) for number in range(1, total + 1) if number not in shards]
    if missing or len(shards) > total:
        raise CheckpointError(
            f"{folder} lacks shards of {total}: {', '.join(missing[:3]) or 'numbers are wrong'}"
        )
    return list(shards.values())


def _nothing(folder: Path, stem: str) -> str:
    """The message for a component without files under any of its names."""
    names = _names(folder)
    if foreign := [name for name in names if name.endswith(_OTHER_WEIGHTS)]:
        return (
            f"{folder} holds {foreign[0]}, and only safetensors can be read: open the model with "
            "diffusers and save it again with save_pretrained"
        )
    wanted = f"{folder} holds neither {stem}.safetensors nor {stem}.safetensors.index.json"
    others = [name for name in names if name.endswith(".safetensors")]
    return f"{wanted}, but {others[0]}: rename it if it is this" if others else wanted


def _is_file_name(name: Any) -> bool:
    """Whether it can be the name of a file beside an index."""
    try:
        return isinstance(name, str) and Path(name).name == name and len(os.fsencode(name)) < 256
    except UnicodeEncodeError:
        return False


@cache
def _warn_of_a_single_file(single: Path, index: Path) -> None:
    logger.warning(
        "%s isn't used: %s names other files, which are all there; remove one of the two",
        single,
        index.name,
    )
