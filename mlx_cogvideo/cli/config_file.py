"""Options of a command from a TOML or JSON file."""

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..files import read_text
from .common import Parser
from .options import path as path_type


def with_config_file(parser: Parser, arguments: Sequence[str] | None) -> list[str]:
    """The command line with the options of its ``--config`` file in front.

    Options of the command line come later and therefore override the file.

    Args:
        arguments: command line; None means the process's own.

    Raises:
        InvalidInputError: the file doesn't exist, or holds something else than options.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    finder = Parser(add_help=False)
    finder.add_argument("--config", type=path_type)
    path = finder.parse_known_args(arguments)[0].config
    if path is None:
        return arguments
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    words: list[str] = []
    actions = {option: action for action in parser._actions for option in action.option_strings}
    for name, value in _read(path).items():
        option = "--" + name.replace("_", "-")
        if option not in actions or option == "--config":
            raise InvalidInputError(
                f"{path} has {name!r}, which is not an option (--help lists them)"
            )
        if option not in given:
            words += _words(path, option, actions[option], value)
    return words + arguments


def _read(path: Path) -> dict[str, Any]:
    read = {".toml": tomllib.loads, ".json": json.loads}.get(path.suffix)
    if read is None:
        raise InvalidInputError(f"{path} must end in .toml or .json")
    text = read_text(path)
    try:
        options = read(text)
    except ValueError as error:
        raise InvalidInputError(f"{path} can't be read: {error}") from None
    if not isinstance(options, dict):
        raise InvalidInputError(f"{path} must hold options by name")
    return options


def _words(path: Path, option: str, action: argparse.Action, value: Any) -> Iterator[str]:
    """An option in the form of a command line."""
    if value is None:
        raise InvalidInputError(f"{path}: {option} has no value: leave it out")
    if action.nargs == 0 or (action.nargs == "?" and isinstance(value, bool)):
        yield from _switch(path, option, action, value)
        return
    values = value if isinstance(value, list) else [value]
    if any(isinstance(word, bool | dict | list) for word in values):
        raise InvalidInputError(f"{path}: {option} can't be {value!r}")
    if action.type is path_type:  # as a shell does
        values = [Path(str(word)).expanduser() for word in values]
    if isinstance(action, argparse._AppendAction):
        for word in values:
            yield from (option, str(word))
    elif action.nargs is None:  # so that a value such as -1 isn't read as an option
        yield from (f"{option}={word}" for word in values)
    else:
        yield from (option, *map(str, values))


def _switch(path: Path, option: str, action: argparse.Action, value: Any) -> Iterator[str]:
    if not isinstance(value, bool):
        raise InvalidInputError(f"{path}: {option} must be true or false")
    if value:
        yield option
    elif isinstance(action, argparse.BooleanOptionalAction):
        yield _negated(option)


def _negated(option: str) -> str:
    """``--compile`` for ``--no-compile``, and the reverse."""
    name = option.removeprefix("--")
    return f"--{name.removeprefix('no-')}" if name.startswith("no-") else f"--no-{name}"
