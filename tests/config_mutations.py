"""Copies of the demo in each of which one field of one configuration has another value."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_cogvideo.checkpoints import DEMO_PATH

CONFIGURATIONS = (
    "transformer/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
FIELDS_NOT_IN_THE_DEMO = {
    "transformer/config.json": ("ofs_embed_dim", "patch_size_t", "patch_bias", "quantization"),
    "vae/config.json": ("invert_scale_latents", "quantization"),
    "text_encoder/config.json": ("quantization",),
}
REMOVED = object()
VALUES = (
    *(REMOVED, None, True, False, "", "x", -1, 0, 1, 2, 3, 1.5, 10**6, 10**12, 10**400),
    *(1e-300, 1e300, float("nan"), float("inf"), [], [1, 2, 2], ["x"], {}),
)


def read(name: str) -> dict[str, Any]:
    return json.loads((DEMO_PATH / name).read_text())


def mutations() -> Iterator[tuple[str, str, Any]]:
    """Yields the file, the field and its value; more than a thousand."""
    for file in CONFIGURATIONS:
        for field in (*read(file), *FIELDS_NOT_IN_THE_DEMO.get(file, ())):
            for value in VALUES:
                yield file, field, value


def linked_demo(folder: Path) -> Path:
    """Makes a copy of the demo whose weights are links."""
    for file in DEMO_PATH.rglob("*.*"):
        copy = folder / file.relative_to(DEMO_PATH)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in (".json", ".model"):
            copy.write_bytes(file.read_bytes())
        elif file.is_file():
            os.symlink(file, copy)
    return folder


def mutate(folder: Path, file: str, field: str, value: Any) -> None:
    """Writes one of the `mutations` of a file into a copy of the demo."""
    config = {name: old for name, old in read(file).items() if name != field}
    if value is not REMOVED:
        config[field] = value
    (folder / file).write_text(json.dumps(config))
