"""A cache on disk for the latents of clips and the embeddings of captions."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints import save_arrays
from ..errors import CheckpointError, first_line
from ..video import ClipSpec


class Cache:
    """Arrays on disk, found by what they were made of.

    Several runs may use a folder at the same time.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, made_of: dict[str, Any]) -> Path:
        """The file of the arrays that were made of `made_of`, which must be JSON."""
        text = json.dumps(made_of, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"

    def write(self, path: Path, arrays: dict[str, mx.array]) -> None:
        """Writes arrays to a file that `path` returned, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_arrays(path, arrays)


def read_cached(path: Path) -> dict[str, mx.array]:
    """Reads arrays that `Cache.write` wrote.

    Raises:
        CheckpointError: the file is damaged or missing.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is gone: the next run makes it again")
    try:
        return mx.load(str(path))
    except RuntimeError as error:
        reason = first_line(error)
        raise CheckpointError(
            f"{path} can't be read ({reason}): remove it, and the next run makes it again"
        ) from None


def spec_identity(spec: ClipSpec) -> dict[str, Any]:
    """What identifies a spec, as JSON.

    The part of a clip counts only where it isn't the whole clip, so that clips are found again that
    were encoded before there were parts.
    """
    whole = {"start": 0.0, "end": None}
    return {name: value for name, value in asdict(spec).items() if whole.get(name, ...) != value}
