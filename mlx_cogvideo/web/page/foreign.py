"""Keeps from Gradio what the page never sends: names of files that weren't uploaded.

Gradio takes a file by its path, and downloads one whose path is an address. Here a path has to be
one of an upload, and what else a client says of where a file is gets lost on the way. Clients see
the folder of the uploads under another name.
"""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..refusals import Refusal

_CALLS, _UPLOAD, _FILES = "/gradio_api/", "/gradio_api/upload", "/gradio_api/file="
_ALIAS = "/uploads"
_TEXTS = (b"application/json", b"text/event-stream")
_ELSEWHERE = ("url", "is_stream")
"""What a file's description may say beside its path, and Gradio might follow."""


class OnlyUploads:
    """ASGI middleware around Gradio's routes, whose bodies are small: another one sees to that.

    Attributes:
        folder: that of the uploads.
    """

    def __init__(self, app: ASGIApp, folder: Path):
        self._app, self.folder = app, Path(os.path.realpath(folder))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_CALLS):
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith(_FILES) and "://" in scope["path"]:
            await _refused()(scope, receive, send)
            return
        if scope["path"].startswith(f"{_FILES}{_ALIAS}/"):
            name = scope["path"].removeprefix(f"{_FILES}{_ALIAS}/")
            path = f"{_FILES}{self.folder}/{name}"
            scope = {**scope, "path": path, "raw_path": quote(path).encode()}
        others = [(n, value) for n, value in scope["headers"] if n != b"accept-encoding"]
        scope, send = {**scope, "headers": others}, self._without_folder(send)
        if scope["method"] != "POST" or scope["path"].startswith(_UPLOAD):
            await self._app(scope, receive, send)
            return
        body, gone = await _read(receive)
        try:
            body = self._checked(body)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            if waiting and gone is None:
                return waiting.pop()
            return gone or await receive()

        others = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        headers = [*others, (b"content-length", str(len(body)).encode())]
        await self._app({**scope, "headers": headers}, again, send)

    def _without_folder(self, send: Send) -> Send:
        """Sends texts in which the folder has its other name; an event comes in one piece."""
        is_text = False

        async def send_aliased(message: Message) -> None:
            nonlocal is_text
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                kind = next((v for name, v in headers if name.lower() == b"content-type"), b"")
                is_text = kind.startswith(_TEXTS)
                if is_text:  # its length changes
                    headers = [each for each in headers if each[0].lower() != b"content-length"]
                message = {**message, "headers": headers}
            elif is_text and message["type"] == "http.response.body":
                body = message.get("body", b"")
                body = body.replace(str(self.folder).encode(), _ALIAS.encode())
                message = {**message, "body": body}
            await send(message)

        return send_aliased

    def _checked(self, body: bytes) -> bytes:
        """A call with descriptions of uploads alone; raises Refusal where it has others."""
        if not body:
            return body
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            raise Refusal(400, "the request isn't JSON", code="bad_json") from None
        waiting: list[Any] = [call]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                self._check(value)
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
        return json.dumps(call).encode()

    def _check(self, described: dict[str, Any]) -> None:
        for name in _ELSEWHERE:
            described.pop(name, None)
        path = described.get("path")
        if isinstance(path, str) and path.startswith(f"{_ALIAS}/"):
            path = described["path"] = str(self.folder / path.removeprefix(f"{_ALIAS}/"))
        if path is not None and not self._is_upload(path):
            raise _foreign()

    def _is_upload(self, path: Any) -> bool:
        try:
            return Path(os.path.realpath(path)).is_relative_to(self.folder)
        except (TypeError, ValueError):
            return False


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


def _foreign() -> Refusal:
    return Refusal(403, "only uploaded files are taken, not those of this or another server")


def _refused() -> Any:
    return _foreign().response()
