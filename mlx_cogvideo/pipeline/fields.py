"""Settings as data: what the field of a settings class knows about itself.

Command lines, Python signatures, records and the documentation's tables are made from it.
"""

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache, wraps
from types import NoneType
from typing import Any, Concatenate, ParamSpec, TypeVar, get_args, get_type_hints

from ..errors import InvalidInputError

P = ParamSpec("P")
Owner = TypeVar("Owner")
Arguments = TypeVar("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be.

    Attributes:
        holds: whether a number is one of them.
        words: what comes after "must be".
    """

    holds: Callable[[float], bool]
    words: str


def at_least(least: int) -> Range:
    return Range(lambda value: least <= value < math.inf, f"at least {least}")


def above(limit: int) -> Range:
    return Range(lambda value: limit < value < math.inf, f"a number above {limit}")


FINITE = Range(math.isfinite, "a finite number")
SHARE = Range(lambda value: 0 <= value <= 1, "from 0 to 1")
SEED = Range(lambda value: 0 <= value < 2**63, "from 0 to 2**63 - 1")


NOTHING = object()
"""As a setting's `omit`: records have it even where it is None."""


@dataclass(frozen=True)
class Setting:
    """What is known of a setting beside its name, type and default.

    Attributes:
        help: what it does, in a sentence that stands alone, with its unit.
        options: its names on the command line. Its own name, with dashes or underscores, is
            another one.
        group: heading under which the help lists it.
        choices: the words that it may be, for the command line.
        metavar: placeholders of its values in the help.
        if_none: what None means, in words.
        within: the numbers that it may be.
        may_change: whether an unfinished run may go on with another value.
        by_memory: whether the memory decides where it is None.
        belongs_to: setting without which it means nothing: a new value of that one resets it.
        before: its value in records that were written before there was such a setting.
        aliases: other names of its values, such as old ones.
        omit: value that records leave out, such as that of a setting that is off.
    """

    help: str
    options: tuple[str, ...]
    group: str
    choices: tuple[str, ...] | None = None
    metavar: str | tuple[str, ...] | None = None
    if_none: str | None = None
    within: Range | None = None
    may_change: bool = False
    by_memory: bool = False
    belongs_to: str | None = None
    before: Any = None
    aliases: Mapping[str, Any] | None = None
    omit: Any = None


def setting(
    default: Any, help: str, *options: str, group: str, compare: bool = True, **more: Any
) -> Any:
    """Makes a dataclass field with a `Setting`, whose attributes are the other arguments."""
    made = Setting(help, options, group, **more)
    return field(default=default, compare=compare, metadata={"setting": made})


def settings_of(settings_class: Any) -> dict[str, Setting]:
    """The settings of a class, by name; a field without a `Setting` is none."""
    known = {f.name: f.metadata.get("setting") for f in fields(settings_class)}
    return {name: found for name, found in known.items() if found is not None}


def about(settings_class: Any, name: str) -> dict[str, Any]:
    """The metadata of a setting, for a field that takes its place."""
    return {"setting": settings_of(settings_class)[name]}


def check_values(settings: Any) -> None:
    """Replaces old names of values, and raises InvalidInputError for a wrong type or range."""
    kinds = _kinds(settings.__class__)
    for name, about in settings_of(settings).items():
        value = _typed(name, getattr(settings, name), kinds[name])
        if about.aliases is not None and isinstance(value, str):
            value = about.aliases.get(value, value)
        object.__setattr__(settings, name, value)
        if about.within is not None and value is not None and not _holds(about.within, value):
            raise InvalidInputError(f"{name} must be {about.within.words}; got {value!r}")


@cache
def _kinds(settings_class: Any) -> dict[str, type | None]:
    """The type of each setting that is a number or a text and nothing else."""
    hints = get_type_hints(settings_class)
    plain = {int, float, str}
    members = {n: [k for k in get_args(h) or [h] if k is not NoneType] for n, h in hints.items()}
    return {
        n: kinds[0] if len(kinds) == 1 and kinds[0] in plain else None
        for n, kinds in members.items()
    }


def _typed(name: str, value: Any, kind: type | None) -> Any:
    """A number of NumPy or a whole float as Python's own; other types are refused."""
    if value is None or kind is None:
        return value
    if kind is str:
        if not isinstance(value, str):
            raise InvalidInputError(f"{name} must be a text; got {type(value).__name__}")
        return value
    try:
        number = operator.index(value) if kind is int else float(value)
    except TypeError:
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)
        words = "a whole number" if kind is int else "a number"
        raise InvalidInputError(f"{name} must be {words}; got {value!r}") from None
    except (ValueError, OverflowError):
        raise InvalidInputError(f"{name} must be a number; got {value!r}") from None
    return number if not isinstance(value, int | float) else value


def _holds(within: Range, value: Any) -> bool:
    try:
        return within.holds(value)
    except TypeError:  # no number at all
        return False


def with_arguments(
    arguments: Callable[P, Arguments],
) -> Callable[[Callable[[Owner, Arguments], Result]], Callable[Concatenate[Owner, P], Result]]:
    """Gives a method the signature of a dataclass, an instance of which it receives.

    Type checkers and ``inspect.signature`` know the dataclass's own arguments.
    """

    def decorate(
        method: Callable[[Owner, Arguments], Result],
    ) -> Callable[Concatenate[Owner, P], Result]:
        @wraps(method)
        def call(self: Owner, *args: P.args, **kwargs: P.kwargs) -> Result:
            return method(self, _made(arguments, method, *args, **kwargs))

        owner = next(iter(inspect.signature(method).parameters.values()))
        _document(call, arguments, [owner, *inspect.signature(arguments).parameters.values()])
        return call

    return decorate


def from_arguments(
    arguments: Callable[P, Arguments], by_position: tuple[str, ...]
) -> Callable[[Callable[[Arguments], Result]], Callable[P, Result]]:
    """Gives a function the signature of a dataclass; see `with_arguments`.

    Args:
        by_position: names of the arguments that callers may give by position, in order.
    """

    def decorate(function: Callable[[Arguments], Result]) -> Callable[P, Result]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            named = inspect.signature(call).bind(*args, **kwargs).arguments
            return function(_made(arguments, function, **named))  # type: ignore[call-arg]

        own = dict(inspect.signature(arguments).parameters)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        first = [own.pop(name).replace(kind=kind) for name in by_position]
        _document(call, arguments, [*first, *own.values()])
        return call

    return decorate


def _made(
    arguments: Callable[P, Arguments], of: Any, *args: P.args, **kwargs: P.kwargs
) -> Arguments:
    """Makes the dataclass; an error about the arguments names the function that was called."""
    try:
        return arguments(*args, **kwargs)
    except TypeError as error:
        name = f"{getattr(arguments, '__name__', '')}.__init__()"
        raise TypeError(str(error).replace(name, f"{of.__qualname__}()")) from None


def _document(call: Any, arguments: Any, parameters: list[inspect.Parameter]) -> None:
    """Sets the signature and the docstring of a function that takes a dataclass's arguments."""
    returned = inspect.signature(call).return_annotation
    call.__signature__ = inspect.Signature(parameters, return_annotation=returned)
    summary, _, rest = inspect.cleandoc(call.__doc__).partition("\n\n")
    others = inspect.cleandoc(arguments.__doc__).partition("Attributes:\n")[2].rstrip()
    lines = ["Args:", *filter(None, [others]), *_described(arguments)]
    call.__doc__ = "\n\n".join([summary, "\n".join(lines), *filter(None, [rest])])


def _described(arguments: Any) -> Iterator[str]:
    """A line for each setting of a class."""
    for f in fields(arguments):
        known = f.metadata.get("setting")
        if known is not None:
            default = "" if f.default in (None, "", MISSING) else f" Default: {f.default!r}."
            meaning = "" if known.if_none is None else f" Default: {known.if_none}."
            yield f"    {f.name}: {known.help}{default}{meaning}"
