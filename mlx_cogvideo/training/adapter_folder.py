"""The folder of an adapter: whether a training may write into it, and its lock."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoints import holds_adapter
from ..errors import OutputError
from ..files import check_unlocked, locked
from .checkpoint import last_checkpoint, saved_checkpoints

OTHER_FOLDER = "choose another --adapter-path"
LOCK = ".lock"
"""The name of the locked file in the folder of an adapter that is being trained."""


def check_adapter_folder(folder: Path, resume: bool) -> None:
    """Checks that a training can be started or resumed in a folder.

    Raises:
        OutputError: another training runs there, the folder can't be written, or a new training
            would replace an adapter.
        CheckpointError: there is no training to resume.
    """
    # The lock is checked first: another training may have written the rest so far.
    check_unlocked(folder, OTHER_FOLDER, folder / LOCK)
    _check_contents(folder, resume)


@contextmanager
def locked_adapter_folder(folder: Path, resume: bool) -> Iterator[None]:
    """Makes a folder and keeps other trainings out of it inside the block.

    Raises:
        OutputError: another training runs there, or has run there since `check_adapter_folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, OTHER_FOLDER, folder / LOCK):
        _check_contents(folder, resume)
        yield


def _check_contents(folder: Path, resume: bool) -> None:
    check_writable(folder, "--adapter-path")
    if resume:
        last_checkpoint(folder)
    elif saved_checkpoints(folder):
        raise OutputError(f"{folder} holds a training: {OTHER_FOLDER}, or continue with --resume")
    elif holds_adapter(folder):
        raise OutputError(f"{folder} holds an adapter: {OTHER_FOLDER}")


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
