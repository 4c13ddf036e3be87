"""Arrays to a file, whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from ..errors import OutputError, first_line
from ..files import keep, temporary_path


def save_arrays(
    path: Path, arrays: Mapping[str, mx.array], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file under its name once it is whole. Several processes may write it.

    Raises:
        OutputError: the system won't have it, most often because the disk is full.
    """
    mx.eval(list(arrays.values()))
    # MLX adds the ending where it isn't there.
    partial = temporary_path(path, ".part.safetensors")
    try:
        with mx.stream(mx.cpu):  # a GPU that has failed doesn't even copy
            mx.save_safetensors(str(partial), dict(arrays), metadata)
    except RuntimeError as error:  # what MLX makes of the system's refusal
        partial.unlink(missing_ok=True)
        reason = first_line(error)
        raise OutputError(f"{path} can't be written ({reason}): is the disk full?") from None
    partial.replace(path)
    keep(partial)
