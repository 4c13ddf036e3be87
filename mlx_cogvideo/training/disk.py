"""The room on the disk that a training needs, and the bytes that its processes exchange."""

from math import prod
from pathlib import Path

import mlx.core as mx

from ..checkpoints.finetuned import UNCHANGED
from ..checkpoints.model_folder import ModelFolder
from ..device import Need, on_one_disk
from .checkpoint import checkpoint_files
from .estimates import state_bytes, trained_shapes
from .settings import TrainingSettings


def checkpoint_bytes(pipe: ModelFolder, settings: TrainingSettings) -> int:
    """The bytes of a checkpoint: the weights that are trained, and the optimizer's states."""
    in_float32 = settings.master_weights or not settings.is_full
    itemsize = (mx.float32 if in_float32 else pipe.dtype).size
    states = state_bytes(pipe.configs["transformer"], settings)
    return itemsize * _trained_numbers(pipe, settings) + states


def result_bytes(pipe: ModelFolder, settings: TrainingSettings, folder: Path) -> int:
    """The bytes of what a training makes in a folder: an adapter or a model folder.

    Networks that aren't trained take no room on the disk of their source: they are links.
    """
    if not settings.is_full:
        return 4 * _trained_numbers(pipe, settings)
    copied = [name for name in UNCHANGED if not on_one_disk(folder, pipe.component(name))]
    copies = [tensor.bytes for name in copied for tensor in pipe.stored[name].values()]
    weights = pipe.stored["transformer"].values()
    return sum(tensor.size for tensor in weights) * pipe.dtype.size + sum(copies)


def exchanged_bytes(pipe: ModelFolder, settings: TrainingSettings) -> int:
    """The bytes of gradients that each process sends in an update."""
    # Those of several batches are added in float32.
    in_float32 = settings.accumulate > 1 or not settings.is_full
    return (mx.float32 if in_float32 else pipe.dtype).size * _trained_numbers(pipe, settings)


def prior_bytes(pipe: ModelFolder, settings: TrainingSettings, latents: int) -> int:
    """The bytes of the answers to prior prompts that a full training keeps in the cache.

    Args:
        latents: numbers of the latents of a clip.
    """
    if not settings.is_full:
        return 0
    answers = settings.iters * settings.accumulate * settings.prior_batch_size
    return answers * latents * pipe.dtype.size


def _trained_numbers(pipe: ModelFolder, settings: TrainingSettings) -> int:
    return sum(map(prod, trained_shapes(pipe.configs["transformer"], settings).values()))


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
