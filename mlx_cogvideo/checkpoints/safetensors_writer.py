"""Writes safetensors files tensor by tensor, so that only one is in memory."""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Self

import mlx.core as mx
import numpy as np

from .components import write_config

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


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its type in the format's spelling, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return DTYPES[self.dtype].size * prod(self.shape)


class SafetensorsWriter:
    """Writes the tensors of a component in the order of `entries`, with an index if sharded.

    ::

        with SafetensorsWriter(folder, "model", entries) as writer:
            for name in entries:
                writer.write(name, arrays[name])

    A header implies the length of its file, so that a truncated file is recognized.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        entries: Mapping[str, Entry],
        shard_bytes: int = SHARD_BYTES,
    ):
        self._folder = folder
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
        entry = self._entries[name]
        if name != next(self._pending) or entry != Entry(NAMES[array.dtype], tuple(array.shape)):
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
            end = offset + entry.bytes
            header[name] = {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": [offset, end],
            }
            offset = end
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
                write_config(self._index, index)


def _shards(entries: Mapping[str, Entry], limit: int) -> Iterator[list[str]]:
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
