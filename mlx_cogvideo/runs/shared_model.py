"""Whether all processes of a run have the same model and the same versions."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx

from ..checkpoints.model_folder import ModelFolder
from ..checkpoints.resolve import COMPONENTS
from ..version import __version__

LARGEST_HEADER = 2**27
"""Bytes of a header that are compared."""


def described_model(pipe: ModelFolder) -> dict[str, str]:
    """What must be the same everywhere, a digest or a version by what it is of.

    Configurations are read, headers of safetensors files, and the files' sizes; no weight is.
    """
    parts = {
        name: _digest(pipe.component(name)) for name in COMPONENTS if pipe.component(name).is_dir()
    }
    adapters = [(adapter.identity(scale)["sha256"], scale) for adapter, scale in pipe.adapters]
    return {
        "mlx_cogvideo": __version__,
        "mlx": mx.__version__,
        **parts,
        "dtype": pipe.dtype_name,
        "quantize": str(pipe.quantize),
        "adapters": hashlib.sha256(json.dumps(adapters).encode()).hexdigest(),
    }


def difference(here: Mapping[str, str], there: Mapping[str, str]) -> str | None:
    """The first difference of two descriptions, in words; None if there is none."""
    for name, value in there.items():
        if here.get(name) != value:
            versions = name in ("mlx_cogvideo", "mlx", "dtype", "quantize")
            return f"{name} {here.get(name)} instead of {value}" if versions else f"another {name}"
    return None


def _digest(component: Path) -> str:
    lines = sorted(_lines(component))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _lines(component: Path) -> Iterator[str]:
    """A line about each file of a component."""
    for file in component.iterdir():
        if file.name.startswith(".") or not file.is_file():
            continue
        if file.suffix == ".safetensors":
            yield f"{file.name} {os.path.getsize(file)} {_header_digest(file)}"
        elif file.suffix in (".json", ".model"):
            yield f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}"


def _header_digest(file: Path) -> str:
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        return hashlib.sha256(start + stream.read(min(length, LARGEST_HEADER))).hexdigest()
