"""Settings as data: what the field of a settings class knows about itself.

Command lines, Python signatures, records and the documentation's tables are made from it.
"""

import inspect
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, get_type_hints

from ..errors import InvalidInputError, did_you_mean
from .values import as_type

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


SHARE = Range(lambda value: 0 <= value <= 1, "from 0 to 1")
SEEDS = 2**63
"""Number of seeds, which are counted from 0."""
SEED = Range(lambda value: 0 <= value < SEEDS, "from 0 to 2**63 - 1")


def random_seed() -> int:
    """A seed for a video that is given none, short enough to type."""
    return secrets.randbelow(2**32)


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
        choices: the words that it may be.
        metavar: placeholders of its values in the help.
        if_none: what None means, in words.
        within: the numbers that it may be.
        may_change: whether an unfinished run may go on with another value.
        by_memory: whether the memory decides where it is None.
        belongs_to: setting without which it means nothing: a new value of that one resets it.
        decides: settings that it gives their values, and that can't be given beside it.
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
    decides: tuple[str, ...] = ()
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
    """Brings the values to their types, None to the default, and old names of values to today's.

    Raises:
        InvalidInputError: a value is of another type or out of its range.
    """
    types = _types(settings.__class__)
    for name, about in settings_of(settings).items():
        value = getattr(settings, name)
        if value is None:
            value = settings.__dataclass_fields__[name].default
        value = as_type(name, value, types[name])
        if about.aliases is not None and isinstance(value, str):
            value = about.aliases.get(value, value)
        if about.choices and isinstance(value, str) and value not in about.choices:
            choices = ", ".join(about.choices)
            near = did_you_mean(value, about.choices)
            raise InvalidInputError(f"{name} must be one of {choices}; got {value!r}{near}")
        object.__setattr__(settings, name, value)
        if about.within is not None and value is not None and not about.within.holds(value):
            raise InvalidInputError(f"{name} must be {about.within.words}; got {value!r}")


_types = cache(get_type_hints)


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
    arguments: Callable[P, Arguments], by_position: tuple[str, ...], same: tuple[str, str]
) -> Callable[[Callable[[Arguments], Result]], Callable[P, Result]]:
    """Gives a function the signature of a dataclass; see `with_arguments`.

    Args:
        by_position: names of the arguments that callers may give by position, in order.
        same: two names of one argument, of which callers may give one.
    """

    def decorate(function: Callable[[Arguments], Result]) -> Callable[P, Result]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            named = inspect.signature(call).bind(*args, **kwargs).arguments
            if all(named.get(name) is not None for name in same):
                raise InvalidInputError(f"{same[0]} is {same[1]}: give one of them")
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
