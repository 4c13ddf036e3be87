"""Handles Ctrl-C and similar signals, so that they cost no step and always end a command."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from .streams import mute

# A closed terminal sends SIGHUP, a system that shuts down SIGTERM.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_SENT_TWICE = 1.0
"""Seconds within which a second SIGTERM or SIGHUP is the same one: programs often send both."""
_LONGEST_END = 5.0
"""Seconds that the end of a command may take once it is insisted on."""


before_leaving: list[Callable[[], object]] = []
"""What a thread does before it ends a process whose main thread is stuck."""


class Interrupts:
    """Inside its block, the first signal may wait until the current step is done.

    Attributes:
        patient: whether the first signal waits. If it doesn't, and at the second Ctrl-C or at a
            later SIGTERM or SIGHUP, KeyboardInterrupt is raised at once.
        wanted: whether a signal has come and waits.
    """

    def __init__(self, *, silent: bool = False):
        """`silent` says nothing while a signal waits."""
        self.patient = self.wanted = False
        self._silent = silent
        self._asked = _Asked()
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # A command that was started with nohup ignores SIGHUP.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked.again(number) or not self.patient:
            raise KeyboardInterrupt
        if self.wanted:
            return
        self.wanted = True
        if self._silent:
            return
        # print isn't safe here: the signal may have interrupted one.
        try:
            os.write(2, b"\nstopping after this step (once more to stop at once)\n")
        except OSError:
            # The terminal is gone: later messages must not fail.
            mute(2)


class _Asked:
    """Whether an end has been asked for before."""

    def __init__(self):
        self._first: float | None = None

    def again(self, number: int) -> bool:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            return False
        return number == signal.SIGINT or now > self._first + _SENT_TWICE


@contextmanager
def ended_gently(last_words: Callable[[int, str], None]) -> Iterator[None]:
    """Has SIGTERM and SIGHUP end a command as Ctrl-C does, so that nothing half done stays.

    Where MLX or the GPU hangs, Python never gets to handle a signal. A thread then ends the process
    some seconds after the second one.

    Args:
        last_words: called by that thread with the exit code and what to say.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    for number in _SIGNALS:
        # Whoever started this with nohup wants SIGHUP to be ignored.
        if number != signal.SIGINT and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, signal.default_int_handler)
    seen, sent = os.pipe()
    os.set_blocking(sent, False)
    outer = signal.set_wakeup_fd(sent, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_leave_if_stuck, args=(seen, last_words), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        # The command has ended: an interrupt that comes now has nothing to end any more.
        on_interrupt = signal.getsignal(signal.SIGINT) or signal.SIG_DFL
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(outer)
        os.close(sent)  # the end of what the thread reads, and so its own
        watcher.join()
        os.close(seen)
        for number, handler in [*before.items(), (signal.SIGINT, on_interrupt)]:
            signal.signal(number, handler)


def _leave_if_stuck(seen: int, last_words: Callable[[int, str], None]) -> None:
    """Ends the process if its pipe of signals is open for long after the second one."""
    asked, end = _Asked(), None
    while True:
        left = None if end is None else max(0.0, end - time.monotonic())
        if not select.select([seen], [], [], left)[0]:
            message = "stopped inside a step that doesn't end; what was saved before is kept"
            for save in before_leaving:
                save()
            last_words(130, message)
            os.write(2, f"{message}\n".encode())
            os._exit(130)
        number = int.from_bytes(os.read(seen, 1), "big")
        if not number:
            return
        if number in _SIGNALS and asked.again(number) and end is None:
            end = time.monotonic() + _LONGEST_END
