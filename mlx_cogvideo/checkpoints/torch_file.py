"""Reads tensors from a PyTorch file without PyTorch, and without running code in it.

A ``.pt`` file is a zip archive. Its ``data.pkl`` is a pickle in which tensors are calls of a
function that takes a storage, and ``data/KEY`` are the storages' bytes. A pickle may name any
function of any package and have it called. Here only a handful of names is known, each of them maps
to a harmless object of ours, and every other name is refused.
"""

import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError, first_line
from .foreign_files import ZIP, foreign_kind
from .pickles import Ignoring, IgnoringDict, PickleError, Placeholder, read_pickle

# Dtypes of the tensors that are read, and of the storages: GPUs lack float64.
_DTYPES = {
    "FloatStorage": ("F32", np.float32),
    "HalfStorage": ("F16", np.float16),
    "BFloat16Storage": ("BF16", np.uint16),
    "DoubleStorage": ("F32", np.float64),
    "LongStorage": ("I64", np.int64),
    "IntStorage": ("I32", np.int32),
    "ShortStorage": ("I16", np.int16),
    "CharStorage": ("I8", np.int8),
    "ByteStorage": ("U8", np.uint8),
    "BoolStorage": ("BOOL", np.bool_),
}

MAX_ELEMENTS = 2**31
MAX_DIMENSIONS = 8
MAX_STRIDE = 2**40
MAX_REPEATED = 2**24
"""Most elements of a tensor whose strides of 0 repeat fewer stored ones."""
MAX_PICKLE_BYTES = 2**26
MAX_WRAPPERS = 8
"""Most dictionaries around the one that holds the tensors."""

# Exceptions of Python's archive and pickle readers for damaged and crafted files.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # NotImplementedError and RecursionError, too
    SystemError,
    TypeError,
    ValueError,  # UnicodeDecodeError, too
)


@dataclass(frozen=True)
class _Storage:
    key: str
    kind: str


@dataclass(frozen=True)
class TorchTensor:
    """A tensor in a file: how it is stored, and `read` to load it.

    Attributes:
        dtype: in safetensors' spelling, such as ``BF16``.
        offset, strides: in elements of the storage.
    """

    file: "TorchFile"
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return _DTYPES[self.storage.kind][0]

    @property
    def _numpy_dtype(self) -> np.dtype:
        return np.dtype(_DTYPES[self.storage.kind][1])

    def read(self) -> mx.array:
        """The tensor; only its part of the storage is read.

        Raises:
            CheckpointError: the file is cut off, or the tensor isn't inside its storage.
        """
        # Checked again, as in the constructor's caller: strides that point outside the bytes that
        # were read would copy other memory.
        extent, dtype = self.extent(), self._numpy_dtype
        start, size = self.offset * dtype.itemsize, extent * dtype.itemsize
        data = self.file.bytes_of(self.storage.key, start, size)
        if not extent:
            array = np.zeros(self.shape, dtype)
        else:
            strides = [s * dtype.itemsize for s in self.strides]
            array = np.lib.stride_tricks.as_strided(
                np.frombuffer(data, dtype), self.shape, strides, writeable=False
            )
        if dtype == np.float64:
            array = array.astype(np.float32)
        array = mx.array(np.array(array, order="C"))
        return array.view(mx.bfloat16) if self.dtype == "BF16" else array

    def extent(self) -> int:
        """Elements of the storage from the first to the last that the tensor reaches.

        Raises:
            CheckpointError: it reaches past the storage, or is larger than any tensor of a model.
        """
        numbers = [self.offset, *self.shape, *self.strides]
        possible = (
            len(self.shape) == len(self.strides) <= MAX_DIMENSIONS
            and all(type(n) is int and 0 <= n < MAX_STRIDE for n in numbers)
            and prod(max(1, n) for n in self.shape) < MAX_ELEMENTS
        )
        if not possible:
            raise CheckpointError(f"{self.file.path} has a tensor of an impossible shape")
        # No stride is negative, so that nothing is reached before the offset.
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        extent = 0 if 0 in self.shape else last + 1
        if prod(self.shape) > max(extent, MAX_REPEATED):
            raise CheckpointError(f"{self.file.path} has a tensor of an impossible shape")
        if (self.offset + extent) * self._numpy_dtype.itemsize > self.file.size_of(
            self.storage.key
        ):
            raise CheckpointError(
                f"{self.file.path} has a tensor that reaches past the end of its storage"
            )
        return extent


def _damage(path: Path, error: Exception) -> str:
    """What a file that isn't read is, and what to do."""
    kind = foreign_kind(path, expected=ZIP) if path.is_file() else None
    return kind or f"no PyTorch file that can be read ({error}): fetch it again"


class TorchFile:
    """A ``.pt`` file that holds tensors in plain containers.

    Attributes:
        contents: the saved object: dicts, lists, numbers and strings, with `TorchTensor` in them.
    """

    def __init__(self, path: Path):
        """Reads the pickle; tensors are read later, one by one.

        Raises:
            CheckpointError: it isn't such a file, or names something that isn't a tensor.
        """
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
            names = self._archive.namelist()
            pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
            (pickled,) = pickles
            self._root = pickled.removesuffix("data.pkl")
            order = f"{self._root}byteorder"
            if order in names and self._member(order) != b"little":
                raise CheckpointError(f"{path} was written on a big-endian machine")
            known = _Names(self)
            self.contents = read_pickle(BytesIO(self._member(pickled)), known.named, known.referred)
        except CheckpointError:
            raise
        except PickleError as error:
            raise CheckpointError(f"{path} holds a damaged pickle: {error}") from None
        except FileNotFoundError:
            raise CheckpointError(f"{path} doesn't exist") from None
        except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError) as error:
            raise CheckpointError(f"{path} is {_damage(path, error)}") from None
        except _DAMAGE as error:
            raise CheckpointError(f"{path} holds a damaged pickle: {first_line(error)}") from None

    def _member(self, name: str) -> bytes:
        """A file of the archive that isn't a tensor."""
        if self._archive.getinfo(name).file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{self.path} holds too much that is no tensor")
        return self._archive.read(name)

    def size_of(self, key: str) -> int:
        """Bytes of a storage.

        Raises:
            CheckpointError: it is missing, or compressed. PyTorch doesn't compress storages, and a
                small file could fill the memory.
        """
        try:
            entry = self._archive.getinfo(f"{self._root}data/{key}")
        except KeyError as error:
            raise CheckpointError(f"{self.path} can't be read to the end: {error}") from None
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{self.path} has a compressed tensor: save it with PyTorch")
        return entry.file_size

    def bytes_of(self, key: str, start: int, size: int) -> bytes:
        """A part of a storage."""
        try:
            with self._archive.open(f"{self._root}data/{key}") as stream:
                stream.seek(start)
                data = stream.read(size)
        except _DAMAGE as error:
            reason = first_line(error)
            raise CheckpointError(f"{self.path} can't be read to the end: {reason}") from None
        if len(data) < size:
            raise CheckpointError(f"{self.path} is cut off: fetch it again")
        return data


def tensors_in(contents: Any) -> dict[str, TorchTensor]:
    """The state dict of a checkpoint, unwrapped from the dictionaries of trainers, or {}."""
    for _ in range(MAX_WRAPPERS):
        if not isinstance(contents, dict):
            break
        wrapped = next((k for k in ("model", "module", "state_dict") if k in contents), None)
        if wrapped is None:
            tensors = {k: v for k, v in contents.items() if isinstance(v, TorchTensor)}
            return {k: v for k, v in tensors.items() if isinstance(k, str)}
        contents = contents[wrapped]
    return {}


class _Ignored(Ignoring):
    """Stands for what trainers save beside the weights."""


IGNORED = {
    ("argparse", "Namespace"),
    ("builtins", "set"),
    ("__builtin__", "set"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}
"""Names of what trainers save beside the weights: random states, counters and arguments."""


class _Names:
    """Tells `read_pickle` what the names and references in a file are."""

    def __init__(self, file: TorchFile):
        self._file = file
        self._known = {
            ("collections", "OrderedDict"): Placeholder(IgnoringDict),
            ("torch._utils", "_rebuild_tensor_v2"): Placeholder(self._tensor),
            ("torch._utils", "_rebuild_parameter"): Placeholder(lambda tensor, *_: tensor),
            ("torch", "Size"): Placeholder(lambda sizes=(): sizes),
            **{("torch", kind): _Kind(kind) for kind in _DTYPES},
            **dict.fromkeys(IGNORED, Placeholder(lambda *_: _Ignored())),
        }

    def named(self, module: str, name: str) -> Placeholder:
        if (module, name) not in self._known:
            raise CheckpointError(
                f"{self._file.path} asks for {repr(f'{module}.{name}')[1:-1]}, which is no tensor: "
                "it isn't opened, because such a file can run programs"
            )
        return self._known[module, name]

    def referred(self, reference: Any) -> _Storage:
        match reference:
            case ("storage", _Kind(kind=kind), str(key), *_):
                return _Storage(key, kind)
        raise CheckpointError(f"{self._file.path} refers to something that is no tensor's")

    def _tensor(self, storage: _Storage, offset: int, shape, strides, *_: Any) -> TorchTensor:
        if not isinstance(storage, _Storage):
            raise CheckpointError(f"{self._file.path} has a tensor without a storage")
        tensor = TorchTensor(self._file, storage, offset, tuple(shape), tuple(strides))
        tensor.extent()
        return tensor


class _Kind(Placeholder):
    """The class of a storage, which is only named."""

    def __init__(self, kind: str):
        super().__init__(lambda: None)
        self.kind = kind
