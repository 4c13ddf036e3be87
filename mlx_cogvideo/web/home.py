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
    def running(self) -> Path:
        """What the worker process locks, so that there is one at a time."""
        return self.folder / "worker"

    @property
    def serving(self) -> Path:
        """What the server locks, so that there is one at a time."""
        return self.folder / "server"

    def of_job(self, job_id: str) -> Path:
        """The folder of a job: its description, its inputs and what its worker has said."""
        return self.jobs / job_id


def open_home(folder: str | Path = DEFAULT) -> Home:
    """Makes the folder and those in it, for their owner alone.

    Raises:
        OutputError: they can't be made or written.
    """
    home = Home(Path(os.path.realpath(os.path.expanduser(folder))))
    try:
        for each in (home.folder, home.jobs, home.videos, home.adapters, home.models):
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
