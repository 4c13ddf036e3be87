"""Reads a pickle as data: builds plain containers, and calls nothing but the functions it is given.

Python's own reader may be kept from naming functions, but not from hashing a tuple of tuples for
ever, from a list of all numbers below 2**31, or from setting attributes. This one knows the
instructions that `pickle` writes for plain data in protocols 2 to 5, and counts them.
"""

import pickletools
from collections.abc import Callable
from typing import IO, Any

MAX_INSTRUCTIONS = 2**21
"""Most instructions of a pickle; a tensor takes about 30, and trainers save numbers beside it."""


class PickleError(ValueError):
    """The pickle is damaged, or isn't plain data."""


class Placeholder:
    """What a pickle can name: it may be called, and accepts any state, which is ignored."""

    def __init__(self, call: Callable[..., Any]):
        self.call = call


def read_pickle(
    stream: IO[bytes], named: Callable[[str, str], Placeholder], referred: Callable[[Any], Any]
) -> Any:
    """The object in a pickle: dicts, lists, tuples, numbers, strings, and results of placeholders.

    Sets become lists.

    Args:
        named: the placeholder of a module and a name.
        referred: the object that a persistent id stands for.

    Raises:
        PickleError: an instruction doesn't fit what came before, isn't one of plain data, or comes
            after `MAX_INSTRUCTIONS` others.
        ValueError: the pickle is cut off, or holds an unknown instruction.
    """
    machine = _Machine(named, referred)
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= MAX_INSTRUCTIONS:
            raise PickleError(f"it has more than {MAX_INSTRUCTIONS} instructions")
        machine.run(instruction.name, argument)
    return machine.pop()


class _Machine:
    """The stack and the memo of a pickle.

    Each method runs the instructions of the names in `_INSTRUCTIONS`.
    """

    def __init__(self, named: Callable[[str, str], Placeholder], referred: Callable[[Any], Any]):
        self._named, self._referred = named, referred
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _INSTRUCTIONS:
            _INSTRUCTIONS[name](self, argument)
        elif name not in _NOTHING:
            raise PickleError(f"{name} is no instruction for plain data")

    def pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise PickleError("an instruction lacks its operand")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        """The container that is added to."""
        container = self.pop()
        self._stack.append(container)
        if not isinstance(container, kind):
            raise PickleError(f"something is added to a {type(container).__name__}")
        return container

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleError("an instruction lacks its mark")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def make_tuple(self, _: None) -> None:
        self._stack.append(tuple(self._since_mark()))

    def short_tuple(self, size: int) -> None:
        items = [self.pop() for _ in range(size)]
        self._stack.append(tuple(reversed(items)))

    def make_list(self, _: None) -> None:
        self._stack.append(self._since_mark())

    def append(self, _: None) -> None:
        value = self.pop()
        self._top(list).append(value)

    def appends(self, _: None) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def set_item(self, _: None) -> None:
        value, key = self.pop(), self.pop()
        self._store([key, value])

    def set_items(self, _: None) -> None:
        self._store(self._since_mark())

    def _store(self, items: list[Any]) -> None:
        if len(items) % 2 or not all(isinstance(key, str | int | float) for key in items[::2]):
            raise PickleError("a key is neither a string nor a number")
        self._top(dict).update(zip(items[::2], items[1::2], strict=True))

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise PickleError("it refers to something that hasn't come yet")
        self._stack.append(self._memo[index])

    def put(self, index: int) -> None:
        value = self.pop()
        self._memo[index] = value
        self._stack.append(value)

    def memoize(self, _: None) -> None:
        self.put(len(self._memo))

    def name(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self._stack.append(self._named(module, name))

    def name_on_stack(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise PickleError("the name of a function is no string")
        self._stack.append(self._named(module, name))

    def call(self, _: None) -> None:
        arguments, function = self.pop(), self.pop()
        if not (isinstance(function, Placeholder) and isinstance(arguments, tuple)):
            raise PickleError("something is called that is no function")
        self._stack.append(function.call(*arguments))

    def set_state(self, _: None) -> None:
        self.pop()
        target = self.pop()
        if not isinstance(target, Ignoring):
            raise PickleError(f"a {type(target).__name__} is given another state")
        self._stack.append(target)

    def refer(self, _: None) -> None:
        self._stack.append(self._referred(self.pop()))


class Ignoring:
    """An object whose state in a pickle is ignored."""


class IgnoringDict(dict, Ignoring):
    """A dictionary whose other state is ignored: a module's state dict has the parts' versions."""


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
}
_NOTHING = {"PROTO", "FRAME", "STOP"}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": lambda machine, _: machine.short_tuple(1),
    "TUPLE2": lambda machine, _: machine.short_tuple(2),
    "TUPLE3": lambda machine, _: machine.short_tuple(3),
    **dict.fromkeys(("LIST", "FROZENSET"), _Machine.make_list),
    "APPEND": _Machine.append,
    **dict.fromkeys(("APPENDS", "ADDITEMS"), _Machine.appends),
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    "POP": lambda machine, _: machine.pop(),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_on_stack,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.refer,
}
