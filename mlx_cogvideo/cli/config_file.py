"""Options of a command from a file."""

import argparse
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.resolve import expanded
from ..errors import InvalidInputError
from .config_formats import read_options
from .options import path as path_type
from .parser import OneLineParser, Parser, UnknownOption

_SWITCHES = {"yes": True, "on": True, "no": False, "off": False}
"""Other words for true and false, which YAML files have."""


def with_config_file(parser: Parser, arguments: Sequence[str] | None) -> list[str]:
    """The command line with the options of its ``--config`` file in front.

    Options of the command line come later and therefore override the file.

    Args:
        arguments: command line; None means the process's own.

    Raises:
        InvalidInputError: the file doesn't exist, or holds something else than options.
    """
    arguments = parser.in_own_names(arguments)
    finder = OneLineParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=path_type)
    path = finder.parse_known_args(arguments)[0].config
    if path is None:
        return arguments
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    words: list[str] = []
    names: dict[str, str] = {}
    actions = {option: action for action in parser._actions for option in action.option_strings}
    for name, value in read_options(path).items():
        option = _option(parser, path, name)
        other = names.setdefault(actions[option].dest, name)
        if other != name:
            raise InvalidInputError(f"{path}: {other} and {name} are one option: give one of them")
        if option not in given:
            words += _words(path, option, actions[option], value)
    return words + arguments


def _option(parser: Parser, path: Path, name: str) -> str:
    """The parser's option of a name in the file."""
    if name.replace("_", "-") in ("config", "help", "version"):
        raise InvalidInputError(f"{path} has {name!r}, which is for the command line only")
    try:
        return parser.own_name(f"-{name}" if len(name) == 1 else f"--{name}")
    except UnknownOption as problem:
        raise InvalidInputError(f"{path}: {problem} (--help lists the options)") from None


def _words(path: Path, option: str, action: argparse.Action, value: Any) -> Iterator[str]:
    """An option in the form of a command line."""
    if value is None:
        raise InvalidInputError(f"{path}: {option} has no value: leave it out")
    if action.nargs in (0, "?") and isinstance(value, str):
        value = _SWITCHES.get(value.lower(), value)
    if action.nargs == 0 or (action.nargs == "?" and isinstance(value, bool)):
        yield from _switch(path, option, action, value)
        return
    if action.nargs == "+" and isinstance(value, list) and {type(each) for each in value} == {list}:
        for each in value:  # as if the option were given several times
            yield from (option, *_values(path, option, action, each))
        return
    values = _values(path, option, action, value)
    if isinstance(action, argparse._AppendAction):
        for word in values:
            yield from (option, word)
    elif action.nargs is None:  # so that a value such as -1 isn't read as an option
        yield f"{option}={values[0]}"
    else:
        yield from (option, *values)


def _values(path: Path, option: str, action: argparse.Action, value: Any) -> list[str]:
    """The values of an option as text."""
    takes_one = action.nargs is None and not isinstance(action, argparse._AppendAction)
    if takes_one and isinstance(value, list):
        raise InvalidInputError(f"{path}: {option} takes one value, not a list")
    values = value if isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            raise InvalidInputError(
                f"{path}: {option} can't be {reprlib.repr(each)}: put a text in quotes"
            )
    if action.type in (Path, path_type):  # as a shell does
        return [str(expanded(str(each))) for each in values]
    return [str(each) for each in values]


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
