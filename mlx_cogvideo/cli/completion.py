"""Scripts with which a shell completes ``mlx-cogvideo``, made by shtab."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType

from ..errors import InvalidInputError
from .common import run
from .json_events import JsonEvents
from .options import path
from .streams import tell

_FILES = {"ADAPTER", "DIR", "FILE", "FOLDER", "MODEL", "PATH"}
"""Placeholders of values that are files or folders."""


def print_completion(
    commands: Mapping[str, str], load: Callable[[str], ModuleType], arguments: Sequence[str]
) -> int:
    """Prints the script for a shell; returns the exit code.

    Args:
        commands: names of commands and what they do.
        load: imports the module of a command.
        arguments: the shell, such as ``bash``, and nothing else.
    """
    return run(partial(_print_completion, commands, load), arguments)


def _print_completion(
    commands: Mapping[str, str],
    load: Callable[[str], ModuleType],
    arguments: Sequence[str],
    events: JsonEvents,
) -> None:
    try:
        import shtab
    except ImportError:
        raise InvalidInputError(
            "--print-completion needs the package shtab: pip install shtab"
        ) from None
    shell = " ".join(arguments)
    if shell not in shtab.SUPPORTED_SHELLS:
        shells = ", ".join(shtab.SUPPORTED_SHELLS)
        raise InvalidInputError(f"--print-completion takes one of {shells}; got {shell!r}")
    parser = argparse.ArgumentParser(prog="mlx-cogvideo")
    parsers = parser.add_subparsers(parser_class=argparse.ArgumentParser)
    for name, text in commands.items():
        own = load(name).make_parser()
        for action in own._actions:
            if _takes_files(action):
                action.complete = shtab.FILE
        parsers.add_parser(name, help=text, parents=[own], add_help=False)
    tell(shtab.complete(parser, shell))


def _takes_files(action: argparse.Action) -> bool:
    shown = action.metavar if isinstance(action.metavar, tuple) else (action.metavar,)
    names_one = action.type is path or action.dest in ("model", "output")
    return names_one or not _FILES.isdisjoint(shown)
