"""Carries out the jobs of the queue, one at a time, each in a process of its own."""

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..cli.parser import INTERRUPTED
from ..errors import CogVideoXError, InvalidInputError, OutputError, first_line
from .downloads import DownloadMeter
from .job_files import lines_of, shorten
from .jobs import (
    DONE,
    EVENTS,
    FAILED,
    RUNNING,
    STOPPED,
    Job,
    JobStore,
    UnknownJobError,
)
from .leftovers import remove_leftovers
from .process import WorkerProcess
from .progress import Progress

_PAUSE = 0.1
"""Seconds between two looks at what the worker has reported."""
_MOST_DEATHS = 3
"""How often a process may be killed without having got further before its job has failed."""
_RETRY = 5.0
"""Seconds between two attempts to write what a full disk had no room for."""
_STOP, _RESUME, _REMOVE = "stop", "resume", "remove"
"""What may be wanted of the running job: to stop, to stop and wait again, to be removed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobView:
    """A job at one moment.

    Attributes:
        job: what is kept of it.
        progress: how far it is.
        place: its place in the queue, counted from 0, while it waits.
        is_stopping: whether it still runs but has been asked to stop, or is being removed.
    """

    job: Job
    progress: Progress
    place: int | None
    is_stopping: bool


class Runner:
    """Works off a store's queue in a thread until it is closed.

    Attributes:
        store: the jobs.
        changes: a number that rises with each change of any job.
    """

    def __init__(self, store: JobStore):
        self.store, self.changes = store, 0
        # Held while anything below changes. A thread that holds it may take the store's lock.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._closing = False
        self._worker: WorkerProcess | None = None
        self._running: str | None = None
        self._wanted: str | None = None
        self._progress: dict[str, Progress] = {}

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stops the running job after its step, saved and first in the queue, and ends."""
        with self._changed:
            self._closing = True
            self._stop_worker()
            self._notify()
        if self._thread.is_alive():
            self._thread.join()
        self.store.write_again()

    def hurry(self) -> None:
        """Has a running job stop at once, with what was saved before, where `close` waits."""
        with self._changed:
            if self._worker is not None:
                self._worker.hurry()

    def add(self, job: Job) -> Job:
        """Adds a job to the queue; see ``JobStore.add``."""
        with self._changed:
            job = self.store.add(job)
            self._notify()
            return job

    def stop(self, job_id: str) -> None:
        """Stops a job after its step, with its state saved; a waiting one waits no longer.

        Raises:
            InvalidInputError: it is over.
            OutputError: it can't be written.
        """
        with self._changed:
            job = self.store.get(job_id)
            if job.is_over:
                raise InvalidInputError(f"a job that is {job.state} can't be stopped")
            if job_id != self._running:
                self.store.change(job_id, state=STOPPED)
            elif self._wanted != _REMOVE:
                self._wanted = _STOP
                self._stop_worker()
            self._notify()

    def resume(self, job_id: str) -> None:
        """Has a stopped or failed job continue, behind the others; see ``JobStore.requeue``.

        One that is just stopping continues after it has stopped.
        """
        with self._changed:
            if job_id == self._running and self._wanted in (_STOP, _RESUME):
                self._wanted = _RESUME
            else:
                self.store.requeue(job_id)
            self._notify()

    def remove(self, job_id: str) -> None:
        """Cancels a job and forgets it with its state and inputs; what it has made stays.

        One that runs is stopped at once and is gone when its process has ended.

        Raises:
            OutputError: it can't be removed.
        """
        with self._changed:
            self.store.get(job_id)
            if job_id != self._running:
                self._forget(job_id)
            else:
                self._wanted = _REMOVE
                if self._worker is not None:
                    self._worker.hurry()
            self._notify()

    def move(self, job_id: str, place: int) -> None:
        """Moves a waiting job to a place in the queue, counted from 0; see ``JobStore.move``."""
        with self._changed:
            if job_id == self._running:
                raise InvalidInputError("only a job that waits can be moved")
            self.store.move(job_id, place)
            self._notify()

    def progress(self, job_id: str) -> Progress:
        """How far a job is. One that doesn't run is as far as its events say."""
        with self._changed:
            known = self._progress.get(job_id)
            if known is None:
                known = Progress()
                for event in lines_of(self.store.home.of_job(job_id) / EVENTS)[0]:
                    known = known.after(event)
                self._progress[job_id] = known
            return known

    def view(self, job_id: str) -> JobView:
        """A job at this moment; raises UnknownJobError."""
        with self._changed:
            return self._view(self.store.get(job_id), self._places())

    def views(self) -> list[JobView]:
        """All jobs at this moment, oldest first."""
        with self._changed:
            places = self._places()
            return [self._view(job, places) for job in self.store.all()]

    def _view(self, job: Job, places: dict[str, int]) -> JobView:
        return JobView(job, self.progress(job.id), places.get(job.id), self.is_stopping(job.id))

    def _places(self) -> dict[str, int]:
        return {job.id: place for place, job in enumerate(self.store.queued())}

    def is_stopping(self, job_id: str) -> bool:
        """Whether a job runs and has been asked to stop."""
        with self._changed:
            return job_id == self._running and self._wanted is not None

    def place(self, job_id: str) -> int | None:
        """A waiting job's place in the queue, counted from 0."""
        return self._places().get(job_id)

    def wait_for_change(self, seconds: float, since: int | None = None) -> int:
        """Waits until something happens to any job, at most so long.

        Args:
            since: value of `changes` at the last look: a later change isn't waited for.

        Returns:
            The value of `changes`.
        """
        with self._changed:
            since = self.changes if since is None else since
            self._changed.wait_for(lambda: self.changes != since, seconds)
            return self.changes

    def _stop_worker(self) -> None:
        """Stops the running job after its step; one that has nothing to save, at once."""
        if self._worker is None:
            return
        if self.store.get(self._running).kind == "model":
            self._worker.hurry()
        else:
            self._worker.stop()

    def _notify(self) -> None:
        """Wakes those who wait for a change; the lock is held."""
        self.changes += 1
        self._changed.notify_all()

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            try:
                self._carry_out(job)
            except Exception as error:  # whatever it is, the next job is carried out
                if not isinstance(error, CogVideoXError):
                    logger.exception("%s", job.id)
                with self._changed, suppress(UnknownJobError):
                    self._give_up(job, error)
            with self._changed:
                self._worker = self._running = self._wanted = None
                self._notify()

    def _next_job(self) -> Job | None:
        """Waits for the next job; None if the runner is closed."""
        with self._changed:
            while not self._closing:
                is_written, queue = self.store.write_again(), self.store.queued()
                if queue:
                    self._running, self._wanted = queue[0].id, None
                    return queue[0]
                self._changed.wait(None if is_written else _RETRY)
            return None

    def _carry_out(self, job: Job) -> None:
        with self._changed:
            if self._closing or self._wanted is not None:
                self._conclude(job, None, Progress())
                return
            self.store.note(job.id, state=RUNNING, started=time.time(), ended=None)
            self._worker = worker = WorkerProcess(self.store.home, job.id)
            self._notify()
        try:
            code, run = self._watch(job, worker)
            with self._changed:
                self._conclude(job, code, run, worker.last_message())
        finally:
            worker.close()

    def _watch(self, job: Job, worker: WorkerProcess) -> tuple[int, Progress]:
        """Follows a worker to its end; returns its exit code and how far it has come."""
        run, meter = self.progress(job.id).again(), DownloadMeter(job.options)
        while True:
            code = worker.poll()
            events = list(meter.watch(worker.new_events()))
            with self._changed:
                for event in events:
                    run = self._progress[job.id] = run.after(event)
                if events:
                    self._notify()
                if code is not None:
                    return code, run
                self._changed.wait(_PAUSE)

    def _conclude(
        self, job: Job, code: int | None, run: Progress, last_message: str | None = None
    ) -> None:
        """Decides what becomes of a job; the lock is held.

        Args:
            code: exit code of its process; None if it wasn't started.
            run: how far the process has come.
            last_message: what it said last.
        """
        ended_itself = code is not None and code > 0 and code != INTERRUPTED
        says_nothing = run.status is None
        # A full disk may have no room for the last event.
        if run.status == "done" or (says_nothing and code == 0):
            self._end(job, DONE, error=None, deaths=0)
        elif run.status == "failed" or (says_nothing and ended_itself):
            error = run.error or last_message or f"its process ended with exit code {code}"
            self._end(job, FAILED, error=error)
        elif self._wanted in (_STOP, _RESUME):
            self._end(job, STOPPED)
            if self._wanted == _RESUME:
                self._requeue(job)
        elif self._closing or code is None:
            self.store.requeue_first(job.id)
        elif self._wanted is None:
            self._after_death(job, code, run.furthest > run.furthest_before)
        if self._wanted == _REMOVE:
            self._forget(job.id)
        self._worker = self._running = self._wanted = None

    def _end(self, job: Job, state: str, **changes: Any) -> None:
        self.store.note(job.id, state=state, ended=time.time(), **changes)
        shorten(self.store.home.of_job(job.id) / EVENTS)

    def _requeue(self, job: Job) -> None:
        try:
            self.store.requeue(job.id)
        except CogVideoXError as error:  # such as a full queue: it stays stopped
            logger.warning("%s: %s", job.id, error)

    def _after_death(self, job: Job, code: int, got_further: bool) -> None:
        """Has a job begin again whose process was killed, but not for ever."""
        deaths = 1 if got_further else job.deaths + 1
        if deaths < _MOST_DEATHS:
            self.store.requeue_first(job.id, deaths=deaths)
            return
        problem = (
            f"its process was ended {deaths} times without getting further (exit code {code}), as "
            "the system does where memory is short: close other programs and resume it, or make a "
            "smaller one"
        )
        self._end(job, FAILED, deaths=deaths, error=problem)

    def _give_up(self, job: Job, error: Exception) -> None:
        """Has a job fail that couldn't be carried out; the lock is held."""
        is_ours = isinstance(error, CogVideoXError)
        problem = str(error) if is_ours else f"{type(error).__name__}: {first_line(error)}"
        if self._wanted == _REMOVE:
            with suppress(OutputError):
                self._forget(job.id)
                return
        self._end(job, FAILED, error=problem)
        self._worker = self._running = self._wanted = None

    def _forget(self, job_id: str) -> None:
        job = self.store.get(job_id)
        if job.state != DONE:
            remove_leftovers(self.store.home, job)
        self.store.remove(job_id)
        self._progress.pop(job_id, None)
