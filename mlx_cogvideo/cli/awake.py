"""Keeps a Mac from falling asleep while a command works."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CAFFEINATE = "/usr/bin/caffeinate"
AFTER_SECONDS = 60.0
"""Shorter runs end before a Mac falls asleep."""

logger = logging.getLogger(__name__)


@contextmanager
def awake(wanted: bool = True) -> Iterator[None]:
    """Holds off idle sleep on macOS while it is entered, from the first minute on.

    ``caffeinate`` does that until this process ends, however it ends. The display may sleep: a GPU
    that has no display to serve is stopped less often.

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
    quiet = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    try:
        # In a session of its own: Ctrl-C is for the command, which may still have a step to finish.
        started.append(subprocess.Popen(command, start_new_session=True, **quiet))
    except OSError as error:
        logger.warning("this Mac may fall asleep: %s: %s", CAFFEINATE, error.strerror)
        return
    logger.info(
        "%-8s this Mac doesn't fall asleep until this ends, but its display may (--no-caffeinate)",
        "awake",
    )
