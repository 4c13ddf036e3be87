"""The folder of an adapter: its lock, and the checkpoints of its training."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import mlx.core as mx

from ..called import shell_word
from ..checkpoints import holds_adapter, read_config, read_header, save_arrays, write_config
from ..errors import CheckpointError, InvalidInputError, OutputError, first_line
from ..files import absolute, check_unlocked, locked
from .settings import TrainingSettings, changed_settings

CHECKPOINTS, PARTIAL = "checkpoints", ".partial"
ADAPTER, TRANSFORMER = "adapter.safetensors", "transformer.safetensors"
OPTIMIZER, TRAINING = "optimizer.safetensors", "training.json"
MODEL = "model"
"""Name of the model folder that a full training writes."""
BEST = "best"
"""Name of the folder with the result of the best step."""
OTHER_FOLDER = "choose another --adapter-path"


class Best(NamedTuple):
    """The step with the lowest validation loss on held-out clips so far.

    Attributes:
        clips: digest of those clips.
    """

    step: int
    validation: float
    clips: str


class Checkpoint(NamedTuple):
    """A number of steps and the arrays after them, by path.

    Attributes:
        file: name of the file with the weights.
        best: the best step, whose checkpoint is kept.
    """

    step: int
    weights: dict[str, mx.array]
    optimizer: dict[str, mx.array]
    file: str = ADAPTER
    best: Best | None = None

    def is_finite(self) -> bool:
        """Whether no array has NaN or infinity in it."""
        arrays = [*self.weights.values(), *self.optimizer.values()]
        with mx.stream(mx.cpu):  # a GPU that has failed computes nothing any more
            # One by one: the results for all weights of a large model would take gigabytes.
            return all(mx.isfinite(array).all().item() for array in arrays)


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


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a training's checkpoints, also of one that was interrupted."""
    return [file for file in (folder / CHECKPOINTS).glob("*/*") if file.is_file()]


def recorded_settings(folder: Path) -> dict[str, Any]:
    """The settings by name in the last checkpoint of a training; none if there is no checkpoint.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    found = saved_checkpoints(folder)
    return _read_training(found[-1])[1] if found else {}


def ways_on(folder: Path, settings: TrainingSettings, resume: str = "--resume") -> str:
    """Says how many of a training's steps are saved, and how to go on from them.

    Args:
        settings: of the whole training.
        resume: options that continue it.
    """
    found = saved_checkpoints(folder)
    if not found:
        return "no step is saved yet; clips and captions that were prepared are kept"
    step = int(found[-1].name)
    kept = f"{step} of {settings.iters} steps are kept in {folder}"
    ways = f"{kept}; the same command with {resume} continues the training"
    if settings.is_full:
        model = folder / MODEL
        return (
            f"{ways}, and with {resume} --iters {step} it writes the model of these steps to "
            f"{model}; --model {shell_word(model)} with another --adapter-path then starts a new "
            "one from them, with a lower --learning-rate or other clips"
        )
    adapter = f"--resume-adapter-file {shell_word(folder)}"
    return (
        f"{ways}, and {adapter} with another --adapter-path starts a new one from them, with a "
        "lower --learning-rate or other clips"
    )


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    data: dict[str, str],
    keep: int | None,
) -> Path:
    """Writes a checkpoint into the folder of a training, to which nobody else writes.

    Args:
        keep: number of checkpoints to keep: this one and the last ones before it. The best one is
            kept, too. None keeps all.
        settings: settings of the training by name.
        data: digests of the clips, the model and the prior prompts. A training that resumes from
            the checkpoint must have the same.

    Returns:
        The checkpoint's own folder.

    Raises:
        OutputError: it can't be written.
    """
    final, partial = _checkpoint_folder(folder, checkpoint.step), folder / CHECKPOINTS / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    best = checkpoint.best and checkpoint.best._asdict()
    about = {"step": checkpoint.step, "settings": settings, "data": data, "best": best}
    try:
        save_arrays(partial / checkpoint.file, checkpoint.weights)
        save_arrays(partial / OPTIMIZER, checkpoint.optimizer)
        write_config(partial / TRAINING, about)
    except BaseException:  # a disk that is full gets its room back
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    before = [path for path in saved_checkpoints(folder) if path.name < final.name]
    for old in [] if keep is None else before[::-1][keep - 1 :]:
        if best is None or int(old.name) != best["step"]:
            old.rename(partial)  # a checkpoint is there as a whole or not at all
            shutil.rmtree(partial)
    return final


def load_checkpoint(
    folder: Path,
    like: Checkpoint,
    settings: dict[str, Any],
    data: dict[str, str],
    step: int | None = None,
) -> Checkpoint:
    """A checkpoint of a training.

    Args:
        like: a checkpoint with arrays of the same names and shapes.
        step: number of its steps; None takes the last one.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        InvalidInputError: it was saved with other settings, clips or models. Settings that may
            change, such as the number of updates, are not compared.
    """
    checkpoint = last_checkpoint(folder) if step is None else _checkpoint_folder(folder, step)
    step, recorded, recorded_data, best = _read_training(checkpoint)
    changed = [name for name in recorded_data | data if recorded_data.get(name) != data.get(name)]
    _check_same(checkpoint, recorded, settings, changed)
    weights = _read_arrays(checkpoint / like.file, like.weights)
    optimizer = _read_arrays(checkpoint / OPTIMIZER, like.optimizer)
    return Checkpoint(step, weights, optimizer, like.file, best)


def check_resumable(
    folder: Path, settings: dict[str, Any], data: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Checks the last checkpoint of a training before anything is computed.

    Args:
        settings: settings of the training by name.
        data: digests of what is known by then.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        InvalidInputError: it was saved with other settings or data.
    """
    checkpoint = last_checkpoint(folder)
    _, recorded, recorded_data, _ = _read_training(checkpoint)
    changed = [name for name in data if recorded_data.get(name) != data[name]]
    _check_same(checkpoint, recorded, settings, changed)
    is_full = settings["fine_tune_type"] == "full"
    for name in (TRANSFORMER if is_full else ADAPTER, OPTIMIZER):
        _read_header(checkpoint / name)


def _check_same(
    checkpoint: Path, recorded: dict[str, Any], settings: dict[str, Any], changed: Iterable[str]
) -> None:
    """Raises InvalidInputError if settings, or `changed` data, are others than the recorded."""
    changes = changed_settings(recorded, json.loads(json.dumps(settings)))
    changes += [f"the {name} differ" for name in changed]
    if not changes:
        return
    way = "to go on from its adapter, choose another --adapter-path and give --resume-adapter-file"
    if recorded.get("fine_tune_type") == "full":
        way = (
            "to go on from its weights, have them written as a model (its own settings with "
            f"--resume --iters {int(checkpoint.name)}), and give that as --model with another "
            "--adapter-path"
        )
    if any("--lora" in change for change in changes):
        way = f"give --lora with its scale as before; or, {way}"
    raise InvalidInputError(
        f"{checkpoint} belongs to another training: {'; '.join(changes)}; {way}"
    )


def _checkpoint_folder(folder: Path, step: int) -> Path:
    return folder / CHECKPOINTS / f"{step:07}"


def _read_training(
    checkpoint: Path,
) -> tuple[int, dict[str, Any], dict[str, str], Best | None]:
    """The steps, settings, data and best step that a checkpoint records."""
    try:
        training = read_config(checkpoint / TRAINING)
        step = training["step"]
        if step != int(checkpoint.name):
            raise ValueError(f"it gives step {step}")
        best = training.get("best")  # older checkpoints have none
        best = None if best is None else Best(**best)
        return step, dict(training["settings"]), dict(training["data"]), best
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise _damaged(checkpoint, f"{TRAINING}: {error}") from None


def _read_arrays(file: Path, like: dict[str, mx.array]) -> dict[str, mx.array]:
    try:
        if _read_header(file) != {name: array.shape for name, array in like.items()}:
            raise ValueError(f"{file.name} holds other arrays")
        # Each array is read when it is used: they may be as large as memory.
        return mx.load(str(file))
    except (RuntimeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(file.parent, first_line(error)) from None


def _read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays in a file of a checkpoint, by name."""
    try:
        return {name: info.shape for name, info in read_header(file).items()}
    except (CheckpointError, OSError) as error:
        raise _damaged(file.parent, first_line(error)) from None


def _damaged(checkpoint: Path, reason: str) -> CheckpointError:
    way = "remove it to resume from the one before"
    if len(saved_checkpoints(checkpoint.parents[1])) == 1:
        way = "there is no other to resume from, so choose another --adapter-path"
    return CheckpointError(f"{checkpoint} is damaged ({reason}): {way}")


def check_adapter_folder(folder: Path, resume: bool, is_full: bool = False) -> None:
    """Checks that a training can be started or resumed in a folder.

    Raises:
        OutputError: another training runs there, the folder can't be written, or the training
            would replace an adapter or a model.
        CheckpointError: there is no training to resume.
    """
    # The lock is checked first: another training may have written the rest so far.
    check_unlocked(folder, OTHER_FOLDER)
    _check_contents(folder, resume, is_full)


@contextmanager
def locked_adapter_folder(folder: Path, resume: bool, is_full: bool = False) -> Iterator[None]:
    """Makes a folder and keeps other trainings and conversions out of it inside the block.

    Raises:
        OutputError: another process writes it, or a training has run there since
            `check_adapter_folder`.
    """
    absolute(folder).parent.mkdir(parents=True, exist_ok=True)
    with locked(folder, OTHER_FOLDER):
        folder.mkdir(exist_ok=True)
        _check_contents(folder, resume, is_full)
        # What a training that was killed has left. On a Mac it may be most of the disk.
        shutil.rmtree(folder / CHECKPOINTS / PARTIAL, ignore_errors=True)
        yield


def _check_contents(folder: Path, resume: bool, is_full: bool) -> None:
    check_writable(folder, "--adapter-path")
    for parent in folder.absolute().parents:
        if (parent / "model_index.json").exists():
            raise OutputError(f"{folder} is inside of the model {parent}: {OTHER_FOLDER}")
        if parent.name == CHECKPOINTS and saved_checkpoints(parent.parent):
            raise OutputError(f"{folder} is inside of another training: {OTHER_FOLDER}")
    if resume:
        last_checkpoint(folder)
    elif saved_checkpoints(folder):
        raise OutputError(f"{folder} holds a training: {OTHER_FOLDER}, or continue with --resume")
    elif holds_adapter(folder):
        raise OutputError(f"{folder} holds an adapter: {OTHER_FOLDER}")
    elif any((folder / inside / "model_index.json").exists() for inside in ("", MODEL)):
        raise OutputError(f"{folder} holds a model: {OTHER_FOLDER}")
    for model in (folder / MODEL, folder / BEST / MODEL) if is_full else ():
        if model.exists() and not (resume and (model / "transformer").is_dir()):
            raise OutputError(f"the trained model would replace {model}: {OTHER_FOLDER}")


def check_writable(folder: Path, option: str) -> None:
    """Raises OutputError if a folder can't be made or written.

    Args:
        option: option that names the folder, for the message.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise OutputError(f"{nearest} is a file: choose another {option} than {folder}")
    probe = nearest / f".mlx_cogvideo-probe-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"{nearest} can't be written ({error.strerror}): choose another {option}"
        ) from None
