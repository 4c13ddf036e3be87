"""Identifies the weights of a model folder, so that another machine can compare."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..files import file_digest
from .resolve import BUNDLED, COMPONENTS, Base, component_folder
from .variants import ALIASES

_HASHED = ("*.json", "*.safetensors", "spiece.model")
# A folder in the hub's cache: models--OWNER--NAME/snapshots/COMMIT.
_SNAPSHOT = re.compile(r"models--(?P<repo>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})")


def model_identity(model: str | Path, folder: Path, base: Base | None = None) -> dict[str, Any]:
    """What identifies a model on any machine.

    Args:
        model: the name that the user gave.
        folder: the folder that the name resolved to. A snapshot of the hub is identified by its
            commit; the files of any other folder are read once from end to end.
        base: the model from which the components come that the folder lacks. All files are read
            then.

    Returns:
        ``{"name": hub id, "revision": commit}`` or ``{"name": as called, "sha256": {component:
        digest}}``; with a base the second form, and the names of both.
    """
    names = model_names(model, folder, base)
    if base is None and "revision" in names:
        return names
    return names | {"sha256": _digests(folder, base)}


def model_names(model: str | Path, folder: Path, base: Base | None = None) -> dict[str, Any]:
    """The part of a `model_identity` for which no file is read."""
    others = {} if base is None else {"base": _names(base.name, base.folder)}
    return _names(model, folder) | others


def _names(model: str | Path, folder: Path) -> dict[str, str]:
    if snapshot := _SNAPSHOT.search(Path(folder).as_posix()):
        return {"name": snapshot["repo"].replace("--", "/"), "revision": snapshot["revision"]}
    bundled = {path: name for name, path in BUNDLED.items()}
    return {"name": bundled.get(Path(folder)) or ALIASES.get(str(model).lower(), str(model))}


def _digests(folder: Path, base: Base | None = None) -> dict[str, str]:
    # hashlib releases the interpreter's lock, so that threads read several files at once.
    with ThreadPoolExecutor() as pool:
        folders = {c: component_folder(folder, c, base) for c in COMPONENTS}
        digests = {c: pool.map(_digest, _files(found)) for c, found in folders.items()}
        return {c: hashlib.sha256("".join(d).encode()).hexdigest() for c, d in digests.items()}


def _files(component: Path) -> list[Path]:
    found = (file for pattern in _HASHED for file in component.glob(pattern))
    return sorted(file for file in found if file.is_file() and not file.name.startswith("."))


def _digest(file: Path) -> str:
    """A line as sha256sum prints it."""
    return f"{file_digest(file)}  {file.name}\n"
