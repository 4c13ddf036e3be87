"""Carries out the jobs of the queue, one at a time, each in a process of its own."""

import logging
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CogVideoXError, InvalidInputError, OutputError
from ..runs.preview import remove_preview
from ..runs.saved_run import remove_saved, saved_path
from .jobs import (
    DONE,
    EVENTS,
    FAILED,
    MESSAGES,
    QUEUED,
    RUNNING,
    STOPPED,
    Job,
    JobStore,
    UnknownJobError,
    lines_of,
)
from .progress import Progress

_PAUSE = 0.1
"""Seconds between two looks at what the worker has reported."""
_MOST_DEATHS = 3
"""How often a process may be killed without having got further before its job has failed."""
_LONGEST_STOP = 20.0
"""Seconds after which a worker that is asked to stop at once is killed."""

logger = logging.getLogger(__name__)


class Runner:
    """Works off a store's queue in a thread until it is closed.

    Attributes:
        store: the jobs.
    """

    def __init__(self, store: JobStore):
        self.store = store
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._closing = False
        self._process: subprocess.Popen | None = None
        self._running: str | None = None
        self._wanted: str | None = None
        self._progress: dict[str, Progress] = {}

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stops the running job after its step, saved and first in the queue, and ends."""
        with self._changed:
            self._closing = True
            self._interrupt()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def hurry(self) -> None:
        """Has a running job stop at once, with what was saved before, where `close` waits."""
        self._interrupt()

    def add(self, job: Job) -> Job:
        """Adds a job to the queue; see ``JobStore.add``."""
        job = self.store.add(job)
        self._notify()
        return job

    def stop(self, job_id: str) -> None:
        """Stops a job after its step, with its state saved; a waiting one waits no longer.

        Raises:
            InvalidInputError: it is over.
        """
        with self._changed:
            job = self.store.get(job_id)
            if job.is_over:
                raise InvalidInputError(f"a job that is {job.state} can't be stopped")
            if job_id == self._running:
                self._wanted = self._wanted or "stop"
                self._interrupt()
            else:
                self.store.change(job_id, state=STOPPED)
        self._notify()

    def resume(self, job_id: str) -> None:
        """Has a stopped or failed job continue, behind the others; see ``JobStore.requeue``."""
        with self._changed:
            self.store.requeue(job_id)
        self._notify()

    def remove(self, job_id: str) -> None:
        """Cancels a job and forgets it with its state and inputs; what it has made stays."""
        with self._changed:
            self.store.get(job_id)
            if job_id == self._running:
                if self._wanted != "remove":
                    self._wanted = "remove"
                    self._interrupt()
            else:
                self._forget(job_id)
        self._notify()

    def move(self, job_id: str, place: int) -> None:
        """Moves a waiting job to a place in the queue, counted from 0."""
        self.store.move(job_id, place)
        self._notify()

    def progress(self, job_id: str) -> Progress:
        """How far a job is. One that doesn't run is as far as its events say."""
        known = self._progress.get(job_id)
        if known is None:
            known = Progress()
            for event in lines_of(self.store.home.of_job(job_id) / EVENTS)[0]:
                known = known.after(event)
            self._progress[job_id] = known
        return known

    def is_stopping(self, job_id: str) -> bool:
        """Whether a job runs and has been asked to stop."""
        return job_id == self._running and self._wanted is not None

    def place(self, job_id: str) -> int | None:
        """A waiting job's place in the queue, counted from 0."""
        ids = [job.id for job in self.store.queued()]
        return ids.index(job_id) if job_id in ids else None

    def wait_for_change(self, seconds: float) -> None:
        """Waits until something happens to any job, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _forget(self, job_id: str) -> None:
        job = self.store.get(job_id)
        self._progress.pop(job_id, None)
        self.store.remove(job_id)
        if job.state != DONE:
            self._remove_unfinished(job)

    def _remove_unfinished(self, job: Job) -> None:
        """Removes what a job has saved to continue from."""
        output = self.store.home.folder / job.output
        if job.kind == "video":
            remove_saved(saved_path(output))
            remove_preview(output)
        else:
            shutil.rmtree(output, ignore_errors=True)

    def _interrupt(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def _work(self) -> None:
        for job in self._next_jobs():
            try:
                self._carry_out(job)
            except UnknownJobError:
                pass
            except (CogVideoXError, OSError) as error:  # such as a full disk
                logger.warning("%s: %s", job.id, error)
                self._settle(job, state=FAILED, error=str(error))

    def _next_jobs(self) -> Iterator[Job]:
        while True:
            with self._changed:
                while not self._closing and not self.store.queued():
                    self._changed.wait()
                if self._closing:
                    return
                job = self.store.queued()[0]
                self._running, self._wanted = job.id, None
            yield job

    def _carry_out(self, job: Job) -> None:
        before = self.progress(job.id)
        folder = self.store.home.of_job(job.id)
        start = _size(folder / EVENTS)
        with self._changed:
            if self._closing or self._wanted is not None:
                process = None
            else:
                self.store.change(job.id, state=RUNNING, started=time.time(), ended=None)
                process = self._process = _launch(self.store.home.folder, job.id, folder)
            self._changed.notify_all()
        code = None if process is None else self._watch(job, process, folder / EVENTS, start)
        with self._changed:
            self._process = None
            wanted, self._running, self._wanted = self._wanted, None, None
            self._conclude(job, wanted, code, self.progress(job.id), before)
            self._changed.notify_all()

    def _watch(self, job: Job, process: subprocess.Popen, events: Path, start: int) -> int:
        """Follows a worker's events to its end; returns its exit code."""
        ends_at = None
        while True:
            code = process.poll()
            found, start = lines_of(events, start)
            for event in found:
                self._progress[job.id] = self.progress(job.id).after(event)
            if found:
                self._notify()
            if code is not None:
                return code
            if self._wanted == "remove" and ends_at is None:
                ends_at = time.monotonic() + _LONGEST_STOP
            if ends_at is not None and time.monotonic() > ends_at:
                process.kill()
            with self._changed:
                self._changed.wait(_PAUSE)

    def _conclude(
        self, job: Job, wanted: str | None, code: int | None, now: Progress, before: Progress
    ) -> None:
        """Decides what becomes of a job whose process has ended, or wasn't started."""
        end = now.end if now is not before else None
        if wanted == "remove":
            self._forget(job.id)
        elif end is not None and end["status"] == "done":
            self._settle(job, state=DONE, ended=time.time(), error=None, deaths=0)
        elif wanted == "stop":
            self._settle(job, state=STOPPED, ended=time.time())
        elif self._closing:
            self._settle(job, state=QUEUED)
        elif end is not None:
            state = STOPPED if end["status"] == "interrupted" else FAILED
            self._settle(job, state=state, ended=time.time(), error=end["error"])
        else:
            self._after_death(job, code, now.fraction > before.fraction)

    def _after_death(self, job: Job, code: int | None, got_further: bool) -> None:
        """Has a job begin again whose process was killed, but not for ever."""
        deaths = 1 if got_further else job.deaths + 1
        if deaths < _MOST_DEATHS:
            self._settle(job, state=QUEUED, deaths=deaths)
            return
        problem = (
            f"its process ended {deaths} times without a word (exit code {code}), as the system "
            "ends one for which memory is short: close other programs, or choose a smaller size or "
            "a quantized model"
        )
        self._settle(job, state=FAILED, ended=time.time(), deaths=deaths, error=problem)

    def _settle(self, job: Job, **changes: Any) -> None:
        try:
            self.store.change(job.id, **changes)
        except OutputError as error:  # it is found running, and queued again, at the next start
            logger.warning("%s: %s", job.id, error)


def _launch(home: Path, job_id: str, folder: Path) -> subprocess.Popen:
    """Starts a worker, in a session of its own: Ctrl-C in the terminal is for the server."""
    command = [sys.executable, "-m", "mlx_cogvideo.web.worker", str(home), job_id]
    with open(folder / EVENTS, "ab") as events, open(folder / MESSAGES, "ab") as messages:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=events, stderr=messages, start_new_session=True
        )


def _size(path: Path) -> int:
    """The size of a file after the half line that a killed worker may have left at its end."""
    try:
        with open(path, "rb+") as file:
            text = file.read()
            if text and not text.endswith(b"\n"):
                file.write(b"\n")
                return len(text) + 1
            return len(text)
    except FileNotFoundError:
        return 0
