"""The files of a model folder besides its networks, which copies of the model get too."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .json_files import read_config
from .resolve import SHARED_KEY, Base, component_folder

OTHERS = (
    "model_index.json",
    "latent_rgb.json",
    "tokenizer/*.json",
    "tokenizer/spiece.model",
    "scheduler/*.json",
)
"""Files of a model folder besides its networks."""


def other_files(folder: Path, base: Base | None = None) -> dict[str, Path | dict[str, Any]]:
    """The files of a model besides its networks, as `files_of`."""
    return files_of(folder, OTHERS, base)


def files_of(
    folder: Path, patterns: Collection[str], base: Base | None = None
) -> dict[str, Path | dict[str, Any]]:
    """The files of a model folder that match patterns, by names relative to the folder.

    Returns:
        Files to copy, or the contents of JSON files.

    Raises:
        CheckpointError: a file is a link out of the model.
    """
    files: dict[str, Path | dict[str, Any]] = {}
    for pattern in patterns:
        name, inside, pattern = pattern.rpartition("/")
        found = component_folder(folder, name, base) if inside else folder
        if not inside and base is not None and not any(folder.glob(pattern)):
            found = base.folder
        for file in sorted(found.glob(pattern)):
            if file.is_file() and not file.name.startswith("."):
                _check_inside(file, found)
                files[f"{name}{inside}{file.name}"] = file
    index = files.get("model_index.json")
    if index is not None:  # components shared by another folder are copied, so drop the reference
        contents = read_config(index)
        if contents.pop(SHARED_KEY, None) is not None:
            files["model_index.json"] = contents
    return files


def _check_inside(file: Path, folder: Path) -> None:
    """Refuses a link that would bring another file of this machine into a model to be published."""
    root, target = folder.resolve(), file.resolve()
    # The hub's cache has the files of a snapshot beside all snapshots.
    caches = (place.parent / "blobs" for place in root.parents if place.name == "snapshots")
    if not any(target.is_relative_to(place) for place in (root, *caches)):
        raise CheckpointError(f"{file} is a link to {target}, outside of the model: copy it there")
