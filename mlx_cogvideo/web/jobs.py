"""Jobs on disk, so that neither a crash nor a reboot loses one."""

import json
import logging
import math
import re
import shutil
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import CogVideoXError, InvalidInputError, OutputError
from .home import Home, new_id
from .job_files import sync_folder, write_json

QUEUED, RUNNING, STOPPED, DONE, FAILED = "queued", "running", "stopped", "done", "failed"
STATES = (QUEUED, RUNNING, STOPPED, DONE, FAILED)
COMMANDS = {"video": "generate", "training": "lora", "model": "convert"}
"""The command that carries out a job of each kind."""
DESCRIPTION, OPTIONS = "job.json", "options.json"
EVENTS, MESSAGES = "events.jsonl", "messages.txt"
ID = re.compile(rf"({'|'.join(COMMANDS)})_[0-9a-f]{{24}}")

_ABANDONED = 3600.0
"""Seconds after which a folder without a description is one that a crash has left."""

logger = logging.getLogger(__name__)


class QueueFullError(CogVideoXError):
    """So many jobs are waiting that no other is taken."""


class UnknownJobError(CogVideoXError, KeyError):
    """There is no job of this id."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, kw_only=True)
class Job:
    """Something that a command makes: a video, an adapter or a model folder.

    Attributes:
        id: its name, which begins with its kind.
        options: those of the command, as in its configuration file. Files are named as they are
            seen from the job's folder, in which the command runs.
        about: what pages say of it: settings, size, estimates. Never a path.
        output: what the command makes, relative to the folder of all.
        created: when it was made, in seconds since 1970; later jobs have higher numbers.
        order: its place in the queue; jobs of lower numbers come first.
        state: one of `STATES`.
        error: why it failed, in one line.
        started, ended: when it last began and ended.
        deaths: how often its process has ended without a word since it last got further.
    """

    id: str
    options: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    output: str = ""
    created: float = 0.0
    order: float = 0.0
    state: str = QUEUED
    error: str | None = None
    started: float | None = None
    ended: float | None = None
    deaths: int = 0

    @property
    def kind(self) -> str:
        """`video`, `training` or `model`."""
        return self.id.split("_", 1)[0]

    @property
    def is_queued(self) -> bool:
        """Whether it waits."""
        return self.state == QUEUED

    @property
    def is_over(self) -> bool:
        """Whether it neither waits nor runs."""
        return self.state in (STOPPED, DONE, FAILED)


class JobStore:
    """All jobs. Each is written before anybody hears of its change; threads may share the store.

    Attributes:
        home: the folder of all. One process at a time may have a store of it.
        most_queued: how many jobs may wait.
    """

    def __init__(self, home: Home, most_queued: int = 100):
        self.home, self.most_queued = home, most_queued
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._unwritten: set[str] = set()
        for folder in sorted(home.jobs.iterdir()):
            if ID.fullmatch(folder.name):
                self._open(folder)
        running = [job for job in self.all() if job.state == RUNNING]
        for job in running:  # the server ended meanwhile
            self.requeue_first(job.id)

    def _open(self, folder: Path) -> None:
        """Reads a job, or removes what a crash has left of one that wasn't added yet."""
        path = folder / DESCRIPTION
        try:
            for part in folder.glob(".*.part"):
                with suppress(OSError):
                    part.unlink()
            if path.exists():
                job = _read(path)
                self._jobs[job.id] = job
            elif time.time() - folder.stat().st_mtime > _ABANDONED:
                self.discard(folder.name)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            logger.warning("%s can't be read and is left out (%s)", path, error)

    def all(self) -> list[Job]:
        """All jobs, oldest first."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: (job.created, job.id))

    def queued(self) -> list[Job]:
        """Those that wait, the next one first."""
        with self._lock:
            waiting = [job for job in self._jobs.values() if job.is_queued]
        return sorted(waiting, key=lambda job: (job.order, job.created, job.id))

    def get(self, job_id: str) -> Job:
        """A job by its id; raises UnknownJobError."""
        with self._lock:
            if job_id not in self._jobs:
                raise UnknownJobError(f"there is no job {job_id[:40]!r}")
            return self._jobs[job_id]

    def new_folder(self, kind: str) -> tuple[str, Path]:
        """The id and the empty folder of a job that is about to be added.

        Raises:
            QueueFullError: too many wait.
            OutputError: it can't be made.
        """
        self._check_room()
        job_id = new_id(kind)
        folder = self.home.of_job(job_id)
        try:
            folder.mkdir(mode=0o700)
            sync_folder(folder.parent)
        except OSError as error:
            raise OutputError(f"no job can be kept: {error.strerror}") from None
        return job_id, folder

    def add(self, job: Job) -> Job:
        """Keeps a new job, at the end of the queue.

        Raises:
            QueueFullError: too many wait.
            OutputError: it can't be written.
        """
        with self._lock:
            self._check_room()
            # Clocks are set back now and then.
            newest = max((other.created for other in self._jobs.values()), default=0.0)
            created = max(time.time(), newest + 0.001)
            options, about = (json.loads(json.dumps(each)) for each in (job.options, job.about))
            order = self._last_order() + 1
            # As after a restart: JSON has lists for tuples.
            job = replace(job, options=options, about=about, created=created, order=order)
            write_json(self.home.of_job(job.id) / OPTIONS, job.options)
            return self._keep(job)

    def change(self, job_id: str, **changes: Any) -> Job:
        """Changes fields of a job; raises OutputError, and changes none, if it can't be written."""
        with self._lock:
            return self._keep(replace(self.get(job_id), **changes))

    def note(self, job_id: str, **changes: Any) -> None:
        """Changes fields of a job to what has happened, even if the disk is full.

        What can't be written now is written by the next `write_again`. After a crash before that,
        the job is in its state of before, and carried out again as far as that is needed.
        """
        with self._lock:
            try:
                self.change(job_id, **changes)
            except OutputError as error:
                logger.warning("%s: %s", job_id, error)
                self._jobs[job_id] = replace(self.get(job_id), **changes)
                self._unwritten.add(job_id)

    def write_again(self) -> bool:
        """Writes what couldn't be written; returns whether everything is written now."""
        with self._lock:
            for job_id in list(self._unwritten):
                try:
                    self._keep(self._jobs[job_id])
                except OutputError:
                    return False
            return True

    def requeue(self, job_id: str) -> Job:
        """Has a job wait again that is stopped or has failed, behind the others.

        Raises:
            InvalidInputError: it isn't one of these.
            QueueFullError: too many wait.
        """
        with self._lock:
            job = self.get(job_id)
            if job.state not in (STOPPED, FAILED):
                raise InvalidInputError(f"a job that is {job.state} can't be resumed")
            self._check_room()
            last = self._last_order() + 1
            return self.change(job_id, state=QUEUED, order=last, error=None, deaths=0)

    def requeue_first(self, job_id: str, **changes: Any) -> None:
        """Has a job wait again that has been interrupted, before the others."""
        with self._lock:
            others = [job.order for job in self.queued() if job.id != job_id]
            order = min(self.get(job_id).order, *(order - 1 for order in others[:1]), math.inf)
            self.note(job_id, state=QUEUED, order=order, **changes)

    def move(self, job_id: str, place: int) -> None:
        """Moves a waiting job to a place in the queue, counted from 0.

        Raises:
            InvalidInputError: it doesn't wait.
        """
        with self._lock:
            job = self.get(job_id)
            if not job.is_queued:
                raise InvalidInputError("only a job that waits can be moved")
            queue = [other for other in self.queued() if other.id != job_id]
            place = min(max(place, 0), len(queue))
            before = queue[place - 1].order if place else None
            after = queue[place].order if place < len(queue) else None
            order = _between(before, after)
            if order is not None:
                self.change(job_id, order=order)
                return
            queue.insert(place, job)
            last = self._last_order() + len(queue)
            # The last one first: the queue is in order at any moment, in which a crash may come.
            for number, other in enumerate(reversed(queue)):
                self.change(other.id, order=last - number)

    def remove(self, job_id: str) -> None:
        """Forgets a job and removes its folder; what it has made stays.

        Raises:
            OutputError: it can't be removed.
        """
        with self._lock:
            self.get(job_id)
            try:  # first, since a job is known by this file
                (self.home.of_job(job_id) / DESCRIPTION).unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"the job can't be removed: {error.strerror}") from None
            del self._jobs[job_id]
            self._unwritten.discard(job_id)
            self.discard(job_id)

    def discard(self, job_id: str) -> None:
        """Removes the folder of a job that isn't kept."""
        shutil.rmtree(self.home.of_job(job_id), ignore_errors=True)

    def _last_order(self) -> float:
        return max((job.order for job in self._jobs.values()), default=0.0)

    def _check_room(self) -> None:
        if len(self.queued()) >= self.most_queued:
            raise QueueFullError(f"{self.most_queued} jobs are waiting already: try again later")

    def _keep(self, job: Job) -> Job:
        write_json(self.home.of_job(job.id) / DESCRIPTION, asdict(job))
        self._jobs[job.id] = job
        self._unwritten.discard(job.id)
        return job


def _between(before: float | None, after: float | None) -> float | None:
    """A number between two; None if there is none, as after 50 halves."""
    if before is None:
        return 0.0 if after is None else after - 1
    if after is None:
        return before + 1
    middle = (before + after) / 2
    return middle if before < middle < after else None


def _read(path: Path) -> Job:
    values = dict(json.loads(path.read_text(encoding="utf-8")))
    known = {each.name for each in fields(Job)}
    job = Job(**{name: value for name, value in values.items() if name in known})
    if ID.fullmatch(job.id) is None or job.id != path.parent.name or job.state not in STATES:
        raise ValueError("it isn't the description of this job")
    texts = [job.output, *([] if job.error is None else [job.error])]
    numbers = [job.created, job.order, job.deaths]
    numbers += [moment for moment in (job.started, job.ended) if moment is not None]
    if not (
        _are(str, texts)
        and _are((int, float), numbers)
        and all(map(math.isfinite, numbers))
        and _are(dict, (job.options, job.about))
    ):
        raise ValueError("a field is of another type than it should be")
    return job


def _are(kind: type | tuple[type, ...], values: Iterable[Any]) -> bool:
    return all(isinstance(value, kind) for value in values)
