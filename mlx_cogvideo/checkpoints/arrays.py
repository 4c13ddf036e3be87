"""Saves arrays to a safetensors file that appears only once it is complete."""

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from ..errors import OutputError, first_line
from ..files import keep, temporary_path


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
