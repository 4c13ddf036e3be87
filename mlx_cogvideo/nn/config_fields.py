"""What the fields of a configuration may be: types from their annotations, values from here."""

import json
from dataclasses import field, fields
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def number(default: Any, least: float, most: float) -> Any:
    """A field that is a number from `least` to `most`, or a list of such numbers."""
    return field(default=default, metadata={"range": (least, most)})


def choice(default: Any, *others: Any) -> Any:
    """A field that is its default or one of `others`."""
    return field(default=default, metadata={"choices": (default, *others)})


def check_fields(config: Any) -> None:
    """Gives the fields of a configuration their annotated types.

    A whole float passes for an integer, and a list for a tuple, as JSON writes them.

    Raises:
        ValueError: a field is of another type, or not among the values that it may have.
    """
    hints = _types(type(config))
    for described in fields(config):
        name = described.name
        value = _typed(name, getattr(config, name), hints[name])
        choices, limits = (described.metadata.get(key) for key in ("choices", "range"))
        if choices is not None and value not in choices:
            raise wrong(name, " or ".join(map(shown, choices)), value)
        if limits is not None and value is not None:
            least, most = limits
            for item in value if isinstance(value, tuple) else (value,):
                if not least <= item <= most:  # never true of NaN
                    raise wrong(name, f"from {least:g} to {most:g}", item)
        object.__setattr__(config, name, value)


def wrong(name: str, words: str, value: Any) -> ValueError:
    """The error about a field that has another value than it must have, in the words of JSON."""
    return ValueError(f"{name} must be {words}; got {shown(value)}")


_types = cache(get_type_hints)


def _typed(name: str, value: Any, hint: Any) -> Any:
    if NoneType in get_args(hint):
        if value is None:
            return None
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    if get_origin(hint) is not tuple:
        return _plain(name, value, hint)
    if not isinstance(value, list | tuple) or not value:
        raise wrong(name, "a list of numbers", value)
    return tuple(_plain(name, one, get_args(hint)[0]) for one in value)


def _plain(name: str, value: Any, kind: type) -> Any:
    """The value as a bool, an integer, a float or a text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        return value
    if kind is int and is_number and (isinstance(value, int) or value.is_integer()):
        return int(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    raise wrong(name, WORDS[kind], value)


def shown(value: Any) -> str:
    """A value as JSON has it, cut where it is long."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:60]}..."
