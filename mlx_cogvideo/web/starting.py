"""Answers on the port from the first second: making the page may take longer than clients wait."""

import asyncio
import threading
from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .refusals import Refusal
from .safety import HEALTH, PAGES

_SECONDS = "2"
"""When a client should ask again."""
_LONGEST_START = 30.0
_PAGE = f"""\
<!doctype html><html lang="en"><meta charset="utf-8">
<meta http-equiv="refresh" content="{_SECONDS}">
<title>mlx-cogvideo</title>
<p role="status">The page is being opened.</p></html>
"""


class Starting:
    """An ASGI application that says it is starting until another one takes its place."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runs = threading.Event()
        self._lifespan: asyncio.Task | None = None
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()

    def hand_over(self, app: ASGIApp) -> None:
        """Starts another application and has it answer from now on; called in another thread.

        Raises:
            RuntimeError: it, or the server, doesn't start.
        """
        if not self._runs.wait(_LONGEST_START) or self._loop is None:
            raise RuntimeError("the server doesn't start")
        asyncio.run_coroutine_threadsafe(self._start(app), self._loop).result()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _answer(scope["path"])(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        await receive()
        await send({"type": "lifespan.startup.complete"})
        self._runs.set()
        await receive()
        if self._lifespan is not None:
            await self._inbox.put({"type": "lifespan.shutdown"})
            await self._lifespan
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self, app: ASGIApp) -> None:
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                started.set_result(None)
            elif message["type"] == "lifespan.startup.failed":
                started.set_exception(RuntimeError(message.get("message", "it doesn't start")))

        scope: dict[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        await self._inbox.put({"type": "lifespan.startup"})
        self._lifespan = asyncio.create_task(app(scope, self._inbox.get, send))
        try:
            await started
        except RuntimeError:
            self._lifespan = None
            raise
        self._app = app


def _answer(path: str) -> Response:
    headers = {"Retry-After": _SECONDS}
    if path == HEALTH:
        return JSONResponse({"status": "starting"}, headers=headers)
    if path in PAGES:
        return HTMLResponse(_PAGE, 503, headers)
    return Refusal(503, "the server is starting", code="starting", headers=headers).response()
