"""Values as the types of settings: numbers of other libraries become Python's own."""

import reprlib
from collections.abc import Callable, Sized
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np

from ..errors import InvalidInputError


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
    for each in kinds:
        with suppress(TypeError, ValueError, OverflowError):
            return each.convert(value)
    words = " or ".join(each.one for each in kinds)
    is_long = isinstance(value, Sized) and not isinstance(value, str)
    got = type(value).__name__ if is_long else reprlib.repr(value)
    raise InvalidInputError(f"{name} must be {words}; got {got}")


@dataclass(frozen=True)
class _Kind:
    """How values become those of a type, and what to call one and several of them."""

    convert: Callable[[Any], Any]
    one: str
    several: str


def _kind(member: Any) -> _Kind | None:
    if get_origin(member) is not tuple:
        return _KINDS.get(member)
    inner = _KINDS.get(get_args(member)[0])
    if inner is None:
        return None
    return _Kind(lambda values: _each(inner, values), f"a list of {inner.several}", "lists")


def _each(kind: _Kind, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str):
        raise TypeError
    return tuple(kind.convert(value) for value in values)


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


_KINDS = {
    bool: _Kind(_switch, "True or False", "switches"),
    int: _Kind(_whole_number, "a whole number", "whole numbers"),
    float: _Kind(_number, "a number", "numbers"),
    str: _Kind(_text, "a text", "texts"),
}
