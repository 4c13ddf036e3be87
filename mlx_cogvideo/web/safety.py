"""Keeps from the page and the API what isn't meant for them, not allowed, too large or too slow.

A server on a loopback address is reached by every page that a browser on the same machine shows.
So the names in a request's headers are checked as well as its token.
"""

import asyncio
import contextlib
import hashlib
import hmac
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .hosts import Hosts
from .refusals import Refusal, no_room
from .uploads import remove_cut_off

MIB = 2**20
VIDEOS, HEALTH = "/v1/videos", "/health"
PAGE_CALLS, PAGE_UPLOAD = "/gradio_api/", "/gradio_api/upload"
PAGES = {"/", "/docs"}
"""What links on other pages may lead to."""
_LONGEST_DRAIN, _LARGEST_DRAIN = 5.0, 64 * MIB
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Where the page may load anything from: this server alone. Gradio needs inline scripts."""
_WRONG = '<p role="alert">This token is wrong.</p>\n'
_LOGIN = """\
<!doctype html><html lang="en"><meta charset="utf-8"><title>mlx-cogvideo</title>
<meta name="viewport" content="width=device-width">
<style>body { font: 1rem system-ui; margin: 4rem auto; max-width: 24rem; padding: 0 1rem }</style>
<h1>mlx-cogvideo</h1>
WRONG<form><p><label>Token, which the server has printed where it was started:<br>
<input name="token" type="password" autocomplete="current-password" required autofocus>
</label></p><button>Open</button></form></html>
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may be.

    Attributes:
        upload: bytes of a request with files.
        json: bytes of one that asks for a video in JSON, which may hold a picture.
        body: bytes of any other.
        page: bytes of one of the page's that has no file.
        uploads: requests of more than `body` bytes that are read at once.
        stall: seconds in which something of a body must come.
        rate: bytes a second at which a body must come after that time.
        free: bytes of the disk that uploads leave.
    """

    upload: int = 512 * MIB
    json: int = 32 * MIB
    body: int = MIB
    page: int = MIB // 2
    uploads: int = 4
    stall: float = 30.0
    rate: float = 1024.0
    free: int = 1024 * MIB


class Guard:
    """ASGI middleware around everything that the server answers, the page's own routes included."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Hosts,
        token: str | None,
        folder: Path,
        limits: Limits | None = None,
    ):
        """
        Args:
            app: what is guarded.
            token: what clients must know, or None.
            folder: where uploads go.
        """
        self._app, self._hosts, self._token = app, hosts, token
        self._folder, self._limits = folder, limits or Limits()
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks over a websocket
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send, scope["path"])
        try:
            self._check_sender(scope)
            if (answer := self._entrance(scope)) is not None:
                await answer(scope, receive, send)
                return
            need = self._check_size(scope)
        except Refusal as refusal:
            await _refuse(refusal, scope, receive, send)
            return
        await self._pass_on(scope, _Body(receive, need, self._limits, self._slot), send)

    async def _pass_on(self, scope: Scope, body: "_Body", send: Send) -> None:
        """Has the application answer, unless its request's body turns out to be refused."""
        started = False

        async def send_unless_refused(message: Message) -> None:
            nonlocal started
            if body.refusal is None or started:
                started = True
                await send(message)

        try:
            await self._app(scope, body, send_unless_refused)
        except Exception:
            if body.refusal is None:
                if not started:  # what is outside of this would answer without the headers
                    problem = "the server has failed: its terminal says why"
                    await Refusal(500, problem).response()(scope, body.raw, send)
                raise
        finally:
            self._uploads -= body.has_slot
        if body.refusal is not None and not started:
            await _refuse(body.refusal, scope, body.raw, send)

    def _check_sender(self, scope: Scope) -> None:
        """Raises Refusal for a request that another page may have sent."""
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if not self._hosts.allow(host):
            problem = "this server has another name: open it by the address that it has printed"
            raise Refusal(403, problem, code="wrong_host")
        origin = headers.get("origin")
        other = origin is not None and _netloc(origin) != host
        site = headers.get("sec-fetch-site", "none")
        is_link = (
            scope["method"] == "GET"
            and scope["path"] in PAGES
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )
        if other or (site not in ("same-origin", "none") and not is_link):
            raise Refusal(403, "another web page may not use this server", code="wrong_origin")

    def _entrance(self, scope: Scope) -> Response | None:
        """The answer to a browser that has just been given the token, or is asked for it.

        Raises:
            Refusal: a program doesn't know the token.
        """
        if self._token is None or scope["path"] == HEALTH:
            return None
        headers = Headers(scope=scope)
        cookie, value = f"mlx_cogvideo_{scope['server'][1]}", self._cookie(self._token)
        asked = ""
        if scope["path"] in PAGES and scope["method"] == "GET":
            asked = given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if given and _same(given, self._token):
                answer = RedirectResponse(scope["path"], 303)
                answer.set_cookie(cookie, value, httponly=True, samesite="strict", path="/")
                return answer
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(given.strip(), self._token):
            return None
        if any(_same(each, value) for each in _cookies(headers, cookie)):
            return None
        if scope["path"] in PAGES and "text/html" in headers.get("accept", ""):
            return HTMLResponse(_LOGIN.replace("WRONG", _WRONG if asked else ""), 401)
        raise Refusal(
            401,
            "the server's token is missing or wrong: send it as Authorization: Bearer TOKEN",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    @staticmethod
    def _cookie(token: str) -> str:
        """What a browser keeps instead of the token."""
        return hmac.new(token.encode(), b"cookie of the page", hashlib.sha256).hexdigest()

    def _check_size(self, scope: Scope) -> int:
        """The bytes that a request's body may have.

        Raises:
            Refusal: it says that it has more, or there is no room for it.
        """
        headers, limits = Headers(scope=scope), self._limits
        path, most = scope["path"].rstrip("/"), limits.body
        if path.startswith(PAGE_CALLS):
            most = limits.page
        if path in (VIDEOS, PAGE_UPLOAD) and scope["method"] == "POST":
            remove_cut_off(self._folder)
            is_form = headers.get("content-type", "").lower().startswith("multipart/")
            most = limits.upload if is_form else limits.json
        length = headers.get("content-length", "")
        declared = int(length) if length.isdecimal() and len(length) < 20 else None
        if length and (declared is None or declared > most):
            raise _too_large(most)
        need = most if declared is None and "transfer-encoding" in headers else declared or 0
        if need > limits.body and shutil.disk_usage(self._folder).free < need + limits.free:
            raise Refusal(507, "the server's disk has no room for this upload", code="disk_full")
        return most

    def _slot(self) -> bool:
        """Takes one of the places of large requests, if one is free."""
        if self._uploads >= self._limits.uploads:
            return False
        self._uploads += 1
        return True


class _Body:
    """Receives the body of one request, and refuses it where it breaks a limit.

    Attributes:
        raw: receives from the client.
        refusal: why nothing is received any more.
        has_slot: whether it counts as a large one.
    """

    def __init__(self, receive: Receive, most: int, limits: Limits, slot):
        self.raw, self._most, self._limits, self._slot = receive, most, limits, slot
        self.refusal: Refusal | None = None
        self.has_slot = self._complete = False
        self._received, self._waited = 0, 0.0

    async def __call__(self) -> Message:
        if self._complete:  # whoever asks waits for the client to go
            return await self.raw()
        if self.refusal is None:
            try:
                return await self._next()
            except Refusal as refusal:
                self.refusal = refusal
        return {"type": "http.disconnect"}

    async def _next(self) -> Message:
        begin = time.monotonic()
        try:
            async with asyncio.timeout(self._limits.stall):
                message = await self.raw()
        except TimeoutError:
            raise _too_slow() from None
        self._waited += time.monotonic() - begin
        if message["type"] != "http.request":
            return message
        self._received += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        limits = self._limits
        if self._received > self._most:
            raise _too_large(self._most)
        if self._received > limits.body and not self.has_slot:
            self.has_slot = self._slot()
            if not self.has_slot:
                raise no_room("other uploads are under way: try again later", "uploads_busy")
        if not self._complete and self._waited > limits.stall + self._received / limits.rate:
            raise _too_slow()
        return message


def _netloc(origin: str) -> str | None:
    """The host and port of an origin; None if it is none."""
    try:
        return urlsplit(origin.lower()).netloc
    except ValueError:
        return None


def _too_large(most: int) -> Refusal:
    size = f"{most / MIB:g} MiB"
    return Refusal(413, f"the request is too large: at most {size} are taken", code="too_large")


def _too_slow() -> Refusal:
    return Refusal(408, "the request came too slowly: send it again", code="too_slow")


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers, and reads on for a while: a client that still sends would lose the answer."""
    answer = refusal.response()
    answer.headers["Connection"] = "close"
    start = {"type": "http.response.start", "status": answer.status_code}
    await send(start | {"headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    headers = Headers(scope=scope)
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if has_body and refusal.status != 408:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_DRAIN):
                await _drain(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    read = 0
    while read < _LARGEST_DRAIN:
        message = await receive()
        read += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def _with_headers(send: Send, path: str) -> Send:
    """Sends answers with the headers that keep browsers from using them elsewhere."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("Content-Security-Policy", _POLICY)
            if path.startswith("/v1/"):
                headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return send_with_headers


def _cookies(headers: Headers, name: str) -> Iterable[str]:
    for part in headers.get("cookie", "").split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            yield value


def _same(given: str, known: str) -> bool:
    """Compares in a time that doesn't tell how much is right."""
    return hmac.compare_digest(given.encode(errors="replace"), known.encode())
