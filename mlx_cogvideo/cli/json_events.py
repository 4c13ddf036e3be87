"""What a command does while it runs, as lines of JSON on stdout; docs/events.md describes them."""

import json
import logging
import math
import os
import select
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from huggingface_hub.utils import disable_progress_bars

from ..called import command
from ..errors import resume_command, with_notes
from ..version import __version__
from .streams import mute, tell
from .time_left import TimeLeft, unit_of

VERSION = 1
"""Version of the events: it rises when a field changes its meaning or goes."""
OPTION = "--json-events"

_STATUS = {0: "done", 130: "interrupted"}
_PAUSE = 0.25
"""Seconds between two reports of a stage's progress, beside its first and last."""


def add_events_option(add: Callable[..., Any]) -> None:
    """Adds ``--json-events``.

    Args:
        add: a parser's or a group's ``add_argument``.
    """
    add(
        OPTION,
        action="store_true",
        help="Print what happens as it happens, for other programs: one JSON object a line, and "
        "nothing else on stdout. Shows no progress bars.",
    )


class JsonEvents:
    """The events of a command, which are written where they were requested.

    Attributes:
        on: whether they were.
        progress: reports how much of a stage is done.
        resume: command that continues this one if it doesn't succeed, where the error has none.
    """

    def __init__(self, arguments: Sequence[str]):
        """`arguments` are the command line."""
        self.on = any(word.replace("_", "-") == OPTION for word in arguments)
        self.progress = Progress(self)
        self.resume: str | None = None
        self._arguments = arguments
        self._name = ""
        self._begun = self._ended = False

    def start(self, name: str, requested: bool, *, is_main: bool = True) -> None:
        """Writes the first event, of a command whose line has been read.

        Args:
            name: of the command.
            requested: whether it or its configuration file has ``--json-events``.
            is_main: of several processes that work together, only the main one has events.
        """
        self.on, self._name = requested and is_main, name
        if self.on:
            disable_progress_bars()  # those of downloads
        self._begin()

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            name = self._name or None
            about = {"command": name, "mlx_cogvideo": __version__, "pid": os.getpid()}
            self.emit("start", version=VERSION, **about)

    def emit(self, event: str, **fields: Any) -> None:
        """Writes an event; a number that isn't finite becomes null."""
        if self.on:
            self._begin()
            tell(_line(event, fields))

    def tell(self, event: str, text: str, **fields: Any) -> None:
        """Prints a result: as an event where they are on, else as a text."""
        if self.on:
            self.emit(event, **fields)
        else:
            tell(text)

    def can_resume(self) -> None:
        """Notes that the same command with ``--resume`` continues this one."""
        options = [] if "--resume" in self._arguments else ["--resume"]
        self.resume = f"{command(self._name)} {shlex.join([*self._arguments, *options])}"

    def end(self, code: int, error: BaseException | None = None) -> None:
        """Writes the last event.

        Args:
            code: the command's exit code.
            error: what ended the command.
        """
        try:
            self.emit("end", **self._outcome(code, error))
            self._ended = True
        except KeyboardInterrupt:  # nobody reads, and the end was asked for once more
            mute(1)

    def _outcome(self, code: int, error: BaseException | None) -> dict[str, Any]:
        kind = error and type(error).__name__
        return {
            "status": _STATUS.get(code, "failed"),
            "exit_code": code,
            "error": error and (with_notes(error) or kind),
            "kind": kind,
            "resume": error and (self.resume or resume_command(error)),
        }

    def leave(self, code: int, error: str | BaseException) -> None:
        """Writes the last event from another thread, while the command's own is stuck.

        It is left out where that could block, because nobody reads.

        Args:
            error: what ended the command; a text says how it was interrupted.
        """
        if self.on and not self._ended and select.select([], [1], [], 0)[1]:
            known = error if isinstance(error, BaseException) else KeyboardInterrupt(error)
            fields = self._outcome(code, known)
            os.write(1, f"{_line('end', fields)}\n".encode())

    @contextmanager
    def with_warnings(self) -> Iterator[None]:
        """Has the package's warnings be events, too, inside the block."""
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.emit("warning", message=record.getMessage())
        logger = logging.getLogger("mlx_cogvideo")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


class Progress:
    """Reports how much of a stage is done: its first and last unit, and between a few a second.

    Attributes:
        about: fields of all reports from now on, such as the video that is made.
        time: estimates when the command ends.
    """

    def __init__(self, events: JsonEvents):
        self.about: dict[str, Any] = {}
        self.time = TimeLeft()
        self._events = events
        self._last: tuple[str, int] = ("", 0)
        self._next = 0.0

    def __call__(self, stage: str, done: int, total: int, **more: Any) -> None:
        self.time.note(stage, done, total)
        before, self._last = self._last, (stage, done)
        begins = stage != before[0] or done < before[1]
        now = time.monotonic()
        if begins or done == total or now >= self._next:
            self._next = now + _PAUSE
            part = {"stage": stage, "step": done, "total": total, "unit": unit_of(stage)}
            left = {"seconds_left": self.time.seconds()}
            self._events.emit("progress", **{**self.about, **part, **left, **more})


def _line(event: str, fields: dict[str, Any]) -> str:
    """An event as a line of ASCII, which every terminal and pipe has."""
    return json.dumps({"event": event, **_finite(fields)}, default=str)


def _finite(value: Any) -> Any:
    """A value for JSON, which has neither NaN nor infinity."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
