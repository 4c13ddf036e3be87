"""Jobs on disk, so that neither a crash nor a reboot loses one."""

import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import CogVideoXError, InvalidInputError, OutputError
from ..files import temporary_path
from .home import Home, new_id

QUEUED, RUNNING, STOPPED, DONE, FAILED = "queued", "running", "stopped", "done", "failed"
STATES = (QUEUED, RUNNING, STOPPED, DONE, FAILED)
COMMANDS = {"video": "generate", "training": "lora", "model": "convert"}
"""The command that carries out a job of each kind."""
DESCRIPTION, OPTIONS = "job.json", "options.json"
EVENTS, MESSAGES = "events.jsonl", "messages.txt"
ID = re.compile(rf"({'|'.join(COMMANDS)})_[0-9a-f]{{24}}")

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
        created: when it was made, in seconds since 1970.
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
    def is_over(self) -> bool:
        """Whether it neither waits nor runs."""
        return self.state in (STOPPED, DONE, FAILED)


class JobStore:
    """All jobs. Each is written before anybody hears of its change; threads may share the store.

    Attributes:
        home: the folder of all.
        most_queued: how many jobs may wait.
    """

    def __init__(self, home: Home, most_queued: int = 100):
        self.home, self.most_queued = home, most_queued
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        for path in sorted(home.jobs.glob(f"*/{DESCRIPTION}")):
            try:
                job = _read(path)
            except (OSError, ValueError, TypeError) as error:
                logger.warning("%s can't be read and is left out (%s)", path, error)
            else:
                self._jobs[job.id] = job
        for job in self.all():
            if job.state == RUNNING:  # the server ended meanwhile
                self.change(job.id, state=QUEUED)

    def all(self) -> list[Job]:
        """All jobs, oldest first."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: (job.created, job.id))

    def queued(self) -> list[Job]:
        """Those that wait, the next one first."""
        waiting = (job for job in self.all() if job.state == QUEUED)
        return sorted(waiting, key=lambda job: job.order)

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
            last = max((other.order for other in self._jobs.values()), default=0.0)
            job = replace(job, created=time.time(), order=last + 1)
            _write_json(self.home.of_job(job.id) / OPTIONS, job.options)
            return self._keep(job)

    def change(self, job_id: str, **changes: Any) -> Job:
        """Changes fields of a job."""
        with self._lock:
            return self._keep(replace(self.get(job_id), **changes))

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
            last = max(other.order for other in self._jobs.values())
            return self.change(job_id, state=QUEUED, order=last + 1, error=None, deaths=0)

    def move(self, job_id: str, place: int) -> None:
        """Moves a waiting job to a place in the queue, counted from 0.

        Raises:
            InvalidInputError: it doesn't wait.
        """
        with self._lock:
            if self.get(job_id).state != QUEUED:
                raise InvalidInputError("only a job that waits can be moved")
            others = [job.order for job in self.queued() if job.id != job_id]
            place = min(max(place, 0), len(others))
            before = others[place - 1] if place else (others[0] - 2 if others else 0.0)
            after = others[place] if place < len(others) else before + 2
            self.change(job_id, order=(before + after) / 2)

    def remove(self, job_id: str) -> None:
        """Forgets a job and removes its folder; what it has made stays."""
        with self._lock:
            self.get(job_id)
            del self._jobs[job_id]
            self.discard(job_id)

    def discard(self, job_id: str) -> None:
        """Removes the folder of a job that isn't kept."""
        shutil.rmtree(self.home.of_job(job_id), ignore_errors=True)

    def _check_room(self) -> None:
        if len(self.queued()) >= self.most_queued:
            raise QueueFullError(f"{self.most_queued} jobs are waiting already: try again later")

    def _keep(self, job: Job) -> Job:
        _write_json(self.home.of_job(job.id) / DESCRIPTION, asdict(job))
        self._jobs[job.id] = job
        return job


def _read(path: Path) -> Job:
    values = json.loads(path.read_text(encoding="utf-8"))
    known = {each.name for each in fields(Job)}
    job = Job(**{name: value for name, value in values.items() if name in known})
    if ID.fullmatch(job.id) is None or job.id != path.parent.name or job.state not in STATES:
        raise ValueError("it isn't the description of this job")
    return job


def _write_json(path: Path, value: Any) -> None:
    """Writes a file that is complete after a crash, too."""
    part = temporary_path(path)
    try:
        with open(part, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"the job can't be kept: {error.strerror}") from None


def lines_of(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of JSON in a file from a position, and the position after them.

    A line that is no JSON object is left out.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            text = file.read()
    except FileNotFoundError:
        return [], start
    whole = text[: text.rfind(b"\n") + 1]
    return list(_objects(whole.splitlines())), start + len(whole)


def _objects(lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
