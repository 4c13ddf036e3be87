"""The finished videos, from the records inside their files."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoints import BUNDLED
from ..checkpoints.variants import ALIASES, NAMES
from ..errors import CogVideoXError, InvalidInputError, OutputError
from ..pipeline.fields import SEEDS, random_seed
from ..pipeline.sources import AN_ARRAY
from ..runs.record import check_record
from ..video import content_digest, read_record
from .adapters import is_finished
from .jobs import ID, JobStore
from .models import find_model
from .pictures import remove_thumbnail, thumbnail
from .service import FILES, TAKEN, VideoRequest

FORMS = (".mp4", ".gif")
PREVIEW = ".preview.gif"
PAGE = 24
"""Videos on a page."""
ON_A_MAC = sys.platform == "darwin"
_LONGEST_REVEAL = 3.0
"""Seconds within which a file manager that can't be opened says so."""


class UnknownVideoError(CogVideoXError, KeyError):
    """There is no video of this name."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video of the gallery.

    Attributes:
        name: of its file, without ``.mp4``. Videos that were made here have the ids of their jobs.
        path: the file.
        created: when it was written, in seconds since 1970.
        bytes: its size.
        record: how it was made; None if it isn't known.
        problem: why it isn't known, in one line without a path.
    """

    name: str
    path: Path
    created: float
    bytes: int
    record: Mapping[str, Any] | None = None
    problem: str = ""

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that were recorded; empty without a record."""
        return (self.record or {}).get("settings", {})


@dataclass(frozen=True, kw_only=True)
class Remake:
    """What a video can be made with again.

    Attributes:
        request: the model, the settings and the files, which are those of the old job: they must
            be copied before the request is given to the service.
        missing: what isn't here any more, or not the same, in words; empty if all is.
    """

    request: VideoRequest
    missing: tuple[str, ...] = ()


class Gallery:
    """The videos in a folder. Threads may share it.

    Attributes:
        home: the folder of all.
        store: the jobs, which know which adapters are finished.
    """

    def __init__(self, store: JobStore):
        self.home, self.store = store.home, store
        self._read: dict[str, tuple[int, int, Video]] = {}
        self._lock = threading.Lock()

    def page(self, number: int = 0, size: int = PAGE) -> list[Video]:
        """The videos of a page, newest first. Pages are counted from 0."""
        found = self._files()
        with self._lock:
            self._read = {name: known for name, known in self._read.items() if name in found}
        files = sorted(found.values(), key=_newest_first)
        first = max(number, 0) * size
        return [self._video(file, state) for file, state in files[first : first + size]]

    def count(self) -> int:
        """How many videos there are."""
        return len(self._files())

    def get(self, name: str) -> Video:
        """A video by its name; raises UnknownVideoError."""
        found = self._files().get(name)
        if found is None:
            raise UnknownVideoError(f"there is no video {name[:80]!r}")
        return self._video(*found)

    def thumbnail(self, name: str) -> Path | None:
        """A small picture of a video; None if it can't be read. Raises UnknownVideoError."""
        return thumbnail(self.get(name).path, self.home.thumbnails)

    def remake(self, name: str, *, new_seed: bool = False, longer: bool = False) -> Remake:
        """What makes a video again.

        Args:
            new_seed: whether another seed is drawn.
            longer: whether it gets one more window.

        Raises:
            UnknownVideoError: there is no such video.
            InvalidInputError: its file doesn't say how it was made.
        """
        video = self.get(name)
        if video.record is None:
            raise InvalidInputError(f"it isn't known how this video was made: {video.problem}")
        settings = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in video.settings.items()
            if key in TAKEN and value is not None
        }
        if new_seed:
            settings["seed"] = _other_seed(settings.get("seed"))
        if longer:
            settings["extend"] = settings.get("extend", 0) + 1
        missing: list[str] = []
        model = self._model(str(video.record["model"].get("name")), missing)
        adapters = tuple(self._adapters(video.settings, missing))
        files = {key: self._source(video, key, missing) for key in FILES}
        request = VideoRequest(model=model, settings=settings, adapters=adapters, **files)
        return Remake(request=request, missing=tuple(missing))

    @contextmanager
    def to_queue(self, remake: Remake) -> Iterator[VideoRequest]:
        """The request of a remake with copies of its files, which go with the block.

        Raises:
            InvalidInputError: something is missing.
            OutputError: the files can't be copied.
        """
        if remake.missing:
            raise InvalidInputError(f"this video can't be made again: {'; '.join(remake.missing)}")
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=self.home.folder) as folder:
            copies = {}
            for name in FILES:
                path = getattr(remake.request, name)
                if path is not None:
                    try:
                        copies[name] = Path(shutil.copy(path, folder))
                    except OSError as error:
                        problem = f"its {FILES[name]} can't be copied: {error.strerror}"
                        raise OutputError(problem) from None
            yield replace(remake.request, **copies)

    def trash(self, name: str) -> None:
        """Moves a video to the system's trash.

        Raises:
            UnknownVideoError: there is no such video.
            OutputError: it can't be moved there. Nothing is deleted then.
        """
        from send2trash import send2trash

        path = self.get(name).path
        remove_thumbnail(path, self.home.thumbnails)
        try:
            send2trash(path)
        except OSError as error:
            reason = error.strerror or "it has no trash for this disk"
            raise OutputError(f"the system can't move the video to its trash: {reason}") from None

    def reveal(self, name: str) -> None:
        """Shows a video's file in the Finder, or its folder in another system's file manager.

        Raises:
            UnknownVideoError: there is no such video.
            OutputError: there is no file manager, or it shows nothing.
        """
        path = self.get(name).path
        if not can_reveal():
            raise OutputError("this system has no program that shows files")
        command = ["open", "-R", str(path)] if ON_A_MAC else ["xdg-open", str(path.parent)]
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        try:
            code = subprocess.Popen(command, start_new_session=True, **quiet).wait(_LONGEST_REVEAL)
        except subprocess.TimeoutExpired:  # the file manager itself runs until it is closed
            return
        except OSError as error:
            raise OutputError(f"the file can't be shown: {error.strerror}") from None
        if code:
            raise OutputError("the system's file manager can't show the file")

    def _files(self) -> dict[str, tuple[Path, os.stat_result]]:
        """The videos' files by name, with their sizes and times."""
        found: dict[str, tuple[Path, os.stat_result]] = {}
        with os.scandir(self.home.videos) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                stem, suffix = os.path.splitext(entry.name)
                hidden = entry.name.startswith(".") or entry.name.endswith(PREVIEW)
                if hidden or suffix.lower() not in FORMS:
                    continue
                # A link may lead to a file that isn't meant to be shown.
                if not entry.is_file(follow_symlinks=False):
                    continue
                name = stem if suffix == FORMS[0] else entry.name
                try:
                    found.setdefault(name, (Path(entry.path), entry.stat()))
                except FileNotFoundError:
                    continue
        return found

    def _video(self, path: Path, state: os.stat_result) -> Video:
        """A video with its record, which is read once."""
        name = path.stem if path.suffix == FORMS[0] else path.name
        key = (state.st_mtime_ns, state.st_size)
        with self._lock:
            known = self._read.get(name)
        if known is not None and known[:2] == key:
            return known[2]
        record, problem = _record(path)
        about = {"created": state.st_mtime, "bytes": state.st_size}
        video = Video(name=name, path=path, record=record, problem=problem, **about)
        with self._lock:
            self._read[name] = (*key, video)
        return video

    def _model(self, source: str, missing: list[str]) -> str:
        """The name of a recorded model, here."""
        if source in BUNDLED or source in ALIASES:
            name = source
        elif variant := NAMES.get(source.lower()):
            name = variant.alias
        else:
            name = Path(source).name
        try:
            if not find_model(self.home, name).is_here:
                missing.append(f"the model {name} isn't on this machine")
        except CogVideoXError:
            missing.append(f"the model {name[:80]} isn't here any more")
        return name

    def _adapters(
        self, settings: Mapping[str, Any], missing: list[str]
    ) -> Iterator[tuple[str, float]]:
        for adapter in settings.get("lora", ()):
            name = Path(adapter["source"]).name
            if is_finished(self.store, name):
                yield name, adapter["scale"]
            else:
                missing.append("an adapter that it was made with isn't here any more")

    def _source(self, video: Video, kind: str, missing: list[str]) -> Path | None:
        """The picture or clip that a video was made of, if it is here and the same."""
        recorded = video.settings.get(kind)
        if recorded is None:
            return None
        stem = FILES[kind]
        found = []
        if recorded != AN_ARRAY and ID.fullmatch(video.name):
            found = sorted(self.home.of_job(video.name).glob(f"{stem}.*"))
        if not found:
            missing.append(f"the {stem} that it was made of isn't here any more")
            return None
        try:
            same = content_digest(found[0]) == video.settings.get(f"{kind}_sha256")
        except InvalidInputError:
            same = False
        if not same:
            missing.append(f"the {stem} that it was made of has changed")
        return found[0] if same else None


def can_reveal() -> bool:
    """Whether this system has something that shows files, and a screen."""
    has_screen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return ON_A_MAC or (has_screen and shutil.which("xdg-open") is not None)


def _newest_first(file: tuple[Path, os.stat_result]) -> tuple[float, str]:
    path, state = file
    return -state.st_mtime_ns, path.name


def _record(path: Path) -> tuple[Mapping[str, Any] | None, str]:
    """The record in a file, or why there is none."""
    try:
        record = read_record(path)
    except InvalidInputError:
        return None, "the file is damaged"
    if record is None:
        return None, "the file has no record of how it was made"
    try:
        check_record(record)
    except InvalidInputError as error:
        return None, str(error)
    if "model" not in record or "prompt" not in record.get("settings", {}):
        return None, "its record is damaged"
    return record, ""


def _other_seed(seed: Any) -> int:
    drawn = random_seed()
    return (drawn + 1) % SEEDS if drawn == seed else drawn
