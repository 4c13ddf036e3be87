"""Checkpoints of a training: the adapter and the optimizer's state after a number of steps."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ..checkpoints import read_config, read_header, save_arrays, write_config
from ..errors import CheckpointError, InvalidInputError, first_line
from .settings import changed_settings

CHECKPOINTS = "checkpoints"
ADAPTER, OPTIMIZER, TRAINING = "adapter.safetensors", "optimizer.safetensors", "training.json"


class Checkpoint(NamedTuple):
    """A number of steps and the arrays after them, by path."""

    step: int
    adapter: dict[str, mx.array]
    optimizer: dict[str, mx.array]


def saved_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a training, oldest first."""
    found = (folder / CHECKPOINTS).glob("[0-9]*")
    return sorted(path for path in found if path.is_dir() and path.name.isdigit())


def last_checkpoint(folder: Path) -> Path:
    """The newest checkpoint; raises CheckpointError if there is none."""
    found = saved_checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder} has no checkpoint to resume from")
    return found[-1]


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, settings: dict[str, Any], data: dict[str, str], keep: int
) -> None:
    """Writes a checkpoint into the folder of a training, to which nobody else writes.

    This checkpoint and the last ones before it are kept, `keep` in all.

    Args:
        settings: settings of the training by name.
        data: digests of the clips, the model and the prior prompts. A training that resumes from
            the checkpoint must have the same.

    Raises:
        OutputError: it can't be written.
    """
    checkpoints = folder / CHECKPOINTS
    final, partial = checkpoints / f"{checkpoint.step:07}", checkpoints / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_arrays(partial / ADAPTER, checkpoint.adapter)
    save_arrays(partial / OPTIMIZER, checkpoint.optimizer)
    training = {"step": checkpoint.step, "settings": settings, "data": data}
    write_config(partial / TRAINING, training)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    before = [path for path in saved_checkpoints(folder) if path.name < final.name]
    for old in before[::-1][keep - 1 :]:
        shutil.rmtree(old)


def load_checkpoint(
    folder: Path, like: Checkpoint, settings: dict[str, Any], data: dict[str, str]
) -> Checkpoint:
    """The last checkpoint of a training.

    Args:
        like: a checkpoint with arrays of the same names and shapes.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        InvalidInputError: it was saved with other settings, clips or models. Settings that may
            change, such as the number of updates, are not compared.
    """
    checkpoint = last_checkpoint(folder)
    step, recorded, recorded_data = _read_training(checkpoint)
    changes = changed_settings(recorded, json.loads(json.dumps(settings)))
    changes += [
        f"the {name} differ" for name, digest in data.items() if recorded_data.get(name) != digest
    ]
    if changes:
        raise InvalidInputError(f"{checkpoint} belongs to another training: {'; '.join(changes)}")
    adapter = _read_arrays(checkpoint / ADAPTER, like.adapter)
    return Checkpoint(step, adapter, _read_arrays(checkpoint / OPTIMIZER, like.optimizer))


def _read_training(checkpoint: Path) -> tuple[int, dict[str, Any], dict[str, str]]:
    try:
        training = read_config(checkpoint / TRAINING)
        step, settings = training["step"], dict(training["settings"])
        data = dict(training["data"])
        if step != int(checkpoint.name):
            raise ValueError(f"it gives step {step}")
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise _damaged(checkpoint, f"{TRAINING}: {error}") from None
    return step, settings, data


def _read_arrays(file: Path, like: dict[str, mx.array]) -> dict[str, mx.array]:
    try:
        found = {name: info.shape for name, info in read_header(file).items()}
        if found != {name: array.shape for name, array in like.items()}:
            raise ValueError(f"{file.name} holds other arrays")
        arrays = mx.load(str(file))
        mx.eval(arrays)
    except (CheckpointError, FileNotFoundError, RuntimeError, ValueError) as error:
        raise _damaged(file.parent, first_line(error)) from None
    return arrays


def _damaged(checkpoint: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint} is damaged ({reason}): remove it to resume from the one before"
    )
