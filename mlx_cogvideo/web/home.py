"""The folder that the server keeps everything in: jobs, videos, adapters and models."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError

DEFAULT = "~/mlx_cogvideo"
"""Where the folder is, unless the command names another one."""


@dataclass(frozen=True)
class Home:
    """The folder, and what lies where in it.

    Attributes:
        folder: an absolute path.
    """

    folder: Path

    @property
    def jobs(self) -> Path:
        """A folder for each job, named by its id."""
        return self.folder / "jobs"

    @property
    def videos(self) -> Path:
        """The finished videos."""
        return self.folder / "videos"

    @property
    def adapters(self) -> Path:
        """A folder for each fine-tuning, named by its id."""
        return self.folder / "adapters"

    @property
    def models(self) -> Path:
        """Model folders that were made here; others may be put beside them."""
        return self.folder / "models"

    @property
    def results(self) -> tuple[Path, ...]:
        """The folders of what jobs make."""
        return self.videos, self.adapters, self.models

    @property
    def uploads(self) -> Path:
        """Files that clients send, until a job has them."""
        return self.folder / "uploads"

    @property
    def thumbnails(self) -> Path:
        """Small pictures of the videos; it is made with the first of them."""
        return self.folder / "thumbnails"

    @property
    def running(self) -> Path:
        """What the worker process locks, so that there is one at a time."""
        return self.folder / "worker"

    @property
    def address(self) -> Path:
        """Says where the server is, while one runs."""
        return self.folder / "address.txt"

    @property
    def serving(self) -> Path:
        """What the server locks, so that there is one at a time."""
        return self.folder / "server"

    def of_job(self, job_id: str) -> Path:
        """The folder of a job: its description, its inputs and what its worker has said."""
        return self.jobs / job_id

    def seen_from_job(self, path: str | Path) -> str:
        """A path as the command of a job gets it: relative, so that no record names this machine's
        folders. Names of models that aren't in the folder stay as they are."""
        within = Path(path).is_relative_to(self.folder)
        return f"../../{Path(path).relative_to(self.folder)}" if within else str(path)


def open_home(folder: str | Path = DEFAULT) -> Home:
    """Makes the folder and those in it, for their owner alone.

    Raises:
        OutputError: they can't be made or written.
    """
    if "\0" in str(folder):
        raise OutputError(f"{str(folder)!r} is no name for a folder: choose another --folder")
    home = Home(Path(os.path.realpath(os.path.expanduser(folder))))
    try:
        for each in (home.folder, home.jobs, home.uploads, *home.results):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(each, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise OutputError(
            f"can't keep videos in {home.folder} ({error.strerror}): choose another --folder"
        ) from None
    return home


def new_id(kind: str) -> str:
    """A new name that nobody can guess, such as ``video_0f3a5b1c9d2e4f60718293a4``."""
    return f"{kind}_{secrets.token_hex(12)}"
