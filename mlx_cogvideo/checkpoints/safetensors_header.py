"""Reads the header of a safetensors file, without its tensors.

The format (https://github.com/huggingface/safetensors): a little-endian 64-bit length, a JSON
header of that length, then the tensors' bytes.
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..errors import CheckpointError


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor: its file, its dtype in the format's spelling (``BF16``) and its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of `file` by name.

    Raises:
        CheckpointError: the file isn't a complete safetensors file.
    """
    header, expected = _read(file)
    try:
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        tensors = {
            name: TensorInfo(file, entry["dtype"], tuple(entry["shape"]))
            for name, entry in header.items()
        }
    except (KeyError, TypeError, AttributeError):
        raise _not_safetensors(file) from None
    expected += end
    if (size := file.stat().st_size) != expected:
        raise CheckpointError(
            f"{file} is cut off: {size:,} of {expected:,} bytes are there; fetch it again"
        )
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """The metadata of `file`.

    Raises:
        CheckpointError: the file isn't a safetensors file.
    """
    return _read(file, only_tensors=False)[0].get("__metadata__") or {}


def _read(file: Path, only_tensors: bool = True) -> tuple[dict, int]:
    """The header, and the number of bytes before the tensors."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("header longer than the file")
            header = json.loads(stream.read(length))
        if only_tensors:
            header.pop("__metadata__", None)
        return header, 8 + length
    except (ValueError, TypeError, AttributeError, struct.error):
        raise _not_safetensors(file) from None


def _not_safetensors(file: Path) -> CheckpointError:
    return CheckpointError(f"{file} is not a safetensors file: fetch it again")
