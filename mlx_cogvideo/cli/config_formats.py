"""Configuration files as plain data: TOML, JSON and YAML."""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from ..errors import InvalidInputError, first_line
from ..files import check_is_file

LARGEST_FILE = 2**20
"""Bytes of a configuration file."""

MOST_ALIASES = 10
"""Aliases in a YAML file. Nested ones can multiply what they stand for."""

_YAML_BOOL = "true|True|TRUE|false|False|FALSE"


def read_options(path: Path) -> dict[str, Any]:
    """Reads a file of options by name.

    Raises:
        InvalidInputError: the file can't be read, or is no list of options.
    """
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise InvalidInputError(f"{path} must end in .toml, .json, .yaml or .yml")
    try:
        options = parse(_text(path))
    except OSError as error:
        raise InvalidInputError(f"{path} can't be read: {error.strerror}") from None
    except RecursionError:
        raise InvalidInputError(f"{path} can't be read: it is nested too deeply") from None
    except ValueError as error:
        raise InvalidInputError(f"{path} can't be read: {first_line(error)}") from None
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise InvalidInputError(f"{path} must hold options by name")
    return options


def _text(path: Path) -> str:
    check_is_file(path)
    with path.open("rb") as stream:
        contents = stream.read(LARGEST_FILE + 1)
    if len(contents) > LARGEST_FILE:
        raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it isn't UTF-8 text") from None


def _json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_unique(name for name, _ in pairs)
        return dict(pairs)

    return json.loads(text, object_pairs_hook=unique)


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ValueError("YAML needs PyYAML (pip install pyyaml); or write it as TOML") from None
    try:
        return yaml.load(text, _yaml_loader(yaml))
    except yaml.YAMLError as error:
        raise ValueError(_message(error)) from None


def _yaml_loader(yaml: Any) -> Any:
    """A safe loader of YAML by the rules of version 1.2, as far as options need them.

    Only true and false are switches, and numbers stay text, which the options convert: version 1.1
    reads ``no`` as False, ``1e-4`` as text and ``12:30`` as 750.
    """

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar = {}
        aliases = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.aliases += self.check_event(yaml.AliasEvent)
            if self.aliases > MOST_ALIASES:
                raise ValueError(f"it has more than {MOST_ALIASES} aliases")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            _check_unique(key.value for key, _ in node.value if isinstance(key.value, str))
            return super().construct_mapping(node, deep)

    for tag, words in (("null", "~|null|Null|NULL|"), ("merge", "<<"), ("bool", _YAML_BOOL)):
        pattern = re.compile(f"^(?:{words})$")
        first = sorted({word[:1] for word in words.split("|")})
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, first)
    return Loader


def _message(error: Exception) -> str:
    """A message of PyYAML in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = "" if mark is None else f"line {mark.line + 1}: "
    return place + (problem or first_line(error))


def _check_unique(names: Iterable[str]) -> None:
    for name, count in Counter(names).most_common(1):
        if count > 1:
            raise ValueError(f"it has {name!r} {count} times")


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".json": _json,
    ".yaml": _yaml,
    ".yml": _yaml,
}
