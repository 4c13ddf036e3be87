"""Gives up files that don't answer, as on a server that is gone.

FFmpeg looks at its own time limit only between two calls of the system, and a call that waits for
such a file doesn't return. So the work on a file is done in a thread that can be left behind.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import InvalidInputError

Result = TypeVar("Result")


@dataclass
class _Watch:
    """When a file has last answered, and whether it has been given up."""

    last: float
    is_over: bool = False


_current = threading.local()


def within(seconds: float, path: Path, work: Callable[[], Result]) -> Result:
    """Does the work on a file, and gives it up when the file stops answering.

    Args:
        seconds: time that may pass between two calls of `answered` in `work`.
        path: the file, for the message.
        work: runs in another thread, which ends with the process at the latest.

    Raises:
        InvalidInputError: the file didn't answer in time.
    """
    watch, future = _Watch(time.monotonic()), Future()

    def run() -> None:
        _current.watch = watch
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while not wait([future], max(watch.last + seconds - time.monotonic(), 0.0)).done:
            if time.monotonic() > watch.last + seconds:
                raise InvalidInputError(f"{path} doesn't answer: nothing came for {seconds:g} s")
        return future.result()
    finally:
        watch.is_over = True


def answered() -> None:
    """Says, in the work that `within` does, that the file has answered."""
    watch = getattr(_current, "watch", None)
    if watch is None:
        return
    if watch.is_over:
        raise InterruptedError  # nobody waits for the result any more
    watch.last = time.monotonic()
