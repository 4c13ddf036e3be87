"""What the tabs show of files: videos of the gallery, their thumbnails, and trainings' samples.

They are named by what is listed; no file of this machine is.
"""

from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

from ...errors import CogVideoXError
from ..adapters import samples_of
from ..gallery import Gallery, UnknownVideoError
from ..jobs import ID
from ..service import Service

_NO_STORE = {"Cache-Control": "private, no-store"}


def file_url(name: str) -> str:
    """Where the page finds a video of the gallery, seen from the page."""
    return f"shown/video/{quote(name, safe='')}"


def picture_url(name: str, created: float) -> str:
    """Where the page finds the thumbnail of a video, which was made at this time."""
    return f"shown/picture/{quote(name, safe='')}?at={created:.3f}"


def sample_url(training_id: str, step: int) -> str:
    """Where the page finds what a training has made after some steps."""
    return f"shown/sample/{quote(training_id, safe='')}/{step}"


def shown_routes(service: Service) -> APIRouter:
    """What answers at these addresses. It has to be added before the page is mounted."""
    router, gallery = APIRouter(prefix="/shown", include_in_schema=False), Gallery(service.store)

    @router.get("/video/{name}")
    def video(name: str) -> FileResponse:
        try:
            return _answer(gallery.get(name).path)
        except UnknownVideoError:
            raise HTTPException(404, "there is no such video") from None

    @router.get("/picture/{name}")
    def picture(name: str) -> FileResponse:
        try:
            path = gallery.thumbnail(name)
        except CogVideoXError:
            path = None
        if path is None:
            raise HTTPException(404, "there is no picture of this video")
        return _answer(path)

    @router.get("/sample/{training_id}/{step}")
    def sample(training_id: str, step: int) -> FileResponse:
        found = samples_of(service.home, training_id) if ID.fullmatch(training_id) else []
        path = next((each.path for each in found if each.step == step), None)
        if path is None:
            raise HTTPException(404, "there is no such sample")
        return _answer(path)

    return router


def _answer(path: Path) -> FileResponse:
    if not path.is_file():
        raise HTTPException(404, "the file isn't there any more")
    return FileResponse(path, headers=_NO_STORE, content_disposition_type="inline")
