"""What a safetensors file says it holds, without reading its tensors.

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
        CheckpointError: the file isn't a whole safetensors file.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            file_size = file.stat().st_size
            if length > file_size:
                raise ValueError("header longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        tensors = {
            name: TensorInfo(file, entry["dtype"], tuple(entry["shape"]))
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise CheckpointError(f"{file} is not a safetensors file: fetch it again") from None
    expected = 8 + length + end
    if file_size != expected:
        raise CheckpointError(
            f"{file} is cut off: {file_size:,} of {expected:,} bytes are there; fetch it again"
        )
    return tensors
