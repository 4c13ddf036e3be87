"""Writes a model folder whose transformer has been trained; the rest is that of its source."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import mlx.nn as nn

from ..errors import OutputError
from ..files import keep, remove_temporary, temporary_path
from .adapter_card import CARD
from .component_files import component_files
from .components import save_component
from .json_files import read_config, write_config
from .model_files import other_files
from .model_folder import ModelFolder

UNCHANGED = ("text_encoder", "vae")
"""Networks that a training doesn't change."""


def save_finetuned(destination: Path, source: ModelFolder, transformer: nn.Module) -> None:
    """Writes a model folder in the official layout, in place of an older one of the same name.

    Files that stay as they are take no room on the same disk: they are hard links. Memory: nothing
    beside the transformer.

    Args:
        destination: appears, or changes, once all of it is on disk.
        transformer: unquantized, with the source's parameters.

    Raises:
        OutputError: it can't be written.
    """
    part = temporary_path(destination)
    try:
        part.mkdir(parents=True)
        config = read_config(source.component("transformer") / "config.json")
        save_component(part / "transformer", transformer, config)
        for name in UNCHANGED:
            _link_component(source.component(name), part / name)
        for name, contents in other_files(source.folder, source.base).items():
            (part / name).parent.mkdir(exist_ok=True)
            if isinstance(contents, Path):
                shutil.copyfile(contents, part / name)
            else:
                write_config(part / name, contents)
        if (card := destination / CARD).is_file():  # its user may have changed it
            shutil.copyfile(card, part / CARD)
        ModelFolder(part)  # raises unless all of it can be opened
        _put_in_place(part, destination)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{destination} can't be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            remove_temporary(part)


def _link_component(source: Path, destination: Path) -> None:
    destination.mkdir()
    for file in [*component_files(source), *sorted(source.glob("*.json"))]:
        link_or_copy(file, destination / file.name)


def link_or_copy(file: Path, destination: Path) -> None:
    """Makes a hard link to a file, or a copy of it where the disk has no such links."""
    try:
        os.link(file.resolve(), destination)
    except OSError:
        shutil.copyfile(file, destination)


def _put_in_place(part: Path, destination: Path) -> None:
    """Gives a complete folder its name, which an older one may have."""
    if destination.exists():
        old = temporary_path(destination)
        destination.rename(old)
        part.rename(destination)
        remove_temporary(old)
        keep(old)
    else:
        part.rename(destination)
    keep(part)
