"""Refuses what the page never sends: files of other servers, which Gradio would download."""

import json
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..refusals import Refusal

_CALLS, _UPLOAD, _FILES = "/gradio_api/", "/gradio_api/upload", "/gradio_api/file="


class NoForeignFiles:
    """ASGI middleware around Gradio's routes, whose bodies are small: another one sees to that."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_CALLS):
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith(_FILES) and "://" in scope["path"]:
            await _refused()(scope, receive, send)
            return
        if scope["method"] != "POST" or scope["path"].startswith(_UPLOAD):
            await self._app(scope, receive, send)
            return
        body, gone = await _read(receive)
        if any(map(_is_foreign, _texts(body))):
            await _refused()(scope, receive, send)
            return
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            if first and gone is None:
                return first.pop()
            return gone or await receive()

        await self._app(scope, again, send)


async def _read(receive: Receive) -> tuple[bytes, Message | None]:
    """A whole body, and the message that the client has gone, if it has."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body, message
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body, None


def _texts(body: bytes) -> Iterator[str]:
    """What a call names as the path or the address of a file."""
    try:
        waiting: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from (str(value[name]) for name in ("path", "url") if name in value)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _is_foreign(text: str) -> bool:
    return "://" in text and "/gradio_api/file=" not in text


def _refused() -> Any:
    return Refusal(403, "no file of another server is taken: upload it").response()
