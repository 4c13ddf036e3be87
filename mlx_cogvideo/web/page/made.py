"""Videos and previews by the id of their job, and copies of what was uploaded.

The page names no file of this machine, neither to the browser nor from it.
"""

import shutil
from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

from ...errors import OutputError
from ..home import Home
from ..jobs import DONE, Job, UnknownJobError
from ..service import FILES, Service
from ..uploads import named_by_kind, new_upload

_NO_STORE = {"Cache-Control": "private, no-store"}


def video_url(job_id: str) -> str:
    """Where the page finds a finished video, seen from the page."""
    return f"made/{job_id}/video"


def preview_url(service: Service, job: Job) -> str | None:
    """Where the page finds the newest preview of a job, if there is one.

    Each preview has an address of its own, so that a browser shows the new one.
    """
    path = _preview(service, job)
    try:
        return None if path is None else f"made/{job.id}/preview?at={path.stat().st_mtime_ns}"
    except OSError:  # the video exists meanwhile
        return None


def routes(service: Service) -> APIRouter:
    """What answers at these addresses. It has to be added before the page is mounted."""
    router = APIRouter(include_in_schema=False)

    @router.get("/made/{job_id}/video")
    def video(job_id: str) -> FileResponse:
        job = _job(service, job_id)
        if job.kind != "video" or job.state != DONE:
            raise HTTPException(404, "this video isn't finished")
        return _answer(service.home.folder / job.output)

    @router.get("/made/{job_id}/preview")
    def preview(job_id: str) -> FileResponse:
        path = _preview(service, _job(service, job_id))
        if path is None:
            raise HTTPException(404, "there is no preview")
        return _answer(path)

    return router


def copied(home: Home, path: Path) -> Path:
    """A copy among the uploads, under a name of ours with the ending of what the file is.

    Raises:
        InvalidInputError: it is neither a picture nor a clip, damaged or too large.
        OutputError: it can't be written, or the file has gone.
    """
    try:
        copy = Path(shutil.copyfile(path, new_upload(home.uploads)))
    except OSError as error:
        raise OutputError(f"the file can't be kept ({error.strerror}): choose it again") from None
    try:
        return named_by_kind(copy)[0]
    except BaseException:
        copy.unlink(missing_ok=True)
        raise


def sources_of(service: Service, job: Job) -> dict[str, Path]:
    """The picture or the clip that a job was given, as far as it is there, by its setting."""
    folder = service.home.of_job(job.id)
    found = {name: next(folder.glob(f"{stem}.*"), None) for name, stem in FILES.items()}
    return {name: path for name, path in found.items() if path is not None}


def _job(service: Service, job_id: str) -> Job:
    try:
        return service.store.get(job_id)
    except UnknownJobError:
        raise HTTPException(404, "there is no such job") from None


def _preview(service: Service, job: Job) -> Path | None:
    found = service.runner.progress(job.id).preview
    if found is None or job.state == DONE:
        return None
    path = (service.home.of_job(job.id) / found).resolve()
    return path if path.is_relative_to(service.home.folder) and path.is_file() else None


def _answer(path: Path) -> FileResponse:
    if not path.is_file():
        raise HTTPException(404, "the file isn't there any more")
    return FileResponse(path, headers=_NO_STORE, content_disposition_type="inline")
