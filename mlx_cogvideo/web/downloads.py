"""Models that are downloaded, as they are published or in few bits, and how far a download is."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.download import download_need, pending_bytes
from ..checkpoints.resolve import cached_repository, hub_id, resolve_model
from ..checkpoints.variants import ALIASES
from ..cli.announce import report_download
from ..cli.common import run
from ..cli.conversion_job import plan_before_download
from ..cli.convert import make_parser, requested_quantization
from ..cli.json_events import JsonEvents
from ..cli.main import run_command
from ..device import Need, check_room, free_space, size
from ..errors import CogVideoXError, InvalidInputError, OutputError
from .home import Home
from .jobs import Job, JobStore
from .models import Model
from .planning import planning

BITS = (4, 8)
"""Bits that a model can be quantized to here."""
_INCOMPLETE = ".incomplete"
"""Ending of files that the hub's client hasn't wholly downloaded."""
_OLD = 600.0
"""Seconds after which nobody writes any more to a file that isn't complete."""
_PAUSE = 1.0
"""Seconds between two looks at how far a download is."""


@dataclass(frozen=True, kw_only=True)
class DownloadPlan:
    """What a model needs before it can be used.

    Attributes:
        model: name of the official model.
        bits: to which it is quantized; None leaves it as it is published.
        download: bytes that are still to download.
        result: bytes of the quantized copy; 0 without one.
    """

    model: str
    bits: int | None
    download: int
    result: int

    @property
    def name(self) -> str:
        """The name that the model has when it is here."""
        return self.model if self.bits is None else f"{self.model}-q{self.bits}"


def plan_download(model: Model, bits: int | None, home: Home) -> DownloadPlan:
    """Works out what a model needs; no server is asked.

    Raises:
        InvalidInputError: it is no official model, or it is here already.
        OutputError: a disk has no room for it.
    """
    if model.name not in ALIASES:
        raise InvalidInputError(f"{model.name} isn't a model to download: it is here")
    if bits not in (None, *BITS):
        raise InvalidInputError(f"a model can be had in {BITS[0]} or {BITS[1]} bits; got {bits!r}")
    result = 0 if bits is None else copy_bytes(model, bits)
    found = DownloadPlan(model=model.name, bits=bits, download=model.download, result=result)
    if (home.models / found.name).exists() if bits else model.is_here:
        raise InvalidInputError(f"{found.name} is on this machine already")
    _check_room(found, home)
    return found


def copy_bytes(model: Model, bits: int) -> int:
    """Bytes of a copy of a model in few bits; no server is asked. Raises CogVideoXError."""
    args = make_parser().parse_args(["--model", model.source, "--quantize", str(bits)])
    with planning:
        plan, _ = plan_before_download(args, requested_quantization(args))
    return plan.bytes_after


def _check_room(plan: DownloadPlan, home: Home) -> None:
    needs = [*download_need(plan.download), Need(home.models, plan.result, "", "")]
    try:
        check_room(needs)
    except OutputError:  # it names folders
        parts = [f"{size(plan.download)} to download"] if plan.download else []
        parts += [f"{size(plan.result)} for the copy in {plan.bits} bits"] if plan.result else []
        free = min(free_space(need.folder) for need in needs)
        raise OutputError(
            f"the disk has {size(free)} free, and {plan.name} needs {' and '.join(parts)}: make "
            "room first"
        ) from None


def make_download(plan: DownloadPlan, model: Model, job_id: str, store: JobStore) -> Job:
    """The job that gets a model.

    Raises:
        InvalidInputError: another one for this model waits or runs.
    """
    for job in store.all():
        if job.kind == "model" and not job.is_over and job.about["name"] == plan.name:
            raise InvalidInputError(f"{plan.name} is being downloaded already")
    options: dict[str, Any] = {"model": model.source}
    if plan.bits is not None:
        options |= {"quantize": plan.bits, "mlx_path": f"../../models/{plan.name}"}
    about = {
        "name": plan.name,
        "model": plan.model,
        "title": model.title,
        "bits": plan.bits,
        "download": plan.download,
        "bytes": plan.result,
    }
    output = "" if plan.bits is None else f"models/{plan.name}"
    return Job(id=job_id, options=options, about=about, output=output)


def get_model(options: Mapping[str, Any]) -> int:
    """Carries out a job in the worker's process, in the job's folder; returns an exit code."""
    _remove_left_over(_blobs(options["model"]))
    if "mlx_path" not in options:
        return run(_download, [options["model"]])
    if Path(options["mlx_path"]).is_dir():  # it was finished, and the server ended meanwhile
        return run(_nothing_to_do, [])
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return run_command("convert", [*words, "--json-events"])


def _download(arguments: Sequence[str], events: JsonEvents) -> None:
    events.start("download", requested=True)
    (model,) = arguments
    if count := pending_bytes(model):
        check_room(download_need(count))
        report_download(count, events)
    resolve_model(model)


def _nothing_to_do(_: Sequence[str], events: JsonEvents) -> None:
    events.start("download", requested=True)


class DownloadMeter:
    """Adds events about the progress of a download, which the commands don't report.

    It is measured by the files in the hub's cache, those that aren't complete included.
    """

    def __init__(self, options: Mapping[str, Any]):
        """Notes what is in the cache before the command begins.

        Args:
            options: those of the job.
        """
        self._blobs = _blobs(options.get("model"))
        self._left_over = {file.name for file in _files(self._blobs) if _is_left_over(file)}
        self._before = sum(_size(file) for file in _files(self._blobs) if not _is_incomplete(file))
        self._first = self._bytes()
        self._total = 0
        self._began = self._next = 0.0

    def watch(self, events: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The events that a command has reported since the last call, and those of the download."""
        for event in events:
            if event.get("event") == "download":
                self._total, self._began = int(event["bytes"]), time.monotonic()
            elif event.get("event") in ("progress", "end"):
                self._total = 0
            yield event
        if self._total and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PAUSE
            yield self._event()

    def _event(self) -> dict[str, Any]:
        now = self._bytes()
        done = min(max(now - self._before, 0), self._total)
        rate = (now - self._first) / max(time.monotonic() - self._began, _PAUSE)
        left = (self._total - done) / rate if rate > 0 else None
        about = {"stage": "download", "step": done, "total": self._total, "unit": "bytes"}
        return {"event": "progress", **about, "seconds_left": left}

    def _bytes(self) -> int:
        files = _files(self._blobs)
        return sum(_size(file) for file in files if file.name not in self._left_over)


def _blobs(model: Any) -> Path | None:
    """The folder in the hub's cache with the contents of a repository's files."""
    try:
        repo = hub_id(model) if isinstance(model, str) else None
    except CogVideoXError:
        return None
    return cached_repository(repo) / "blobs" if repo else None


def _files(blobs: Path | None) -> list[Path]:
    return [*blobs.glob("*")] if blobs is not None else []


def _is_incomplete(file: Path) -> bool:
    return file.suffix == _INCOMPLETE


def _is_left_over(file: Path) -> bool:
    """Whether a file with a name of its own for each download isn't complete."""
    return _is_incomplete(file) and len(file.suffixes) > 1


def _remove_left_over(blobs: Path | None) -> None:
    """Removes what killed downloads have left, which the hub's client doesn't continue."""
    for file in filter(_is_left_over, _files(blobs)):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > _OLD:
                file.unlink()


def _size(file: Path) -> int:
    """The bytes that a file takes; those of an incomplete one may have been reserved before."""
    try:
        state = file.stat()
    except OSError:  # it has been renamed
        return 0
    on_disk = state.st_blocks * 512 if _is_incomplete(file) else state.st_size
    return min(state.st_size, on_disk)
