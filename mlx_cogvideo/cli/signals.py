"""Handles Ctrl-C and similar signals, so that they cost no step."""

import os
import signal
import threading
from types import FrameType
from typing import Self

from .common import mute

# A closed terminal sends SIGHUP, a system that shuts down SIGTERM.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Interrupts:
    """Inside its block, the first signal may wait until the current step is done.

    Attributes:
        patient: whether the first signal waits. If it doesn't, and at the second Ctrl-C,
            KeyboardInterrupt is raised at once. A second SIGTERM or SIGHUP changes nothing, because
            other programs often send two of them.
        wanted: whether a signal has come and waits.
    """

    def __init__(self):
        self.patient = self.wanted = False
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
        if not self.patient or (self.wanted and number == signal.SIGINT):
            raise KeyboardInterrupt
        self.wanted = True
        # print isn't safe here: the signal may have interrupted one.
        try:
            os.write(2, b"\nstopping after this step (once more to stop at once)\n")
        except OSError:
            # The terminal is gone: later messages must not fail.
            mute(1, 2)
