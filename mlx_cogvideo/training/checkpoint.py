"""What a training goes on from: its adapter and its optimizer's state after a number of steps."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ..checkpoints import read_config, read_header, save_arrays, write_config
from ..errors import CheckpointError, InvalidInputError, first_line

CHECKPOINTS = "checkpoints"
ADAPTER, OPTIMIZER, TRAINING = "adapter.safetensors", "optimizer.safetensors", "training.json"


class Checkpoint(NamedTuple):
    """Arrays by their paths, after so many steps."""

    step: int
    adapter: dict[str, mx.array]
    optimizer: dict[str, mx.array]


def saved_checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    found = (folder / CHECKPOINTS).glob("[0-9]*")
    return sorted(path for path in found if path.is_dir() and path.name.isdigit())


def last_checkpoint(folder: Path) -> Path:
    """Raises CheckpointError where there is none."""
    found = saved_checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder} has no checkpoint to resume from")
    return found[-1]


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    data: dict[str, str],
    keep: int,
) -> None:
    """Writes a checkpoint under the folder of a training, to which nobody else writes.

    This one stays, and the last of those before it, `keep` in all.

    Args:
        settings, data: what only a training of the same may go on from it.

    Raises:
        OutputError: it can't be written.
    """
    checkpoints = folder / CHECKPOINTS
    final, partial = checkpoints / f"{checkpoint.step:07}", checkpoints / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_arrays(partial / ADAPTER, checkpoint.adapter)
    save_arrays(partial / OPTIMIZER, checkpoint.optimizer)
    told = {"step": checkpoint.step, "settings": settings, "data": data}
    write_config(partial / TRAINING, told)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    before = [path for path in saved_checkpoints(folder) if path.name < final.name]
    for old in before[::-1][keep - 1 :]:
        shutil.rmtree(old)


def load_checkpoint(
    folder: Path, like: Checkpoint, settings: dict[str, Any], data: dict[str, str]
) -> Checkpoint:
    """The last one under a folder.

    Args:
        like: has the same arrays.

    Raises:
        CheckpointError: there is none, or it is damaged.
        InvalidInputError: it was begun with other settings, clips or models. There may be more
            steps than were asked for.
    """
    checkpoint = last_checkpoint(folder)
    step, *begun = _read_training(checkpoint)
    other = _differences(*begun, json.loads(json.dumps(settings)), data)
    if other:
        raise InvalidInputError(f"{checkpoint} was begun otherwise: {'; '.join(other)}")
    adapter = _read_arrays(checkpoint / ADAPTER, like.adapter)
    return Checkpoint(step, adapter, _read_arrays(checkpoint / OPTIMIZER, like.optimizer))


def _differences(
    settings: dict[str, Any], data: dict[str, str], now: dict[str, Any], data_now: dict[str, str]
) -> list[str]:
    other = [
        f"{name} was {value} and is now {now.get(name)}"
        for name, value in settings.items()
        if name != "iters" and now.get(name) != value
    ]
    changed = [name for name, digest in data_now.items() if data.get(name) != digest]
    return other + [f"the {name} were others" for name in changed]


def _read_training(checkpoint: Path) -> tuple[int, dict[str, Any], dict[str, str]]:
    try:
        told = read_config(checkpoint / TRAINING)
        step, settings, data = told["step"], dict(told["settings"]), dict(told["data"])
        if step != int(checkpoint.name):
            raise ValueError(f"it says that it is of step {step}")
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
        f"{checkpoint} is damaged ({reason}): remove it to go on from the one before"
    )
