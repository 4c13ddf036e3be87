"""Keeps a Mac awake while a command works."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CAFFEINATE = "/usr/bin/caffeinate"
AFTER_SECONDS = 60.0
"""A run of fewer seconds ends before a Mac falls asleep."""

logger = logging.getLogger(__name__)


@contextmanager
def awake(wanted: bool = True) -> Iterator[None]:
    """Prevents idle sleep on macOS inside the block, after its first minute.

    ``caffeinate`` does so until this process ends, in whatever way. The display may sleep: macOS
    stops a GPU less often if it serves no display.

    Args:
        wanted: False does nothing.
    """
    if not wanted or sys.platform != "darwin":
        yield
        return
    started: list[subprocess.Popen] = []
    timer = threading.Timer(AFTER_SECONDS, _start, [started])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        for process in started:
            with suppress(OSError):
                process.kill()
            process.wait()


def _start(started: list[subprocess.Popen]) -> None:
    command = [CAFFEINATE, "-i", "-w", str(os.getpid())]
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    try:
        # In a new session: Ctrl-C is for the command, which may still have to finish a step.
        started.append(subprocess.Popen(command, start_new_session=True, **quiet))
    except OSError as error:
        logger.warning("this Mac may fall asleep: %s: %s", CAFFEINATE, error.strerror)
        return
    logger.info(
        "%-8s this Mac doesn't fall asleep until this ends, but its display may (--no-caffeinate)",
        "awake",
    )
