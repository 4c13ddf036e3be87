"""Calls of ``generate.py``, in this process or in a new one, and Ctrl-C at a chosen step."""

import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlx_cogvideo.cli.generate import main
from mlx_cogvideo.diffusion.schedulers import SCHEDULERS

SCRIPT = Path(__file__).parents[1] / "generate.py"
PROMPT = "a red circle moves right on a white background"
SMALL = ["--frames", "9", "--height", "32", "--width", "48", "--steps", "2"]


def run(*arguments) -> int:
    """Runs the command in this process and returns its exit code, also where argparse exits."""
    logging.getLogger("mlx_cogvideo").handlers.clear()
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def generate(output, *arguments) -> int:
    """Makes a small video of one prompt."""
    return run("--prompt", PROMPT, "--output", output, *SMALL, "--seed", 1, *arguments)


@contextmanager
def during_steps(action: Callable[[int], object]) -> Iterator[None]:
    """Calls `action` within each denoising step, with the number of the step.

    Steps are counted from 1, over all videos and windows.
    """
    steps = 0

    def observe(patch: pytest.MonkeyPatch, scheduler: type) -> None:
        step = scheduler.step

        def observed(self, *arguments, **options):
            nonlocal steps
            steps += 1
            action(steps)
            return step(self, *arguments, **options)

        patch.setattr(scheduler, "step", observed)

    with pytest.MonkeyPatch.context() as patch:
        for scheduler in SCHEDULERS.values():
            observe(patch, scheduler)
        yield


@contextmanager
def heeding_ctrl_c() -> Iterator[None]:
    """Has SIGINT act as in a terminal. Jobs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def press_twice(result):
    """Presses Ctrl-C twice, as an action of `in_call`."""
    press_ctrl_c()
    press_ctrl_c()
    return result


def raising(error: BaseException) -> Callable:
    """An action of `in_call` that raises an error."""

    def action(result):
        raise type(error)(*error.args)  # a new one: tracebacks would keep the arrays of all steps

    return action


@contextmanager
def ctrl_c_in_step(number: int) -> Iterator[None]:
    """Presses Ctrl-C within a denoising step; see `during_steps`."""
    with heeding_ctrl_c(), during_steps(lambda step: step == number and press_ctrl_c()):
        yield


def start(*arguments, **options) -> subprocess.Popen:
    """Starts a process that Ctrl-C can interrupt, even where the tests run in the background."""
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def errors(captured: str) -> list[str]:
    """Returns the lines of stderr that are errors."""
    return [line for line in captured.splitlines() if line.startswith("error: ")]


def warnings(captured: str) -> list[str]:
    """Returns the lines of stderr that are warnings."""
    return [line for line in captured.splitlines() if line.startswith("warning: ")]
