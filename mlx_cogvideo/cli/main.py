"""``mlx-cogvideo``: names the commands, and imports only the one that is called."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from threading import current_thread, main_thread
from types import FrameType, ModuleType

from ..called import command
from ..version import __version__

COMMANDS = {
    "generate": "Make videos from prompts, images or clips.",
    "convert": "Make a small model folder from an official checkpoint.",
    "lora": "Fine-tune a model on clips with LoRA.",
    "check": "Check this machine's numbers, and estimate what models need here.",
    "tune": "Find which steps of a model can be left out here, and what that costs.",
    "ui": "Make videos on a page in the browser.",
    "serve": "Make videos for other programs, over HTTP.",
}
_ROOMS = {"ui": "..web", "serve": "..web"}
"""Packages of commands that aren't in this one, relative to it."""

_HELP = """\
usage: {usage} [OPTIONS]

CogVideoX on Apple Silicon, in MLX: text, an image or a video goes in, a video comes out.

commands:
{commands}

options:
  -h, --help  Show this help.
  --version   Show the version.
{completion}
example:
  {generate} --prompt "a red circle moves right on a white background"

{usage} --help lists the options of a command.
"""
_COMPLETION = """\
  --print-completion SHELL
              Print a script with which SHELL (bash, zsh, tcsh) completes this command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; returns the exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        return run_command(name, rest)
    with _one_line():
        return _about(name, rest)


def run_command(name: str, arguments: Sequence[str] | None = None) -> int:
    """Imports a command and runs it; returns the exit code.

    Args:
        name: one of `COMMANDS`.
        arguments: its command line; None means the process's own.
    """
    with _one_line():
        module = import_command(name)
    return module.main(arguments)


def import_command(name: str) -> ModuleType:
    """The module of a command: it has ``main`` and ``make_parser``."""
    return import_module(f"{_ROOMS.get(name, '')}.{name}", __package__)


def _about(name: str, rest: Sequence[str]) -> int:
    """Answers an argument that names no command."""
    from .streams import prepare, tell

    prepare()
    if name in ("-h", "--help"):
        tell(_help().rstrip("\n"))
    elif name == "--version":
        tell(f"mlx-cogvideo {__version__}")
    elif name == "--print-completion":
        from .completion import print_completion

        return print_completion(COMMANDS, import_command, rest)
    else:
        return _refuse(name)
    return 0


def _help() -> str:
    return _HELP.format(
        usage=command("COMMAND"),
        commands="\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items()),
        completion=_COMPLETION if find_spec("shtab") else "",
        generate=command("generate"),
    )


def _refuse(name: str) -> int:
    from ..errors import did_you_mean
    from .streams import printable, unheard

    if name.startswith("-"):
        problem = f"{name} follows no command, such as {command('generate')}"
    else:
        problem = f"unknown command {name!r}{did_you_mean(name, COMMANDS)}"
    line = printable(f"error: {problem} ({command('--help')} lists the commands)")
    with unheard():
        print(line, file=sys.stderr, flush=True)
    return 2


@contextmanager
def _one_line() -> Iterator[None]:
    """Ends the process with one line at Ctrl-C, or where a package is missing or unfit.

    Imports take a second or more. Extension modules may turn a KeyboardInterrupt into another
    error, so that it isn't raised.
    """
    before = signal.getsignal(signal.SIGINT)
    # Otherwise it is ignored, or handled by the program that calls this one.
    ours = before is signal.default_int_handler and current_thread() is main_thread()
    if ours:
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}: install mlx_cogvideo with what it needs, by pip or uv")
    except ImportError as error:
        lines = filter(str.strip, str(error).splitlines())
        sys.exit(f"error: {next(lines, 'a package fails to load').strip()}")
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted: nothing was written\n")
    os._exit(130)
