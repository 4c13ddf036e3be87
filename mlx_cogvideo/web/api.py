"""The HTTP API: OpenAI's calls for videos, and ours beside them."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from ..checkpoints import BUNDLED
from ..errors import CogVideoXError, InvalidInputError, OutputError
from .answers import adapter_object, model_object, video_object
from .events import events_of
from .home import Home
from .jobs import DONE, Job, UnknownJobError
from .models import find_model, list_models
from .pictures import thumbnail
from .reference import CREATE, MOVE, REMIX, VIDEO
from .refusals import Refusal, no_room, refusal_of
from .schema import (
    Wanted,
    frames_for,
    read_json,
    wanted_from_form,
    wanted_from_json,
    wrong_setting,
)
from .service import FILES, Service, VideoRequest
from .uploads import Form, named_by_kind, new_upload, read_form, write_data_url

MOST_LISTENERS = 100
"""Streams of events at once."""
_REFERENCE = "input_reference"


class Api:
    """The calls of the API. What may wait or computes is done in threads."""

    def __init__(self, service: Service):
        self._service, self._runner = service, service.runner
        self._one_at_a_time: CapacityLimiter | None = None
        self._adding = self._listeners = 0

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter()
        video = "/v1/videos/{video_id}"
        answers: dict[str, Any] = {"responses": VIDEO}
        routes: list[tuple[str, str, Callable, dict[str, Any]]] = [
            ("POST", "/v1/videos", self.create, answers | {"openapi_extra": CREATE}),
            ("GET", "/v1/videos", self.list_videos, {}),
            ("GET", video, self.retrieve, answers),
            ("DELETE", video, self.delete, {}),
            ("GET", f"{video}/content", self.content, {"response_class": Response}),
            ("GET", f"{video}/events", self.events, {"response_class": Response}),
            ("POST", f"{video}/stop", self.stop, answers),
            ("POST", f"{video}/resume", self.resume, answers),
            ("POST", f"{video}/move", self.move, answers | {"openapi_extra": MOVE}),
            ("POST", f"{video}/remix", self.remix, answers | {"openapi_extra": REMIX}),
            ("GET", "/v1/models", self.list_models, {}),
            ("GET", "/v1/models/{model}", self.model, {}),
            ("GET", "/v1/adapters", self.list_adapters, {}),
            ("GET", "/health", self.health, {}),
        ]
        for method, path, call, more in routes:
            router.add_api_route(path, call, methods=[method], response_model=None, **more)
        every = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
        nothing = "/v1/{rest:path}"
        router.add_api_route(nothing, self.nothing, methods=every, include_in_schema=False)
        return router

    async def create(self, request: Request) -> dict[str, Any]:
        """Queue a video."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        form = Form()
        try:
            if kind == "multipart/form-data":
                content_type = request.headers["content-type"]
                form = await read_form(content_type, request.stream(), self._uploads)
                for name in form.files.keys() - {_REFERENCE}:
                    raise Refusal(400, f"{name[:80]!r} takes no file", param=name[:80])
                wanted = wanted_from_form(form.fields)
            elif kind == "application/json":
                wanted = wanted_from_json(await request.body())
            else:
                problem = "send application/json or multipart/form-data"
                raise Refusal(415, problem, code="unsupported_media_type")
            if wanted.reference is not None:
                if form.files:
                    raise Refusal(400, "give one input_reference", param=_REFERENCE)
                form.files[_REFERENCE] = await to_thread.run_sync(
                    write_data_url, wanted.reference, self._uploads
                )
            return await self._add(wanted, form)
        finally:
            form.remove()

    async def list_videos(
        self,
        after: str | None = Query(None, description="Id of the last video of the page before."),
        limit: int = Query(20, ge=1, le=100),
        order: Literal["asc", "desc"] = Query("desc", description="By the time of their creation."),
    ) -> dict[str, Any]:
        """List the videos, finished and unfinished."""
        return await to_thread.run_sync(self._list, after, limit, order)

    def _list(self, after: str | None, limit: int, order: str) -> dict[str, Any]:
        jobs = [job for job in self._runner.store.all() if job.kind == "video"]
        if order == "desc":
            jobs.reverse()
        if after is not None:
            last = self._job(after)
            jobs = jobs[[job.id for job in jobs].index(last.id) + 1 :]
        data = [video_object(self._runner, job) for job in jobs[:limit]]
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(jobs) > limit,
        }

    async def retrieve(self, video_id: str) -> dict[str, Any]:
        """A video's status and progress."""
        return await to_thread.run_sync(self._video, video_id)

    async def delete(self, video_id: str) -> dict[str, Any]:
        """Cancel a video that isn't finished, and delete its files."""
        await to_thread.run_sync(self._delete, video_id)
        return {"id": video_id, "object": "video.deleted", "deleted": True}

    def _delete(self, video_id: str) -> None:
        job = self._job(video_id)
        self._runner.remove(job.id)
        if job.state == DONE:
            (self._home.folder / job.output).unlink(missing_ok=True)

    async def content(
        self,
        video_id: str,
        variant: Literal["video", "thumbnail", "preview"] = Query(
            "video",
            description="The MP4, a small picture of it as JPEG, or the newest preview as GIF.",
        ),
    ) -> Response:
        """Download a video, or part of it by a Range header."""
        job = await to_thread.run_sync(self._job, video_id)
        if variant == "preview":
            preview = self._runner.progress(job.id).preview
            path = self._home.of_job(job.id) / (preview or "none")
            name = f"{job.id}.preview.gif"
        elif job.state != DONE:
            raise Refusal(409, "the video isn't finished", code="not_finished")
        else:
            path, name = self._home.folder / job.output, f"{job.id}.mp4"
        if not path.is_file():
            raise Refusal(404, "there is no such file, or not any more", code="not_found")
        if variant == "thumbnail":
            small = await to_thread.run_sync(thumbnail, path, self._home.thumbnails)
            if small is None:
                raise Refusal(404, "no picture can be made of this video", code="not_found")
            return FileResponse(small, filename=f"{job.id}.jpg")
        return FileResponse(path, filename=name)

    async def events(self, video_id: str) -> Response:
        """Server-sent events: ``progress`` whenever anything changes, then ``end``."""
        await to_thread.run_sync(self._job, video_id)
        if self._listeners >= MOST_LISTENERS:
            raise no_room(f"{MOST_LISTENERS} streams of events are open", "too_many_streams")
        self._listeners += 1
        return StreamingResponse(self._listen(video_id), media_type="text/event-stream")

    async def _listen(self, video_id: str) -> AsyncIterator[str]:
        try:
            async for event in events_of(lambda: self._video(video_id)):
                yield event
        finally:
            self._listeners -= 1

    async def stop(self, video_id: str) -> dict[str, Any]:
        """Stop a video after its step, with its state saved."""
        return await to_thread.run_sync(self._act, self._runner.stop, video_id)

    async def resume(self, video_id: str) -> dict[str, Any]:
        """Continue a stopped or failed video, behind the others."""
        return await to_thread.run_sync(self._act, self._runner.resume, video_id)

    async def move(self, video_id: str, request: Request) -> dict[str, Any]:
        """Move a waiting video in the queue."""
        place = read_json(await request.body()).get("position")
        if not isinstance(place, int) or isinstance(place, bool) or place < 1:
            raise Refusal(400, "position must be a whole number from 1", param="position")
        return await to_thread.run_sync(self._act, self._runner.move, video_id, place - 1)

    def _act(self, action: Callable, video_id: str, *arguments: Any) -> dict[str, Any]:
        job = self._job(video_id)
        try:
            action(job.id, *arguments)
        except CogVideoXError as error:
            raise refusal_of(error, conflict=True) from None
        return self._video(job.id)

    async def remix(self, video_id: str, request: Request) -> dict[str, Any]:
        """Queue a video with the settings of another one and a new prompt."""
        wanted = wanted_from_json(await request.body())
        if wanted.reference is not None:
            raise Refusal(400, "a remix keeps the picture or clip", param=_REFERENCE)
        job = await to_thread.run_sync(self._job, video_id)
        settings = {**job.about["settings"], **wanted.settings}
        merged = Wanted(
            model=wanted.model or job.about["model"],
            settings=settings,
            seconds=wanted.seconds,
            adapters=wanted.adapters or tuple(map(tuple, job.about.get("adapters", ()))),
        )
        form = Form()
        try:
            form.files |= await to_thread.run_sync(self._sources, job)
            return await self._add(merged, form, remixed_from=job.id)
        finally:
            form.remove()

    def _sources(self, job: Job) -> dict[str, Path]:
        """Copies of the files that a video is made of."""
        copies = {}
        for stem in FILES.values():
            for path in self._home.of_job(job.id).glob(f"{stem}.*"):
                copies[_REFERENCE] = new_upload(self._uploads)
                shutil.copyfile(path, copies[_REFERENCE])
        return copies

    async def list_models(self) -> dict[str, Any]:
        """List the models: those on this machine first."""
        models = await to_thread.run_sync(list_models, self._home)
        return {"object": "list", "data": [model_object(model) for model in models]}

    async def model(self, model: str) -> dict[str, Any]:
        """A model by its name."""
        try:
            return model_object(await to_thread.run_sync(find_model, self._home, model))
        except CogVideoXError as error:
            raise Refusal(404, str(error), param="model", code="model_not_found") from None

    async def list_adapters(self) -> dict[str, Any]:
        """List the adapters that were trained here, the newest first."""
        adapters = await to_thread.run_sync(self._service.adapters)
        return {"object": "list", "data": [adapter_object(each) for each in adapters]}

    async def health(self) -> dict[str, str]:
        """Whether the server answers; needs no token."""
        return {"status": "ok"}

    async def nothing(self, request: Request, rest: str) -> Response:
        problem = f"there is no {request.method} /v1/{rest[:80]}: see /docs"
        raise Refusal(404, problem, code="not_found")

    @property
    def _home(self) -> Home:
        return self._service.home

    @property
    def _uploads(self) -> Path:
        return self._home.uploads

    def _job(self, video_id: str) -> Job:
        job = self._runner.store.get(video_id)
        if job.kind != "video":
            raise UnknownJobError(f"there is no video {video_id[:40]!r}")
        return job

    def _video(self, video_id: str) -> dict[str, Any]:
        return video_object(self._runner, self._job(video_id))

    async def _add(
        self, wanted: Wanted, form: Form, remixed_from: str | None = None
    ) -> dict[str, Any]:
        """Adds a video, one after another: estimates aren't made side by side."""
        store = self._runner.store
        # One that has just been added may still count twice; the store knows better.
        if len(store.queued()) + self._adding > store.most_queued:
            raise no_room(
                f"{store.most_queued} jobs are waiting already: try again later", "queue_full"
            )
        if self._one_at_a_time is None:  # it belongs to the loop that runs
            self._one_at_a_time = CapacityLimiter(1)
        self._adding += 1
        try:
            return await to_thread.run_sync(
                self._add_now, wanted, form, remixed_from, limiter=self._one_at_a_time
            )
        finally:
            self._adding -= 1

    def _add_now(self, wanted: Wanted, form: Form, remixed_from: str | None) -> dict[str, Any]:
        files = {}
        for name, path in form.files.items():
            form.files[name], media = named_by_kind(path)
            files[media.kind] = form.files[name]
        name = wanted.model or self._default_model("image" in files)
        settings = dict(wanted.settings)
        notes = []
        if wanted.seconds is not None:
            fps = settings.get("fps") or self._service.model(name).fps
            frames = settings["num_frames"] = frames_for(wanted.seconds, fps)
            notes.append(
                f"{wanted.seconds:g} seconds became {frames / fps:.4g}: {frames} frames, which are "
                f"8N+1, at {fps:g} a second"
            )
        request = VideoRequest(model=name, settings=settings, adapters=wanted.adapters, **files)
        try:
            job = self._service.add_video(request)
        except InvalidInputError as error:
            raise wrong_setting(error) from None
        if remixed_from is not None:
            with suppress(UnknownJobError, OutputError):
                about = job.about | {"remixed_from": remixed_from}
                job = self._runner.store.change(job.id, about=about)
        return video_object(self._runner, job) | {"notes": notes}

    def _default_model(self, takes_image: bool) -> str:
        """The first model that is here, and the bundled one where there is no other."""
        models = [m for m in list_models(self._home) if m.is_here and m.takes_image == takes_image]
        return min(models, key=lambda model: model.name in BUNDLED).name


def refused(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that an error has ended."""
    refusal = refusal_of(error) if isinstance(error, CogVideoXError) else error
    assert isinstance(refusal, Refusal)
    return refusal.response()
