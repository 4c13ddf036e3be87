"""The files in a job's folder: written whole, and read as far as they are."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..files import temporary_path

_REPEATED = ("progress", "preview")
"""Events of which only the last one matters once a job is over."""
_SHORT = 16_384
"""Bytes of events that aren't worth shortening."""
_LONGEST_MESSAGE = 4096
"""Bytes at the end of the messages in which the last one is looked for."""


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is there, and whole, after a crash or a power cut.

    Raises:
        OutputError: it can't be written; what was there before stays.
    """
    part = temporary_path(path)
    try:
        with open(part, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"the job can't be kept: {error.strerror}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Has the names in a folder survive a power cut, where the file system can do that."""
    stream = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(stream)
    finally:
        os.close(stream)


def lines_of(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of JSON in a file from a position, and the position after them.

    A line that is no JSON object is left out.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            text = file.read()
    except FileNotFoundError:
        return [], start
    whole = text[: text.rfind(b"\n") + 1]
    return list(_objects(whole)), start + len(whole)


def _objects(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def end_last_line(path: Path) -> int:
    """Ends the half line that a killed process may have left, and returns the file's size."""
    with open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
                size += 1
        return size


def shorten(path: Path) -> None:
    """Leaves out what later events have replaced, of a long file that nobody writes any more.

    Where that can't be, the file stays as it is.
    """
    with suppress(OSError):
        if path.stat().st_size <= _SHORT:
            return
        events, _ = lines_of(path)
        last = {event.get("event"): number for number, event in enumerate(events)}
        part = temporary_path(path)
        try:
            with open(part, "w", encoding="utf-8") as file:
                for number, event in enumerate(events):
                    name = event.get("event")
                    if name not in _REPEATED or last[name] == number:
                        file.write(f"{json.dumps(event)}\n")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def last_message(path: Path, start: int) -> str | None:
    """The last line that a process has written to a file since it had some size."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _LONGEST_MESSAGE))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return None
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
