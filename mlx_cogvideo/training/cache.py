"""What clips and captions become before training begins, kept on disk."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx


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
        partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.safetensors")
        mx.save_safetensors(str(partial), arrays)
        partial.replace(path)
