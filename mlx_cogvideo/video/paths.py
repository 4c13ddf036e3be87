"""Checks the paths of outputs, and renames finished temporaries to them."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

from ..errors import OutputError
from ..files import keep, remove_temporary, temporary_path

MP4, GIF, LATENTS = ".mp4", ".gif", ".safetensors"
FRAMES = ""
"""The ending of a folder of PNG frames."""

_FRAME_NAME = re.compile(r"[0-9]+\.png")
# The name of a saved run is a little longer, and most file systems allow names of 255 bytes.
_LONGEST_NAME = 240


def check_output_path(path: str | Path, overwrite: bool = False) -> Path:
    """Checks that an output can be written to `path`; call it before any expensive work.

    Args:
        path: ends in .mp4, .gif or .safetensors, in any case; without an ending, or as text with
            a slash at the end, it is a folder of PNG frames.
        overwrite: whether a file, or a folder that holds nothing but numbered PNG frames, may be
            replaced.

    Returns:
        The path without a slash at its end. Pass the text on where the slash matters (``run.2/``).

    Raises:
        OutputError: the ending is unknown; the folder around it is missing or can't be written to;
            the output exists and `overwrite` is false; or something else has that name.
    """
    form = output_form(path)
    path = Path(path)
    if not os.path.isdir(path.parent):
        raise OutputError(f"the folder {path.parent} doesn't exist: make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {path.parent} can't be written to: choose another")
    if os.path.isdir(path) and form != FRAMES:
        raise OutputError(f"{path} is a folder: name a file in it")
    if os.path.isfile(path) and form == FRAMES:
        raise OutputError(f"{path} is a file: choose another name for the folder of frames")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{path} exists: choose another name or overwrite it (--overwrite)")
    if os.path.lexists(path) and form == FRAMES:
        _check_only_frames(path)
    return path


def output_form(path: str | Path) -> str:
    """The form of an output: one of the four endings.

    Raises:
        OutputError: the path has another ending, or no name.
    """
    name = Path(path).name
    typed_as_folder = str(path).endswith(("/", os.sep))
    if name in ("", "..") or (name.lower() in (MP4, GIF, LATENTS) and not typed_as_folder):
        raise OutputError(f"{str(path)!r} is no name for an output: give one such as video{MP4}")
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise OutputError(f"the name {name[:20]}... is too long: use {_LONGEST_NAME} bytes at most")
    form = FRAMES if typed_as_folder else Path(path).suffix.lower()
    if form not in (MP4, GIF, LATENTS, FRAMES):
        raise OutputError(
            f"only {MP4}, {GIF}, {LATENTS} (latents) and folders of PNG frames (no ending, or a "
            f"slash at the end) can be written: name the output {Path(path).stem}{MP4}"
        )
    return form


def ffmpeg_name(path: str | Path) -> str:
    """A path as FFmpeg takes it for nothing else: ``12:30.mp4`` alone would be a protocol."""
    return f"file:{Path(path).absolute()}"


def frame_files(folder: Path) -> list[Path]:
    """The numbered PNG files of a folder by number."""
    files = [file for file in folder.iterdir() if _FRAME_NAME.fullmatch(file.name)]
    return sorted(files, key=lambda file: int(file.stem))


def write_temporary(path: Path, data: bytes) -> Path:
    """Writes a whole file to a temporary one beside `path`, syncs it to disk and returns its path.

    Raises:
        OutputError: it can't be written; nothing is left.
    """
    part = temporary_path(path)
    with output_errors(path):
        try:
            with part.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            remove_temporary(part)
            raise
    return part


def publish(part: Path, path: Path, overwrite: bool) -> None:
    """Gives a finished temporary file or folder its final name.

    Raises:
        OutputError: it can't be renamed; the temporary stays, and the message contains its path.
    """
    keep(part)  # it is complete, and stays if it can't be renamed
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{path} appeared meanwhile: the finished output is {part}")
    with output_errors(path, part):
        if part.is_dir() and os.path.lexists(path):
            _check_only_frames(path)
            for file in frame_files(path):
                file.unlink()
            path.rmdir()
        part.replace(path)


@contextmanager
def output_errors(path: Path, finished: Path | None = None) -> Iterator[None]:
    """Turns errors of the operating system and of FFmpeg into an OutputError about `path`.

    Args:
        finished: the temporary with the complete output, for the message.
    """
    try:
        yield
    # Only FFmpeg's errors with a number of the operating system are OSErrors.
    except (OSError, av.FFmpegError) as error:
        problem = f"{path} can't be written: {error.strerror or error}"
        if isinstance(error, OutputError):
            problem = str(error)
        kept = f": the finished output is {finished}" if finished and finished.exists() else ""
        raise OutputError(problem + kept) from error


def _check_only_frames(folder: Path) -> None:
    """Checks that a folder may be replaced.

    Raises:
        OutputError: it is a link, can't be changed, or holds anything but numbered PNG frames.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise OutputError(f"{folder} is no plain folder: choose another name")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise OutputError(f"the folder {folder} can't be changed: choose another name")
    for file in folder.iterdir():
        if not _FRAME_NAME.fullmatch(file.name) or file.is_dir():
            raise OutputError(
                f"{folder} holds more than numbered PNG frames ({file.name}): choose another name"
            )
