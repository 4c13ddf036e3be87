"""``generate.py`` as the tests call it: in this process, or as a process of its own."""

import logging
import signal
import subprocess
import sys
from pathlib import Path

from mlx_cogvideo.cli.generate import main

SCRIPT = Path(__file__).parents[1] / "generate.py"
PROMPT = "a red circle moves right on a white background"
SMALL = ["--frames", "9", "--height", "32", "--width", "48", "--steps", "2"]


def run(*arguments) -> int:
    """Runs the command in this process; argparse's own exits become their codes."""
    logging.getLogger("mlx_cogvideo").handlers.clear()
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def generate(output, *arguments) -> int:
    """A small video of one prompt."""
    return run("--prompt", PROMPT, "--output", output, *SMALL, "--seed", 1, *arguments)


def start(*arguments, **options) -> subprocess.Popen:
    """Starts a process that can be interrupted, even where the tests run in the background."""
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
    return [line for line in captured.splitlines() if line.startswith("error: ")]
