"""Values as the types of settings: numbers of other libraries become Python's own."""

import reprlib
from collections.abc import Callable, Sized
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np

from ..errors import InvalidInputError

_Kind = tuple[Callable[[Any], Any], str]
"""Converts values to a type, and what to call one in messages."""


def as_type(name: str, value: Any, kind: Any) -> Any:
    """A value as one of the types that a setting may have.

    Types without a `_Kind`, such as a sampler's, are left to where they are used.

    Args:
        name: of the setting, for the message.
        kind: a type, a tuple of one type, or a union of those.

    Raises:
        InvalidInputError: it is of another type.
    """
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    kinds = [_kind(member) for member in members if member is not NoneType]
    if None in kinds or (value is None and NoneType in members):
        return value
    for convert, _ in kinds:
        with suppress(TypeError, ValueError, OverflowError):
            return convert(value)
    is_long = isinstance(value, Sized) and not isinstance(value, str)
    got = type(value).__name__ if is_long else reprlib.repr(value)
    raise InvalidInputError(f"{name} must be {' or '.join(words for _, words in kinds)}; got {got}")


def _kind(member: Any) -> _Kind | None:
    if get_origin(member) is not tuple:
        return _KINDS.get(member)
    inner = _KINDS.get(get_args(member)[0])
    if inner is None:
        return None
    convert, words = inner
    return lambda values: _each(convert, values), f"a list of {words.removeprefix('a ')}s"


def _each(convert: Callable[[Any], Any], values: Any) -> tuple[Any, ...]:
    if isinstance(values, str):
        raise TypeError
    return tuple(map(convert, values))


def _check_number(value: Any) -> None:
    if isinstance(value, bool | np.bool_ | str | bytes):  # which int and float convert
        raise TypeError


def _number(value: Any) -> int | float:
    _check_number(value)
    number = float(value)
    return value if type(value) is int else number


def _whole_number(value: Any) -> int:
    _check_number(value)
    whole = int(value)
    if whole != value:
        raise ValueError
    return whole


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError
    return bool(value)


_KINDS: dict[Any, _Kind] = {
    bool: (_switch, "True or False"),
    int: (_whole_number, "a whole number"),
    float: (_number, "a number"),
    str: (_text, "a text"),
}
