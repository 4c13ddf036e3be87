"""Ctrl-C and its relatives, so that they cost no step."""

import os
import signal
import threading
from types import FrameType
from typing import Self

from .common import mute

# A closed terminal and a system that shuts down say SIGHUP and SIGTERM.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Interrupts:
    """While it is entered, the first of these signals may wait for the step that is under way.

    Attributes:
        patient: whether it may; else, and at the second Ctrl-C, KeyboardInterrupt is raised at
            once. (Whoever ends a process from afar may well send two of them.)
        wanted: whether a signal has come and waits.
    """

    def __init__(self):
        self.patient = self.wanted = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # Whoever started this with nohup wants SIGHUP to be ignored.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.patient or (self.wanted and number == signal.SIGINT):
            raise KeyboardInterrupt
        self.wanted = True
        # Not print: the signal may have come in the middle of one.
        try:
            os.write(2, b"\nstopping after this step (once more to stop at once)\n")
        except OSError:
            # The terminal is gone: what is said from now on is to do no harm.
            mute(1, 2)
