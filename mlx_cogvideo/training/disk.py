"""The room on the disk that a training needs, and the bytes that its processes exchange."""

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from ..checkpoints.finetuned import UNCHANGED
from ..checkpoints.model_folder import ModelFolder
from ..checkpoints.tensor_files import TensorInfo
from ..device import Need, on_one_disk
from .checkpoint import checkpoint_files
from .optimizers import make_optimizer
from .settings import TrainingSettings, adapter_parameters
from .trained_model import chosen

STATES_OF_ADAPTERS = 2
"""Numbers that an optimizer keeps at most for each number of an adapter."""


def trained_tensors(pipe: ModelFolder, settings: TrainingSettings) -> Mapping[str, TensorInfo]:
    """The tensors that a full training changes, by their paths.

    Raises:
        InvalidInputError: a pattern of the settings matches nothing.
    """
    tensors = pipe.stored["transformer"]
    return {path: tensors[path] for path in chosen(tensors, settings.train_layers)}


def checkpoint_bytes(pipe: ModelFolder, settings: TrainingSettings) -> int:
    """The bytes of a checkpoint: the weights that are trained, and the optimizer's states."""
    if not settings.is_full:
        numbers = adapter_parameters(pipe.configs["transformer"], settings)
        return 4 * (1 + STATES_OF_ADAPTERS) * numbers
    tensors, optimizer = trained_tensors(pipe, settings).values(), make_optimizer(settings)
    dtype = mx.float32 if settings.master_weights else pipe.dtype
    weights = [mx.zeros(tensor.shape, dtype) for tensor in tensors]  # none of them is evaluated
    states = [array for weight in weights for array in optimizer.initial(weight).values()]
    return sum(array.nbytes for array in [*weights, *states])


def result_bytes(pipe: ModelFolder, settings: TrainingSettings, folder: Path) -> int:
    """The bytes of what a training makes in a folder: an adapter or a model folder.

    Networks that aren't trained take no room on the disk of their source: they are links.
    """
    if not settings.is_full:
        return 4 * adapter_parameters(pipe.configs["transformer"], settings)
    copied = [name for name in UNCHANGED if not on_one_disk(folder, pipe.component(name))]
    copies = [tensor.bytes for name in copied for tensor in pipe.stored[name].values()]
    weights = pipe.stored["transformer"].values()
    return sum(tensor.size for tensor in weights) * pipe.dtype.size + sum(copies)


def training_needs(
    pipe: ModelFolder, settings: TrainingSettings, folder: Path, keep: int, *, has_best: bool
) -> dict[str, Need]:
    """The room that the checkpoints and the result of a training need, by their names.

    Args:
        folder: of the training. Checkpoints that are there already need no more room.
        keep: number of checkpoints that are kept.
        has_best: whether the best step is kept, too.
    """
    count = keep + has_best + 1  # one is written before another one is removed
    there = sum(file.stat().st_size for file in checkpoint_files(folder))
    checkpoints = max(count * checkpoint_bytes(pipe, settings) - there, 0)
    result = (1 + has_best) * result_bytes(pipe, settings, folder)
    instead = "choose another --adapter-path"
    return {
        "checkpoints": Need(folder, checkpoints, "keeping checkpoints", instead),
        "result": Need(folder, result, "the result", instead),
    }


def exchanged_bytes(pipe: ModelFolder, settings: TrainingSettings) -> int:
    """The bytes of gradients that each process sends in an update."""
    if not settings.is_full:
        return 4 * adapter_parameters(pipe.configs["transformer"], settings)
    # Several batches are added in float32.
    itemsize = pipe.dtype.size if settings.accumulate == 1 else mx.float32.size
    return itemsize * sum(tensor.size for tensor in trained_tensors(pipe, settings).values())
