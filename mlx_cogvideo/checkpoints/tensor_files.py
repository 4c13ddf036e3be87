"""Safetensors files: their headers, and how they are written, whole or tensor by tensor.

The format (https://github.com/huggingface/safetensors): a little-endian 64-bit length, a JSON
header of that length, then the tensors' bytes.
"""

import json
import operator
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError, OutputError, first_line
from ..files import keep, temporary_path
from .foreign_files import foreign_kind

SHARD_BYTES = 5_000_000_000
"""Largest size of a shard with more than one tensor: the hub's default."""

DTYPES = {
    "F32": mx.float32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "U32": mx.uint32,
    "U8": mx.uint8,
}
"""MLX's dtypes by their names in the format."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}

READ_AS = {"F64": "F32"}
"""Dtypes that GPUs lack, and those in which they are read."""

_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # NumPy has no bfloat16: its bits are taken as integers
    "I64": "<i8",
    "I32": "<i4",
    "U32": "<u4",
    "U8": "u1",
}
"""NumPy's dtypes by their names in the format."""

_AGAIN = "fetch it again"

LARGEST_HEADER = 100_000_000
"""Bytes, as in the safetensors library."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor: its dtype in the format's spelling (``BF16``), its shape, and its file if any."""

    dtype: str
    shape: tuple[int, ...]
    file: Path | None = None

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return DTYPES[self.dtype].size * self.size


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of `file` by name, with the dtypes that `open_arrays` gives them.

    Raises:
        CheckpointError: the file isn't a complete safetensors file.
    """
    header, start = _read(file)
    try:
        spans = [(0, 0), *sorted(_span(entry) for entry in header.values())]
        tensors = {
            name: TensorInfo(READ_AS.get(e["dtype"], e["dtype"]), tuple(e["shape"]), file)
            for name, e in header.items()
        }
    except (LookupError, TypeError, ValueError):
        raise _not_safetensors(file) from None
    if any(first != before for (_, before), (first, _) in pairwise(spans)):
        raise CheckpointError(f"{file} has gaps or overlaps between its tensors: {_AGAIN}")
    size, expected = file.stat().st_size, start + spans[-1][1]
    if size != expected:
        what = "cut off" if size < expected else "longer than its header says"
        raise CheckpointError(
            f"{file} is {what}: {size:,} of {expected:,} bytes are there; {_AGAIN}"
        )
    return tensors


def _span(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Where the bytes of a header's entry begin and end.

    Raises:
        LookupError, TypeError, ValueError: the entry contradicts itself.
    """
    first, end = map(operator.index, entry["data_offsets"])
    size = prod(map(operator.index, entry["shape"]))
    itemsize = np.dtype(_NUMPY[entry["dtype"]]).itemsize if entry["dtype"] in _NUMPY else 0
    if not 0 <= first <= end or (itemsize and end - first != size * itemsize):
        raise ValueError("offsets")
    return first, end


def open_arrays(file: Path) -> Callable[[str], mx.array]:
    """Opens a file that `read_header` has checked.

    Returns:
        A function that takes a tensor out by its name, once. It is read when it is evaluated, or at
        once in a file with float64, which MLX doesn't load; that becomes float32.
    """
    header, start = _read(file)
    if not any(entry["dtype"] in READ_AS for entry in header.values()):
        return mx.load(str(file), format="safetensors").pop

    def take(name: str) -> mx.array:
        dtype, (first, end) = header[name]["dtype"], header[name]["data_offsets"]
        with file.open("rb") as stream:
            stream.seek(start + first)
            numbers = np.frombuffer(stream.read(end - first), _NUMPY[dtype])
        numbers = numbers.reshape(header[name]["shape"])
        if dtype in READ_AS:
            numbers = numbers.astype(np.float32)
        array = mx.array(numbers)
        return array.view(mx.bfloat16) if dtype == "BF16" else array

    return take


def read_metadata(file: Path) -> dict[str, str]:
    """The metadata of `file`.

    Raises:
        CheckpointError: the file isn't a safetensors file.
    """
    metadata = _read_json(file)[0].get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def _read(file: Path) -> tuple[dict, int]:
    """The header's tensors, and the number of bytes before their data."""
    header, start = _read_json(file)
    header.pop("__metadata__", None)
    return header, start


def _read_json(file: Path) -> tuple[dict, int]:
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(file.stat().st_size, LARGEST_HEADER):
                raise ValueError("header too long")
            header = json.loads(stream.read(length))
    except (ValueError, RecursionError, struct.error):
        raise _not_safetensors(file) from None
    if not isinstance(header, dict):
        raise _not_safetensors(file)
    return header, 8 + length


def _not_safetensors(file: Path) -> CheckpointError:
    what = foreign_kind(file) or f"not a safetensors file: {_AGAIN}"
    return CheckpointError(f"{file} is {what}")


def save_arrays(
    path: Path, arrays: Mapping[str, mx.array], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file under a temporary name and renames it once it is complete.

    Several processes may write the same file.

    Raises:
        OutputError: the system can't write it, most often because the disk is full.
    """
    mx.eval(list(arrays.values()))
    # MLX appends this ending to names without it.
    partial = temporary_path(path, ".part.safetensors")
    try:
        with mx.stream(mx.cpu):  # a GPU that has failed can't even copy
            mx.save_safetensors(str(partial), dict(arrays), metadata)
    except RuntimeError as error:  # MLX's type for an error of the system
        partial.unlink(missing_ok=True)
        reason = first_line(error)
        raise OutputError(f"{path} can't be written ({reason}): is the disk full?") from None
    partial.replace(path)
    keep(partial)


class SafetensorsWriter:
    """Writes the tensors of a component in the order of `entries`, with an index if sharded.

    ::

        with SafetensorsWriter(folder, "model", entries) as writer:
            for name in entries:
                writer.write(name, arrays[name])

    Only one tensor is in memory at a time. A header implies the length of its file, so that a
    truncated file is recognized.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        entries: Mapping[str, TensorInfo],
        shard_bytes: int = SHARD_BYTES,
    ):
        self._entries = entries
        self._pending = iter(entries)
        shards = list(_shards(entries, shard_bytes))
        digits = f"-of-{len(shards):05}" if len(shards) > 1 else ""
        self._files = {
            folder / (f"{stem}-{i:05}{digits}.safetensors" if digits else f"{stem}.safetensors"): s
            for i, s in enumerate(shards, start=1)
        }
        self._index = folder / f"{stem}.safetensors.index.json"
        self._openings = iter(self._files.items())
        self._left: set[str] = set()
        self._stream = None

    def write(self, name: str, array: mx.array) -> None:
        """Appends a tensor.

        Raises:
            ValueError: it isn't the next entry, or doesn't match its entry.
            OSError: the disk is full.
        """
        found = TensorInfo(NAMES[array.dtype], tuple(array.shape))
        if name != next(self._pending) or found != self._entries[name]:
            raise ValueError(f"{name} isn't the tensor that was to be written next")
        if name not in self._left:
            self._open_next()
        self._stream.write(_raw(array))
        self._left.remove(name)

    def _open_next(self) -> None:
        self._close()
        path, names = next(self._openings)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            entry = self._entries[name]
            span = [offset, offset + entry.bytes]
            header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": span}
            offset += entry.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._stream = path.open("wb")
        self._stream.write(struct.pack("<Q", len(text)) + text)
        self._left = set(names)

    def _close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            with stream:
                stream.flush()
                os.fsync(stream.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._close()
        if kind is None:
            if next(self._pending, None) is not None:
                raise ValueError("not all tensors have been written")
            if len(self._files) > 1:
                weight_map = {name: path.name for path, s in self._files.items() for name in s}
                total = sum(entry.bytes for entry in self._entries.values())
                index = {"metadata": {"total_size": total}, "weight_map": weight_map}
                self._index.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(entries: Mapping[str, TensorInfo], limit: int) -> Iterator[list[str]]:
    names, size = [], 0
    for name, entry in entries.items():
        if names and size + entry.bytes > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += entry.bytes
    yield names


def _raw(array: mx.array) -> memoryview:
    """The array's bytes in C order; NumPy has no bfloat16, so its bits are taken as integers."""
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.array(array)).reshape(-1).view(np.uint8).data
