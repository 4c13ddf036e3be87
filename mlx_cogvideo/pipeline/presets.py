"""The steps that ``mlx-cogvideo tune`` has found for models, which presets compute.

The file is ``mlx_cogvideo/presets.json`` in the user's data folder: ``$XDG_DATA_HOME``, else
``~/Library/Application Support`` on macOS and ``~/.local/share`` elsewhere. A list belongs to a
transformer's configuration and a noise table, and so to all copies of a model: in other numbers of
bits, with adapters, and in other folders.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoints.model_folder import ModelFolder
from ..device import user_data
from ..diffusion.computed_steps import as_steps
from ..diffusion.schedulers import Scheduler
from ..errors import CheckpointError, InvalidInputError, OutputError
from ..files import locked
from ..video.paths import publish, write_temporary

FORMAT = 1

Lists = Mapping[str, tuple[int, ...]]
"""The steps that presets compute, by the preset's name."""


def presets_file() -> Path:
    """The file with the lists of this user's models."""
    return user_data() / "presets.json"


def tuned_lists(model: ModelFolder, scheduler: Scheduler) -> Lists:
    """The lists that were found for a model and a sampler; none if it wasn't tuned with it.

    Args:
        scheduler: with its timesteps set.

    Raises:
        CheckpointError: the file is damaged.
    """
    found, count = (
        _samplings(_models(), model).get(_sampling(scheduler), {}),
        len(scheduler.timesteps),
    )
    try:
        return {name: as_steps(_numbers(each), count) for name, each in found.items()}
    except (AttributeError, TypeError, InvalidInputError):
        raise _damaged() from None


def keep_tuned_lists(model: ModelFolder, scheduler: Scheduler, lists: Lists) -> None:
    """Keeps lists in place of those that a model and a sampler had.

    Raises:
        OutputError: they can't be written.
        CheckpointError: the file is damaged.
    """
    file = presets_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make {file.parent}: {error.strerror}") from None
    with locked(file, "try again when the other process has ended"):
        models = _models()
        samplings = {**_samplings(models, model), _sampling(scheduler): dict(lists)}
        contents = {"format": FORMAT, "models": {**models, _key(model): samplings}}
        text = json.dumps(contents, indent=1)
        publish(write_temporary(file, text.encode()), file, overwrite=True)


def check_presets_file(model: ModelFolder, scheduler: Scheduler) -> None:
    """Checks that lists can be kept later.

    Raises:
        OutputError: the file or its folder can't be written.
        CheckpointError: the file is damaged.
    """
    tuned_lists(model, scheduler)
    file = presets_file()
    folder = next(path for path in file.parents if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the lists can't be kept in {file}: {folder} isn't a folder to write in")


def _models() -> dict[str, Any]:
    """The contents of the file, by model; nothing if it isn't there."""
    if not os.path.lexists(presets_file()):
        return {}
    try:
        contents = json.loads(presets_file().read_text(encoding="utf-8"))
        number, models = contents["format"], contents["models"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise _damaged() from None
    if isinstance(number, int) and number > FORMAT:
        raise CheckpointError(f"{presets_file()} is of a newer version: update mlx_cogvideo")
    if number != FORMAT or not isinstance(models, dict):
        raise _damaged()
    return models


def _samplings(models: dict[str, Any], model: ModelFolder) -> dict[str, Any]:
    """What the file's contents have of a model, by sampler."""
    found = models.get(_key(model), {})
    if not isinstance(found, dict):
        raise _damaged()
    return found


def _numbers(values: Any) -> list[int]:
    """Raises TypeError where something isn't a list of whole numbers."""
    if not all(type(value) is int for value in values):
        raise TypeError(values)
    return list(values)


def _damaged() -> CheckpointError:
    return CheckpointError(f"{presets_file()} can't be used: remove it, and tune again")


def _key(model: ModelFolder) -> str:
    """What tells a model apart from those whose lists aren't fit for it."""
    config = json.dumps(asdict(model.configs["transformer"]), sort_keys=True, default=str)
    name = model.variant.alias if model.variant else "model"
    return f"{name} {hashlib.sha256(config.encode()).hexdigest()[:16]}"


def _sampling(scheduler: Scheduler) -> str:
    """What the lists of a model depend on beside it."""
    config = json.dumps(scheduler.to_config(), sort_keys=True, default=str)
    digest = hashlib.sha256(config.encode()).hexdigest()[:16]
    return f"{len(scheduler.timesteps)} steps of {type(scheduler).__name__} {digest}"
