"""Standard streams that are closed, full or without a reader: no reason to lose a video."""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

# C0, DEL and C1, which terminals obey.
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}

logger = logging.getLogger(__name__)


def printable(text: str) -> str:
    """A text in one line, in which control characters are spelled: names in files may have them."""
    return text.translate(_CONTROLS)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON whose texts are readable; those control characters are escaped that JSON leaves."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def prepare() -> None:
    """Makes the standard streams usable, however a command was started.

    Where one is closed, the next file that is opened would take its place and get what MLX and
    FFmpeg print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        with suppress(AttributeError):  # in a notebook or a test
            # Names of files in a terminal of another encoding.
            getattr(sys, name).reconfigure(errors="backslashreplace")


def tell(line: str) -> None:
    """Prints a line of results on stdout.

    That it can't be printed, often because its reader has ended, doesn't undo the results.
    """
    try:
        print(f"{line}\n", end="", flush=True)  # in one piece, whatever interrupts it
    except OSError as error:
        mute(1)
        if not isinstance(error, BrokenPipeError):
            logger.warning("what was made is in place, but stdout fails: %s", error.strerror)


@contextmanager
def unheard() -> Iterator[None]:
    """For what is said on stderr: that nobody reads it any more is no reason to stop."""
    try:
        yield
    except OSError:
        mute(2)


def mute(stream: int) -> None:
    """Has what is written to it go nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream)
    os.close(nowhere)
