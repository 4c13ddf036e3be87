"""What clips and captions become before training begins, kept on disk."""

import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints import save_arrays
from ..errors import CheckpointError, first_line


class Cache:
    """Arrays by what they were made of. Several runs may use a folder at once."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, made_of: dict[str, Any]) -> Path:
        """Where arrays are kept that were made of this (JSON)."""
        text = json.dumps(made_of, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"

    def write(self, path: Path, arrays: dict[str, mx.array]) -> None:
        """Puts arrays where ``path`` said: whole, or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_arrays(path, arrays)


def read_cached(path: Path) -> dict[str, mx.array]:
    """What `Cache.write` put there.

    Raises:
        CheckpointError: it is damaged, or gone.
    """
    try:
        return mx.load(str(path))
    except RuntimeError as error:
        reason = first_line(error)
        raise CheckpointError(
            f"{path} can't be read ({reason}): remove it, and it is made again at the next start"
        ) from None
