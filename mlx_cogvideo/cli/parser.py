"""The parser of a command, which knows names from other tools and proposes the nearest."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ..called import command
from ..errors import InvalidInputError, did_you_mean
from ..version import __version__
from .other_names import EVERYWHERE, OTHER_NAMES

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line long."""

    def error(self, message: str) -> NoReturn:
        raise InvalidInputError(f"{message} (--help lists the options)")


class Parser(OneLineParser):
    """The parser of a command. Options are written out in full.

    An option may also be written with underscores, or under a name of `OTHER_NAMES`.
    """

    def __init__(self, name: str, *, lone: str, **options: Any):
        """Makes the parser of a command.

        Args:
            name: a command of ``main.COMMANDS``.
            lone: the option that a word without one is probably meant for.
            options: argparse's; an ``epilog`` keeps its line breaks, and ``%(prog)s`` in it is the
                command as its user calls it.
        """
        super().__init__(
            prog=command(name),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )
        self._others = EVERYWHERE | OTHER_NAMES[name]
        self._lone = lone
        self.add_argument(
            "--version",
            action="version",
            version=f"mlx-cogvideo {__version__}",
            help="Print the version, and stop.",
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        parsed, lone = self.parse_known_args(self.in_own_names(args), namespace)
        if lone:
            problem = f"{lone[0]!r} follows no option"
            dest = self._option_string_actions[self._lone].dest
            if getattr(parsed, dest) == self.get_default(dest):
                self.error(f"{problem}: did you mean {self._lone} {shlex.quote(lone[0])}?")
            self.error(f"{problem}: a text of several words needs quotes")
        return parsed

    def in_own_names(self, arguments: Sequence[str] | None) -> list[str]:
        """A command line with this parser's names of options in place of other known ones.

        An unknown option ends the process with one line, which proposes the nearest one.
        """
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        end = arguments.index("--") if "--" in arguments else len(arguments)
        words, problems = [], []
        for word in arguments[:end]:
            name, equals, value = word.partition("=")
            if self._may_be_option(word):
                try:
                    word = self.own_name(name) + equals + value
                except UnknownOption as problem:
                    if " " not in word:  # else argparse takes it for a value
                        problems.append(str(problem))
            words.append(word)
        if problems:
            self.error("; ".join(problems))
        return words + arguments[end:]

    def own_name(self, option: str) -> str:
        """This parser's name of an option, such as ``--guidance`` for ``--cfg_scale``.

        Raises:
            UnknownOption: it has no such option.
        """
        dashed = option.replace("_", "-") if option.startswith("--") else option
        for name in (option, dashed, self._others.get(dashed, "")):
            if name in self._option_string_actions:
                return name
        if dashed in self._others:
            raise UnknownOption(f"{option}: {self._others[dashed]}")
        listed = [name for name in self._option_string_actions if name.startswith("--")]
        raise UnknownOption(f"unknown option {option}{did_you_mean(dashed, listed)}")

    def _may_be_option(self, word: str) -> bool:
        """Whether argparse may take a word for an option, known or not."""
        if len(word) < 2 or word[0] != "-" or self._negative_number_matcher.match(word):
            return False
        # -o and its value may be one word.
        return word[1] == "-" or word[:2] not in self._option_string_actions

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = did_you_mean(str(value), map(str, action.choices))
            choices = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"must be one of {choices}; got {value!r}{near}")


class UnknownOption(Exception):
    """A command has no such option; the message says what to write instead."""
