"""Recognizes what a folder is that was given in place of a model's, to say what to give instead."""

from pathlib import Path

from ..called import command, shell_word
from ..errors import CheckpointError
from .resolve import COMPONENTS, Base, component_folder
from .sat import is_sat

_CACHE = "models--"
"""How the names of folders in the hub's cache begin."""


def check_layout(folder: Path, base: Base | None = None) -> None:
    """Raises CheckpointError unless a folder has the parts of a model, or a base has the rest."""
    missing = [name for name in COMPONENTS if not component_folder(folder, name, base).is_dir()]
    if "transformer" in missing:
        raise CheckpointError(f"{folder} is no model folder: {_instead(folder)}")
    if missing and base is not None:
        raise CheckpointError(f"neither {folder} nor {base.folder} has {', '.join(missing)}")
    if missing:
        raise CheckpointError(
            f"{folder} is incomplete, it lacks {', '.join(missing)}: name the model that it was "
            "made from as its base, --base"
        )


def _instead(folder: Path) -> str:
    """What a folder without a transformer seems to be, and what to give."""
    if folder.name.startswith(_CACHE) and (folder / "snapshots").is_dir():
        repo = folder.name.removeprefix(_CACHE).replace("--", "/")
        return f"it is part of the hub's cache: give {repo}"
    if (folder / "config.json").is_file() and folder.name in COMPONENTS:
        return f"it is one part of a model: give the folder around it, {folder.parent}"
    if (folder / "config.json").is_file():
        return "if it is a transformer, move its files into a folder transformer, and give --base"
    inside = sorted(path.parent.name for path in folder.glob("*/transformer"))
    if inside:
        return f"did you mean {folder / inside[0]}?"
    if is_sat(folder):
        convert = f"{command('convert')} --model {shell_word(folder)}"
        return f"it is a checkpoint of the SAT code: convert it first ({convert})"
    if any(component_folder(folder, name).is_dir() for name in COMPONENTS):
        return "its folder transformer is missing"
    return "it has no folder transformer"
