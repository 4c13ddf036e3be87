"""The JSON files of a model folder."""

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

LARGEST_FILE = 2**26
"""Bytes; the largest ones are the indexes of models in many files, and tokenizers."""


def read_config(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a model folder.

    Raises:
        CheckpointError: the file is missing or isn't a JSON object.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the model folder is incomplete")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise CheckpointError(f"{path} is no configuration: it has {size:,} bytes")
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} should hold a JSON object")
    return config


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Writes a JSON file of a model folder."""
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
