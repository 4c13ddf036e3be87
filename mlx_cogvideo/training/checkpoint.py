"""What a training goes on from: its adapter and its optimizer's state after a number of steps."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ..checkpoints import read_config, write_config
from ..errors import CheckpointError, InvalidInputError

CHECKPOINTS = "checkpoints"
ADAPTER, OPTIMIZER, TRAINING = "adapter.safetensors", "optimizer.safetensors", "training.json"


class Checkpoint(NamedTuple):
    """Arrays by their paths, after so many steps."""

    step: int
    adapter: dict[str, mx.array]
    optimizer: dict[str, mx.array]


def saved_checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in (folder / CHECKPOINTS).glob("[0-9]*") if path.is_dir())


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    data: dict[str, str],
    keep: int,
) -> None:
    """Writes a checkpoint under the folder of a training; of all there, the last `keep` stay.

    Args:
        settings, data: what only a training of the same may go on from it.
    """
    checkpoints = folder / CHECKPOINTS
    checkpoints.mkdir(exist_ok=True)
    step = checkpoint.step
    final, partial = checkpoints / f"{step:07}", checkpoints / f".{step:07}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    mx.save_safetensors(str(partial / ADAPTER), checkpoint.adapter)
    mx.save_safetensors(str(partial / OPTIMIZER), checkpoint.optimizer)
    write_config(partial / TRAINING, {"step": step, "settings": settings, "data": data})
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in saved_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path, settings: dict[str, Any], data: dict[str, str]) -> Checkpoint:
    """The last one under a folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
        InvalidInputError: it was begun with other settings, clips or models. There may be more
            steps than were asked for.
    """
    found = saved_checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder} has no checkpoint to resume from")
    told = read_config(found[-1] / TRAINING)
    now = json.loads(json.dumps(settings))
    other = [
        f"{name} was {value} and is now {now.get(name)}"
        for name, value in told["settings"].items()
        if name != "iters" and now.get(name) != value
    ]
    before = told.get("data", data)
    other += [f"the {name} were others" for name in data if before[name] != data[name]]
    if other:
        raise InvalidInputError(f"{found[-1]} was begun otherwise: {'; '.join(other)}")
    try:
        adapter, optimizer = (mx.load(str(found[-1] / file)) for file in (ADAPTER, OPTIMIZER))
        mx.eval(adapter, optimizer)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{found[-1]} is damaged ({reason}): remove it to go on from the one before"
        ) from None
    return Checkpoint(told["step"], adapter, optimizer)
