"""Ends a process that waits for another one which is gone, with the last step saved.

A main thread that waits inside MLX can't be interrupted. Therefore a copy of the last step is kept
as bytes, which any thread can write.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import PeerLostError
from .channel import Channel
from .resumable import fallback_path, note_kept
from .saved_run import SavedRun, write_saved

PATIENCE = 5.0
"""Seconds in which the channel says who is gone, after MLX has noticed that somebody is."""

FAILED = 1


class Guard:
    """Watches the steps of a process that takes them together with others."""

    def __init__(self, channel: Channel, say: Callable[[int, BaseException], None]):
        """
        Args:
            say: says with which code and error the process ends; called by any thread.
        """
        self._channel, self._say = channel, say
        self._saved: tuple[SavedRun, bytes, Path, str] | None = None
        self._in_step, self._lock = False, threading.Lock()
        channel.on_lost = self._lost

    def note(self, saved: SavedRun, path: Path, more_options: str = "") -> bytes:
        """Keeps a copy of a run, and returns it.

        Args:
            path: where it is saved if another process is lost.
            more_options: options that the command which resumes it repeats.
        """
        contents = saved.to_bytes()
        self._saved = saved, contents, path, more_options
        return contents

    def forget(self) -> None:
        """Drops the copy, of a run whose steps are done."""
        self._saved = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """Surrounds a step. Where another process is lost in it, this one ends here."""
        self._in_step = True
        try:
            if self._channel.lost is not None:
                self._lost(self._channel.lost, self._channel.announced)
            yield
        except PeerLostError as error:
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:  # until a thread has ended the process
                with suppress(KeyboardInterrupt):
                    time.sleep(0.1)
            self._leave(error, announced=False)
        finally:
            self._in_step = False

    def save(self) -> None:
        """Writes the copy, if there is one."""
        self._write(PeerLostError())

    def _lost(self, reason: str, announced: bool) -> None:
        if self._in_step:
            self._leave(PeerLostError(f"another process is gone ({reason})"), announced)

    def _leave(self, error: PeerLostError, announced: bool) -> None:
        """Ends the process.

        Args:
            announced: whether the main process has said that it ends: it keeps the run.
        """
        with self._lock:  # never released
            if announced:
                os._exit(0)  # the main process has said what is to say
            if self._write(error):  # else the others save what they have
                self._channel.close()
            self._say(FAILED, error)
            os._exit(FAILED)

    def _write(self, error: BaseException) -> bool:
        """Writes the copy, where it can't be in a temporary folder; returns whether it is kept."""
        if self._saved is None:
            return True
        saved, contents, path, more_options = self._saved
        try:
            try:
                write_saved(contents, path)
            except OSError:
                path = fallback_path(path)
                write_saved(contents, path)
        except OSError as problem:
            error.add_note(f"step {saved.steps_done} can't be saved: {problem}")
            return False
        note_kept(error, saved, saved.steps_done, path, more_options)
        return True
