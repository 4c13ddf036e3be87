"""What a job that isn't done has left, to continue from."""

import logging
import shutil
from pathlib import Path, PurePosixPath

from ..errors import OutputError
from ..files import locked
from ..runs.preview import remove_preview
from ..runs.saved_run import remove_saved, saved_path
from .home import Home
from .jobs import Job

logger = logging.getLogger(__name__)


def output_path(home: Home, job: Job) -> Path | None:
    """What a job makes; None for what isn't inside one of the folders of results."""
    parts = PurePosixPath(job.output).parts
    if len(parts) < 2 or ".." in parts or home.folder / parts[0] not in home.results:
        return None
    return home.folder.joinpath(*parts)


def remove_leftovers(home: Home, job: Job) -> None:
    """Removes what a job has saved; where that can't be, it does no harm."""
    output = output_path(home, job)
    if output is None:
        return
    try:
        # With a lock comes the end of what its killed holder has left beside the output.
        with locked(output, "wait"), locked(saved_path(output), "wait"):
            if job.kind == "video":
                remove_saved(saved_path(output))
                remove_preview(output)
            elif job.kind == "training":
                shutil.rmtree(output, ignore_errors=True)
    except OutputError as error:
        logger.warning("%s: what was saved stays: %s", job.id, error)
