"""A worker as its server sees it: see ``worker.py`` for what it does."""

import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from ..errors import OutputError
from .home import Home
from .job_files import end_last_line, last_message, lines_of
from .jobs import EVENTS, MESSAGES

LONGEST_STOP = 10.0
"""Seconds after which a worker that is asked to stop at once is killed."""


class WorkerProcess:
    """A worker that carries out a job, and what it reports."""

    def __init__(self, home: Home, job_id: str):
        """Starts it.

        Raises:
            OutputError: it can't be started.
        """
        folder = home.of_job(job_id)
        self._events, self._messages = folder / EVENTS, folder / MESSAGES
        self._asked, self._ends_at = False, float("inf")
        try:
            self._position = end_last_line(self._events)
            self._first_message = end_last_line(self._messages)
            with open(self._events, "ab") as events, open(self._messages, "ab") as messages:
                self._process = subprocess.Popen(
                    worker_command(home, job_id),
                    bufsize=0,
                    stdin=subprocess.PIPE,
                    stdout=events,
                    stderr=messages,
                    start_new_session=True,  # Ctrl-C in the terminal is for the server
                )
        except OSError as error:
            raise OutputError(f"the job can't be started: {error.strerror}") from None

    def stop(self) -> None:
        """Asks it to stop after its step, with its state saved."""
        if not self._asked:
            self._asked = True
            self._write(b".")

    def hurry(self) -> None:
        """Asks it to stop at once, with what was saved before."""
        if self._ends_at == float("inf"):
            self._ends_at = time.monotonic() + LONGEST_STOP
            self._write(b"." if self._asked else b"..")
            self._asked = True

    def poll(self) -> int | None:
        """Its exit code once it has ended; kills it if it doesn't stop at once as it should."""
        if time.monotonic() > self._ends_at:
            self._process.kill()
        return self._process.poll()

    def new_events(self) -> list[dict[str, Any]]:
        """What it has reported since the last call."""
        events, self._position = lines_of(self._events, self._position)
        return events

    def last_message(self) -> str | None:
        """The last line that it has written for people."""
        return last_message(self._messages, self._first_message)

    def close(self) -> None:
        """Ends it, if it hasn't ended."""
        self._process.kill()  # does nothing after its end
        self._process.wait()
        self._process.stdin.close()

    def _write(self, signs: bytes) -> None:
        with suppress(BrokenPipeError, ValueError):  # it has ended, and may be closed
            self._process.stdin.write(signs)


def worker_command(home: Home, job_id: str) -> list[str]:
    """The command line of a worker."""
    return [sys.executable, "-m", "mlx_cogvideo.web.worker", str(home.folder), job_id]
