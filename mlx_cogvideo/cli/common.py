"""What the commands share: how they fail, what they say and how they show progress."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from tqdm import tqdm

from ..errors import CogVideoXError, InvalidInputError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line long."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: {message} (--help lists the options)\n")


def run(command: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None) -> int:
    """Runs a command and turns how it ends into an exit code and at most one line on stderr."""
    show_log_messages()
    try:
        command(arguments)
    except CogVideoXError as error:
        say(f"error: {error}")
        return USAGE if isinstance(error, InvalidInputError) else FAILED
    except KeyboardInterrupt:
        say("interrupted: nothing was written")
        return INTERRUPTED
    return DONE


def say(message: str) -> None:
    """A line on stderr, above any progress bar."""
    tqdm.write(message, file=sys.stderr)


def show_log_messages() -> None:
    """Sends the package's warnings to stderr, a line each."""
    logger = logging.getLogger("mlx_cogvideo")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.emit = lambda record: say(f"{record.levelname.lower()}: {record.getMessage()}")
        logger.addHandler(handler)
        logger.propagate = False


class StageBars:
    """A progress bar for each stage of a run, on stderr; a `pipeline.Progress`."""

    def __init__(self):
        self._stage: str | None = None
        self._bar: tqdm | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(total=total, desc=stage, file=sys.stderr, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
