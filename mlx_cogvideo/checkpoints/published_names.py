"""Names for files that are published: they contain no path of this machine."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .adapters import Adapter
from .identity import model_names
from .model_folder import ModelFolder
from .resolve import expanded


def published_name(source: str | Path) -> str:
    """The name of a file or folder without the folders that contain it; a hub id as it is.

    The model of a training is named with the training's own folder, as in ``kites/model``.
    """
    path, name = expanded(source), str(source)
    if path.exists() or path.is_absolute():
        path = path.absolute()
        name = path.name
        if (path.parent / "log.jsonl").is_file() and path.is_dir():
            name = f"{path.parent.name}/{name}"
    return " ".join(name.split())


def published_model(model: ModelFolder) -> str:
    """The name of a model: its hub id, or the name of its folder."""
    return published_name(model_names(model.name, model.folder)["name"])


def base_repository(model: ModelFolder) -> str | None:
    """The hub repository that a model comes from, or None if it is unknown.

    A local folder, and a quantized one of the hub, come from the official model that has the same
    transformer.
    """
    names = model_names(model.name, model.folder)
    if "revision" in names and not model.is_packed("transformer"):
        return names["name"]
    return model.variant.repo if model.variant else None


def published_adapters(adapters: Iterable[tuple[Adapter, float]]) -> list[dict[str, Any]]:
    """The identities of adapters, which are given with their scales."""
    return [
        {**adapter.identity(scale), "source": published_name(adapter.source)}
        for adapter, scale in adapters
    ]
