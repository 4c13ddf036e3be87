"""Command-line options made from the fields of a settings class."""

import argparse
from collections.abc import Callable, Collection
from fractions import Fraction
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..pipeline.fields import Setting, settings_of
from ..pipeline.sources import is_address


def add_settings(
    parser: argparse.ArgumentParser,
    settings_class: type,
    titles: dict[str, str],
    *,
    leave_out: Collection[str] = (),
) -> dict[str, Any]:
    """Adds an option for each setting, in groups; an option that isn't given is None.

    Args:
        titles: of the groups, by name, in order.
        leave_out: settings that get no option here.

    Returns:
        The groups by name, so that more options can be added.
    """
    groups = {name: parser.add_argument_group(title) for name, title in titles.items()}
    for name, about in settings_of(settings_class).items():
        if name not in leave_out:
            add_setting(groups[about.group].add_argument, settings_class, name)
    return groups


def add_setting(add: Callable[..., Any], settings_class: type, name: str, **changes: Any) -> None:
    """Adds the option of one setting.

    Args:
        add: an ``add_argument``.
        changes: arguments of `add` that replace the setting's own.
    """
    about = settings_of(settings_class)[name]
    kind = get_type_hints(settings_class)[name]
    options = {"dest": name, "default": None, "help": help_text(settings_class, name)}
    options |= _values(kind, about) | changes
    add(*dict.fromkeys([*about.options, "--" + name.replace("_", "-")]), **options)


def given_settings(args: argparse.Namespace, settings_class: type) -> dict[str, Any]:
    """The settings that a command line gives, by name."""
    names = settings_of(settings_class)
    values = {name: getattr(args, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def option_name(settings_class: type, name: str) -> str:
    """The option of a setting; the first one where it has several names."""
    return (settings_of(settings_class)[name].options or ("--" + name.replace("_", "-"),))[0]


def help_text(settings_class: type, name: str) -> str:
    """The help of a setting with its default."""
    about, words = settings_of(settings_class)[name], default_words(settings_class, name)
    text = about.help if words is None else f"{about.help} Default: {words}."
    return text.replace("%", "%%")


def default_words(settings_class: type, name: str) -> str | None:
    """The default of a setting in words, or None where there is nothing to say."""
    about = settings_of(settings_class)[name]
    value = settings_class.__dataclass_fields__[name].default
    if about.if_none is not None or value is None or value in ("", ()) or isinstance(value, bool):
        return about.if_none
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def named(text: str) -> str:
    """A name, which may not be empty: as a path, an empty one would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def path(text: str) -> Path:
    """A path, which may be neither empty nor an address."""
    if is_address(text):
        raise argparse.ArgumentTypeError(f"{text} is an address: download it first")
    return Path(named(text))


def number(text: str) -> float:
    """A number such as 0.25, or a fraction such as 1/6."""
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be a number or a fraction, got {text}") from None


def _values(kind: Any, about: Setting) -> dict[str, Any]:
    """What the option of a type takes."""
    members = [kind]
    if get_origin(kind) in (Union, UnionType):
        members = [k for k in get_args(kind) if k is not NoneType]
    if set(members) == {bool}:
        return {"action": argparse.BooleanOptionalAction}
    member = members[0]
    metavar = about.metavar or {int: "N", float: "NUMBER"}.get(member, "TEXT")
    values: dict[str, Any] = {"metavar": metavar}
    if about.choices is not None:
        old = about.aliases or {}
        # Old names are taken, but not offered.
        offered = "{" + ",".join(about.choices) + "}"
        values = {"choices": _Choices(about.choices, old), "metavar": offered}
    if get_origin(member) is tuple:
        inner = [k for k in get_args(member) if k is not Ellipsis]
        values |= {"nargs": "+" if Ellipsis in get_args(member) else len(inner)}
        member = inner[0]
    # What is no number and no text is a file.
    return values | {"type": {int: int, float: number, str: str}.get(member, named)}


class _Choices(tuple):
    """Choices among which old names count as well."""

    def __new__(cls, choices: Collection[str], old: Collection[str]):
        made = super().__new__(cls, choices)
        made.old = frozenset(old)
        return made

    def __contains__(self, value: object) -> bool:
        return super().__contains__(value) or value in self.old
